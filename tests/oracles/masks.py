"""Masks pixel by pixel, in plain Python."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np


def walk_runs(annotations: Sequence[Sequence[tuple[int, int]]], height: int, width: int) -> np.ndarray:
    """A pen that goes down each column, column after column: lifted for the first number, down for the second."""
    drawn = np.zeros((height, width), bool)
    for runs in annotations:
        position = 0
        for skipped, inside in runs:
            position += skipped
            for _ in range(inside):
                col, row = divmod(position, height)
                drawn[row, col] = True
                position += 1
    return drawn


def is_inside(point: tuple[float, float], ring: Sequence[tuple[float, float]]) -> bool:
    """Even-odd: whether a ray to the right crosses the ring an odd number of times."""
    row, col = point
    inside = False
    for (row0, col0), (row1, col1) in zip(ring, [*ring[1:], ring[0]], strict=True):
        if (row0 > row) != (row1 > row) and col < (col1 - col0) * (row - row0) / (row1 - row0) + col0:
            inside = not inside
    return inside


def fill_rings(rings: Sequence[Sequence[tuple[float, float]]], height: int, width: int) -> np.ndarray:
    """Pixels whose centre lies in any of the rings."""
    return np.array(
        [
            [any(is_inside((row + 0.5, col + 0.5), ring) for ring in rings) for col in range(width)]
            for row in range(height)
        ]
    )


def nearest(grey: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each new pixel takes the old pixel that its centre falls into."""

    def pick(index: int, old: int, new: int) -> int:
        return int((index + Fraction(1, 2)) * old / new)

    return np.array(
        [
            [grey[pick(row, grey.shape[0], height), pick(col, grey.shape[1], width)] for col in range(width)]
            for row in range(height)
        ]
    )
