"""A task of classification whose images have boxes or masks of a label also says where its networks look."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ace.downstream.localisation import regions_of
from ace.downstream.page import columns
from ace.downstream.parts import divide
from shards.build.stage import build_shards
from shards.reading.reader import ShardIndex, ShardReader
from tests.ace.downstream import drawn
from tests.ace.downstream.labelled import run_stage, task
from tests.ace.evaluation.drawn_project import BATCH, GRID, write_model
from tests.support.datasets import NO_CHECKS, Here, folder_params, shard_params, smooth_image

SQUARE_PX = 16
NAMES = ("pointing_game", "iou_at_50pct", "iobb_at_50pct")
THRESHOLDS = [0.5]


def write_squares(folder: Path, num_patients: int = 40) -> None:
    """Dim images; every second patient's have a bright square, of which a box or a mask tells, and one of a third."""
    rng, rows = np.random.default_rng(0), []
    (folder / "images").mkdir(parents=True)
    for patient in range(num_patients):
        has_square, name = patient % 2 == 1, f"{patient:03}.png"
        pixels, mask = smooth_image(64, 64, patient) // 8, np.zeros((64, 64), bool)
        box = drawn_by = ""
        if has_square:
            # On the tokens of the whole image.
            row, col = (rng.integers(0, 4, 2) * SQUARE_PX).tolist()
            mask[row : row + SQUARE_PX, col : col + SQUARE_PX] = True
            pixels = np.where(mask, 255, pixels).astype(np.uint8)
            if patient % 3 == 0:
                box = f"{row} {col} {row + SQUARE_PX} {col + SQUARE_PX}"
            elif patient % 3 == 1:
                drawn_by = f"masks/{name}"
                (folder / "images/masks").mkdir(exist_ok=True)
                Image.fromarray(mask).save(folder / "images" / drawn_by)
        split = ("train", "train", "val", "test", "test")[patient // 2 % 5]
        Image.fromarray(pixels).save(folder / "images" / name)
        rows.append((name, patient, split, int(has_square), drawn_by, box, 64, 64))
    header = ("path", "patient", "split", "square", "mask:square", "box:square", "height", "width")
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose models are stand-ins, but for their folders."""
    root = tmp_path_factory.mktemp("squares")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(root / "scratch"))
        write_squares(root)
        source = folder_params(root / "images", root / f"{BATCH}.jsonl", root / "labels.csv")
        build_shards(BATCH, source, GRID, shard_params(quality=NO_CHECKS), root / "shards" / BATCH, execution=Here())
    for name in ("seeing", "blind"):
        write_model(root / "models" / name, seed=0)
    return root


@pytest.mark.usefixtures("planted")
def test_a_network_that_sees_a_square_looks_at_it_and_a_blind_one_looks_there_by_chance(
    squares: Path, tmp_path: Path
) -> None:
    training = {"epochs": 8, "base_lr": 10.0}
    own = task(
        labels=["square"], heat_thresholds=THRESHOLDS, num_examples=1, methods=["full", "linear"], training=training
    )
    table = run_stage(squares, tmp_path, own, ("seeing", "blind"))
    seeing, blind = (table[name]["full"]["100pct"] for name in ("seeing", "blind"))
    share = (SQUARE_PX / 64) ** 2
    index = ShardIndex.open(squares / "shards" / BATCH)
    reader = ShardReader(index)
    samples = [reader.read(int(row)) for row in divide(index, own.params).test.rows]
    cases = [sample for sample in samples if regions_of(sample, ["square"])]
    assert 0 < len(cases) < sum(sample.meta["labels"]["square"] for sample in samples), "some are drawn, not all"
    assert {bool(sample.masks()) for sample in cases} == {True, False}, "by masks and by boxes"
    for name in NAMES:
        assert seeing[name]["chance"] == blind[name]["chance"] == share
        assert seeing[name]["n"] == seeing[f"{name}/square"]["num_images"] == len(cases)
        assert blind[name]["low"] <= blind[name]["value"] <= blind[name]["high"]
    assert [seeing["pointing_game"][key] for key in ("value", "low", "high")] == [1, 1, 1]
    # Bilinear between tokens of the square's size: half of the height is about its outline.
    assert seeing["iou_at_50pct"]["low"] > 0.5
    assert seeing["iobb_at_50pct"]["low"] > 0.5
    assert blind["pointing_game"]["value"] == pytest.approx(share, abs=1e-5)
    assert blind["iou_at_50pct"]["value"] in (0, pytest.approx(share, abs=1e-5))
    assert "pointing_game" not in table["seeing"]["linear"]["100pct"], "a frozen encoder has no network to ask"
    text = (tmp_path / "finetuned/page.html").read_text(encoding="utf-8")
    for title in ("best", "median", "worst"):
        assert text.count(f"<figcaption>{title} Grad-CAM of square, ") == 2, "one of each encoder"


@pytest.mark.usefixtures("planted")
def test_nothing_is_said_of_places_where_no_box_or_mask_is_known(project: Path, tmp_path: Path) -> None:
    table = run_stage(project, tmp_path, task(methods=["full"]), ("seeing",))
    assert not [name for name in table["seeing"]["full"]["100pct"] if name.startswith(("pointing", "iou", "iobb"))]
    assert "Grad-CAM" not in (tmp_path / "finetuned/page.html").read_text(encoding="utf-8")


def test_findings_of_the_phantoms_layout_are_located_by_a_trained_network(tmp_path: Path) -> None:
    index = drawn.build(tmp_path, grid=GRID)
    write_model(tmp_path / "models/trained", seed=0)
    own = task(labels=["nodule"], methods=["full", "knn"], val_share=0.2, training={"epochs": 2}, seeds=[0, 1])
    table = run_stage(tmp_path, tmp_path / "out", own)
    found = table["trained"]["full"]["100pct"]
    told: dict[str, Any] = json.loads((tmp_path / "out/finetuned/trained/full/100pct-seed1/metrics.json").read_text())
    for threshold in ("25", "50", "75"):
        for name in (f"iou_at_{threshold}pct/nodule", f"iobb_at_{threshold}pct/nodule"):
            figure = found[name]
            assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
            assert 0 < figure["chance"] < 1
            assert told["scores"][name]["n"] == figure["n"] > 1
    assert found["pointing_game/nodule"]["num_images"] == sum(
        "nodule" in ShardReader(index).read(int(row)).masks() for row in index.select("test")
    )


def test_the_page_has_a_column_for_every_figure_that_any_use_has() -> None:
    table = {"one": {"linear": {"100pct": {"auroc": 1}}, "full": {"100pct": {"auroc": 1, "iou": 2}}}}
    assert columns(table) == ["auroc", "iou"]
