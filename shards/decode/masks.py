"""Draw the pixels inside a mask from what a record says of it."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, UInt8

from shards.core.records import File, Mask, MaskFiles, MaskPolygons, MaskRuns, Point
from shards.decode import UnreadableImageError, decode_mask

MASK_SIZE = "a mask is not of the image's size"
MASK_POINTS = "a polygon of a mask has points that are no numbers"
MASK_OUTSIDE = "the runs of a mask end outside the image"

_HALF = 128

Inside = Bool[np.ndarray, "height width"]


def draw(mask: Mask, size: tuple[int, int], read: Callable[[File], bytes], max_pixels: float) -> Inside:
    """Draw the pixels of the image inside a structure.

    Args:
        mask: The mask as the record has it.
        size: (height, width) of the image, upright.
        read: Gives the content of a file; decides what a missing or changed one means.
        max_pixels: A file with more pixels is not decoded.

    Returns:
        True inside; all False where the structure is known to be absent.

    Raises:
        UnreadableImageError: with the reason for quarantine: a file is damaged or of another size, runs end outside the
            image, a polygon has points that are no numbers.
    """
    match mask:
        case MaskFiles():
            return _draw_files(mask, size, read, max_pixels)
        case MaskRuns():
            return _draw_runs(mask, size)
        case MaskPolygons():
            return _draw_polygons(mask, size)


def _draw_files(mask: MaskFiles, size: tuple[int, int], read: Callable[[File], bytes], max_pixels: float) -> Inside:
    inside = np.zeros(size, bool)
    for file in mask.files:
        data = read(file)
        try:
            grey = decode_mask(data, max_pixels=max_pixels)
        except UnreadableImageError as error:
            raise UnreadableImageError(f"a mask: {error}") from None
        if mask.is_scaled:
            grey = _nearest(grey, size)
        if grey.shape != size:
            raise UnreadableImageError(MASK_SIZE)
        inside |= (grey >= (_half_of_range(grey) if mask.low is None else mask.low)) & (grey <= mask.high)
    return inside


def _half_of_range(grey: UInt8[np.ndarray, "height width"]) -> float:
    darkest, brightest = int(grey.min()), int(grey.max())
    return _HALF if darkest == brightest else (darkest + brightest) / 2


def _nearest(grey: UInt8[np.ndarray, "from_height from_width"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """Find the pixel whose area holds each new pixel's centre, in integers: exact for every pair of sizes."""
    rows, cols = ((2 * np.arange(to) + 1) * of // (2 * to) for of, to in zip(grey.shape, size, strict=True))
    nearest: UInt8[np.ndarray, "h w"] = grey[rows][:, cols]
    return nearest


def _draw_runs(mask: MaskRuns, size: tuple[int, int]) -> Inside:
    if (mask.height, mask.width) != size:
        raise UnreadableImageError(MASK_SIZE)
    down_the_columns = np.zeros(mask.width * mask.height, bool)
    for runs in mask.runs:
        lengths = np.array(runs, np.int64).reshape(-1)
        ends = np.cumsum(lengths)
        if (lengths < 0).any() or (ends > down_the_columns.size).any():
            raise UnreadableImageError(MASK_OUTSIDE)
        for start, end in ends.reshape(-1, 2).tolist():
            down_the_columns[start:end] = True
    return np.ascontiguousarray(down_the_columns.reshape(mask.width, mask.height).T)


def _draw_polygons(mask: MaskPolygons, size: tuple[int, int]) -> Inside:
    inside = np.zeros(size, bool)
    for ring in mask.rings:
        if not all(math.isfinite(value) for point in ring for value in point):
            raise UnreadableImageError(MASK_POINTS)
        first, filled = _fill_ring(ring, size)
        inside[first : first + len(filled)] |= filled
    return inside


def _fill_ring(ring: tuple[Point, ...], size: tuple[int, int]) -> tuple[int, Bool[np.ndarray, "some_rows width"]]:
    """Fill a ring; returns the first row that it touches, and the pixels inside from that row on.

    A pixel is inside if its centre is, by the even-odd rule.

    A centre is inside where the line to it from the left border crosses the ring an odd number of times: every
    crossing is marked in the first column whose centre it lies left of, and the marks are added up along the row.
    """
    height, width = size
    rows = np.array([row for row, _ in ring])
    first, last = (int(np.clip(np.ceil(edge - 0.5), 0, height)) for edge in (rows.min(), rows.max()))
    marks = np.zeros((last - first, width + 1), bool)
    for ends in zip(ring, (*ring[1:], ring[0]), strict=True):
        # From above, so that an edge and the way back along it are rounded alike and enclose nothing.
        (row0, col0), (row1, col1) = sorted(ends)
        # Rows whose centre line an edge crosses, half open, so that a corner counts once.
        low, high = (int(np.clip(np.ceil(edge - 0.5), first, last)) for edge in (row0, row1))
        crossed = np.arange(low, high)
        if crossed.size:
            cols = col0 + (crossed + 0.5 - row0) * ((col1 - col0) / (row1 - row0))
            marks[crossed - first, np.clip(np.ceil(cols - 0.5), 0, width).astype(np.int64)] ^= True
    return first, np.logical_xor.accumulate(marks, axis=1)[:, :width]
