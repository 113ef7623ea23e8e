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


def crossings(row: float, ring: Sequence[tuple[float, float]]) -> list[Fraction]:
    """The columns in which the edges of a ring cross a row, exactly."""
    edges = [tuple(map(Fraction, (*start, *end))) for start, end in zip(ring, [*ring[1:], ring[0]], strict=True)]
    return [
        (col1 - col0) * (Fraction(row) - row0) / (row1 - row0) + col0
        for row0, col0, row1, col1 in edges
        if (row0 > row) != (row1 > row)
    ]


def is_inside(point: tuple[float, float], ring: Sequence[tuple[float, float]]) -> bool:
    """Even-odd: whether a ray to the right crosses the ring an odd number of times."""
    row, col = point
    return sum(col < crossing for crossing in crossings(row, ring)) % 2 == 1


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


def covered(mask: np.ndarray, height: int, width: int) -> list[list[Fraction]]:
    """The share of each new pixel that the mask covers."""

    def shares(old: int, new: int) -> list[list[Fraction]]:
        """Return the share of each new pixel that lies in each old one, along one side."""
        starts = [[max(Fraction(i * old, new), Fraction(j)) for j in range(old)] for i in range(new)]
        stops = [[min(Fraction((i + 1) * old, new), Fraction(j + 1)) for j in range(old)] for i in range(new)]
        return [
            [max(stop - start, Fraction(0)) * new / old for start, stop in zip(*pair, strict=True)]
            for pair in zip(starts, stops, strict=True)
        ]

    rows, cols = shares(mask.shape[0], height), shares(mask.shape[1], width)
    inside = np.argwhere(mask).tolist()
    return [[sum((down[r] * right[c] for r, c in inside), Fraction(0)) for right in cols] for down in rows]


def connected(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """The parts of a mask; pixels that share an edge or a corner are of one part."""
    left = {(row, col) for row, col in np.argwhere(mask).tolist()}
    parts = []
    while left:
        part, new = set(), {left.pop()}
        while new:
            part |= new
            new = {(r + i, c + j) for r, c in new for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= new
        parts.append(part)
    return parts
