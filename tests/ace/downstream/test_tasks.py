"""The files of configs/tasks: names and order of labels are those of the datasets, and the budget is one for all."""

import csv
from pathlib import Path

import pytest

from ace.downstream.classification import ClassificationParams
from ace.downstream.registry import COMMON, read_task
from shards.core.errors import ConfigError
from shards.phantom.findings import KINDS
from shards.sources.datasets import chexpert, eyepacs, nih_chestxray14, rsna_pneumonia
from tests.real.data import DATA
from tests.support.checkout import ROOT

NAMES = sorted(path.stem for path in (ROOT / "configs/tasks").glob("*.yaml") if path.stem != COMMON)
EXCLUSIVE = {
    "rsna": ("class", rsna_pneumonia.CLASSES),
    "eyepacs": ("grade", tuple(eyepacs.grade_labels("0"))),
}


def params(name: str) -> ClassificationParams:
    found = read_task(name, ROOT).params
    assert isinstance(found, ClassificationParams)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_task_is_valid_says_what_it_is_and_measures_test_or_says_why_not(name: str) -> None:
    head = (ROOT / f"configs/tasks/{name}.yaml").read_text(encoding="utf-8")
    assert head.startswith("# ")
    assert read_task(name, ROOT).params.split == "test" or "split: test" in head


def test_labels_are_those_of_the_datasets_in_their_order() -> None:
    assert params("nih").labels == nih_chestxray14.FINDINGS
    assert params("phantom").labels == KINDS
    # The five of the competition, as Irvin et al. list them.
    five = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
    assert params("chexpert").labels == five
    assert set(five) < set(chexpert.LABELS)
    for name, (answer, labels) in EXCLUSIVE.items():
        assert (params(name).answer, params(name).labels) == (answer, labels)
    shenzhen = (ROOT / "shards/sources/datasets/shenzhen.py").read_text(encoding="utf-8")
    assert f'"{params("shenzhen").labels[0]}": int(' in shenzhen


@pytest.mark.real
def test_labels_are_those_of_the_real_tables() -> None:
    with (DATA / "nih-512/labels.csv").open(newline="") as file:
        header = next(csv.reader(file))
    assert params("nih512").labels == ("No Finding",)
    assert "No Finding" in header
    assert set(params("nih").labels) == set(header[header.index("No Finding") + 1 :])
    with (DATA / "nih-original/Data_Entry_2017_v2020.csv").open(newline="") as file:
        found = {name for row in csv.DictReader(file) for name in row["Finding Labels"].split("|")}
    assert found <= {"No Finding", *params("nih").labels}


def test_another_shard_set_may_take_the_place_of_the_files() -> None:
    assert read_task("phantom", ROOT, "other-b000").params.batch == "other-b000"


def test_a_task_that_is_not_there_is_named_beside_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task 'nihh' is not in .*; there are: .*chexpert, .*nih, nih512"):
        read_task("nihh", ROOT)
    with pytest.raises(ConfigError, match="there are: none"):
        read_task("nih", tmp_path)


def test_sections_of_a_task_are_laid_over_the_common_ones() -> None:
    own, common = params("phantom").training, params("shenzhen").training
    assert (own.batch_size, own.epochs) == (16, 40)
    assert (own.clip_norm, own.weight_decay) == (common.clip_norm, common.weight_decay) == (5.0, 0.05)
    assert common.lr * 2 == pytest.approx(5e-4), "the paper's peak is at a batch of 64"
