"""Rectangles of a crop are erased: their pixels are filled, and their tokens show no anatomy (docs/method.md).

A deviation from the paper. Where each rectangle lies and what fills it is drawn in the loader and carried out on the
batch, beside the crop as it was, so that a student can see the one and a teacher the other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ace.data.params import EraseParams

Fill = Literal["black", "mean", "grey", "noise", "tissue"]
"""Names what a rectangle is filled with: 0, the crop's own mean in each channel, one random level in each channel, a
random level in each pixel and channel, or the tissue of a partner's crop at the same place (`partners`)."""
FILLS: tuple[Fill, ...] = get_args(Fill)
NUM_RECTANGLES = 4
"""The most rectangles of one crop; `EraseParams.max_rectangles` allows no more."""
LEVELS = 256
Crops = UInt8[Tensor, "crops channels size size"]
"""One crop of a sample after another."""


class Rectangle(NamedTuple):
    """First row and column, height and width, in pixels of the crop."""

    row: int
    col: int
    height: int
    width: int


@dataclass(frozen=True)
class Erasure:
    """An erasure holds the rectangles of one crop and what fills them.

    Attributes:
        rectangles: One or more; they may overlap.
        fill: What all of them are filled with.
        seed: Decides the levels of the fills `grey` and `noise`; below 2^31.
    """

    rectangles: tuple[Rectangle, ...]
    fill: Fill = "black"
    seed: int = 0


def draw_erasure(params: EraseParams, rng: np.random.Generator, *, size_px: int) -> Erasure | None:
    """Draw, with the step's probability, rectangles anywhere in a crop of side `size_px` and their fill."""
    if params.probability == 0 or rng.random() >= params.probability:
        return None
    number = int(rng.integers(1, params.max_rectangles + 1))
    rectangles = tuple(_draw_rectangle(params, rng, size_px) for _ in range(number))
    weights = np.array([getattr(params.fills, fill) for fill in FILLS])
    fill = FILLS[int(rng.choice(len(FILLS), p=weights / weights.sum()))]
    return Erasure(rectangles, fill, int(rng.integers(2**31)))


def _draw_rectangle(params: EraseParams, rng: np.random.Generator, size_px: int) -> Rectangle:
    """Draw a rectangle with the area of a square of the drawn side, unless it would not fit into the crop."""
    side = rng.uniform(params.min_side, params.max_side) * size_px
    stretch = math.sqrt(params.max_aspect ** rng.uniform(-1.0, 1.0)) if params.max_aspect > 1 else 1.0
    height, width = (min(max(round(length), 1), size_px) for length in (side * stretch, side / stretch))
    row, col = int(rng.integers(0, size_px - height + 1)), int(rng.integers(0, size_px - width + 1))
    return Rectangle(row, col, height, width)


def shown_share(erasure: Erasure | None, *, size_px: int, t: int) -> Float[np.ndarray, "{t} {t}"]:
    """Compute the share of each token's pixels that is not erased, from 0 to 1.

    Args:
        erasure: What is erased; None for nothing.
        size_px: Side of the crop in pixels.
        t: Tokens per crop side; divides `size_px`.
    """
    if erasure is None:
        return np.ones((t, t), dtype=np.float32)
    is_shown = np.ones((size_px, size_px), dtype=np.float32)
    for row, col, height, width in erasure.rectangles:
        is_shown[row : row + height, col : col + width] = 0
    cell = size_px // t
    shares: Float[np.ndarray, "{t} {t}"] = is_shown.reshape(t, cell, t, cell).mean((1, 3))
    return shares


def with_erased(crops: Crops, erasures: Sequence[Erasure | None], donors: Crops | None = None) -> Crops:
    """Return the crops with their rectangles filled; the crops given are not written to.

    But for the fill `tissue`, what becomes of a crop depends on no other crop of the batch.

    Args:
        crops: 8-bit crops on any device.
        erasures: One for each crop; None leaves it as it is.
        donors: For each crop the one whose tissue fills it; needed where the fill `tissue` was drawn.

    Raises:
        ValueError: the fill `tissue` was drawn and there are no donors.
    """
    drawn = [(number, erasure) for number, erasure in enumerate(erasures) if erasure is not None]
    if not drawn:
        return crops
    rows = from_host([number for number, _ in drawn], crops.device)
    chosen = crops.index_select(0, rows)
    levels = torch.zeros_like(chosen)
    for fill in FILLS[1:]:
        of_fill = [place for place, (_, erasure) in enumerate(drawn) if erasure.fill == fill]
        if not of_fill:
            continue
        places = from_host(of_fill, crops.device)
        if fill != "tissue":
            seeds = from_host([drawn[place][1].seed for place in of_fill], crops.device)
            filling = _levels(fill, chosen.index_select(0, places), seeds)
        elif donors is None:
            raise ValueError("tissue is to fill rectangles and no donors are given; pass the partners' crops")
        else:
            filling = donors.index_select(0, rows[places])
        levels = levels.index_copy(0, places, filling)
    is_erased = _pixels([erasure.rectangles for _, erasure in drawn], chosen)
    return crops.index_copy(0, rows, torch.where(is_erased, levels, chosen))


def from_host(values: Sequence[int] | Sequence[bool] | np.ndarray, device: torch.device) -> Tensor:
    """Bring a few numbers to a device; a GPU takes them from page-locked memory, so that nothing waits for its work.

    Args:
        values: Whole numbers or truth values.
        device: Where they are needed.
    """
    tensor = torch.as_tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def partners(num_samples: int) -> list[int]:
    """Name whose tissue fills each sample of a batch: samples 0 and 1 exchange theirs, 2 and 3, and so on.

    Parts of a batch that begin and end between two such pairs have the partners of the whole batch. The last of an odd
    number takes the tissue of the sample before it; a sample alone takes its own, which changes nothing.
    """
    return [other if (other := number ^ 1) < num_samples else max(number - 1, 0) for number in range(num_samples)]


def _pixels(rectangles: Sequence[Sequence[Rectangle]], crops: Crops) -> Tensor:
    """Return a mask of the pixels that lie in a rectangle of their crop [crops, 1, size, size]."""
    size_px = crops.shape[-1]
    bounds = np.zeros((len(rectangles), NUM_RECTANGLES, 4), dtype=np.int64)
    for number, several in enumerate(rectangles):
        bounds[number, : len(several)] = several
    row, col, height, width = from_host(bounds, crops.device).unbind(-1)
    pixels = torch.arange(size_px, device=crops.device)
    rows = (pixels >= row[..., None]) & (pixels < (row + height)[..., None])
    cols = (pixels >= col[..., None]) & (pixels < (col + width)[..., None])
    return (rows[..., :, None] & cols[..., None, :]).any(1)[:, None]


def _levels(fill: Fill, crops: Crops, seeds: Int[Tensor, " crops"]) -> Crops:
    """Return the fill of every pixel of each crop; all sums are of integers, so that devices agree to the bit."""
    channels, size_px = crops.shape[1:3]
    if fill == "mean":
        sums = crops.flatten(2).sum(2, dtype=torch.int64)
        means = (2 * sums + size_px**2).div(2 * size_px**2, rounding_mode="floor")
        return means.to(torch.uint8)[:, :, None, None].expand_as(crops)
    if fill == "grey":
        return _hashed(torch.arange(channels, device=crops.device), seeds)[:, :, None, None].expand_as(crops)
    numbers = torch.arange(channels * size_px**2, device=crops.device)
    return _hashed(numbers, seeds).view_as(crops)


def _hashed(numbers: Int[Tensor, " n"], seeds: Int[Tensor, " crops"]) -> UInt8[Tensor, "crops n"]:
    """Grey levels that look random, a function of each number and each seed; 32-bit arithmetic in 64-bit integers."""
    value = (numbers + 0x9E3779B1 * seeds[:, None]) & 0xFFFFFFFF
    for _ in range(2):
        value = ((value ^ (value >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return ((value ^ (value >> 16)) % LEVELS).to(torch.uint8)
