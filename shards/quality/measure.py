"""Measure one decoded image in a few numbers: all that the quality checks know of its pixels."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int64, Num, UInt8

from shards.core.canvas import halved

THUMBNAIL_PX = 64
_HASHED_PX, _DCT_PX, _NUM_FREQUENCIES = 128, 32, 8
_MARGINS_PX = (0, 3, 5)
"""Cut off each side of 128 before hashing: a copy cropped by 2 or 4 % has a hash of the original's."""
NUM_HASHES = len(_MARGINS_PX)
UNKNOWN = -1
_MAX_NAME = 80
_MAX_FRAME_LEVELS = 8
"""A row or column with a greater range of grey levels shows something."""
_DARK_QUANTILE = 0.05
"""Share of the pixels below a level of the background that is no outlier."""
_MIN_BACKGROUND, _MIN_SHOWN = 0.5, 0.02
"""A dark background is more than this share of an image, and what stands out from it at least that."""
_MIN_COUNTED_ROWS = 256
"""An image of twice as many rows or more has its levels counted in every nth row: shares and deviation stay as good."""

MEASURE_DTYPE = np.dtype(
    [
        # Of the grey levels; where an image is mostly dark background, as a mammogram, of those that stand out from it:
        ("mean", np.float32),  # grey levels, 0 to 255
        ("std", np.float32),
        ("entropy_bits", np.float32),  # of the grey levels' histogram
        ("darkest", np.uint8),
        ("brightest", np.uint8),
        ("num_levels", np.uint16),
        ("black", np.float32),  # share of the pixels at 0
        ("white", np.float32),  # at 255
        ("one_level", np.float32),  # on the commonest level
        # Of the picture:
        ("corners", np.float32),  # mean of the corners, an eighth of height and width each
        ("centre", np.float32),  # mean of the middle half of the height and quarter of the width
        ("symmetry", np.float32),  # correlation with its mirror image
        ("burned_in", np.int8),  # 1, 0, or UNKNOWN
        ("pixels", np.uint64, (2,)),  # first 16 bytes of the sha256 of the sample's image
        ("hashes", np.uint64, (NUM_HASHES,)),  # perceptual: of the whole, then of its inner part
        ("thumbnail", np.uint8, (THUMBNAIL_PX, THUMBNAIL_PX)),  # without a flat frame, stretched to a square
    ]
)
STRUCTURE_DTYPE = np.dtype(
    [
        ("row", np.int32),  # the image's in its tar
        ("structure", f"S{_MAX_NAME}"),
        ("area", np.float32),  # share of the image
        ("contradicts", np.bool_),  # the label of its name
    ]
)


@dataclass(frozen=True)
class Structure:
    """A mask in a number.

    Attributes:
        name: Name of the structure.
        area: Share of the image inside.
        contradicts: The label of this name says the opposite.
    """

    name: str
    area: float
    contradicts: bool


@dataclass(frozen=True)
class ImageMeasures:
    """Holds the measures of one image.

    Attributes:
        values: One item of `MEASURE_DTYPE`.
        structures: Its masks in numbers, by name.
    """

    values: np.void
    structures: tuple[Structure, ...]


def measure(
    grey: UInt8[np.ndarray, "height width"],
    encoded: bytes,
    areas: Mapping[str, float],
    labels: Mapping[str, int | None],
    *,
    is_burned_in: bool | None,
) -> ImageMeasures:
    """Measure one image as it was decoded.

    Args:
        grey: Pixels of the image; luma of a coloured one.
        encoded: The sample's image, whose bytes are the same for the same canvas; shorter to hash than pixels.
        areas: Structure → share of the image inside its mask.
        labels: The record's.
        is_burned_in: The header says that text is burned in; None: it says nothing.
    """
    _keep_to_one_thread()
    grey = np.ascontiguousarray(grey)
    values = np.zeros((), MEASURE_DTYPE)
    _measure_levels(grey, values)
    small = cv2.resize(_halved_often(_without_frame(grey)), (_HASHED_PX, _HASHED_PX), interpolation=cv2.INTER_AREA)
    thumbnail = cv2.resize(small, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    values["thumbnail"] = thumbnail
    values["corners"], values["centre"] = corners_and_center(thumbnail)
    even = standardized(thumbnail)
    values["symmetry"] = (even * even[:, ::-1]).sum()
    values["burned_in"] = UNKNOWN if is_burned_in is None else is_burned_in
    values["pixels"] = np.frombuffer(hashlib.sha256(encoded).digest()[:16], np.uint64)
    values["hashes"] = [perceptual_hash(_without_margin(small, margin)) for margin in _MARGINS_PX]
    structures = tuple(
        Structure(name, area, _contradicts(labels.get(name), area)) for name, area in sorted(areas.items())
    )
    item: np.void = values[()]  # type: ignore[assignment]
    return ImageMeasures(item, structures)


@cache
def _keep_to_one_thread() -> None:
    """Keep OpenCV to one thread: the cores are shared out as processes, within which threads only cost time."""
    cv2.setNumThreads(1)


def standardized(pictures: Num[np.ndarray, "*batch height width"]) -> Float[np.ndarray, "*batch height width"]:
    """Scale pictures to mean 0 and norm 1, so that the sum of the product of two is their correlation.

    A flat picture becomes 0.
    """
    centered = pictures - pictures.mean(axis=(-2, -1), keepdims=True, dtype=np.float32)
    norms = np.sqrt(np.square(centered).sum(axis=(-2, -1), keepdims=True))
    result: Float[np.ndarray, "*batch height width"] = centered / np.maximum(norms, np.float32(1e-3))
    return result


def perceptual_hash(picture: UInt8[np.ndarray, "height width"]) -> int:
    """Hash a picture to 64 bits that hardly depend on size, compression and brightness.

    A bit tells whether a low frequency is above the median of them.

    The picture shrinks to 32 × 32; the bits are the signs of its 8 × 8 lowest cosine coefficients, row by row, relative
    to the median of all but the first (the mean grey).
    """
    shrunk = cv2.resize(picture, (_DCT_PX, _DCT_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = cv2.dct(shrunk)[:_NUM_FREQUENCIES, :_NUM_FREQUENCIES].ravel()
    median = np.sort(low[1:])[low.size // 2 - 1]
    return int.from_bytes(np.packbits(low > median).tobytes(), "big")


def _measure_levels(grey: UInt8[np.ndarray, "height width"], values: np.ndarray) -> None:
    """Measure everything that the histogram decides."""
    step = max(1, len(grey) // _MIN_COUNTED_ROWS)
    counts = cv2.calcHist([grey[::step]], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    counts[: _end_of_background(counts)] = 0
    levels, shares = np.flatnonzero(counts), counts / counts.sum()
    used = shares[levels]
    mean = float(used @ levels)
    values["mean"] = mean
    values["std"] = np.sqrt(used @ np.square(levels - mean))
    values["entropy_bits"] = -(used @ np.log2(used))
    values["darkest"], values["brightest"] = levels[0], levels[-1]
    values["num_levels"] = len(levels)
    values["black"], values["white"], values["one_level"] = shares[0], shares[255], shares.max()


def _end_of_background(counts: Int64[np.ndarray, "256"]) -> int:
    """Find the first grey level above a dark background; 0 where an image has none, or nothing beside it."""
    shares = counts.cumsum() / counts.sum()
    end = int(np.searchsorted(shares, _DARK_QUANTILE)) + _MAX_FRAME_LEVELS + 1
    share = shares[min(end, len(shares)) - 1]
    return end if _MIN_BACKGROUND < share <= 1 - _MIN_SHOWN else 0


def _halved_often(grey: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "lower narrower"]:
    """Halve an image as long as enough is left and its sides are even: OpenCV is several times as fast at that."""
    while min(grey.shape) >= 4 * _HASHED_PX and grey.shape[0] % 2 == grey.shape[1] % 2 == 0:
        grey = halved(grey)
    return grey


def corners_and_center(thumbnail: UInt8[np.ndarray, "side side"]) -> tuple[float, float]:
    """Return the mean grey of the four corners, and of the middle, where a radiograph or a fundus is bright."""
    edge, quarter = THUMBNAIL_PX // 8, THUMBNAIL_PX // 4
    corners = [
        thumbnail[rows, cols]
        for rows in (slice(edge), slice(-edge, None))
        for cols in (slice(edge), slice(-edge, None))
    ]
    center = thumbnail[quarter:-quarter, THUMBNAIL_PX // 2 - quarter // 2 : THUMBNAIL_PX // 2 + quarter // 2]
    return float(np.mean(corners)), float(center.mean())


def _without_frame(grey: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "inner_height inner_width"]:
    """Cut flat rows and columns off the edges of a picture: a copy may have been padded to a square.

    All of it where fewer than a third of them show something: what is so dark or so flat is not framed.
    """
    spans = []
    for lines in (grey, grey.T):
        if not (_is_flat(lines[:1]) | _is_flat(lines[-1:])).any():
            spans.append(slice(None))
            continue
        shown = np.flatnonzero(~_is_flat(lines))
        if 3 * shown.size < len(lines):
            return grey
        spans.append(slice(shown[0], shown[-1] + 1))
    return np.ascontiguousarray(grey[spans[0], spans[1]])


def _is_flat(lines: UInt8[np.ndarray, "num length"]) -> Bool[np.ndarray, " num"]:
    flat: Bool[np.ndarray, " num"] = lines.max(1) - lines.min(1) <= _MAX_FRAME_LEVELS
    return flat


def _without_margin(picture: UInt8[np.ndarray, "side side"], margin: int) -> UInt8[np.ndarray, "inner inner"]:
    return picture[margin : picture.shape[0] - margin, margin : picture.shape[1] - margin]


def _contradicts(label: int | None, area: float) -> bool:
    return (label == 1 and area == 0) or (label == 0 and area > 0)
