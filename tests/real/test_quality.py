"""The quality pass over real radiographs and fundus photographs (docs/quality.md): what it leaves out, and why."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from ace.config import resolve
from shards.build.stage import build_shards
from shards.build.tar_files import TarFiles
from shards.core.identity import KEY_FILE_VARIABLE
from shards.core.params import GridParams, ShardParams
from shards.delivery.manifest import iterate_manifest
from shards.quality.judge import Images, Judgement, judge
from shards.quality.measure import ImageMeasures, measure
from shards.quality.reasons import INVERTED, ON_ITS_SIDE, SAME_FILE, SAME_PIXELS, UPSIDE_DOWN
from shards.quality.store import MeasureStore, write_measured
from shards.runtime.scratch import SCRATCH_VARIABLE
from shards.sources.base import Source
from shards.sources.datasets.folder import FolderSource, read_label_rows
from shards.sources.datasets.nih_chestxray14 import SOURCE as NIH
from tests.real.data import DATA, needs
from tests.support.checkout import ROOT
from tests.support.datasets import Here, delivered

pytestmark = [*needs("nih-512"), *needs("nih-original"), *needs("idrid-768")]
NUM_PLANTED = 50


def params_of(configuration: str) -> dict[str, Any]:
    return resolve(configuration, ROOT / "configs")


def inspected(source: Source, root: Path, configuration: str, folder: Path, channels: int) -> dict[str, dict[str, Any]]:
    """File → row of quality.parquet, of the set that a user would build with the named configuration."""
    values = params_of(configuration)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SCRATCH_VARIABLE, str(folder / "scratch"))
        patch.delenv(KEY_FILE_VARIABLE, raising=False)
        params = delivered(source.read(root), root, folder / "manifest.jsonl", channels=channels)
        grid = GridParams.from_params(values["grid"], "grid")
        shard = ShardParams.from_params(values["shard"], "shard")
        build_shards("real-b000", params, grid, shard, folder / "out", execution=Here())
    rows = pq.read_table(folder / "out" / "quality.parquet").to_pylist()
    paths = [entry.record.image.path for _, entry in iterate_manifest(folder / "manifest.jsonl")[1]]
    return {paths[int(row["place"].split()[-1]) - 1]: row for row in rows}


def said(rows: dict[str, dict[str, Any]], verdict: str) -> dict[str, str]:
    return {path: row["reason"] for path, row in rows.items() if row["verdict"] == verdict}


@pytest.mark.slow
def test_of_a_thousand_radiographs_the_copy_and_the_one_upside_down_are_left_out(tmp_path: Path) -> None:
    folder = DATA / "nih-512"
    rows = inspected(FolderSource(folder / "labels.csv"), folder / "images", "cxr_small", tmp_path, channels=1)
    assert len(rows) == 1000
    left_out = said(rows, "quarantined")
    assert left_out.pop("00003490_011.jpg") == UPSIDE_DOWN
    ((copy, reason),) = left_out.items()
    assert reason == SAME_FILE
    (original,) = (path for path, row in rows.items() if row["group"] == rows[copy]["group"] and path != copy)
    assert (folder / "images" / original).read_bytes() == (folder / "images" / copy).read_bytes()
    assert said(rows, "suspect") == {}


def test_radiographs_in_the_official_layout_are_kept(tmp_path: Path) -> None:
    rows = inspected(NIH, DATA / "nih-original", "cxr_small", tmp_path, channels=1)
    assert len(rows) == 24
    assert said(rows, "quarantined") == {}


@pytest.mark.slow
def test_all_fundus_photographs_are_kept(tmp_path: Path) -> None:
    folder = DATA / "idrid-768"
    rows = inspected(FolderSource(folder / "labels.csv"), folder / "images", "fundus_small", tmp_path, channels=3)
    assert len(rows) == 510
    assert said(rows, "quarantined") == {}
    assert said(rows, "suspect") == {}


Change = Callable[[np.ndarray], np.ndarray]


def collimated(image: np.ndarray) -> np.ndarray:
    """Nearly white beyond a field of 60 % of the height and 80 % of the width, where the rest shows through."""
    rows, cols = image.shape[0] // 5, image.shape[1] // 10
    field = 235 + image // 13
    field[rows:-rows, cols:-cols] = image[rows:-rows, cols:-cols]
    return field


def labelled(image: np.ndarray) -> np.ndarray:
    """Black blocks in two corners."""
    image = image.copy()
    image[: image.shape[0] // 4, : image.shape[1] // 3] = 0
    image[-image.shape[0] // 5 :, -image.shape[1] // 3 :] = 0
    return image


def white_outside(image: np.ndarray) -> np.ndarray:
    """The black around a fundus filled with white."""
    disc = cv2.morphologyEx((image > 12).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((25, 25), np.uint8))
    return np.where(disc > 0, image, 255).astype(np.uint8)


@cache
def measured_of(path: Path, change: Change | None) -> ImageMeasures:
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    changed = np.ascontiguousarray(change(image) if change else image)
    return measure(changed, changed.tobytes(), {}, {}, is_burned_in=None)


def judged(name: str, configuration: str, change: Change, folder: Path) -> tuple[Judgement, set[int]]:
    """The set with every so many-th image changed, and which these are."""
    rows = read_label_rows(DATA / name / "labels.csv")
    planted = set(range(0, len(rows), len(rows) // NUM_PLANTED))
    measured = [
        measured_of(DATA / name / "images" / path, change if number in planted else None)
        for number, path in enumerate(rows)
    ]
    files = TarFiles(folder, "all.tar").measures
    write_measured(files, measured)
    store = MeasureStore((files,), folder / "compared")
    none = np.zeros(len(rows), np.int64)
    images = Images(
        keys=np.array(list(rows)),
        patients=np.arange(len(rows)),
        ranks=none,
        views=np.array([row.get("view", "") for row in rows.values()]),
        numbers=store.numbers(),
        contradicts=none > 0,
        is_kept=none > 0,
    )
    params = ShardParams.from_params(params_of(configuration)["shard"], "shard").quality
    return judge(images, store, params, num_workers=1), planted


def rows_of(judgement: Judgement, reason: str) -> set[int]:
    return {row for row, verdict in judgement.verdicts.items() if verdict.reason == reason}


@pytest.mark.parametrize(
    ("change", "reason", "least"),
    [
        (lambda image: 255 - image, INVERTED, 0.96),
        (lambda image: image[::-1, ::-1], UPSIDE_DOWN, 0.94),
        (np.rot90, ON_ITS_SIDE, 0.9),
    ],
    ids=["negative", "upside down", "on its side"],
)
def test_planted_faults_are_found_among_a_thousand_radiographs(
    change: Change, reason: str, least: float, tmp_path: Path
) -> None:
    judgement, planted = judged("nih-512", "cxr_small", change, tmp_path)
    assert len(rows_of(judgement, reason) & planted) >= least * len(planted)
    others = {row for row, verdict in judgement.verdicts.items() if verdict.is_quarantined} - planted
    assert others <= rows_of(judgement, SAME_PIXELS) | rows_of(judgement, UPSIDE_DOWN)
    assert len(others) <= 2, "the copy and the one that is upside down"


@pytest.mark.parametrize("change", [collimated, labelled])
def test_white_collimation_and_black_labels_make_no_negatives_and_no_laterals(change: Change, tmp_path: Path) -> None:
    judgement, planted = judged("nih-512", "cxr_small", change, tmp_path)
    assert planted & set(judgement.verdicts) == set()


def test_negatives_are_found_among_fundus_photographs_and_white_corners_are_none(tmp_path: Path) -> None:
    (tmp_path / "negative").mkdir()
    judgement, planted = judged("idrid-768", "fundus_small", lambda image: 255 - image, tmp_path / "negative")
    found = rows_of(judgement, INVERTED)
    assert found <= planted
    assert len(found) >= 0.6 * len(planted)
    judgement, planted = judged("idrid-768", "fundus_small", white_outside, tmp_path)
    assert rows_of(judgement, INVERTED) == set()
