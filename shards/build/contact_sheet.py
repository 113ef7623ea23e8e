"""A contact sheet of a shard set: what the samples look like, with everything the shard knows drawn on them."""

import colorsys
import hashlib
from typing import cast

import numpy as np
from PIL import Image, ImageDraw

from shards.core.errors import ConfigError
from shards.core.grid import CropPair
from shards.reading.reader import Sample, ShardIndex, ShardReader

_NUM_SAMPLES = 8
_NUM_COLS = 6
_NUM_TILES = 3
_TILE_PX = 288
_SHOWN_TILE_PX = 640
_CAPTION_PX = 24
_GAP_PX = 8
_COARSE, _FINE, _GRID, _POINT = (255, 176, 0), (0, 214, 214), (130, 130, 130), (255, 255, 255)


def draw_contact_sheet(index: ShardIndex) -> Image.Image:
    """Draw up to eight samples spread over the set, three tiles each (`draw_sample`)."""
    reader = ShardReader(index)
    rows = np.unique(np.linspace(0, len(index.rows) - 1, _NUM_SAMPLES).round().astype(int))
    samples = [reader.read(int(row)) for row in rows]
    return _sheet([tile for sample in samples for tile in _tiles(sample, _TILE_PX, 0)], _NUM_COLS, _TILE_PX)


def draw_sample(sample: Sample, pair: int = 0) -> Image.Image:
    """Draw one sample in three tiles side by side.

    The plain canvas; a stored crop pair (its grid grey, coarse crop orange, fine crop cyan) with background cells
    darkened; outlines of the masks (the same hue for the same structure everywhere) with boxes, and landmarks as dots.

    Args:
        sample: The sample.
        pair: Number of the stored crop pair that is drawn, from 0.

    Raises:
        ConfigError: the sample has no such pair.
    """
    num_pairs = len(sample.meta["grid"]["bank"])
    if not 0 <= pair < max(1, num_pairs):
        raise ConfigError(f"sample {sample.key} has {num_pairs} stored crop pairs; expected a number from 0 below that")
    return _sheet(_tiles(sample, _SHOWN_TILE_PX, pair), _NUM_TILES, _SHOWN_TILE_PX)


def _tiles(sample: Sample, tile_px: int, pair: int) -> list[tuple[Image.Image, str]]:
    """Return the tiles of one sample with their captions."""
    plain = Image.fromarray(sample.image).resize((tile_px, tile_px), Image.Resampling.LANCZOS).convert("RGB")
    findings = ", ".join(name for name, value in sample.meta["labels"].items() if value == 1)
    return [
        (plain, f"{sample.key}  {sample.split}  {sample.meta['view'] or ''}"),
        (_with_crops(sample, plain, pair), "grid, foreground, one crop pair"),
        (with_structures(sample, plain), findings or "no finding labelled"),
    ]


def _sheet(tiles: list[tuple[Image.Image, str]], num_cols: int, tile_px: int) -> Image.Image:
    num_rows = -(-len(tiles) // num_cols)
    width = num_cols * (tile_px + _GAP_PX) + _GAP_PX
    sheet = Image.new("RGB", (width, num_rows * (tile_px + _CAPTION_PX + _GAP_PX) + _GAP_PX), (18, 18, 20))
    for number, (tile, caption) in enumerate(tiles):
        row, col = divmod(number, num_cols)
        left, top = _GAP_PX + col * (tile_px + _GAP_PX), _GAP_PX + row * (tile_px + _CAPTION_PX + _GAP_PX)
        sheet.paste(tile, (left, top + _CAPTION_PX))
        ImageDraw.Draw(sheet).text((left + 2, top + 8), caption, fill=(220, 220, 220))
    return sheet


def _with_crops(sample: Sample, plain: Image.Image, number: int) -> Image.Image:
    grid = sample.meta["grid"]
    foreground = np.kron(grid["foreground"], np.ones((grid["cell_px"], grid["cell_px"])))
    pixels = np.asarray(plain).astype(np.float32)
    pixels[~_resize(foreground > 0, plain.width)] *= 0.45
    tile = Image.fromarray(pixels.astype(np.uint8))
    if grid["bank"]:
        _draw_pair(ImageDraw.Draw(tile), sample, CropPair.from_json(grid["bank"][number]), plain.width)
    return tile


def _draw_pair(draw: ImageDraw.ImageDraw, sample: Sample, pair: CropPair, tile_px: int) -> None:
    n, t = sample.meta["grid"]["n"], sample.meta["grid"]["t"]
    top, left, side = (value * tile_px / sample.image.shape[0] for value in pair.jitter)
    cell = side / n
    for line in range(n + 1):
        draw.line((left, top + line * cell, left + side, top + line * cell), fill=_GRID)
        draw.line((left + line * cell, top, left + line * cell, top + side), fill=_GRID)
    for (row, col), k, l, colour in ((pair.coarse, pair.k, pair.l, _COARSE), (pair.fine, 1, 1, _FINE)):
        corner = left + col * cell, top + row * cell
        draw.rectangle((*corner, corner[0] + l * t * cell, corner[1] + k * t * cell), outline=colour, width=3)


def with_structures(sample: Sample, plain: Image.Image) -> Image.Image:
    """Draw the outlines of a sample's masks, its boxes, and dots at its landmarks onto its canvas.

    Args:
        sample: The sample.
        plain: The sample's canvas at another size, in colour.
    """
    pixels = np.array(plain)
    for structure, mask in sorted(sample.masks().items()):
        pixels[_outline(_resize(mask, plain.width))] = colour_of(structure)
    tile = Image.fromarray(pixels)
    draw = ImageDraw.Draw(tile)
    scale = plain.width / sample.image.shape[0]
    for box in sample.meta["boxes"]:
        corners = tuple(box[name] * scale for name in ("col0", "row0", "col1", "row1"))
        draw.rectangle(corners, outline=colour_of(box["label"]), width=2)
    for row, col in sample.landmarks.values():
        draw.ellipse((col * scale - 1, row * scale - 1, col * scale + 1, row * scale + 1), fill=_POINT)
    return tile


def colour_of(structure: str) -> tuple[int, int, int]:
    """Return red, green and blue of a structure, 0 to 255; a structure has the same colour everywhere."""
    hue = hashlib.sha256(structure.encode()).digest()[0] / 256
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.8, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _resize(mask: np.ndarray, tile_px: int) -> np.ndarray:
    return np.asarray(Image.fromarray(mask).resize((tile_px, tile_px), Image.Resampling.NEAREST))


def _outline(mask: np.ndarray) -> np.ndarray:
    """Find the pixels of a mask that have a neighbour outside it."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return cast(np.ndarray, mask & ~inside)
