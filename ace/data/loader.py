"""Batches from any number of shard sets, in an order decided by (seed, step, rank).

A step is the unit of everything random: its (k, l), the samples in it, their crops and their augmentation follow from
the seed and the step's number alone, so a resumed run sees what an uninterrupted one would have seen.
"""

import hashlib
import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _BaseDataLoaderIter, _MultiProcessingDataLoaderIter

from ace.data.augment import augment
from ace.data.augmentation import AS_IT_IS, Augmentation, draw_augmentation
from ace.data.batches import CropPairItem, Shown, ViewItem, collate
from ace.data.crops import resample_all
from ace.data.erase import shown_share
from ace.data.objectives import CYCLE, Objective, spec_of_epoch
from ace.data.params import AugmentParams, ViewsParams
from ace.data.shared_memory import no_room
from ace.data.views import NUM_RANDOM, centered_windows, random_windows
from shards.core.canvas import Pixels, with_channels
from shards.core.errors import ConfigError, OutOfReachError, UserError
from shards.core.grid import CropPair, GridSpec, Window, draw_crop_pair, scale_of_step
from shards.core.params import MixParams
from shards.reading.order import batches_per_epoch, cache_window, epoch_order
from shards.reading.reader import Sample, ShardIndex, ShardReader
from shards.runtime.memory import keep_freed_memory

CropSource = Literal["fresh", "bank"]
Request = tuple[int, int, int, int]
"""(number of the shard set, position among its training samples, step of the whole run, its epoch)."""
PREFETCHED = 2
"""Batches that each loader process is ahead."""
POLL_S = 1.0
"""Seconds between two looks around while no batch comes."""
TIMEOUT_S = 1800.0
"""Longest wait for a batch: longer than servers are insisted on and than the cache is waited for."""
GRACE_S = 5.0
"""Seconds that the loader's processes may take to end before they are killed."""
_STATES = {"D": "waits for a disk or a network drive", "R": "computes", "S": "sleeps", "T": "is stopped"}
_PAGE_BYTES = 4096
_NUM_TENSORS = 2
"""Tensors of a batch that are shared, its crops; each takes whole pages."""


class NoBatchError(OutOfReachError):
    """The loader gave no batch within its timeout; the same command may succeed later."""


class CropDataset(Dataset[CropPairItem | ViewItem]):
    """Training samples of several shard sets, cropped as the objective asks; asked by `Request`."""

    def __init__(
        self,
        members: Sequence[tuple[ShardIndex, MixParams]],
        spec: GridSpec,
        *,
        objective: Objective,
        views: ViewsParams,
        crops: CropSource,
        augment: AugmentParams | None,
        in_channels: int,
        seed: int,
    ) -> None:
        """Open the readers.

        Args:
            members: Shard sets and how training mixes them.
            spec: The grid that training uses.
            objective: Decides which epochs show crop pairs, of which scales, and which show views.
            views: Where views lie.
            crops: `fresh` draws a new pair at every step; `bank` picks one of those stored with the sample.
            augment: What to draw for each crop and whether it is carried out here; None leaves crops as resampled.
            in_channels: Channels of the crops.
            seed: Decides order, (k, l), crops and augmentation.

        Raises:
            ConfigError: a shard set was built with another grid, the objective needs a scale that the grid lacks, or a
                mix has means or deviations of another number of channels.
        """
        for index, _ in members:
            if index.spec != spec:
                raise ConfigError(
                    f"shard set {index.store.location} was built with the grid {index.spec}, training uses {spec}; "
                    f"build it again: dvc repro shard@{index.name}"
                )
        self.spec, self.crops, self.augment = spec, crops, augment
        self.objective, self.views = objective, views
        self.specs = [spec_of_epoch(objective, spec, epoch) for epoch in range(CYCLE)]
        self.in_channels, self.seed = in_channels, seed
        self.mixes = [mix for _, mix in members]
        self.normalisations = [mix.normalisation(in_channels, index.name) for index, mix in members]
        self.indexes = [index for index, _ in members]
        self.readers = [ShardReader(index) for index in self.indexes]
        self.rows = [index.select("train") for index in self.indexes]
        self.window = cache_window(self.indexes, self.rows, [mix.weight for mix in self.mixes])

    def batch_bytes(self, batch_size: int) -> int:
        """Shared memory that a batch of so many samples takes, whatever the epoch shows, to within some pages."""
        num_views = NUM_RANDOM if self.objective == "dino" else len(self.views.centred.sides)
        num_crops = max(num_views if spec is None else 2 for spec in self.specs)
        return batch_size * num_crops * self.in_channels * self.spec.crop_px**2 + _NUM_TENSORS * _PAGE_BYTES

    def __getitem__(self, request: Request) -> CropPairItem | ViewItem:
        """Return the crop pair, or the views, that this sample gets at this step."""
        shard_set, position, step, epoch = request
        sample = self.readers[shard_set].read(int(self.rows[shard_set][position]))
        rng = _generator(self.seed, step, sample.key)
        normalisation, spec = self.normalisations[shard_set], self.specs[epoch % CYCLE]
        if spec is None:
            windows, num_teacher_views = self._view_windows(rng)
            crops = resample_all(sample, windows, self.spec.crop_px)
            views, shown, left = zip(*[self._finish(crop, rng) for crop in crops], strict=True)
            return ViewItem(
                views=list(views),
                shown=list(shown),
                augmentations=list(left),
                num_teacher_views=num_teacher_views,
                normalisation=normalisation,
                key=sample.key,
            )
        pair = self._pair(sample, spec, step, rng)
        crops = resample_all(sample, [pair.window("coarse", spec), pair.window("fine", spec)], spec.crop_px)
        (coarse, coarse_shown, coarse_left), (fine, fine_shown, fine_left) = [self._finish(c, rng) for c in crops]
        return CropPairItem(
            coarse=coarse,
            fine=fine,
            pair=pair,
            normalisation=normalisation,
            key=sample.key,
            coarse_shown=coarse_shown,
            fine_shown=fine_shown,
            coarse_augmentation=coarse_left,
            fine_augmentation=fine_left,
        )

    def __getitems__(self, requests: Sequence[Request]) -> "list[CropPairItem | ViewItem] | UserError":
        """Read the items of one step.

        An error that a user can cause is handed over as it is, not as a traceback of the process that found it.
        """
        try:
            return [self[request] for request in requests]
        except UserError as error:
            return error

    def _view_windows(self, rng: np.random.Generator) -> tuple[list[Window], int]:
        if self.objective == "dino":
            windows = random_windows(self.spec.canvas_px, self.views.random, rng)
            return windows, len(windows)
        centred = self.views.centred
        return centered_windows(self.spec.canvas_px, centred, rng), centred.num_teacher_views

    def _pair(self, sample: Sample, spec: GridSpec, step: int, rng: np.random.Generator) -> CropPair:
        scale = scale_of_step(spec, self.seed, step)
        if self.crops == "fresh":
            return draw_crop_pair(spec, scale, rng)
        stored = [CropPair.from_json(item) for item in sample.meta["grid"]["bank"]]
        bank = [pair for pair in stored if (pair.k, pair.l) == (scale.k, scale.l)]
        if not bank:
            raise ConfigError(
                f"sample {sample.key} has no stored crop pair for (k, l) = {(scale.k, scale.l)}; "
                "set crops to fresh, or raise shard.num_bank_pairs and build the shards again"
            )
        return bank[rng.integers(len(bank))]

    def _finish(self, crop: Pixels, rng: np.random.Generator) -> tuple[Pixels, Shown, Augmentation]:
        """Return the crop, the share of each token that stays, and the augmentation that is left for the batch."""
        params, size_px = self.augment, self.spec.crop_px
        crop = with_channels(crop, self.in_channels)
        drawn = AS_IT_IS if params is None else draw_augmentation(params, rng, size_px=size_px)
        shown = shown_share(drawn.erased, size_px=size_px, t=self.spec.t)
        if params is not None and params.where == "host":
            return augment(crop, drawn, params), shown, Augmentation(erased=drawn.erased)
        return crop, shown, drawn


class StepSampler(Sampler[list[Request]]):
    """The requests of one rank, step by step; epochs follow one another without a pause in the loader.

    Attributes:
        steps_per_epoch: The same on every rank.
        num_steps: Of the whole run.
    """

    def __init__(
        self,
        dataset: CropDataset,
        *,
        batch_size: int,
        rank: int,
        world_size: int,
        first_step: int,
        epochs: int,
    ) -> None:
        """Plan the steps.

        Args:
            dataset: Whose samples are asked for.
            batch_size: Samples of this rank in a step.
            rank: This process among all.
            world_size: Number of processes.
            first_step: Where to begin; a resumed run skips the steps before it undecoded.
            epochs: Length of the whole run.

        Raises:
            ConfigError: there are fewer samples than a step needs.
        """
        self.dataset, self.first_step, self.epochs = dataset, first_step, epochs
        sizes, weights = [len(rows) for rows in dataset.rows], [mix.weight for mix in dataset.mixes]
        self._order = partial(
            epoch_order,
            sizes,
            weights,
            seed=dataset.seed,
            rank=rank,
            world_size=world_size,
            batch_size=batch_size,
            window=dataset.window,
        )
        self.steps_per_epoch = batches_per_epoch(sizes, weights, world_size=world_size, batch_size=batch_size)
        self.num_steps = epochs * self.steps_per_epoch

    def __len__(self) -> int:
        return self.num_steps - self.first_step

    def __iter__(self) -> Iterator[list[Request]]:
        first_epoch, num_skipped = divmod(self.first_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            first = num_skipped if epoch == first_epoch else 0
            batches = self._order(epoch=epoch)[first:]
            for step, batch in enumerate(batches, start=epoch * self.steps_per_epoch + first):
                yield [(shard_set, position, step, epoch) for shard_set, position in batch.tolist()]


class StepLoader(DataLoader[Any]):
    """Batches, step by step. Close its iterator: that ends the processes which make them."""

    def __init__(self, *arguments: Any, while_waiting: Callable[[], object], timeout_s: float, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.while_waiting, self.timeout_s = while_waiting, timeout_s

    def __iter__(self) -> Generator[Any, None, None]:  # type: ignore[override]
        return _until_closed(super().__iter__())

    def _get_iterator(self) -> _BaseDataLoaderIter:
        return _Waiting(self) if self.num_workers else super()._get_iterator()


class _Waiting(_MultiProcessingDataLoaderIter):
    """Torch's iterator, which would wait for ever and call nobody meanwhile."""

    def __init__(self, loader: StepLoader) -> None:
        self._loader = loader
        super().__init__(loader)

    def _get_data(self) -> Any:
        # Turns, not time: a trainer that was itself stopped for a while has not waited.
        for _ in range(math.ceil(self._loader.timeout_s / POLL_S)):
            is_there, data = self._try_get_data(POLL_S)  # type: ignore[no-untyped-call]
            if is_there:
                return data
            self._loader.while_waiting()
        states = ", ".join(f"{process.pid} {_state(process.pid)}" for process in self._workers)
        raise NoBatchError(
            f"no batch has come for {self._loader.timeout_s:g} s from the loader's {len(self._workers)} process(es) "
            f"({states}). Read what these processes wrote, and check that the disk or the server with the shards "
            "answers; the same command then goes on at the last checkpoint"
        )


def build_loader(
    sampler: StepSampler,
    *,
    num_workers: int,
    is_pinned: bool,
    while_waiting: Callable[[], object] = lambda: None,
    timeout_s: float = TIMEOUT_S,
) -> StepLoader:
    """Build a loader of batches over the sampler's steps, in their order.

    Its iterator raises a NoBatchError where its processes do not answer, and a NoSpaceError where they have no shared
    memory to hand a batch over.

    Args:
        sampler: Which samples each step has.
        num_workers: Processes that decode; 0 decodes in this one.
        is_pinned: Whether batches go to page-locked memory, for an accelerator.
        while_waiting: Called about every second while no batch comes; what it raises ends the wait.
        timeout_s: Longest wait for a batch.
    """
    # Not fork: it copies the locks of torch's threads. Not forkserver: its workers outlive a killed trainer.
    context = multiprocessing.get_context("spawn") if num_workers else None
    return StepLoader(
        sampler.dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        prefetch_factor=PREFETCHED if num_workers else None,
        collate_fn=_collate,
        pin_memory=is_pinned,
        multiprocessing_context=context,
        # Its own: the loader would draw a base seed from torch's generator, which a resumed run has restored.
        generator=torch.Generator(),
        worker_init_fn=partial(_start_worker, os.getpid()),
        while_waiting=while_waiting,
        timeout_s=timeout_s,
    )


def _collate(items: Any) -> Any:
    """Return the batch, or the error that a user can cause.

    In a loader's process it is put into shared memory here: torch would do so in a thread of its own, where an error is
    printed, the batch is lost and the trainer waits for it.
    """
    if isinstance(items, UserError):
        return items
    batch = collate(items)
    if get_worker_info() is None:
        return batch
    try:
        return batch.share_memory()
    except RuntimeError as error:
        return no_room(batch.num_bytes, error)


def _until_closed(batches: Any) -> Generator[Any, None, None]:
    """Yield the batches, and raise the error that came instead of one; at any end the processes are gone.

    Torch ends them when nothing refers to its iterator any more, and the traceback of an error does. Python waits for
    them before it drops that, and for ever: they are deaf to the signal that it sends them (ace.engine.stop).
    """
    try:
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    finally:
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            _end(batches)


def _end(batches: _MultiProcessingDataLoaderIter) -> None:
    """End the loader's processes; those that do not look up, as one that waits for a server, are killed in a while.

    Torch would wait for each of them in turn, and longer than a scheduler waits for all.
    """
    if batches._worker_pids_set:  # else they have ended
        # From now on it is no error of the trainer's if one of them is killed.
        signal_handling._remove_worker_pids(id(batches))  # type: ignore[attr-defined]
        batches._worker_pids_set = False
    killer = threading.Timer(GRACE_S, _kill, [batches._workers])
    killer.daemon = True
    killer.start()
    batches._shutdown_workers()
    killer.cancel()
    _kill(batches._workers)


def _kill(processes: Sequence[Any]) -> None:
    for process in processes:
        process.kill()


def _state(pid: int | None) -> str:
    """Say in words what a process is doing."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return "is not seen"
    return _STATES.get(letter.upper(), f"is in state {letter}")


def _start_worker(parent: int, worker: int) -> None:
    """End this worker process if its trainer was killed while it started.

    This comes first in the process. The loader's own watch begins later, and would take whoever adopted the worker for
    its trainer.
    """
    del worker
    if os.getppid() != parent:
        os._exit(1)
    keep_freed_memory()


def _generator(seed: int, step: int, key: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{step}/{key}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest[::-1], "<u4"))
