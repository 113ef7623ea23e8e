"""Bring image files to the square that an encoder takes, with numpy and Pillow alone: a MONAI bundle holds this file.

It does what `Preprocessing.place` does to a file, so that a bundle gives the embeddings that `embed` gives.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

ENDINGS = (".png", ".jpg", ".jpeg")
_XMP = ("xmp", "XML:com.adobe.xmp")
_LOW, _HIGH, _MAX_SHARE_OF_A_VALUE = 0.005, 0.995, 0.001
_MAX_BRIGHT_AT_AN_EDGE = 0.02


def find_images(folder: str) -> list[str]:
    """Return the PNG and JPEG files of a folder, in the order of their names; hidden ones are passed over.

    Raises:
        ValueError: there is none.
    """
    paths = [path for path in Path(folder).iterdir() if path.suffix.lower() in ENDINGS and path.name[0] != "."]
    if not paths:
        raise ValueError(f"{folder}: found no image; expected files that end in {', '.join(ENDINGS)}")
    return sorted(map(str, paths))


def place(image: ImageFile.ImageFile, *, side: int, channels: int, trim_level: int | None) -> Image.Image:
    """Return an opened file upright, in grey or RGB of 8 bits, scaled to fit a black square with its aspect kept.

    Args:
        image: The file as Pillow opened it.
        side: Side of the square, in pixels.
        channels: 1 for grey, 3 for RGB.
        trim_level: Dark edges up to this grey level are cut off first; None leaves the image whole.

    Raises:
        ValueError: the file is colour of 16 bits, of which Pillow keeps 8.
    """
    if not image.mode.startswith("I") and ";16" in str(image.tile):
        raise ValueError(f"{os.fsdecode(image.filename)}: colour of 16 bits; expected grey, or colour of 8 bits")
    image.load()
    for key in _XMP:  # an orientation is read from EXIF alone
        image.info.pop(key, None)
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        upright = Image.fromarray(_spread(np.asarray(upright).astype(np.int64)))
    elif upright.mode not in ("L", "RGB"):
        upright = upright.convert("RGB")
    pixels = np.asarray(upright)
    if trim_level is not None:
        pixels = pixels[_inside(pixels, trim_level)]
    part = Image.fromarray(pixels).convert({1: "L", 3: "RGB"}[channels])
    width, height = (max(1, round(length * side / max(part.size))) for length in part.size)
    square = Image.new(part.mode, (side, side))
    square.paste(part.resize((width, height), Image.Resampling.BICUBIC), ((side - width) // 2, (side - height) // 2))
    return square


def _inside(pixels: np.ndarray, level: int) -> tuple[slice, slice]:
    """Find the rows and columns inside the dark edges; an image that is dark everywhere is left whole.

    A row or column at an edge is dark if at most a fiftieth of its pixels are above the level in any channel.
    """
    is_bright = (pixels.max(axis=2) if pixels.ndim == 3 else pixels) > level
    rows, cols = (np.flatnonzero(is_bright.mean(axis=axis) > _MAX_BRIGHT_AT_AN_EDGE) for axis in (1, 0))
    if not len(rows) or not len(cols):
        return slice(None), slice(None)
    return slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)


def _spread(values: np.ndarray) -> np.ndarray:
    """Convert deeper grey to 8 bits, from its 0.5th to its 99.5th percentile.

    One value counts for at most a thousandth of the pixels, so that borders and burned-in markers do not decide.
    """
    levels, counts = np.unique(values, return_counts=True)
    ends = np.cumsum(np.minimum(counts, max(1, values.size * _MAX_SHARE_OF_A_VALUE // 1)))
    low, high = (_at_rank(levels, ends, share * float(ends[-1] - 1)) for share in (_LOW, _HIGH))
    if low >= high:
        low, high = float(levels[0]), float(levels[-1])
    shares = np.clip((values - low) / ((high - low) or np.inf), 0, 1)
    return np.round(shares * 255).astype(np.uint8)


def _at_rank(levels: np.ndarray, ends: np.ndarray, rank: float) -> float:
    """Return the value at a rank, from 0, in the sorted pixels; between two ranks in proportion."""
    below, above = (float(levels[np.searchsorted(ends, whole, side="right")]) for whole in (rank // 1, -(-rank // 1)))
    return below + (rank % 1) * (above - below)
