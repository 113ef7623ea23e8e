"""Batches of crop pairs from any number of shard sets, in an order decided by (seed, step, rank).

A step is the unit of everything random: its (k, l), the samples in it, their crop pairs and their augmentation follow
from the seed and the step's number alone, so a resumed run sees what an uninterrupted one would have seen.
"""

import hashlib
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ace.data.augment import augment
from ace.data.crops import Crop, resample
from ace.data.erase import erase
from ace.data.params import AugmentParams
from shards.canvas import Pixels, with_channels
from shards.errors import ConfigError
from shards.grid import CropPair, GridSpec, draw_crop_pair, scale_of_step
from shards.params import MixParams
from shards.read import Sample, ShardIndex, ShardReader, epoch_order

CropSource = Literal["fresh", "bank"]
Visible = Bool[np.ndarray, "t t"]
Request = tuple[int, int, int]
"""(number of the shard set, position among its training samples, step)."""


@dataclass(frozen=True)
class CropPairItem:
    """One sample's two crops, augmented, as the loader's processes make them."""

    coarse: Pixels
    fine: Pixels
    pair: CropPair
    mean: float
    std: float
    key: str
    coarse_visible: Visible
    fine_visible: Visible


@dataclass(frozen=True)
class PairBatch:
    """One step's crops and what the geometry needs of them.

    Attributes:
        coarse: 8-bit coarse crops.
        fine: 8-bit fine crops.
        coarse_origin: (row, col) in cells.
        fine_origin: (row, col) in cells.
        mean: Subtracted from pixels in [0, 1]; each sample's shard set has its own.
        std: Divides them after.
        k: Cells per coarse token, rows.
        l: Cells per coarse token, columns.
        keys: The samples.
        coarse_visible: Which tokens of the coarse crops are not erased, row-major.
        fine_visible: The same of the fine crops.
    """

    coarse: UInt8[Tensor, "batch channels size size"]
    fine: UInt8[Tensor, "batch channels size size"]
    coarse_origin: Int[Tensor, "batch 2"]
    fine_origin: Int[Tensor, "batch 2"]
    mean: Float[Tensor, " batch"]
    std: Float[Tensor, " batch"]
    k: int
    l: int
    keys: list[str]
    coarse_visible: Bool[Tensor, "batch tokens"]
    fine_visible: Bool[Tensor, "batch tokens"]

    def __len__(self) -> int:
        return len(self.keys)

    def split(self, num_parts: int) -> "list[PairBatch]":
        """The batch in equal parts, in order; `num_parts` divides its length."""
        size = len(self) // num_parts
        return [self._sliced(slice(first, first + size)) for first in range(0, len(self), size)]

    def to(self, device: torch.device) -> "PairBatch":
        """The batch on a device; from pinned memory the copy runs beside the computation."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "PairBatch":
        """The batch in page-locked memory (torch's loader calls this)."""
        return self._mapped(Tensor.pin_memory)

    def normalised_coarse(self) -> Float[Tensor, "batch channels size size"]:
        """Coarse crops as the networks take them."""
        return self._normalised(self.coarse)

    def normalised_fine(self) -> Float[Tensor, "batch channels size size"]:
        """Fine crops as the networks take them."""
        return self._normalised(self.fine)

    def _normalised(self, crops: Tensor) -> Tensor:
        return (crops / 255.0 - self.mean[:, None, None, None]) / self.std[:, None, None, None]

    def _sliced(self, part: slice) -> "PairBatch":
        return replace(self._mapped(lambda tensor: tensor[part]), keys=self.keys[part])

    def _mapped(self, function: Any) -> "PairBatch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: function(v) for name, v in values.items() if isinstance(v, Tensor)})


class CropPairDataset(Dataset[CropPairItem]):
    """Training samples of several shard sets as crop pairs; asked by `Request`."""

    def __init__(
        self,
        members: Sequence[tuple[ShardIndex, MixParams]],
        spec: GridSpec,
        *,
        crops: CropSource,
        augment: AugmentParams | None,
        in_channels: int,
        seed: int,
    ) -> None:
        """Open the readers.

        Args:
            members: Shard sets and how training mixes them.
            spec: The grid that training uses.
            crops: `fresh` draws a new pair at every step; `bank` picks one of those stored with the sample.
            augment: None leaves the crops as resampled.
            in_channels: Channels of the crops.
            seed: Decides order, (k, l), crops and augmentation.

        Raises:
            ConfigError: a shard set was built with another grid.
        """
        for index, _ in members:
            if index.spec != spec:
                raise ConfigError(
                    f"shard set {index.root} was built with the grid {index.spec}, training uses {spec}; "
                    f"build it again: dvc repro shard@{index.name}"
                )
        self.spec, self.crops, self.augment = spec, crops, augment
        self.in_channels, self.seed = in_channels, seed
        self.mixes = [mix for _, mix in members]
        self.readers = [ShardReader(index) for index, _ in members]
        self.rows = [index.select("train") for index, _ in members]

    def __getitem__(self, request: Request) -> CropPairItem:
        """The crop pair that this sample gets at this step."""
        shard_set, position, step = request
        sample = self.readers[shard_set].read(int(self.rows[shard_set][position]))
        rng = _generator(self.seed, step, sample.key)
        pair = self._pair(sample, step, rng)
        coarse, coarse_visible = self._crop(sample.image, pair, "coarse", rng)
        fine, fine_visible = self._crop(sample.image, pair, "fine", rng)
        mix = self.mixes[shard_set]
        return CropPairItem(coarse, fine, pair, mix.mean, mix.std, sample.key, coarse_visible, fine_visible)

    def _pair(self, sample: Sample, step: int, rng: np.random.Generator) -> CropPair:
        scale = scale_of_step(self.spec, self.seed, step)
        if self.crops == "fresh":
            return draw_crop_pair(self.spec, scale, rng)
        stored = [CropPair.from_json(item) for item in sample.meta["grid"]["bank"]]
        bank = [pair for pair in stored if (pair.k, pair.l) == (scale.k, scale.l)]
        if not bank:
            raise ConfigError(
                f"sample {sample.key} has no stored crop pair for (k, l) = {(scale.k, scale.l)}; "
                "set crops to fresh, or raise shard.num_bank_pairs and build the shards again"
            )
        return bank[rng.integers(len(bank))]

    def _crop(
        self, image: Pixels, pair: CropPair, which: Literal["coarse", "fine"], rng: np.random.Generator
    ) -> tuple[Crop, Visible]:
        crop = resample(image, pair.window(which, self.spec), self.spec.crop_px)
        visible = np.ones((self.spec.t, self.spec.t), dtype=bool)
        if self.augment is not None:
            crop, visible = erase(augment(crop, self.augment, rng), self.augment.erase, rng, t=self.spec.t)
        return with_channels(crop, self.in_channels), visible


class StepSampler(Sampler[list[Request]]):
    """The requests of one rank, step by step; epochs follow one another without a pause in the loader.

    Attributes:
        steps_per_epoch: The same on every rank.
        num_steps: Of the whole run.
    """

    def __init__(
        self,
        dataset: CropPairDataset,
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
        self._order = partial(
            epoch_order,
            [len(rows) for rows in dataset.rows],
            [mix.weight for mix in dataset.mixes],
            seed=dataset.seed,
            rank=rank,
            world_size=world_size,
            batch_size=batch_size,
        )
        self.steps_per_epoch = len(self._order(epoch=0))
        self.num_steps = epochs * self.steps_per_epoch

    def __len__(self) -> int:
        return self.num_steps - self.first_step

    def __iter__(self) -> Iterator[list[Request]]:
        first_epoch, num_skipped = divmod(self.first_step, self.steps_per_epoch)
        for epoch in range(first_epoch, self.epochs):
            first = num_skipped if epoch == first_epoch else 0
            batches = self._order(epoch=epoch)[first:].tolist()
            for step, batch in enumerate(batches, start=epoch * self.steps_per_epoch + first):
                yield [(shard_set, position, step) for shard_set, position in batch]


def collate(items: Sequence[CropPairItem]) -> PairBatch:
    """Stack one step's items; all have its (k, l)."""
    return PairBatch(
        coarse=_stacked([item.coarse for item in items]),
        fine=_stacked([item.fine for item in items]),
        coarse_origin=torch.tensor([item.pair.coarse for item in items]),
        fine_origin=torch.tensor([item.pair.fine for item in items]),
        mean=torch.tensor([item.mean for item in items]),
        std=torch.tensor([item.std for item in items]),
        k=items[0].pair.k,
        l=items[0].pair.l,
        keys=[item.key for item in items],
        coarse_visible=torch.from_numpy(np.stack([item.coarse_visible for item in items])).flatten(1),
        fine_visible=torch.from_numpy(np.stack([item.fine_visible for item in items])).flatten(1),
    )


def build_loader(sampler: StepSampler, *, num_workers: int, is_pinned: bool) -> DataLoader[Any]:
    """A loader of `PairBatch` over the sampler's steps, in their order.

    Args:
        sampler: Which samples each step has.
        num_workers: Processes that decode; 0 decodes in this one.
        is_pinned: Whether batches go to page-locked memory, for an accelerator.
    """
    # Not fork: it copies the locks of torch's threads. Not forkserver: its workers outlive a killed trainer.
    context = multiprocessing.get_context("spawn") if num_workers else None
    return DataLoader(
        sampler.dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=is_pinned,
        multiprocessing_context=context,
        # Its own: the loader would draw a base seed from torch's generator, which a resumed run has restored.
        generator=torch.Generator(),
    )


def _generator(seed: int, step: int, key: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{step}/{key}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _stacked(crops: Sequence[Pixels]) -> UInt8[Tensor, "batch channels size size"]:
    stack = torch.from_numpy(np.stack(crops))
    return stack[:, None] if stack.ndim == 3 else stack.permute(0, 3, 1, 2).contiguous()
