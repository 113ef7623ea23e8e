"""A square of a crop set to black, and which tokens still show anatomy (a deviation from the paper; docs/method.md)."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from ace.data.params import EraseParams
from shards.canvas import Pixels


class Square(NamedTuple):
    """First row and column, and side, in pixels of the crop."""

    row: int
    col: int
    side: int


def draw_square(params: EraseParams, rng: np.random.Generator, *, size_px: int) -> Square | None:
    """With the step's probability, a square anywhere in a crop of side `size_px`."""
    if params.probability == 0 or rng.random() >= params.probability:
        return None
    side = round(rng.uniform(params.min_side, params.max_side) * size_px)
    row, col = rng.integers(0, size_px - side + 1, size=2).tolist()
    return Square(row, col, side)


def erase(crop: Pixels, square: Square) -> Pixels:
    """The crop with the square black; the crop given is not written to."""
    erased = crop.copy()
    erased[square.row : square.row + square.side, square.col : square.col + square.side] = 0
    return erased


def visible_tokens(square: Square | None, *, size_px: int, t: int) -> Bool[np.ndarray, "{t} {t}"]:
    """Which of a crop's tokens are visible: those of whose pixels more than half are outside the square.

    Args:
        square: What is erased; None for nothing.
        size_px: Side of the crop.
        t: Tokens per crop side; divides it.
    """
    if square is None:
        return np.ones((t, t), dtype=bool)
    cell = size_px // t
    starts = cell * np.arange(t)
    erased_rows, erased_cols = (
        np.clip(np.minimum(starts + cell, first + square.side) - np.maximum(starts, first), 0, None)
        for first in (square.row, square.col)
    )
    visible: Bool[np.ndarray, "{t} {t}"] = 2 * np.outer(erased_rows, erased_cols) < cell**2
    return visible
