"""What a dump holds, read back: every tensor to the bit, valid JSON, and a picture in the keys' order."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from ace.data.batches import PairBatch
from ace.engine.nonfinite import draw_crops, dump_batch


@dataclass(frozen=True)
class ManyViews:
    """Another shape of batch: several views in one tensor, and a list of smaller ones."""

    views: torch.Tensor
    small: list[torch.Tensor]
    scale: float
    keys: list[str]


@dataclass(frozen=True)
class Outputs:
    logits: torch.Tensor
    tokens: torch.Tensor | None


def pair_batch(size: int = 3, channels: int = 1) -> PairBatch:
    """Coarse crops of grey 10, 20 and so on; fine ones of 110, 120 and so on."""
    greys = 10 * torch.arange(1, size + 1, dtype=torch.uint8)[:, None, None, None]
    coarse = greys.expand(size, channels, 16, 16)
    return PairBatch(
        coarse=coarse,
        fine=coarse + 100,
        coarse_origin=torch.arange(2 * size).reshape(size, 2),
        fine_origin=torch.arange(2 * size).reshape(size, 2),
        mean=torch.full((size, channels), math.nan),
        std=torch.full((size, channels), math.inf),
        k=2,
        l=1,
        keys=[f"key-{number}" for number in range(size)],
        coarse_shown=torch.ones(size, 4),
        fine_shown=torch.ones(size, 4),
        augmentations=None,
    )


def tile_levels(sheet: Image.Image) -> list[int]:
    """Grey levels of the tiles' middles, row by row: a tile is 160 px, a caption 16 and a gap 6."""
    pixels = np.asarray(sheet)[..., 0]
    middles = [pixels[row, 6 + 80 :: 166] for row in range(6 + 16 + 80, len(pixels), 182)]
    return [int(level) for row in middles for level in row if level != 18]


def test_a_dump_gives_back_every_tensor_and_value(tmp_path: Path) -> None:
    batch = pair_batch()
    outputs = Outputs(torch.tensor([1.0, math.nan, -math.inf]), None)
    values = {"loss": math.nan, "loss_global": -math.inf, "lr": 1e-3}
    folder = dump_batch(tmp_path, 12, 3, batch, values, reason="the loss is not finite", outputs=outputs)
    assert folder == tmp_path / "step-00000012-rank3"
    tensors = load_file(folder / "batch.safetensors")
    wanted = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    assert tensors.keys() == {*wanted, "outputs.logits"}
    for name, value in {**wanted, "outputs.logits": outputs.logits}.items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name].nan_to_num(7.0), value.nan_to_num(7.0)), name
        assert torch.equal(tensors[name].isnan(), value.isnan()), name

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    description = json.loads((folder / "batch.json").read_text(), parse_constant=refuse)
    assert description == {
        "reason": "the loss is not finite",
        "step": 12,
        "rank": 3,
        "values": {"loss": "nan", "loss_global": "-inf", "lr": 1e-3},
        "not_finite": {"mean": 3, "std": 3, "outputs.logits": 2},
        "k": 2,
        "l": 1,
        "keys": batch.keys,
    }
    with Image.open(folder / "crops.png") as sheet:
        assert tile_levels(sheet) == [10, 110, 20, 120, 30, 130]


def test_a_second_dump_of_the_step_replaces_the_first_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    dump_batch(tmp_path, 1, 0, pair_batch(), {"loss": math.nan}, reason="first")
    # What a process that was killed while writing left behind.
    (tmp_path / ".step-00000001-rank0.tmp").mkdir()
    (tmp_path / ".step-00000001-rank0.tmp/stale").touch()
    folder = dump_batch(tmp_path, 1, 0, pair_batch(), {"loss": math.nan}, reason="second")
    assert json.loads((folder / "batch.json").read_text())["reason"] == "second"
    assert sorted(path.name for path in folder.iterdir()) == ["batch.json", "batch.safetensors", "crops.png"]
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_erased_crops_are_kept_and_drawn_beside_the_whole_ones(tmp_path: Path) -> None:
    batch = pair_batch(2)
    batch = replace(batch, erased=torch.stack([batch.coarse, batch.fine], 1) + 5)
    folder = dump_batch(tmp_path, 1, 0, batch, {}, reason="test")
    assert torch.equal(load_file(folder / "batch.safetensors")["erased"], batch.erased)
    assert sorted(tile_levels(draw_crops(batch))) == [10, 15, 20, 25, 110, 115, 120, 125]
    assert sum(tile_levels(draw_crops(batch))[:4]) == 10 + 15 + 110 + 115, "a sample's four in one row"


def test_any_batch_of_keys_and_tensors_can_be_dumped(tmp_path: Path) -> None:
    views = torch.tensor([[[50], [60]], [[70], [80]]], dtype=torch.uint8)[..., None, None].expand(2, 2, 3, 8, 8)
    small = [torch.full((2, 1, 4, 4), level, dtype=torch.uint8) for level in (200, 210)]
    batch = ManyViews(views, small, 0.5, ["a", "b"])
    folder = dump_batch(tmp_path, 0, 0, batch, {}, reason="test")
    tensors = load_file(folder / "batch.safetensors")
    assert tensors.keys() == {"views", "small.0", "small.1"}
    assert torch.equal(tensors["views"], views)
    description = json.loads((folder / "batch.json").read_text())
    assert (description["keys"], description["scale"]) == (["a", "b"], 0.5)
    assert tile_levels(draw_crops(batch)) == [50, 60, 200, 210, 70, 80, 200, 210]


def test_samples_of_a_large_batch_keep_their_order_across_columns() -> None:
    expected = [level for number in range(8) for level in (10 * (number + 1), 10 * (number + 1) + 100)]
    sheet = draw_crops(pair_batch(8))
    assert sheet.width > 2 * 2 * 160
    pixels = np.asarray(sheet)[..., 0]
    block = 2 * 166 + 6
    lefts = [left for first in range(0, sheet.width, block) for left in (first + 86, first + 252)]
    found = [int(pixels[row, left]) for row in range(102, len(pixels), 182) for left in lefts]
    assert found == expected
