"""Square regions of a canvas, in fractions of its side."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from shards.core.grid import Window

Tiling = tuple[Window, ...]
"""Rectangles (row0, col0, row1, col1) that tile the unit square."""


@dataclass(frozen=True)
class Region:
    """A square with its upper left corner at (`row`, `col`); the canvas is the unit square."""

    row: float
    col: float
    side: float

    def window(self, size_px: int) -> Window:
        """Return where the region lies in an image of side `size_px`."""
        top, left, side = self.row * size_px, self.col * size_px, self.side * size_px
        return top, left, min(top + side, size_px), min(left + side, size_px)

    def pixels(self, size_px: int) -> tuple[int, int, int]:
        """Return the region (row, col, side) in whole pixels of an image of side `size_px`; its side is at least 1."""
        side = min(max(round(self.side * size_px), 1), size_px)
        row, col = (min(round(origin * size_px), size_px - side) for origin in (self.row, self.col))
        return row, col, side

    def part(self, rectangle: Window, size_px: int) -> Window:
        """Return where a rectangle of the region's own unit square lies in an image of side `size_px`."""
        top, left, bottom, right = rectangle
        return (
            (self.row + top * self.side) * size_px,
            (self.col + left * self.side) * size_px,
            min((self.row + bottom * self.side) * size_px, size_px),
            min((self.col + right * self.side) * size_px, size_px),
        )

    def quadrants(self) -> "tuple[Region, Region, Region, Region]":
        """Return the 2×2 parts it is composed of, in row-major order."""
        half = self.side / 2
        upper_left, upper_right = Region(self.row, self.col, half), Region(self.row, self.col + half, half)
        lower_left = Region(self.row + half, self.col, half)
        return upper_left, upper_right, lower_left, Region(self.row + half, self.col + half, half)


def draw_region(rng: np.random.Generator, min_side: float, max_side: float) -> Region:
    """Draw a region whose side is uniform in [min_side, max_side] and whose place is uniform inside the canvas."""
    side = rng.uniform(min_side, max_side)
    row, col = rng.uniform(0, 1 - side, size=2)
    return Region(float(row), float(col), float(side))


def even_tiling(per_side: int) -> Tiling:
    """Cut the unit square into `per_side` × `per_side` equal squares, in row-major order."""
    edges = [number / per_side for number in range(per_side + 1)]
    spans = list(pairwise(edges))
    return tuple((top, left, bottom, right) for top, bottom in spans for left, right in spans)


def draw_tiling(rng: np.random.Generator, num_parts: int, min_share: float) -> Tiling:
    """Cut the unit square into rectangles by straight cuts, each through the whole of the largest part there is.

    Args:
        rng: Decides where and in which direction each cut goes; a long side is cut more likely than a short one, in
            proportion to their lengths.
        num_parts: How many rectangles there are in the end.
        min_share: Smallest share of a part that a cut takes off, at most .5.
    """
    parts: list[Window] = [(0.0, 0.0, 1.0, 1.0)]
    while len(parts) < num_parts:
        top, left, bottom, right = parts.pop(int(np.argmax(areas(tuple(parts)))))
        height, width = bottom - top, right - left
        share = float(rng.uniform(min_share, 1 - min_share))
        if rng.uniform(0, height + width) < height:
            edge = top + share * height
            parts += [(top, left, edge, right), (edge, left, bottom, right)]
        else:
            edge = left + share * width
            parts += [(top, left, bottom, edge), (top, edge, bottom, right)]
    return tuple(parts)


def areas(tiling: Tiling) -> Float[np.ndarray, " parts"]:
    """Return the area of each part, as a share of the whole."""
    return np.array([(bottom - top) * (right - left) for top, left, bottom, right in tiling])


def check_sides(min_side: float, max_side: float) -> None:
    """Check that the smallest side of a region is not above the largest.

    Raises:
        ValueError: it is.
    """
    if min_side > max_side:
        raise ValueError(f"min_side {min_side} is above max_side {max_side}")


def iou_matrix(first: Sequence[Region], second: Sequence[Region]) -> Float[np.ndarray, "first second"]:
    """Intersection over union of every region of `first` with every one of `second`, in [0, 1]."""
    a, b = (np.array([(region.row, region.col, region.side) for region in regions]) for regions in (first, second))
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[None, :, :2] + b[None, :, 2:])
    intersection = np.clip(high - low, 0, None).prod(-1)
    iou: Float[np.ndarray, "first second"] = intersection / (a[:, None, 2] ** 2 + b[None, :, 2] ** 2 - intersection)
    return iou
