"""Pictures with marks on them: what the template needs to draw them as SVG, all in canvas pixels."""

import base64
import colorsys
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from PIL import Image

from ace.data.crops import resample
from ace.report.inputs import Arrays
from shards.grid import CropPair, GridSpec, Rectangle, crop_bank
from shards.reading.reader import Sample

MAX_LANDMARKS_DRAWN = 28
NUM_SHADES = 64
SCALE_PERCENTILE = 99
"""The brightest colour of the change maps stands for this percentile of all changes, so that single tokens that change
far more than the rest do not darken them."""


@dataclass(frozen=True)
class Box:
    """A rectangle to draw: its corner and its size."""

    row: float
    col: float
    height: float
    width: float


@dataclass(frozen=True)
class PairDrawing:
    """A crop pair as it lies on the canvas and as the model sees it."""

    canvas: str
    canvas_px: int
    coarse: str
    fine: str
    crop_px: int
    cell_px: float
    grid: Box
    lines: list[float]
    boxes: dict[str, Box]
    overlaps: dict[str, Box]
    whole: Box
    parts: list[Box]
    k: int
    l: int
    n: int
    t: int
    key: str
    is_stored: bool


def data_uri(pixels: np.ndarray, *, kind: str = "png", max_px: int | None = None) -> str:
    """An 8-bit picture as a data URI, shrunk to at most `max_px` on its longer side.

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


def draw_pair(sample: Sample, spec: GridSpec, seed: int) -> PairDrawing:
    """The crop pair of one sample's bank that `seed` chooses, with one coarse token and the fine tokens it covers.

    A bank without pairs is drawn afresh. A pair with k·l > 1 is preferred: it shows what composition means.
    """
    stored = [CropPair.from_json(item) for item in sample.meta["grid"]["bank"]]
    bank = stored or crop_bank(spec, sample.key, seed, 1)
    bank = [pair for pair in bank if pair.k * pair.l > 1] or bank
    pair = bank[seed % len(bank)]
    cell_px, crop_cell_px = pair.jitter[2] / spec.n, spec.crop_px / spec.t
    overlap = {"coarse": pair.overlap_coarse(spec.t), "fine": pair.overlap_fine(spec.t)}
    row, col = ((overlap["coarse"][axis] + overlap["coarse"][axis + 2]) // 2 for axis in (0, 1))
    fine_row = pair.coarse[0] + row * pair.k - pair.fine[0]
    fine_col = pair.coarse[1] + col * pair.l - pair.fine[1]
    windows = {"coarse": pair.window("coarse", spec), "fine": pair.window("fine", spec)}
    return PairDrawing(
        canvas=data_uri(sample.image, kind="jpeg"),
        canvas_px=spec.canvas_px,
        coarse=data_uri(resample(sample.image, windows["coarse"], 2 * spec.crop_px), kind="jpeg"),
        fine=data_uri(resample(sample.image, windows["fine"], 2 * spec.crop_px), kind="jpeg"),
        crop_px=spec.crop_px,
        cell_px=crop_cell_px,
        grid=Box(pair.jitter[0], pair.jitter[1], pair.jitter[2], pair.jitter[2]),
        lines=[place * cell_px for place in range(spec.n + 1)],
        boxes={name: Box(w[0], w[1], w[2] - w[0], w[3] - w[1]) for name, w in windows.items()},
        overlaps={name: _scaled(rectangle, crop_cell_px) for name, rectangle in overlap.items()},
        whole=Box(row * crop_cell_px, col * crop_cell_px, crop_cell_px, crop_cell_px),
        parts=[
            Box((fine_row + i) * crop_cell_px, (fine_col + j) * crop_cell_px, crop_cell_px, crop_cell_px)
            for i in range(pair.k)
            for j in range(pair.l)
        ],
        k=pair.k,
        l=pair.l,
        n=spec.n,
        t=spec.t,
        key=sample.key,
        is_stored=bool(stored),
    )


def composition_example(arrays: Arrays, encoders: Sequence[str]) -> dict[str, Any]:
    """A region, its parts, another region's parts, and the cosines of each encoder."""
    return {
        "whole": data_uri(arrays["example_whole"]),
        "parts": [data_uri(part) for part in arrays["example_parts"]],
        "other_parts": [data_uri(part) for part in arrays["example_other_parts"]],
        "cosines": {name: [float(value) for value in arrays[f"{name}_example"]] for name in encoders},
    }


def decomposition_examples(arrays: Arrays, encoders: Sequence[str]) -> list[dict[str, Any]]:
    """Each query with the region taken out of it, and the best candidates of each encoder."""
    size_px = arrays["without"].shape[1]
    return [
        {
            "without": data_uri(arrays["without"][place]),
            "removed": data_uri(arrays["removed"][place]),
            "box": _square(*arrays["place"][place].tolist()),
            "size_px": size_px,
            "answers": {
                name: {
                    "rank": int(arrays[f"{name}_rank"][place]),
                    "candidates": [
                        {"image": data_uri(crop), "cosine": float(cosine), "is_right": bool(is_right)}
                        for crop, cosine, is_right in zip(
                            arrays[f"{name}_best"][place],
                            arrays[f"{name}_cosine"][place],
                            arrays[f"{name}_is_right"][place],
                            strict=True,
                        )
                    ],
                }
                for name in encoders
            },
        }
        for place in range(len(arrays["without"]))
    ]


def removal_pictures(arrays: Arrays, encoders: Sequence[str]) -> dict[str, Any]:
    """Each image with a square set to black, and how much each encoder's tokens change, on one scale for all."""
    top = float(np.percentile(np.stack([arrays[f"{name}_change"] for name in encoders]), SCALE_PERCENTILE)) or 1.0
    return {
        "top": top,
        "scale": data_uri(heat(np.linspace(0, top, NUM_SHADES)[None], low=0, high=top)),
        "size_px": arrays["without"].shape[1],
        "examples": [
            {
                "without": data_uri(arrays["without"][place], kind="jpeg"),
                "box": _square(*arrays["place"][place].tolist()),
                "maps": {name: data_uri(heat(arrays[f"{name}_change"][place], low=0, high=top)) for name in encoders},
            }
            for place in range(len(arrays["without"]))
        ],
    }


def correspondence_examples(arrays: Arrays, encoders: Sequence[str]) -> list[dict[str, Any]]:
    """Each pair of patients: landmarks in the query, where each encoder found them in the key, and one cosine map."""
    positions = arrays["positions_px"]
    pitch = float(positions[1] - positions[0])
    start = float(positions[0]) - pitch / 2
    extent = _square(start, start, len(positions) * pitch)
    examples = []
    number = 0
    while f"pair{number}_query" in arrays:
        prefix = f"pair{number}_"
        one = {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
        size_px, probe = len(one["query"]), int(one["probe"])
        shown = np.unique(np.linspace(0, len(one["names"]) - 1, MAX_LANDMARKS_DRAWN).round().astype(int))
        examples.append(
            {
                "size_px": size_px,
                "query": data_uri(one["query"], kind="jpeg"),
                "key": data_uri(one["key"], kind="jpeg"),
                "marks": [
                    {
                        "name": str(one["names"][i]).replace("_", " "),
                        "colour": place_colour(one["source"][i] / size_px),
                        "source": one["source"][i].tolist(),
                        "target": one["target"][i].tolist(),
                        "found": {name: one[f"{name}_found"][i].tolist() for name in encoders},
                    }
                    for i in shown
                ],
                "extent": extent,
                "maps": {name: data_uri(heat(one[f"{name}_map"])) for name in encoders},
                "probe": {
                    "name": str(one["names"][probe]).replace("_", " "),
                    "source": one["source"][probe].tolist(),
                    "target": one["target"][probe].tolist(),
                    "found": {name: one[f"{name}_found"][probe].tolist() for name in encoders},
                },
                "error_px": {
                    name: float(np.linalg.norm(one[f"{name}_found"] - one["target"], axis=1).mean() * 1024 / size_px)
                    for name in encoders
                },
            }
        )
        number += 1
    return examples


def colour_examples(arrays: Arrays, encoders: Sequence[str]) -> list[dict[str, str]]:
    """Canvases beside the principal components of their dense features as colours."""
    return [
        {
            "canvas": data_uri(canvas, kind="jpeg"),
            **{name: data_uri((arrays[f"{name}_colours"][place] * 255).astype(np.uint8)) for name in encoders},
        }
        for place, canvas in enumerate(arrays["canvases"])
    ]


def place_colour(place: Float[np.ndarray, "2"]) -> str:
    """A colour that tells a place on the canvas: the hue goes round its centre, pale in the middle."""
    row, col = float(place[0]) - 0.5, float(place[1]) - 0.5
    hue = (np.arctan2(row, col) / (2 * np.pi)) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, min(1.0, 0.45 + 1.6 * float(np.hypot(row, col))), 1.0)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def heat(values: Float[np.ndarray, "rows cols"], *, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Values as RGB, from dark to bright.

    Args:
        values: What is shown.
        low: Value of the darkest colour; None takes the smallest.
        high: Value of the brightest colour, which larger ones have as well; None takes the largest.
    """
    start = float(values.min()) if low is None else low
    spread = (float(values.max()) if high is None else high) - start or 1.0
    coloured: np.ndarray = matplotlib.colormaps["inferno"]((values - start) / spread, bytes=True)
    return coloured[..., :3]


def _square(row: float, col: float, side: float) -> Box:
    return Box(row, col, side, side)


def _scaled(rectangle: Rectangle, cell_px: float) -> Box:
    row0, col0, row1, col1 = rectangle
    return Box(row0 * cell_px, col0 * cell_px, max(row1 - row0, 0) * cell_px, max(col1 - col0, 0) * cell_px)
