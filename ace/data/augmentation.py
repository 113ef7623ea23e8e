"""Draw the augmentation of each crop: one record that the host and the device both carry out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from ace.data.erase import Erasure, draw_erasure
from ace.data.params import AugmentParams


class BrightnessContrast(NamedTuple):
    """Factor of the differences from the crop's mean, and what is added to all grey levels."""

    contrast: float
    shift: float


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Drawn for one crop; a step that is None is left out, so that the record of nothing leaves the crop as it is."""

    brightness_contrast: BrightnessContrast | None = None
    blur_sigma_px: float | None = None
    sharpen_amount: float | None = None
    clip_limit: float | None = None
    erased: Erasure | None = None


AS_IT_IS = Augmentation()
CONTRAST, SHIFT, SIGMA, AMOUNT, CLIP = range(5)
"""Columns of the collated records."""


def draw_augmentation(params: AugmentParams, rng: np.random.Generator, *, size_px: int) -> Augmentation:
    """Brightness and contrast, blur, sharpening, CLAHE and erased rectangles, each with its own probability.

    Args:
        params: How often, and how strong.
        rng: Decides all of it; no pixel has a say.
        size_px: Side of the crop.
    """
    brightness_contrast = blur_sigma_px = sharpen_amount = clip_limit = None
    if rng.random() < params.brightness_contrast.probability:
        reach, shift = params.brightness_contrast.max_contrast, params.brightness_contrast.max_brightness
        brightness_contrast = BrightnessContrast(1.0 + rng.uniform(-reach, reach), 255.0 * rng.uniform(-shift, shift))
    if rng.random() < params.blur.probability:
        blur_sigma_px = rng.uniform(params.blur.min_sigma_px, params.blur.max_sigma_px)
    if rng.random() < params.sharpen.probability:
        sharpen_amount = rng.uniform(0.0, params.sharpen.max_amount)
    if rng.random() < params.clahe.probability:
        clip_limit = rng.uniform(1.0, params.clahe.max_clip_limit)
    erased = draw_erasure(params.erase, rng, size_px=size_px)
    return Augmentation(
        brightness_contrast=brightness_contrast,
        blur_sigma_px=blur_sigma_px,
        sharpen_amount=sharpen_amount,
        clip_limit=clip_limit,
        erased=erased,
    )


@dataclass(frozen=True)
class Augmentations:
    """Hold the records of a batch twice: on the host, and on the device beside the crops.

    The host knows which crops each step touches and how many they are, so that nothing waits for the device to tell.

    Attributes:
        on_host: One row a crop, NaN in the columns of steps that are left out.
        on_device: The same.
        erasures: What is erased of each crop after the other steps.
    """

    on_host: Float64[np.ndarray, "batch crops columns"]
    on_device: Float64[Tensor, "batch crops columns"]
    erasures: Sequence[Sequence[Erasure | None]]

    def __reduce__(self) -> tuple[Any, ...]:
        return _beside_the_crops, (self.on_host, self.erasures)

    @classmethod
    def of(cls, records: Sequence[Sequence[Augmentation]]) -> "Augmentations | None":
        """Return the augmentation of one sample's crops, in order; None where nothing is to be done."""
        if all(record == AS_IT_IS for crops in records for record in crops):
            return None
        values = np.array([[_row(record) for record in crops] for crops in records])
        return _beside_the_crops(values, [[record.erased for record in crops] for crops in records])

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Augmentations":
        """Return a copy whose records beside the crops are moved to another device."""
        return replace(self, on_device=function(self.on_device))

    def sliced(self, part: slice) -> "Augmentations":
        """Return the records of some samples."""
        return Augmentations(self.on_host[part], self.on_device[part], self.erasures[part])

    def rows(self, column: int) -> Int[Tensor, " rows"] | None:
        """Return the indices in the batch of the crops that a step changes, on the device; None if there are none."""
        num_rows = int((~np.isnan(self.on_host[..., column])).sum())
        if num_rows == 0:
            return None
        is_touched = ~torch.isnan(self.on_device[..., column].flatten())
        return torch.argsort(is_touched.to(torch.uint8), descending=True, stable=True)[:num_rows]


def _beside_the_crops(values: np.ndarray, erasures: Sequence[Sequence[Erasure | None]]) -> Augmentations:
    """Records whose crops lie on the host, where both copies of the values are one."""
    return Augmentations(values, torch.from_numpy(values), erasures)


def _row(record: Augmentation) -> list[float]:
    steps: list[float | None] = [
        *(record.brightness_contrast or (None, None)),
        record.blur_sigma_px,
        record.sharpen_amount,
        record.clip_limit,
    ]
    return [np.nan if value is None else float(value) for value in steps]
