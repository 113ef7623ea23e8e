"""Draw square views of the canvas that follow no grid (method.md §4: DINO's two, ACE-v2's centre-aligned ones)."""

import math

import numpy as np

from ace.data.params import CentredViewsParams, RandomViewsParams
from shards.core.grid import Window

NUM_RANDOM = 2


def random_windows(canvas_px: int, params: RandomViewsParams, rng: np.random.Generator) -> list[Window]:
    """Draw two squares, drawn independently: area uniform in its range, place uniform on the canvas."""
    return [_random_window(canvas_px, params, rng) for _ in range(NUM_RANDOM)]


def centered_windows(canvas_px: int, params: CentredViewsParams, rng: np.random.Generator) -> list[Window]:
    """Squares of the given sides around one centre, drawn uniformly where the largest lies on the canvas."""
    reach = 0.5 * params.sides[0] * canvas_px
    row, col = rng.uniform(reach, canvas_px - reach, size=2).tolist()
    halves = [0.5 * side * canvas_px for side in params.sides]
    return [(row - half, col - half, row + half, col + half) for half in halves]


def _random_window(canvas_px: int, params: RandomViewsParams, rng: np.random.Generator) -> Window:
    side = canvas_px * math.sqrt(rng.uniform(params.min_area, params.max_area))
    row, col = rng.uniform(0.0, canvas_px - side, size=2).tolist()
    return row, col, row + side, col + side
