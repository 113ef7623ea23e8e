"""A contact sheet of a shard set: what the samples look like, with everything the shard knows drawn on them."""

import colorsys
from typing import cast

import numpy as np
from PIL import Image, ImageDraw

from shards.grid import CropPair
from shards.read import Sample, ShardIndex, ShardReader

NUM_SAMPLES = 12
_NUM_COLS = 4
_TILE_PX = 320
_CAPTION_PX = 28
_GAP_PX = 8
_COARSE, _FINE, _JITTER, _POINT = (255, 176, 0), (0, 214, 214), (150, 150, 150), (255, 80, 160)


def draw_contact_sheet(index: ShardIndex) -> Image.Image:
    """Up to twelve samples spread over the set, half of each pair of tiles plain and half explained.

    On the explained tile: mask outlines (one hue a structure), landmarks (dots), background cells (darkened), and the
    first stored crop pair: its grid grey, coarse crop orange, fine crop cyan.
    """
    reader = ShardReader(index)
    rows = np.unique(np.linspace(0, len(index.rows) - 1, NUM_SAMPLES).round().astype(int))
    samples = [reader.read(int(row)) for row in rows]
    width = _NUM_COLS * (_TILE_PX + _GAP_PX) + _GAP_PX
    num_rows = -(-2 * len(samples) // _NUM_COLS)
    height = num_rows * (_TILE_PX + _CAPTION_PX + _GAP_PX) + _GAP_PX
    sheet = Image.new("RGB", (width, height), (18, 18, 20))
    for number, sample in enumerate(samples):
        plain = Image.fromarray(sample.image).convert("RGB").resize((_TILE_PX, _TILE_PX), Image.Resampling.LANCZOS)
        caption = f"{sample.key}  {sample.row['split']}  {sample.meta['view'] or ''}"
        findings = ", ".join(name for name, value in sample.meta["labels"].items() if value == 1)
        _paste(sheet, 2 * number, plain, caption)
        _paste(sheet, 2 * number + 1, _explain(sample, plain), findings or "no finding labelled")
    return sheet


def _explain(sample: Sample, plain: Image.Image) -> Image.Image:
    """The tile with masks, landmarks, background cells, grid and first crop pair drawn on it."""
    canvas_px = sample.image.shape[0]
    scale = _TILE_PX / canvas_px
    pixels = np.asarray(plain).astype(np.float32)
    foreground = np.kron(sample.meta["grid"]["foreground"], np.ones((sample.meta["grid"]["cell_px"],) * 2))
    pixels[_resize(foreground > 0) == 0] *= 0.45
    masks = sorted(sample.masks().items())
    for number, (_, mask) in enumerate(masks):
        hue = colorsys.hsv_to_rgb(number / len(masks), 0.75, 1.0)
        pixels[_outline(_resize(mask))] = np.array(hue) * 255
    tile = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(tile)
    for row, col in sample.landmarks.values():
        draw.ellipse((col * scale - 2, row * scale - 2, col * scale + 2, row * scale + 2), fill=_POINT)
    if sample.meta["grid"]["bank"]:
        _draw_pair(draw, sample, scale)
    return tile


def _draw_pair(draw: ImageDraw.ImageDraw, sample: Sample, scale: float) -> None:
    grid = sample.meta["grid"]
    pair = CropPair.from_json(grid["bank"][0])
    top, left, side = (scale * value for value in pair.jitter)
    for line in range(grid["n"] + 1):
        at = line * side / grid["n"]
        draw.line((left, top + at, left + side, top + at), fill=_JITTER)
        draw.line((left + at, top, left + at, top + side), fill=_JITTER)
    for (row, col), (k, l), colour in ((pair.coarse, (pair.k, pair.l), _COARSE), (pair.fine, (1, 1), _FINE)):
        cell = side / grid["n"]
        corners = (
            left + col * cell,
            top + row * cell,
            left + (col + l * grid["t"]) * cell,
            top + (row + k * grid["t"]) * cell,
        )
        draw.rectangle(corners, outline=colour, width=3)


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
