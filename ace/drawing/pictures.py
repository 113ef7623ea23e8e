"""Draw pictures for pages: data URIs, rows of tiles, and colours that tell a value or a place."""

import base64
import colorsys
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from ace.drawing.words import encoder_mark, encoder_name

NUM_SHADES = 64
HUES = np.array([number for number in range(20) if number not in (14, 15)])
"""Numbers of the colours of matplotlib's tab20 that are no greys."""
NUM_GREYS = 8
SCALE_PERCENTILE = 99
"""The brightest colour of the change maps stands for this percentile of all changes, so that single tokens that change
far more than the rest do not darken them."""


@dataclass(frozen=True, kw_only=True)
class DrawnBox:
    """Describes a rectangle to draw by its corner and its size."""

    row: float
    col: float
    height: float
    width: float


def square(row: float, col: float, side: float) -> DrawnBox:
    """Make a square box."""
    return DrawnBox(row=row, col=col, height=side, width=side)


def data_uri(pixels: np.ndarray, *, kind: str = "png", max_px: int | None = None) -> str:
    """Return an 8-bit picture as a data URI, shrunk to at most `max_px` on its longer side.

    Args:
        pixels: Grey [H, W], RGB or RGBA.
        kind: `png` (lossless) or `jpeg`.
        max_px: None keeps the size.
    """
    image = Image.fromarray(pixels)
    if max_px is not None:
        image.thumbnail((max_px, max_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if kind == "jpeg":
        image.save(buffer, "JPEG", quality=88)
    else:
        image.save(buffer, "PNG", optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def place_colour(place: Float[np.ndarray, "2"]) -> str:
    """Return a colour that tells a place on the canvas: the hue goes round its centre, pale in the middle."""
    row, col = float(place[0]) - 0.5, float(place[1]) - 0.5
    hue = (np.arctan2(row, col) / (2 * np.pi)) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, min(1.0, 0.45 + 1.6 * float(np.hypot(row, col))), 1.0)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def heat(values: Float[np.ndarray, "rows cols"], *, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Colour values as RGB, from dark for low ones to bright for high ones.

    Args:
        values: The values to show.
        low: Value of the darkest colour; None takes the smallest.
        high: Value of the brightest colour, which larger ones have as well; None takes the largest.
    """
    start = float(values.min()) if low is None else low
    spread = (float(values.max()) if high is None else high) - start or 1.0
    coloured: np.ndarray = matplotlib.colormaps["inferno"]((values - start) / spread, bytes=True)
    return coloured[..., :3]


def found_tile(
    canvas: np.ndarray, targets: Float[np.ndarray, "points 2"], found: Float[np.ndarray, "points 2"], label: str
) -> str:
    """Draw where points of a canvas should be found and where they were, as an SVG in HTML.

    Args:
        canvas: The picture, square.
        targets: (row, col) in pixels where each point should be found; drawn as a ring.
        found: (row, col) in pixels where it was found; drawn as a dot, joined to its ring.
        label: Text for screen readers.
    """
    size_px = len(canvas)
    marks = []
    for target, point in zip(targets, found, strict=True):
        colour = place_colour(target / size_px)
        (top, left), (row, col) = target.round(1), point.round(1)
        marks.append(
            f'<path d="M{left} {top}L{col} {row}" style="stroke: {colour}; stroke-width: 1.2; stroke-opacity: .85"/>'
            f'<circle cx="{left}" cy="{top}" r="{size_px / 70:.1f}" '
            f'style="fill: none; stroke: {colour}; stroke-width: 1.3"/>'
            f'<circle cx="{col}" cy="{row}" r="{size_px / 105:.1f}" style="fill: {colour}; stroke: #000"/>'
        )
    image = f'<image href="{data_uri(canvas, kind="jpeg")}" width="{size_px}" height="{size_px}"/>'
    return (
        f'<svg class="tile" viewBox="0 0 {size_px} {size_px}" role="img" aria-label="{label}">'
        f"{image}{''.join(marks)}</svg>"
    )


def label_map(labels: Int[np.ndarray, "rows cols"], num_named: int) -> UInt8[np.ndarray, "rows cols 3"]:
    """Colour numbers: those below `num_named` have one each, −1 is black, and others are shades of grey."""
    named = matplotlib.colormaps["tab20"](HUES[np.arange(num_named) % len(HUES)], bytes=True)[:, :3]
    greys = np.repeat((40 + 12 * (labels % NUM_GREYS))[..., None], 3, axis=-1).astype(np.uint8)
    coloured = np.where((labels < num_named)[..., None], named[np.clip(labels, 0, num_named - 1)], greys)
    coloured[labels < 0] = 0
    return coloured


def tile_row(tiles: Sequence[tuple[str, str]]) -> str:
    """Lay pictures side by side in HTML, each below its label.

    Args:
        tiles: Label and picture of each, both HTML.
    """
    narrow = 2 if len(tiles) % 2 == 0 else 3
    cells = "".join(f'<div><p class="label">{label}</p>{tile}</div>' for label, tile in tiles)
    return f'<div class="found" style="--columns: {len(tiles)}; --narrow: {narrow}">{cells}</div>'


def encoder_label(encoder: str, number: int) -> str:
    """Return an encoder's name in its colour, as HTML; `number` is its position in `encoders`."""
    return f'<span class="{encoder_mark(number)}">{encoder_name(encoder)}</span>'


def answer_row(encoder: str, number: int, crops: np.ndarray, is_right: np.ndarray) -> str:
    """Return one encoder's nearest candidates as a row of crops, as HTML; the right ones are framed.

    Args:
        encoder: Name of the encoder.
        number: Its position in `encoders`, which decides its colour.
        crops: The candidates, the nearest first.
        is_right: Which of them are right.
    """
    who = f'<div class="who">{encoder_label(encoder, number)}</div>'
    cells = [
        f'<div class="candidate {"right" if right else "wrong"}{"" if place else " first"}">'
        f'<img src="{data_uri(crop)}" alt="{"right" if right else "wrong"} candidate {place + 1}"></div>'
        for place, (crop, right) in enumerate(zip(crops, is_right, strict=True))
    ]
    return f'<div class="answer">{who}{"".join(cells)}</div>'
