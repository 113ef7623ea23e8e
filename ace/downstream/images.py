"""Batches of images and what is to be answered, in an order decided by seed and step.

Threads read them: what takes time in that, decoding and resampling, lets other threads run.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ace.data.crops import Crop
from ace.downstream.base import Target, Task
from ace.downstream.params import TaskParams
from ace.downstream.parts import Part
from ace.downstream.views import draw_view, show
from ace.embed.encoder import Encoder
from shards.core.normalisation import Normalisation
from shards.reading.reader import ShardReader

AHEAD = 2
"""Steps whose images are read while one is taken."""
POLL_S = 1.0
"""Seconds between two looks around while an image is waited for."""


@dataclass(frozen=True, kw_only=True)
class LabelledBatch:
    """Holds the images of one step with what is to be answered.

    Attributes:
        images: 8-bit, as the encoder takes them.
        targets: The answers.
        known: Which of them count.
        keys: The images' keys.
    """

    images: UInt8[Tensor, "batch channels side side"]
    targets: Tensor
    known: Tensor
    keys: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device) -> "LabelledBatch":
        """Move the images and their answers."""
        return replace(
            self, images=self.images.to(device), targets=self.targets.to(device), known=self.known.to(device)
        )

    def split(self, num_parts: int) -> "list[LabelledBatch]":
        """Divide the batch into at most so many parts of nearly equal size."""
        tensors = [torch.tensor_split(tensor, num_parts) for tensor in (self.images, self.targets, self.known)]
        keys = [list(part) for part in np.array_split(self.keys, num_parts)]
        return [
            LabelledBatch(images=images, targets=targets, known=known, keys=own)
            for images, targets, known, own in zip(*tensors, keys, strict=True)
            if own
        ]


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """Reads the images that are trained on, step by step; each step follows from the seed and its number alone.

    An epoch shows every image once; its steps differ by one image at most, so that few images make small batches and
    none is left out.

    Attributes:
        task: Makes the targets.
        part: The images.
        encoder: Whose input they become.
        seed: Decides order, crops and their changes.
    """

    task: "Task[TaskParams]"
    part: Part
    encoder: Encoder
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Count the steps of an epoch."""
        return -(-len(self.part) // self.task.params.training.batch_size)

    def batches(
        self, first_step: int, num_steps: int, while_waiting: Callable[[], None]
    ) -> Generator[LabelledBatch, None, None]:
        """Yield the batches of the steps from `first_step` on.

        Args:
            first_step: Steps before it are skipped unread.
            num_steps: Of the whole training.
            while_waiting: Called about every second while an image is waited for; what it raises ends the wait.
        """
        reader = ShardReader(self.part.index)
        pool = ThreadPoolExecutor(max(1, self.task.params.training.num_workers))
        pending: deque[list[Future[tuple[Crop, Target]]]] = deque()
        try:
            for step in range(first_step, num_steps):
                while len(pending) <= AHEAD and step + len(pending) < num_steps:
                    coming = step + len(pending)
                    images = self._images_of(coming).tolist()
                    pending.append([pool.submit(self._read, reader, image, coming) for image in images])
                read = [_result(future, while_waiting) for future in pending.popleft()]
                crops, targets = zip(*read, strict=True)
                yield LabelledBatch(
                    images=_stacked(crops),
                    targets=torch.from_numpy(np.stack([target.values for target in targets])),
                    known=torch.from_numpy(np.stack([target.known for target in targets])),
                    keys=[self.part.keys[image] for image in self._images_of(step)],
                )
        finally:
            pool.shutdown(cancel_futures=True)

    def _images_of(self, step: int) -> Int[np.ndarray, " batch"]:
        epoch, number = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.part))
        images: Int[np.ndarray, " batch"] = np.array_split(order, self.steps_per_epoch)[number]
        return images

    def _read(self, reader: ShardReader, image: int, step: int) -> tuple[Crop, Target]:
        sample, params = reader.read(int(self.part.rows[image])), self.task.params.shown
        digest = hashlib.sha256(f"{self.seed}/{step}/{sample.key}".encode()).digest()
        rng = np.random.default_rng(np.frombuffer(digest, "<u4"))
        view, encoder = draw_view(params, rng), self.encoder
        (crop,) = show(sample, [view], encoder.input_px, encoder.in_channels, self.part.index.spec.canvas_px)
        return crop, self.task.target(sample, view, rng)


def as_input(
    images: UInt8[Tensor, "batch channels side side"], normalisation: Normalisation
) -> Float[Tensor, "batch channels side side"]:
    """Normalise 8-bit images where they lie."""
    mean, std = (torch.tensor(levels, device=images.device).view(-1, 1, 1) for levels in normalisation)
    return (images / 255 - mean) / std


def _stacked(crops: Sequence[Crop]) -> UInt8[Tensor, "batch channels side side"]:
    stack = torch.from_numpy(np.stack(crops))
    return stack[:, None] if stack.ndim == 3 else stack.permute(0, 3, 1, 2).contiguous()


def _result(future: "Future[tuple[Crop, Target]]", while_waiting: Callable[[], None]) -> tuple[Crop, Target]:
    while not wait([future], POLL_S).done:
        while_waiting()
    return future.result()
