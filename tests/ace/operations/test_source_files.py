"""Every training image of a model leads back to the file of the archive that it was decoded from."""

import csv
import io
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ace.__main__ import build_parser
from shards.cli import run_command
from shards.delivery.manifest import Delivery, format_manifest, iterate_manifest
from shards.format.layout import sha256_of
from tests.ace.operations.withdrawn import FIRST, SECOND, Clinic


def list_files(
    model: Path | str, capsys: pytest.CaptureFixture[str], *, code: int = 0
) -> tuple[list[dict[str, str]], str]:
    capsys.readouterr()
    assert run_command(build_parser(), ["models", "lineage", str(model), "--files"]) == code
    said = capsys.readouterr()
    return list(csv.DictReader(io.StringIO(said.out))), said.err


def training_keys(clinic: Clinic) -> set[tuple[str, str]]:
    """Batch and key of each sample of the training split, as the shards have them."""
    sets = {name: clinic.index(name) for name in (FIRST, SECOND)}
    return {(name, row["key"].decode()) for name, index in sets.items() for row in index.rows[index.select("train")]}


def change_manifest(clinic: Clinic, name: str, key: str) -> None:
    """Take an image out of a manifest, as an erasure does."""
    path, batch = clinic.root / f"data/manifests/{name}.jsonl", clinic.root / f"batches/{name}.yaml"
    before = sha256_of(path)
    header, lines = iterate_manifest(path)
    entries = [entry for _, entry in lines if entry.record.source_id != key]
    path.write_text("".join(format_manifest(Delivery(replace(header, num_images=len(entries)), entries))))
    assert before in batch.read_text()
    batch.write_text(batch.read_text().replace(before, sha256_of(path)))


def test_each_training_image_of_a_version_leads_to_a_file_with_the_bytes_that_were_registered(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, notes = list_files("v1", capsys)
    assert notes == ""
    assert {(row["batch"], row["key"]) for row in rows} == training_keys(clinic)
    assert len(rows) == len({(row["batch"], row["file"]) for row in rows})
    for row in rows:
        assert sha256_of(clinic.root.parent / row["batch"] / row["file"]) == row["sha256"]
    drawn = {int(Path(row["file"]).stem) % 100 % 24 for row in rows}
    assert drawn.isdisjoint(int(patient.split()[-1]) for patient in clinic.patients("test"))


def test_a_folder_elsewhere_is_listed_as_its_version_is(
    clinic: Clinic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, _ = list_files("v1", capsys)
    elsewhere = shutil.copytree(clinic.root / "models/ace", tmp_path / "elsewhere")
    assert list_files(elsewhere, capsys) == (rows, "")


def test_a_list_without_its_columns_is_refused(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    (clinic.root / "models/ace/training_images.csv").write_text("a,b\n1,2\n")
    rows, said = list_files(clinic.root / "models/ace", capsys, code=2)
    assert rows == []
    assert "training_images.csv: damaged; expected a list of training images that begins with a line" in said


def test_an_image_that_was_erased_is_listed_without_a_file_and_it_is_said_why(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, _ = list_files("v1", capsys)
    erased = next(row for row in rows if row["batch"] == FIRST)
    change_manifest(clinic, FIRST, erased["key"])
    number = sum(row["batch"] == FIRST for row in rows)
    now, notes = list_files("v1", capsys)
    assert now == [row if row != erased else erased | {"file": "", "sha256": ""} for row in rows]
    assert notes == (
        f"note: {FIRST}: no file for 1 of {number} images: its manifest is another one than when the model was "
        "trained, as after an erasure\n"
    )


def test_a_batch_that_is_not_here_leaves_its_files_empty(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    listed = clinic.root / "models/ace/training_images.csv"
    listed.write_text(f"{listed.read_text()}other-b000,a,b\n")
    rows, notes = list_files(clinic.root / "models/ace", capsys)
    assert rows[-1] == {"batch": "other-b000", "key": "a", "file": "", "sha256": ""}
    assert all(row["file"] for row in rows[:-1])
    assert notes == "note: other-b000: no file for 1 of 1 image: the batch is not in this clone\n"


def test_a_key_is_looked_up_in_the_manifest_of_its_own_batch(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = clinic.root / "models/ace/training_images.csv"
    key = next(key for batch, key in training_keys(clinic) if batch == FIRST)
    listed.write_text(f"batch,key,patient\n{FIRST},{key},a\n{SECOND},{key},a\n")
    rows, notes = list_files(clinic.root / "models/ace", capsys)
    assert [bool(row["file"]) for row in rows] == [True, False]
    assert notes == f"note: {SECOND}: no file for 1 of 1 image: its manifest does not name them, as after an erasure\n"


@pytest.mark.usefixtures("clinic")
def test_a_model_without_a_list_of_its_images_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    rows, said = list_files("cxr-small", capsys, code=2)
    assert rows == []
    assert "no training_images.csv is known of this model; expected it in its folder" in said
