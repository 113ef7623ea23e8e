"""A published model names its training images; what is measured must not show their patients."""

import json
from pathlib import Path

import pytest

from shards.build.stage import build_shards
from shards.core.errors import ContaminationError
from shards.reading.image_names import IMAGE_NAMES, check_image_names
from shards.reading.reader import ShardIndex
from tests.support.datasets import Here, folder_params, grid_params, shard_params, write_csv, write_folder

IMAGES = [f"{patient:08}_{number:03}.png" for patient in range(8) for number in range(2)]
"""Two images of each of eight patients; the last four patients are test patients."""
LARGE = {"train": 1.0, "val": 0.0, "test": 0.0}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.fixture
def measured(tmp_path: Path, id_key: str) -> ShardIndex:
    write_folder(tmp_path / "own" / "images", IMAGES)
    rows = [(f"images/{name}", name[:8], "train" if int(name[:8]) < 4 else "test") for name in IMAGES]
    write_csv(tmp_path / "own.csv", ("path", "patient", "split"), rows)
    source = folder_params(tmp_path / "own", tmp_path / "manifests" / "own-b000.jsonl", tmp_path / "own.csv")
    out = tmp_path / "own-b000"
    build_shards("own-b000", source, grid_params(), shard_params(splits=LARGE), out, execution=Here())
    return ShardIndex.open(out)


def check(model: Path, index: ShardIndex, *names: str, is_accepted: bool = False) -> dict[str, int]:
    if names:
        (model / IMAGE_NAMES).write_text("".join(f"{name}\n" for name in names))
    return check_image_names(model, index, model.parent / "manifests", is_accepted=is_accepted)


def test_training_images_of_other_patients_are_told_and_accepted(
    model: Path, measured: ShardIndex, capsys: pytest.CaptureFixture[str]
) -> None:
    found = check(model, measured, *IMAGES[:8], "00012345_000.png")
    assert found == {"num_named_images": 9, "num_named_images_found": 8, "num_shared_patients": 0}
    said = capsys.readouterr().err
    assert "8 of the 9 images that it was trained on are registered here, by their names" in said
    assert "they show 0 of the 4 test patients of own-b000" in said


@pytest.mark.parametrize(
    "name",
    [
        "00000005_001.png",
        "images/00000005_001.png",
        "00000005_001.JFIF",
        "nih/images_002/images/00000005_001.png",
        "images\\00000005_001.png",
        "00000005_001.jpg",
        "00000005_001",
        "Images//00000005_001.PNG",
    ],
)
def test_one_image_of_a_measured_patient_is_found_wherever_and_as_whatever_it_was_kept(
    name: str, model: Path, measured: ShardIndex
) -> None:
    with pytest.raises(ContaminationError, match=r"^1 of 4 test patients of own-b000, as [0-9a-f]{16}, have images"):
        check(model, measured, *IMAGES[:8], name)
    assert check(model, measured, is_accepted=True)["num_shared_patients"] == 1


@pytest.mark.parametrize(
    "name", ["000000005_001.png", "5_001.png", "00000005_0010.png", "other/00000005.png", "00000005_001.T1"]
)
def test_a_name_that_only_looks_like_it_is_another(name: str, model: Path, measured: ShardIndex) -> None:
    assert check(model, measured, name)["num_named_images_found"] == 0


def test_a_patient_is_found_by_an_image_of_another_batch(model: Path, measured: ShardIndex, tmp_path: Path) -> None:
    """The batch that is measured has other images of the patient than those that were trained on."""
    write_folder(tmp_path / "more", ["late.png"])
    write_csv(tmp_path / "more.csv", ("path", "patient"), [("late.png", "00000006")])
    folder_params(tmp_path / "more", tmp_path / "manifests" / "more-b000.jsonl", tmp_path / "more.csv")
    with pytest.raises(ContaminationError, match="1 of 4 test patients"):
        check(model, measured, "late.png")


def test_a_name_that_several_patients_images_have_stands_for_all_of_them(
    model: Path, measured: ShardIndex, tmp_path: Path
) -> None:
    write_folder(tmp_path / "zz" / "images", [IMAGES[10]])
    folder_params(tmp_path / "zz", tmp_path / "manifests" / "zz-b000.jsonl")  # no CSV: a patient of its own
    with pytest.raises(ContaminationError, match="1 of 4 test patients"):
        check(model, measured, IMAGES[10])
    assert check(model, measured, is_accepted=True)["num_named_images_found"] == 1


def test_without_the_manifest_or_without_names_a_warning_says_what_is_missing(
    model: Path, measured: ShardIndex, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(model, measured) == {}
    assert f"warning: {model} does not say which images it was trained on" in capsys.readouterr().err
    manifest = tmp_path / "manifests" / "own-b000.jsonl"
    header, *lines = manifest.read_text().splitlines()
    under_another_key = json.loads(header) | {"id_key_fingerprint": "idkey-0123456789abcdef"}
    manifest.write_text("\n".join([json.dumps(under_another_key), *lines]) + "\n")
    assert check(model, measured, IMAGES[-1]) == {}
    manifest.unlink()
    assert check(model, measured, IMAGES[-1]) == {}
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert all(f"expected {manifest}, as `python -m shards register` wrote it" in line for line in warnings)
