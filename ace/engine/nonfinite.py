"""Save a batch whose loss stopped being finite, as a folder that a person can look into."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ace.models.tensors import write_tensors
from shards.runtime.atomic import atomic_directory

TENSORS, VALUES, SHEET = "batch.safetensors", "batch.json", "crops.png"
_TILE_PX, _CAPTION_PX, _GAP_PX = 160, 16, 6


class Dumped(Protocol):
    """Any frozen dataclass of a step's input: tensors, plain values, and the samples' keys."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def keys(self) -> list[str]: ...  # noqa: D102


def dump_batch(
    folder: Path,
    step: int,
    rank: int,
    batch: Dumped,
    values: Mapping[str, float],
    *,
    reason: str,
    outputs: Any = None,
) -> Path:
    """Write one step's input, and what came of it, into a new folder that appears whole or not at all.

    Args:
        folder: Where the dumps of a run lie.
        step: Number of the step.
        rank: The process whose part of the batch it is.
        batch: Its tensors, wherever they are, go to `batch.safetensors` under their field's name; 8-bit images
            [batch, ..., C, S, S] with 1 or 3 channels are drawn in `crops.png` too, a sample beside its number and key.
        values: Loss terms, learning rate and other numbers, for `batch.json`; what is not finite stands there as text.
        reason: Why it is written.
        outputs: A dataclass of the networks' outputs, saved as `outputs.FIELD`; None for none.

    Returns:
        `folder/step-00000012-rank0`. One of the same name, of an earlier attempt at the step, is replaced.
    """
    target = folder / f"step-{step:08d}-rank{rank}"
    tensors = dict(_tensors(batch, ""))
    if outputs is not None:
        tensors |= _tensors(outputs, "outputs.")
    description = {
        "reason": reason,
        "step": step,
        "rank": rank,
        "values": {name: value if math.isfinite(value) else str(value) for name, value in values.items()},
        "not_finite": {name: bad for name, tensor in tensors.items() if (bad := _count_not_finite(tensor))},
        **_plain_values(batch),
    }
    with atomic_directory(target) as temporary:
        write_tensors(tensors, temporary / TENSORS)
        text = json.dumps(description, indent=2, allow_nan=False)
        (temporary / VALUES).write_text(text + "\n", encoding="utf-8")
        draw_crops(batch).save(temporary / SHEET)
    return target


def draw_crops(batch: Dumped) -> Image.Image:
    """Draw every sample's 8-bit images in one row under its number and key; samples in the order of the keys."""
    rows = [_tiles(batch, number) for number in range(len(batch.keys))]
    num_tiles = max((len(tiles) for tiles in rows), default=0)
    num_cols = max(1, round((len(rows) / max(num_tiles, 1)) ** 0.5))
    width, height = num_tiles * (_TILE_PX + _GAP_PX) + _GAP_PX, _TILE_PX + _CAPTION_PX + _GAP_PX
    sheet = Image.new("RGB", (num_cols * width, -(-len(rows) // num_cols) * height + _GAP_PX), (18, 18, 20))
    draw = ImageDraw.Draw(sheet)
    for number, (key, tiles) in enumerate(zip(batch.keys, rows, strict=True)):
        row, col = divmod(number, num_cols)
        left, top = col * width + _GAP_PX, row * height + _GAP_PX
        draw.text((left, top), f"{number}  {key}", fill=(220, 220, 220))
        for place, tile in enumerate(tiles):
            sheet.paste(tile, (left + place * (_TILE_PX + _GAP_PX), top + _CAPTION_PX))
    return sheet


def _tiles(batch: Dumped, number: int) -> list[Image.Image]:
    tiles = []
    for _, tensor in _tensors(batch, ""):
        if tensor.dtype == torch.uint8 and tensor.ndim >= 4 and tensor.shape[-3] in (1, 3):
            for image in tensor[number].flatten(0, -4) if tensor.ndim > 4 else tensor[number][None]:
                pixels = image.movedim(0, -1).squeeze(-1).numpy()
                tiles.append(Image.fromarray(pixels).convert("RGB").resize((_TILE_PX, _TILE_PX)))
    return tiles


def _tensors(values: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Return every tensor of a dataclass on the host, by name; those of a list are numbered."""
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        several = enumerate(value) if isinstance(value, list | tuple) else ()
        named = [(field.name, value), *((f"{field.name}.{number}", item) for number, item in several)]
        for name, item in named:
            if isinstance(item, Tensor):
                # A copy: safetensors refuses tensors that share memory.
                yield prefix + name, item.detach().cpu().clone(memory_format=torch.contiguous_format)


def _plain_values(batch: Dumped) -> dict[str, Any]:
    """Return the fields that are no tensors, such as keys, k and l."""
    values = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    plain = str | int | float | bool
    return {
        name: list(value) if isinstance(value, list | tuple) else value
        for name, value in values.items()
        if isinstance(value, plain)
        or (isinstance(value, list | tuple) and all(isinstance(item, plain) for item in value))
    }


def _count_not_finite(tensor: Tensor) -> int:
    return int((~torch.isfinite(tensor)).sum())
