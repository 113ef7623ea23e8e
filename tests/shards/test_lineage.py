import csv
from pathlib import Path

import numpy as np
import pytest

from shards.build import build_shards
from shards.errors import ContaminationError
from shards.execution import Processes
from shards.lineage import COLUMNS, TRAINING_IMAGES, check_independence, write_training_images
from shards.read import ShardIndex
from tests.shards.datasets import folder_params, grid_params, shard_params, write_csv, write_folder, write_phantom

NAMES = [f"{number:02}.png" for number in range(24)]


@pytest.fixture
def index(tmp_path: Path) -> ShardIndex:
    source = write_phantom(tmp_path / "phantom")
    build_shards("a-b000", source, grid_params(), shard_params(), tmp_path / "set", execution=Processes(1))
    return ShardIndex.open(tmp_path / "set")


def folder_set(root: Path, name: str, splits: list[str]) -> ShardIndex:
    """The same patients, two images each, with the official splits given."""
    rows = [(image, f"p{number // 2}", splits[number // 2]) for number, image in enumerate(NAMES)]
    write_csv(root / f"{name}.csv", ("path", "patient", "split"), rows)
    source = folder_params(root / "own", root / f"{name}.jsonl", root / f"{name}.csv")
    params = shard_params(splits={"train": 1.0, "val": 0.0, "test": 0.0})
    build_shards(name, source, grid_params(), params, root / name, execution=Processes(1))
    return ShardIndex.open(root / name)


def test_the_list_names_every_training_image_and_no_other(index: ShardIndex, tmp_path: Path) -> None:
    write_training_images(tmp_path / TRAINING_IMAGES, {"a-b000": index})
    with (tmp_path / TRAINING_IMAGES).open(newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == COLUMNS
    train = index.rows[index.select("train")]
    assert rows == [["a-b000", row["key"].decode(), row["patient"].decode()] for row in train]


def test_a_model_of_the_same_batch_is_independent_of_its_test_patients(index: ShardIndex, tmp_path: Path) -> None:
    write_training_images(tmp_path / TRAINING_IMAGES, {"a-b000": index})
    found = check_independence(tmp_path, index, is_accepted=False)
    assert found == {
        "num_test_patients": len(np.unique(index.rows["patient"][index.select("test")])),
        "num_training_patients": len(np.unique(index.rows["patient"][index.select("train")])),
        "num_shared_patients": 0,
    }


def test_a_test_patient_that_another_batch_trained_on_needs_an_explicit_yes(tmp_path: Path, id_key: str) -> None:
    write_folder(tmp_path / "own", NAMES)
    trained = folder_set(tmp_path, "trained", ["train"] * 9 + ["test"] * 3)
    measured = folder_set(tmp_path, "measured", ["test"] * 2 + ["train"] * 7 + ["test"] * 3)
    write_training_images(tmp_path / TRAINING_IMAGES, {"trained": trained})
    with pytest.raises(ContaminationError, match=r"2 of 5 test patients of measured are .* \(of trained\)"):
        check_independence(tmp_path, measured, is_accepted=False)
    found = check_independence(tmp_path, measured, is_accepted=True)
    assert (found["num_shared_patients"], found["num_test_patients"]) == (2, 5)


def test_a_model_that_does_not_say_what_it_saw_is_not_called_independent(index: ShardIndex, tmp_path: Path) -> None:
    assert check_independence(tmp_path / "nothing", index, is_accepted=False)["num_shared_patients"] is None
