"""A contact sheet of a shard set: what the samples look like, with everything the shard knows drawn on them."""

import colorsys
import hashlib
from typing import cast

import numpy as np
from PIL import Image, ImageDraw

from shards.grid import CropPair
from shards.read import Sample, ShardIndex, ShardReader

_NUM_SAMPLES = 8
_NUM_COLS = 6
_TILE_PX = 288
_CAPTION_PX = 24
_GAP_PX = 8
_COARSE, _FINE, _GRID, _POINT = (255, 176, 0), (0, 214, 214), (130, 130, 130), (255, 255, 255)


def draw_contact_sheet(index: ShardIndex) -> Image.Image:
    """Up to eight samples spread over the set, three tiles each.

    The plain canvas; the first stored crop pair (its grid grey, coarse crop orange, fine crop cyan) with background
    cells darkened; outlines of the masks (the same hue for the same structure everywhere) with landmarks as dots.
    """
    reader = ShardReader(index)
    rows = np.unique(np.linspace(0, len(index.rows) - 1, _NUM_SAMPLES).round().astype(int))
    num_rows = -(-3 * len(rows) // _NUM_COLS)
    size = (_NUM_COLS * (_TILE_PX + _GAP_PX) + _GAP_PX, num_rows * (_TILE_PX + _CAPTION_PX + _GAP_PX) + _GAP_PX)
    sheet = Image.new("RGB", size, (18, 18, 20))
    for number, row in enumerate(rows):
        sample = reader.read(int(row))
        plain = Image.fromarray(sample.image).convert("RGB").resize((_TILE_PX, _TILE_PX), Image.Resampling.LANCZOS)
        findings = ", ".join(name for name, value in sample.meta["labels"].items() if value == 1)
        _paste(sheet, 3 * number, plain, f"{sample.key}  {sample.split}  {sample.meta['view'] or ''}")
        _paste(sheet, 3 * number + 1, _with_crops(sample, plain), "grid, foreground, one crop pair")
        _paste(sheet, 3 * number + 2, _with_structures(sample, plain), findings or "no finding labelled")
    return sheet


def _with_crops(sample: Sample, plain: Image.Image) -> Image.Image:
    grid = sample.meta["grid"]
    foreground = np.kron(grid["foreground"], np.ones((grid["cell_px"], grid["cell_px"])))
    pixels = np.asarray(plain).astype(np.float32)
    pixels[~_resize(foreground > 0)] *= 0.45
    tile = Image.fromarray(pixels.astype(np.uint8))
    if grid["bank"]:
        _draw_pair(ImageDraw.Draw(tile), sample, CropPair.from_json(grid["bank"][0]))
    return tile


def _draw_pair(draw: ImageDraw.ImageDraw, sample: Sample, pair: CropPair) -> None:
    n, t = sample.meta["grid"]["n"], sample.meta["grid"]["t"]
    top, left, side = (value * _TILE_PX / sample.image.shape[0] for value in pair.jitter)
    cell = side / n
    for line in range(n + 1):
        draw.line((left, top + line * cell, left + side, top + line * cell), fill=_GRID)
        draw.line((left + line * cell, top, left + line * cell, top + side), fill=_GRID)
    for (row, col), k, l, colour in ((pair.coarse, pair.k, pair.l, _COARSE), (pair.fine, 1, 1, _FINE)):
        corner = left + col * cell, top + row * cell
        draw.rectangle((*corner, corner[0] + l * t * cell, corner[1] + k * t * cell), outline=colour, width=3)


def _with_structures(sample: Sample, plain: Image.Image) -> Image.Image:
    pixels = np.array(plain)
    for structure, mask in sorted(sample.masks().items()):
        pixels[_outline(_resize(mask))] = _colour_of(structure)
    tile = Image.fromarray(pixels)
    draw = ImageDraw.Draw(tile)
    scale = _TILE_PX / sample.image.shape[0]
    for row, col in sample.landmarks.values():
        draw.ellipse((col * scale - 1, row * scale - 1, col * scale + 1, row * scale + 1), fill=_POINT)
    return tile


def _colour_of(structure: str) -> tuple[int, int, int]:
    hue = hashlib.sha256(structure.encode()).digest()[0] / 256
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.8, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _resize(mask: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(mask).resize((_TILE_PX, _TILE_PX), Image.Resampling.NEAREST))


def _outline(mask: np.ndarray) -> np.ndarray:
    """Pixels of the mask with a neighbour outside it."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return cast(np.ndarray, mask & ~inside)


def _paste(sheet: Image.Image, number: int, tile: Image.Image, caption: str) -> None:
    row, col = divmod(number, _NUM_COLS)
    left, top = _GAP_PX + col * (_TILE_PX + _GAP_PX), _GAP_PX + row * (_TILE_PX + _CAPTION_PX + _GAP_PX)
    sheet.paste(tile, (left, top + _CAPTION_PX))
    ImageDraw.Draw(sheet).text((left + 2, top + 8), caption, fill=(220, 220, 220))
