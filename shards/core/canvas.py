"""Resize an image onto the canvas, its aspect kept, and measure what each cell of the canvas holds."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from shards.core.grid import GridSpec
from shards.core.params import ForegroundParams

Pixels = UInt8[np.ndarray, "height width"] | UInt8[np.ndarray, "height width 3"]
Canvas = UInt8[np.ndarray, "side side"] | UInt8[np.ndarray, "side side 3"]

# A colour is a hue: the channels of a grey JPEG saved as RGB may differ by a few levels.
_MAX_GREY_DIFFERENCE = 8
_MAX_BRIGHT_AT_AN_EDGE = 0.02


def is_coloured(image: Pixels) -> bool:
    """Tell whether any pixel has a hue; a grey image saved as RGB has none."""
    return image.ndim == 3 and bool((np.ptp(image, axis=2) > _MAX_GREY_DIFFERENCE).any())


def with_channels(image: Pixels, channels: int) -> Pixels:
    """Convert an image to one grey channel (luma), or to three, which are equal for a grey image."""
    if channels == 1 and image.ndim == 3:
        return np.array(Image.fromarray(image).convert("L"))
    if channels == 3 and image.ndim == 2:
        return np.repeat(image[..., None], 3, axis=2)
    return image


def halved(image: Pixels) -> UInt8[np.ndarray, "lower narrower *channels"]:
    """Halve an image of even sides: each pixel is the mean of 2 × 2, halves rounded up."""
    height, width = image.shape[:2]
    half: UInt8[np.ndarray, "lower narrower *channels"] = cv2.resize(
        image, (width // 2, height // 2), interpolation=cv2.INTER_AREA
    )
    return half


def bright_box(image: Pixels, level: int) -> tuple[int, int, int, int]:
    """Find the part of an image inside its dark edges: (row0, col0, row1, col1), half open.

    A row or column at an edge is dark if at most a fiftieth of its pixels are above the level in any channel, so that
    dust and a printed date do not hold an edge. An image that is dark everywhere is left whole.

    Args:
        image: Pixels of 8 bits.
        level: Grey levels up to it are dark.
    """
    is_bright = (image.max(axis=2) if image.ndim == 3 else image) > level
    box: list[int] = []
    for axis in (1, 0):
        kept = np.flatnonzero(is_bright.mean(axis=axis) > _MAX_BRIGHT_AT_AN_EDGE)
        if not len(kept):
            return 0, 0, *image.shape[:2]
        box += [int(kept[0]), int(kept[-1]) + 1]
    row0, row1, col0, col1 = box
    return row0, col0, row1, col1


def resized_mask(
    mask: Bool[np.ndarray, "height width"], size: tuple[int, int]
) -> Bool[np.ndarray, "new_height new_width"]:
    """Resize a mask so that it keeps its area and loses none of its connected parts.

    As many of the new pixels are inside as the mask has area there: those that it covers most, and all that it covers
    as much as the last of them. A connected part (a lesion) that has none of them gets the pixel that holds most of it.

    Args:
        mask: True inside; neighbours across a corner are connected.
        size: (height, width) that it gets; a mask of this size stays as it is.
    """
    if mask.shape == size:
        return mask
    if not mask.any():
        return np.zeros(size, bool)
    covered = _covered(mask, size)
    num_inside = (2 * int(covered.sum()) + mask.size) // (2 * mask.size)
    least = np.partition(covered, -num_inside, axis=None)[-num_inside] if num_inside else mask.size + 1
    resized: Bool[np.ndarray, "new_height new_width"] = covered >= least
    # The new pixel in which the centre of each old one lies.
    rows, cols = ((2 * np.arange(of) + 1) * to // (2 * of) for of, to in zip(mask.shape, size, strict=True))
    num_parts, parts = connected_parts(mask)
    is_there = np.arange(num_parts + 1) == 0  # number 0 is outside
    is_there[parts[resized[rows][:, cols]]] = True
    lost_rows, lost_cols = np.nonzero(~is_there[parts])
    positions = np.stack([parts[lost_rows, lost_cols], rows[lost_rows], cols[lost_cols]])
    found, counts = np.unique(positions, axis=1, return_counts=True)
    part, row, col = found[:, np.argsort(counts, kind="stable")]
    # Of the pixels of one part the last is the one that counts.
    for position in dict(zip(part.tolist(), zip(row.tolist(), col.tolist(), strict=True), strict=True)).values():
        resized[position] = True
    return resized


def connected_parts(mask: Bool[np.ndarray, "height width"]) -> tuple[int, Int[np.ndarray, "height width"]]:
    """Number the connected parts of a mask; returns how many there are, and each pixel's number, 0 outside the mask."""
    num_with_outside, parts = cv2.connectedComponents(np.ascontiguousarray(mask).view(np.uint8), connectivity=8)
    return num_with_outside - 1, parts


def _covered(mask: Bool[np.ndarray, "height width"], size: tuple[int, int]) -> Int[np.ndarray, "new_height new_width"]:
    """Count how much of each new pixel a mask covers, from 0 to `mask.size`: whole numbers, exact for all sizes."""
    return _summed(_summed(mask, size[0]).T, size[1]).T


def _summed(values: Bool[np.ndarray, "of num"] | Int[np.ndarray, "of num"], to: int) -> Int[np.ndarray, "to num"]:
    """Sum up `to` equal stretches of the rows, times `to`; a row on the edge of two counts in both by its share."""
    of = len(values)
    first, share = np.divmod(np.arange(to + 1) * of, to)  # a stretch begins share / to of a row behind the row `first`
    sums = np.add.reduceat(values, first[:-1], axis=0, dtype=np.int64)
    sums[np.diff(first) == 0] = 0  # it lies within one row
    before: Int[np.ndarray, "edges num"] = share[:, None] * values[np.minimum(first, of - 1)]
    return to * sums + np.diff(before, axis=0)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A placement says where an image lies on the canvas: scaled to fit, its aspect kept, centred, the rest 0.

    Attributes:
        canvas_px: Side of the canvas.
        source_height: Height of the image, in pixels.
        source_width: Width of the image, in pixels.
        box: (row0, col0, row1, col1) of the image's part that is placed.
    """

    canvas_px: int
    source_height: int
    source_width: int
    box: tuple[int, int, int, int]

    @classmethod
    def of(cls, image: Pixels, canvas_px: int, trim_level: int | None) -> "Placement":
        """Place this image; with a `trim_level` its dark edges are left out (`bright_box`)."""
        height, width = image.shape[:2]
        whole = 0, 0, height, width
        return cls(
            canvas_px=canvas_px,
            source_height=height,
            source_width=width,
            box=whole if trim_level is None else bright_box(image, trim_level),
        )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the placed part on the canvas."""
        row0, col0, row1, col1 = self.box
        longest = max(row1 - row0, col1 - col0)
        height, width = (max(1, round(side * self.canvas_px / longest)) for side in (row1 - row0, col1 - col0))
        return height, width

    @property
    def offset(self) -> tuple[int, int]:
        """(row, col) of the placed part's first pixel on the canvas."""
        height, width = self.size
        return (self.canvas_px - height) // 2, (self.canvas_px - width) // 2

    @property
    def affine(self) -> list[list[float]]:
        """[[s, 0, row], [0, s, col]]: source to canvas, both in continuous pixels."""
        (height, width), (row, col), (row0, col0, row1, col1) = self.size, self.offset, self.box
        down, right = height / (row1 - row0), width / (col1 - col0)
        return [[down, 0.0, row - row0 * down], [0.0, right, col - col0 * right]]

    def place_image(self, image: Pixels) -> Canvas:
        """Resize the image onto the canvas, antialiased."""
        return self._place(image, Image.Resampling.BICUBIC)

    def place_mask(self, mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "side side"]:
        """Place a mask of the image on the canvas, by `resized_mask`; one of the canvas's size stays as it is."""
        row0, col0, row1, col1 = self.box
        (height, width), (row, col) = self.size, self.offset
        placed = np.zeros((self.canvas_px, self.canvas_px), bool)
        placed[row : row + height, col : col + width] = resized_mask(mask[row0:row1, col0:col1], self.size)
        return placed

    def _place(self, image: Pixels, resampling: Image.Resampling) -> Canvas:
        height, width = self.size
        row0, col0, row1, col1 = self.box
        part = image[row0:row1, col0:col1]
        if part.shape[:2] != (height, width):
            part = np.asarray(Image.fromarray(part).resize((width, height), resampling))
        if height == width:  # the longer of both is the canvas's
            return np.ascontiguousarray(part)
        canvas = np.zeros((self.canvas_px, self.canvas_px, *image.shape[2:]), image.dtype)
        row, col = self.offset
        canvas[row : row + height, col : col + width] = part
        return canvas

    def place_point(self, point: tuple[float, float]) -> tuple[float, float]:
        """Convert a (row, col) from continuous source pixels to continuous canvas pixels."""
        (row_scale, _, row), (_, col_scale, col) = self.affine
        return point[0] * row_scale + row, point[1] * col_scale + col


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The content of each of the n × n cells of a canvas.

    Attributes:
        mean: Grey levels 0..255 (over channels too), to two decimals as stored.
        std: Population standard deviation of the same pixels, to two decimals as stored.
        foreground: True for a cell that shows anatomy (not collimation or air).
        total: Sum of the foreground's values.
        total_squares: Sum of their squares.
        num_values: Their number.
    """

    mean: Float[np.ndarray, "n n"]
    std: Float[np.ndarray, "n n"]
    foreground: Bool[np.ndarray, "n n"]
    total: int
    total_squares: int
    num_values: int


def cell_statistics(canvas: Canvas, spec: GridSpec, params: ForegroundParams) -> Cells:
    """Compute mean, deviation and foreground of every cell.

    A cell is foreground if its mean exceeds `min_mean` (tissue) or its deviation exceeds `min_std` (an edge through a
    dark cell). Padding, collimation and exposed air are dark *and* flat, so they are neither.
    """
    sums, squares = _cell_sums(canvas, spec)
    count = canvas.size // spec.n**2
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    mean, std = np.round(mean, 2), np.round(std, 2)
    foreground = (mean > params.min_mean) | (std > params.min_std)
    total, total_squares = int(sums[foreground].sum()), int(squares[foreground].sum())
    return Cells(
        mean=mean,
        std=std,
        foreground=foreground,
        total=total,
        total_squares=total_squares,
        num_values=count * int(foreground.sum()),
    )


def foreground_sums(
    canvas: Canvas, foreground: Bool[np.ndarray, "n n"], spec: GridSpec
) -> Int[np.ndarray, "2 channels"]:
    """Add up the foreground's values and their squares for each channel; exact."""
    cells = canvas.reshape(spec.n, spec.cell_px, spec.n, spec.cell_px, -1).swapaxes(1, 2)[foreground]
    levels = np.arange(256)
    counts = np.stack([np.bincount(values, minlength=256) for values in cells.reshape(-1, cells.shape[-1]).T])
    sums: Int[np.ndarray, "2 channels"] = np.stack([counts @ levels, counts @ levels**2])
    return sums


def _cell_sums(canvas: Canvas, spec: GridSpec) -> Int[np.ndarray, "2 n n"]:
    """Add up every cell's values, and their squares."""
    columns = np.empty((2, spec.n, canvas[0].size), np.uint32)
    # One row of cells at a time: what fits the cache is several times as fast as copies of the canvas.
    for sums, squares, strip in zip(*columns, canvas.reshape(spec.n, spec.cell_px, -1), strict=True):
        values = strip.astype(np.uint32)
        np.add.reduce(values, axis=0, out=sums)
        np.multiply(values, values, out=values)
        np.add.reduce(values, axis=0, out=squares)
    cells: Int[np.ndarray, "2 n n"] = columns.reshape(2, spec.n, spec.n, -1).sum(axis=3, dtype=np.int64)
    return cells
