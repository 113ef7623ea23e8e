"""A square of a crop set to black, and which tokens still show anatomy (a deviation from the paper; docs/method.md)."""

import numpy as np
from jaxtyping import Bool

from ace.data.params import EraseParams
from shards.canvas import Pixels


def erase(
    crop: Pixels, params: EraseParams, rng: np.random.Generator, *, t: int
) -> tuple[Pixels, Bool[np.ndarray, "{t} {t}"]]:
    """With the step's probability, the crop with a black square anywhere in it; the crop given is not written to.

    Args:
        crop: 8-bit square crop.
        params: How often, and how large.
        rng: Decides whether, where and how large.
        t: Tokens per crop side; divides the crop's side.

    Returns:
        The crop, and which tokens are visible: those of whose pixels more than half are left.
    """
    size = len(crop)
    is_left = np.ones((size, size), dtype=bool)
    if params.probability > 0 and rng.random() < params.probability:
        side = round(rng.uniform(params.min_side, params.max_side) * size)
        row, col = rng.integers(0, size - side + 1, size=2)
        crop = crop.copy()
        crop[row : row + side, col : col + side] = 0
        is_left[row : row + side, col : col + side] = False
    cell = size // t
    return crop, is_left.reshape(t, cell, t, cell).mean(axis=(1, 3)) > 0.5
