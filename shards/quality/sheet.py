"""`quality.png`: the views' mean images, then what is quarantined or suspect, with the reason under each."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

SHEET = "quality.png"

_TILE_PX, _CAPTION_PX, _GAP_PX = 192, 58, 8
_NUM_COLS = 6
_LINE_CHARACTERS = 30


@dataclass(frozen=True)
class Tile:
    """One picture of the sheet.

    Attributes:
        picture: A thumbnail; None where it must not be shown.
        caption: Text under the picture.
    """

    picture: UInt8[np.ndarray, "side side"] | None
    caption: str


def draw_sheet(tiles: Sequence[Tile]) -> Image.Image:
    """Draw the tiles in rows of six, enlarged; one line of text where there are none."""
    num_rows = max(1, -(-len(tiles) // _NUM_COLS))
    size = _NUM_COLS * (_TILE_PX + _GAP_PX) + _GAP_PX, num_rows * (_TILE_PX + _CAPTION_PX + _GAP_PX) + _GAP_PX
    sheet = Image.new("RGB", size, (18, 18, 20))
    draw = ImageDraw.Draw(sheet)
    if not tiles:
        draw.text((_GAP_PX, _GAP_PX), "nothing quarantined, nothing suspect", fill=(220, 220, 220))
    for number, tile in enumerate(tiles):
        row, col = divmod(number, _NUM_COLS)
        left = _GAP_PX + col * (_TILE_PX + _GAP_PX)
        top = _GAP_PX + row * (_TILE_PX + _CAPTION_PX + _GAP_PX)
        if tile.picture is not None:
            picture = Image.fromarray(tile.picture).resize((_TILE_PX, _TILE_PX), Image.Resampling.BICUBIC)
            sheet.paste(picture.convert("RGB"), (left, top))
        caption = "\n".join(textwrap.wrap(tile.caption, _LINE_CHARACTERS))
        draw.multiline_text((left + 2, top + _TILE_PX + 4), caption, fill=(220, 220, 220))
    return sheet
