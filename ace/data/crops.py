"""Crops resampled straight from the stored canvas: the jitter is where their windows fall (method.md §1)."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from shards.core.canvas import Pixels
from shards.core.grid import Rectangle, Window
from shards.format.jpeg import DecodedRegion
from shards.reading.reader import Reduction, Sample, ShardIndex, ShardReader

# One loader process is one thread: OpenCV's own pool would compete with its siblings, and does not survive a fork.
cv2.setNumThreads(0)

Crop = UInt8[np.ndarray, "size_px size_px"] | UInt8[np.ndarray, "size_px size_px 3"]

_LEAST_RESOLUTION = 0.9
"""Averaged pixels to one pixel of the crop, along a side: with fewer the crop would be visibly blurred."""
_ROUNDING = 1e-6


def resample(image: Pixels, window: Window, size_px: int) -> Crop:
    """Resample the window to a square of `size_px`, bilinear, and antialiased where it shrinks.

    Equals resampling the jitter square to canvas size and cropping that, but touches only the crop's pixels.

    Args:
        image: Canvas, 8-bit grey [H, W] or colour [H, W, 3].
        window: (row0, col0, row1, col1) in continuous canvas pixels, inside the canvas.
        size_px: Side of the result.
    """
    row0, col0, row1, col1 = window
    height, width = image.shape[:2]
    # Pillow refuses a box that rounding put 1e-14 px outside.
    box = (max(col0, 0.0), max(row0, 0.0), min(col1, float(width)), min(row1, float(height)))
    return np.asarray(Image.fromarray(image).resize((size_px, size_px), Image.Resampling.BILINEAR, box=box))


def resample_whole(canvas: Pixels, size_px: int) -> Crop:
    """Resample a whole canvas to a square of `size_px`."""
    return resample(canvas, (0, 0, *canvas.shape[:2]), size_px)


def whole_images(index: ShardIndex, rows: Int[np.ndarray, " images"]) -> Iterator[Crop]:
    """Read whole canvases of a shard set at crop size; E(x) of an image is that of this picture (method.md §5)."""
    reader = ShardReader(index)
    for row in rows:
        yield resample_whole(reader.read(int(row)).image, index.spec.crop_px)


def resample_all(sample: Sample, windows: Sequence[Window], size_px: int) -> list[Crop]:
    """Several windows of one sample, each as a square of `size_px`.

    A PNG, which keeps every pixel, is resampled by `resample`. Of a JPEG no more is decoded than the windows cover, and
    instead its copy at half the size where that has .9 pixels or more to one of the crop; `resample_region` does the
    rest.
    """
    if sample.image_format == "png":
        return [resample(sample.image, window, size_px) for window in windows]
    reductions = [_reduction(sample, window, size_px) for window in windows]
    reduced = [_divided(window, reduction) for window, reduction in zip(windows, reductions, strict=True)]
    regions = {}
    for reduction in set(reductions):
        covered = [window for window, own in zip(reduced, reductions, strict=True) if own == reduction]
        regions[reduction] = sample.region(_cover(covered, size_px), reduction)
    return [
        resample_region(regions[reduction], window, size_px)
        for window, reduction in zip(reduced, reductions, strict=True)
    ]


def resample_region(region: DecodedRegion, window: Window, size_px: int) -> Crop:
    """Resample the window by averaging whole blocks, then bilinear; several times as fast as `resample`.

    The blocks are the least number of pixels that leaves no fewer than one pixel of the crop to each, so a window of
    1.8 to 2 pixels to one of the crop becomes averages of 2, each at its block's centre, and those are interpolated.
    Where nothing shrinks the result is that of `resample`, up to rounding. Where the averages would be more than
    1/.9 times as wide as the crop's pixels, or whole blocks do not cover the window, it is `resample` itself.

    Args:
        region: A part of the canvas that holds the window.
        window: (row0, col0, row1, col1) in continuous canvas pixels.
        size_px: Side of the result.
    """
    row0, col0, row1, col1 = window
    rows = _axis(row0, row1, region.row, region.pixels.shape[0], size_px)
    cols = _axis(col0, col1, region.col, region.pixels.shape[1], size_px)
    if rows is None or cols is None:
        shifted = (row0 - region.row, col0 - region.col, row1 - region.row, col1 - region.col)
        return resample(region.pixels, shifted, size_px)
    blocks = region.pixels[rows.first : rows.stop, cols.first : cols.stop]
    if (rows.factor, cols.factor) != (1, 1):
        blocks = cv2.resize(blocks, (cols.num_blocks, rows.num_blocks), interpolation=cv2.INTER_AREA)
    placement = np.array([[cols.step, 0.0, cols.start], [0.0, rows.step, rows.start]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(
        cv2.warpAffine(blocks, placement, (size_px, size_px), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    )


class _Axis(NamedTuple):
    """Along rows or columns: pixels [first, stop) of a region as blocks of `factor`, and where a crop samples those.

    The crop's pixel i lies at start + i·step, in blocks counted between their centres.
    """

    first: int
    stop: int
    factor: int
    start: float
    step: float

    @property
    def num_blocks(self) -> int:
        return (self.stop - self.first) // self.factor


def _axis(low: float, high: float, offset: int, length: int, size_px: int) -> _Axis | None:
    """Choose the blocks to average for the window low..high of the canvas; None if there is no such choice.

    The region holds `length` pixels of the canvas, from `offset` on. None is returned if whole blocks are too coarse
    for the window or do not cover it.
    """
    ratio = (high - low) / size_px
    factor = _factor(ratio)
    # Blocks are counted from the canvas's edge, so that a crop does not depend on how much was decoded around it.
    first = -offset % factor
    stop = first + (length - first) // factor * factor
    is_covered = offset + first <= low + _ROUNDING and high - _ROUNDING <= offset + stop
    if not is_covered or (factor > 1 and ratio < _LEAST_RESOLUTION * factor):
        return None
    step = ratio / factor
    return _Axis(first, stop, factor, (low - offset - first) / factor + step / 2 - 0.5, step)


def _reduction(sample: Sample, window: Window, size_px: int) -> Reduction:
    row0, col0, row1, col1 = window
    is_large = min(row1 - row0, col1 - col0) >= 2 * _LEAST_RESOLUTION * size_px
    return 2 if is_large and sample.half is not None else 1


def _divided(window: Window, reduction: Reduction) -> Window:
    row0, col0, row1, col1 = window
    return row0 / reduction, col0 / reduction, row1 / reduction, col1 / reduction


def _factor(ratio: float) -> int:
    return max(1, math.ceil(ratio - _ROUNDING))


def _cover(windows: Sequence[Window], size_px: int) -> Rectangle:
    """Return the range of pixels that any of the windows is made of.

    On every side it holds one block more, and what of the next one may be cut off because blocks are counted from the
    canvas's edge.
    """
    row0s, col0s, row1s, col1s = zip(*windows, strict=True)
    factor = max(_factor((row1 - row0) / size_px) for row0, row1 in zip(row0s + col0s, row1s + col1s, strict=True))
    margin = 2 * factor - 1
    return (
        math.floor(min(row0s)) - margin,
        math.floor(min(col0s)) - margin,
        math.ceil(max(row1s)) + margin,
        math.ceil(max(col1s)) + margin,
    )
