"""Fine-tuning on real radiographs by the commands of docs/finetune.md: registered, built, trained and read off.

The encoder is a tiny one with random weights, so nothing is asked of the figures but that they are there.
"""

import csv
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from ace.downstream.parts import divide
from ace.downstream.registry import read_task
from shards.core.config import read_params
from shards.delivery.manifest import iterate_manifest
from shards.reading.reader import ShardIndex
from tests.ace.evaluation.drawn_project import write_model
from tests.real.data import DATA, needs
from tests.support.checkout import clone_checkout, run

pytestmark = [*needs("nih-512"), pytest.mark.slow, pytest.mark.timeout(600)]
NIH, BATCH, EVERY = DATA / "nih-512", "nih512-b000", 4
METHODS = ("full", "linear", "knn")
# The grid of the tiny encoder: a canvas of 64 px.
CONFIGURATION = "base: smoke\ngrid: {n: 8}\n"
TASK = """\
batch: nih512-b000
kind: classification
labels: [No Finding]
answer: labels
val_share: 0.2
fractions: [0.3]
training: {epochs: 2, batch_size: 16, warmup_epochs: 1}
bootstrap: {num_resamples: 200}
num_examples: 1
"""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which a quarter of the radiographs are shards and the task was run twice."""
    folder = tmp_path_factory.mktemp("finetune")
    clone = clone_checkout(folder / "clone")
    header, *lines = (NIH / "labels.csv").read_text(encoding="utf-8").splitlines()
    (folder / "labels.csv").write_text("\n".join([header, *lines[::EVERY]]) + "\n", encoding="utf-8")
    (clone / "configs/tiny.yaml").write_text(CONFIGURATION, encoding="utf-8")
    (clone / "configs/tasks/tiny.yaml").write_text(TASK, encoding="utf-8")
    write_model(clone / "models/ace", seed=0)
    command = ("python", "-m", "shards", "register", BATCH, str(NIH / "images"), "--source", "folder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(folder / "scratch"))
        patch.setenv("ACE_ID_KEY_FILE", str(clone / "configs/key_for_public_images"))
        run(clone, "python", "-m", "ace", "config", "use", "tiny")
        run(clone, *command, "--labels", str(folder / "labels.csv"), "--only")
        run(clone, "python", "-m", "shards", "shard", "--batch", BATCH)
        values = read_params(clone / "params.yaml")
        values["encoders"] = {"tiny": {"model": "models/ace", "network": "teacher"}}
        YAML().dump(values, clone / "params.yaml")
        for _ in range(2):
            run(clone, "python", "-m", "ace", "finetune", "tiny", "--device", "cpu")
    return clone


@pytest.fixture(scope="module")
def table(clone: Path) -> dict[str, Any]:
    return dict(json.loads((clone / "metrics/finetune/tiny.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("method", METHODS)
def test_every_figure_of_every_method_has_an_interval_over_patients(table: dict[str, Any], method: str) -> None:
    figures, measured = table["tiny"][method]["30pct"], table["measured"]
    assert set(figures) == {
        f"{name}{of}" for name in ("auroc", "auprc", "calibration_error") for of in ("", "/No Finding")
    }
    for figure in figures.values():
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1
        assert figure["low"] < figure["high"]
        assert figure["n"] == measured["num_patients"] > 20
    counts = figures["auroc/No Finding"]
    assert counts["num_with"] + counts["num_without"] == measured["num_images"]


def test_no_patient_of_the_hospital_is_in_two_parts(clone: Path) -> None:
    with (NIH / "labels.csv").open(newline="", encoding="utf-8") as file:
        patients = {row["path"]: row["patient"] for row in csv.DictReader(file)}
    manifest = Path(read_params(clone / "params.yaml")["batches"][BATCH])
    records = [entry.record for _, entry in iterate_manifest(clone / manifest)[1]]
    pseudonyms = {patients[record.image.path]: record.patient for record in records}
    assert all(pseudonyms[patients[record.image.path]] == record.patient for record in records)
    assert len(set(pseudonyms.values())) == len(pseudonyms) > 100
    parts = divide(ShardIndex.open(clone / "data/shards" / BATCH), read_task("tiny", clone).params)
    for (_, one), (_, other) in combinations(parts, 2):
        assert set(one.pseudonyms) <= set(pseudonyms.values())
        assert not set(one.pseudonyms) & set(other.pseudonyms)


def test_the_test_images_are_read_once_and_by_every_method_the_same_ones(clone: Path, table: dict[str, Any]) -> None:
    parts = divide(ShardIndex.open(clone / "data/shards" / BATCH), read_task("tiny", clone).params)
    assert table["measured"]["num_reads"] == 1, "the second time the same command repeated nothing"
    for method in METHODS:
        folder = clone / f"data/finetuned/tiny/tiny/{method}/30pct-seed0"
        told = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        assert told["num_reads"] == {"test": 1, "val": 0}
        assert 0 < told["num_training_patients"] < 0.5 * parts.train.num_patients
        with np.load(folder / "answers.npz") as answers:
            assert answers["keys"].tolist() == parts.test.keys
