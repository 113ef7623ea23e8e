"""Square regions of a canvas, in fractions of its side."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from shards.grid import Window


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
