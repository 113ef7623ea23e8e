"""A picture of a phantom dataset: some images with outlines, findings, landmarks and labels drawn over them."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from shards.phantom.findings import KINDS

TILE_PX = 360
NUM_COLS = 4
OUTLINES = {
    "lungfield_left": (60, 200, 255),
    "lungfield_right": (60, 200, 255),
    "heart": (255, 80, 80),
    "aorta": (255, 160, 40),
    "trachea": (60, 255, 180),
    "clavicle_left": (255, 230, 60),
    "clavicle_right": (255, 230, 60),
    "spine": (180, 80, 255),
}
RIBS, RIB_COLOUR = ("ribs_left", "ribs_right"), (60, 220, 60)
FINDING_COLOUR = (255, 60, 255)


def draw_contact_sheet(dataset: Path, records: list[dict[str, Any]], num_images: int) -> Image.Image:
    """Draw tiles in pairs: the plain image, then the same one with everything that is known of it."""
    chosen = choose(records, num_images)
    num_rows = -(-2 * len(chosen) // NUM_COLS)
    sheet = Image.new("RGB", (NUM_COLS * TILE_PX, num_rows * TILE_PX))
    for position, record in enumerate(chosen):
        for offset, tile in enumerate((_plain(dataset, record), _overlay(dataset, record))):
            row, col = divmod(2 * position + offset, NUM_COLS)
            sheet.paste(tile, (col * TILE_PX, row * TILE_PX))
    return sheet


def choose(records: list[dict[str, Any]], num_images: int) -> list[dict[str, Any]]:
    """Choose first images of patients, taking every finding and health in turn."""
    first = [record for record in records if record["labels"]["image_id"].endswith("-i0")]
    groups = [[record for record in first if record["labels"][kind]] for kind in KINDS]
    groups.append([record for record in first if not any(record["labels"][kind] for kind in KINDS)])
    turns = [group[turn] for turn in range(num_images) for group in groups if turn < len(group)]
    return turns[:num_images]


def _plain(dataset: Path, record: dict[str, Any]) -> Image.Image:
    labels = record["labels"]
    with Image.open(dataset / "images" / f"{labels['image_id']}.png") as image:
        tile = image.convert("RGB").resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC)
    finding = next((kind.replace("_", " ") for kind in KINDS if labels[kind]), "no finding")
    caption = f"{labels['image_id']} {labels['view']} {finding} {labels['finding_side']}".rstrip()
    ImageDraw.Draw(tile).text((4, TILE_PX - 14), caption, fill=(255, 255, 0))
    return tile


def _overlay(dataset: Path, record: dict[str, Any]) -> Image.Image:
    name = record["labels"]["image_id"]
    pixels = np.asarray(_plain(dataset, record)).astype(np.float32)
    masks = {Path(name).parent.name: _mask(dataset / name) for name in record["files"] if name.startswith("masks/")}
    for structure in RIBS:
        pixels[masks[structure]] = 0.72 * pixels[masks[structure]] + 0.28 * np.array(RIB_COLOUR)
    for kind in KINDS:
        if kind in masks and kind != "cardiomegaly":
            pixels[masks[kind]] = 0.65 * pixels[masks[kind]] + 0.35 * np.array(FINDING_COLOUR)
    for structure, colour in OUTLINES.items():
        pixels[_outline(masks[structure])] = colour
    tile = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(tile)
    with Image.open(dataset / "images" / f"{name}.png") as image:
        scale = TILE_PX / image.height
    for row, col in record["landmarks"].values():
        draw.ellipse(
            (scale * col - 1.5, scale * row - 1.5, scale * col + 1.5, scale * row + 1.5),
            fill=(255, 255, 255),
            outline=(220, 30, 30),
        )
    return tile


def _mask(path: Path) -> npt.NDArray[np.bool_]:
    with Image.open(path) as image:
        return np.asarray(image.convert("L").resize((TILE_PX, TILE_PX), Image.Resampling.BILINEAR)) > 127


def _outline(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    inside = mask.copy()
    inside[1:-1, 1:-1] = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:] & mask[1:-1, 1:-1]
    return mask & ~inside
