"""Grey values of more than 8 bits onto 0..255.

Stored values have at most 16 bits, so whatever happens to them is computed once a value, in a table, and never in
floats the size of the image.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from shards.decode.result import MIN_TO_MAX, PERCENTILES

_LOW, _HIGH = 0.005, 0.995
_MAX_SHARE_OF_A_VALUE = 0.001
WHITE = 255

Values = Shaped[np.ndarray, "height width"]


@dataclass(frozen=True)
class GreyWindow:
    """The values that become 0 and 255, and how they were chosen."""

    low: float
    high: float
    rule: str

    def shares(self, values: Shaped[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Convert values to shares of the window, cut to 0..1; a window of one value shows all of it black."""
        shares: Float[np.ndarray, "*shape"] = np.clip((values - self.low) / ((self.high - self.low) or np.inf), 0, 1)
        return shares


def in_eight_bits(shares: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Round shares 0..1 to grey levels 0..255."""
    return np.round(shares * WHITE).astype(np.uint8)


def histogram(cells: Values) -> Int[np.ndarray, " num_cells"]:
    """Count how often each of the 2⁸ or 2¹⁶ values of unsigned cells occurs."""
    num_cells = 1 << 8 * cells.itemsize
    # Without bincount's copy in 64 bits, and in half its time; counts above 2²⁴ are rounded in their eighth digit.
    counts = cv2.calcHist([np.ascontiguousarray(cells)], [0], None, [num_cells], [0, num_cells])
    found: Int[np.ndarray, " num_cells"] = counts.ravel().astype(np.int64)
    return found


def choose_window(values: Shaped[np.ndarray, " num"], counts: Int[np.ndarray, " num"]) -> GreyWindow:
    """Choose the window from the 0.5th to the 99.5th percentile of the pixels.

    One value counts for at most a thousandth of the pixels.

    Of a deep file that names no window neither its bits nor its extremes say what matters: 12-bit radiographs lie in
    16-bit files, and one hot marker sets the maximum. Percentiles pass over few odd pixels; collimation, padding,
    saturation and burned-in markers are many pixels, but of one value, so the bound passes over them too (up to four
    fifths of the picture). It errs to the safe side: where many values are common it widens the window, never narrows
    it. The rule has no top or bottom, so an inverted picture gets the inverted window. Where it leaves one value (a
    flat image but for a few pixels) the minimum and the maximum are taken.

    Args:
        values: Grey values, in any order and perhaps repeated.
        counts: Number of pixels that have each value.
    """
    is_present = counts > 0
    levels, positions = np.unique(values[is_present], return_inverse=True)
    if not len(levels):
        return GreyWindow(0.0, 0.0, MIN_TO_MAX)
    num_pixels = np.bincount(positions, weights=counts[is_present])
    bounded = np.minimum(num_pixels, max(1, num_pixels.sum() * _MAX_SHARE_OF_A_VALUE // 1))
    ends = np.cumsum(bounded)
    low, high = (_at_rank(levels, ends, share * float(ends[-1] - 1)) for share in (_LOW, _HIGH))
    if low < high:
        return GreyWindow(low, high, PERCENTILES)
    return GreyWindow(float(levels[0]), float(levels[-1]), MIN_TO_MAX)


def _at_rank(levels: Shaped[np.ndarray, " num"], ends: Float[np.ndarray, " num"], rank: float) -> float:
    """Return the value at a rank, from 0, in the sorted pixels; between two ranks in proportion."""
    below, above = (float(levels[np.searchsorted(ends, whole, side="right")]) for whole in (rank // 1, -(-rank // 1)))
    return below + (rank % 1) * (above - below)


def spread(values: Values) -> tuple[UInt8[np.ndarray, "height width"], GreyWindow]:
    """Convert integers of any kind to 8 bits, by `choose_window`."""
    if values.dtype == np.uint16:
        counts = histogram(values)
        levels = np.arange(len(counts))
        window = choose_window(levels, counts)
        return np.take(in_eight_bits(window.shares(levels)), values), window
    window = choose_window(*np.unique(values, return_counts=True))
    return in_eight_bits(window.shares(values)), window
