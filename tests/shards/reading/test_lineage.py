import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.build.stage import build_shards
from shards.core.errors import ContaminationError
from shards.reading.lineage import (
    COLUMNS,
    TRAINING_DATASETS,
    TRAINING_IMAGES,
    check_independence,
    warn_of_unknown_patients,
    write_lineage,
)
from shards.reading.reader import ShardIndex
from tests.support.datasets import (
    Here,
    folder_params,
    grid_params,
    shard_params,
    write_csv,
    write_folder,
    write_phantom,
)

NAMES = [f"{number:02}.png" for number in range(24)]


@pytest.fixture
def index(tmp_path: Path) -> ShardIndex:
    source = write_phantom(tmp_path / "phantom")
    build_shards("a-b000", source, grid_params(), shard_params(), tmp_path / "set", execution=Here())
    return ShardIndex.open(tmp_path / "set")


def folder_set(root: Path, name: str, splits: list[str]) -> ShardIndex:
    """The same patients, two images each, with the official splits given."""
    rows = [(image, f"p{number // 2}", splits[number // 2]) for number, image in enumerate(NAMES)]
    write_csv(root / f"{name}.csv", ("path", "patient", "split"), rows)
    source = folder_params(root / "own", root / f"{name}.jsonl", root / f"{name}.csv")
    params = shard_params(splits={"train": 1.0, "val": 0.0, "test": 0.0})
    build_shards(name, source, grid_params(), params, root / name, execution=Here())
    return ShardIndex.open(root / name)


def test_the_list_names_every_training_image_and_no_other(index: ShardIndex, tmp_path: Path) -> None:
    write_lineage(tmp_path, {"a-b000": index})
    with (tmp_path / TRAINING_IMAGES).open(newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == COLUMNS
    train = index.rows[index.select("train")]
    assert rows == [["a-b000", row["key"].decode(), row["patient"].decode()] for row in train]
    datasets = json.loads((tmp_path / TRAINING_DATASETS).read_text())
    assert datasets == {"a-b000": index.dataset.to_json()}


def test_a_model_of_the_same_batch_is_independent_of_its_test_patients(index: ShardIndex, tmp_path: Path) -> None:
    write_lineage(tmp_path, {"a-b000": index})
    found = check_independence(tmp_path, index, is_accepted=False)
    assert found == {
        "num_test_patients": len(np.unique(index.rows["patient"][index.select("test")])),
        "num_training_patients": len(np.unique(index.rows["patient"][index.select("train")])),
        "num_shared_patients": 0,
        "batches_that_may_share_images": [],
    }


def test_a_test_patient_that_another_batch_trained_on_needs_an_explicit_yes(tmp_path: Path, id_key: str) -> None:
    write_folder(tmp_path / "own", NAMES)
    trained = folder_set(tmp_path, "trained", ["train"] * 9 + ["test"] * 3)
    measured = folder_set(tmp_path, "measured", ["test"] * 2 + ["train"] * 7 + ["test"] * 3)
    write_lineage(tmp_path, {"trained": trained})
    with pytest.raises(ContaminationError, match=r"2 of 5 test patients of measured are .* \(of trained\)"):
        check_independence(tmp_path, measured, is_accepted=False)
    found = check_independence(tmp_path, measured, is_accepted=True)
    assert (found["num_shared_patients"], found["num_test_patients"]) == (2, 5)


def test_a_model_trained_on_a_dataset_of_the_same_images_needs_an_explicit_yes(
    index: ShardIndex, tmp_path: Path
) -> None:
    """The names in params.yaml are of what is trained on now, not of what the model was."""
    write_lineage(tmp_path, {"nih-b000": of_dataset(index, "nih-chestxray14")})
    unmapped = of_dataset(index, "rsna-pneumonia", "nih-chestxray14")
    with pytest.raises(ContaminationError, match=r"a-b000 \(rsna-pneumonia\) and training .* nih-b000"):
        check_independence(tmp_path, unmapped, is_accepted=False)
    found = check_independence(tmp_path, unmapped, is_accepted=True)
    assert (found["num_shared_patients"], found["batches_that_may_share_images"]) == (0, ["nih-b000"])
    mapped = of_dataset(index, "rsna-pneumonia")
    assert check_independence(tmp_path, mapped, is_accepted=False)["batches_that_may_share_images"] == []


def of_dataset(index: ShardIndex, kind: str, *shares_images_with: str) -> ShardIndex:
    return with_dataset(index, index.name, kind=kind, shares_images_with=shares_images_with)


def with_dataset(index: ShardIndex, name: str, **changes: object) -> ShardIndex:
    dataset = index.dataset.model_copy(update=changes)
    return replace(index, description=index.description.model_copy(update={"batch": name, "dataset": dataset}))


def test_a_model_that_does_not_say_what_it_saw_is_not_called_independent(index: ShardIndex, tmp_path: Path) -> None:
    assert check_independence(tmp_path / "nothing", index, is_accepted=False)["num_shared_patients"] is None


def test_batches_whose_patients_are_unknown_are_named_whether_trained_on_or_measured(
    index: ShardIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def of_images(name: str) -> ShardIndex:
        return with_dataset(index, name, patient_grouping="image")

    assert "batches_without_patients" not in check_independence(tmp_path, index, is_accepted=False)
    assert check_independence(tmp_path, of_images("own"), is_accepted=False)["batches_without_patients"] == ["own"]
    write_lineage(tmp_path, {"x-b000": of_images("x-b000"), "a-b000": index})
    found = check_independence(tmp_path, of_images("own"), is_accepted=True)["batches_without_patients"]
    assert found == ["own", "x-b000"]
    assert check_independence(tmp_path, index, is_accepted=True)["batches_without_patients"] == ["x-b000"]
    warn_of_unknown_patients(found, "mind it")
    warn_of_unknown_patients([], "mind it")
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith("warning: own, x-b000: patients are unknown (patient_grouping: image)")


def test_a_model_has_seen_what_the_model_that_it_started_from_has_seen(tmp_path: Path) -> None:
    write_folder(tmp_path / "own", NAMES)
    num_patients = len(NAMES) // 2
    splits = ["train"] * 8 + ["test"] * 4
    first, second = folder_set(tmp_path, "a", splits), folder_set(tmp_path, "b", splits[::-1])
    models = [tmp_path / name for name in ("first", "second", "third", "unknown")]
    for model in models:
        model.mkdir()
    write_lineage(models[0], {"a": first})
    write_lineage(models[1], {"b": second}, start=models[0])
    assert check_independence(models[1], first, is_accepted=True)["num_training_patients"] == num_patients
    with pytest.raises(ContaminationError, match=r"^4 of 4 test patients of b are .* \(of a"):
        check_independence(models[1], second, is_accepted=False)
    write_lineage(models[2], {"b": second}, start=models[1])
    for name in (TRAINING_IMAGES, TRAINING_DATASETS):
        assert (models[2] / name).read_bytes() == (models[1] / name).read_bytes(), "nothing is listed twice"
    write_lineage(models[3], {"b": second}, start=tmp_path / "imported")
    assert check_independence(models[3], second, is_accepted=False)["num_shared_patients"] is None


def test_another_dataset_of_the_same_name_keeps_its_own(index: ShardIndex, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    write_lineage(first, {"a-b000": of_dataset(index, "nih-chestxray14")})
    write_lineage(second, {"a-b000": index}, start=first)
    datasets = json.loads((second / TRAINING_DATASETS).read_text())
    assert {name: dataset["kind"] for name, dataset in datasets.items()} == {
        "a-b000": index.description.dataset.kind,
        "a-b000 (2)": "nih-chestxray14",
    }
    with (second / TRAINING_IMAGES).open(newline="") as file:
        assert {row["batch"] for row in csv.DictReader(file)} == set(datasets)
