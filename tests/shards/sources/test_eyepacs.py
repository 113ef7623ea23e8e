import csv
import random
from pathlib import Path

import pytest

from shards.core.errors import SourceError
from shards.sources.check import check_source
from shards.sources.datasets.eyepacs import SOURCE, grade_labels, patient_of
from tests.shards.sources.trees import by_id, write_files, write_text


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_files(tmp_path, [f"train/{name}.jpeg" for name in ("10_left", "10_right", "13_left")])
    write_files(tmp_path, ["test/test/1_left.jpeg", "test/test/1_right.jpeg"])
    write_text(tmp_path, "trainLabels.csv", "image,level\r\n10_left,0\r\n10_right,4\r\n13_left,2\r\n15_left,1\r\n")
    write_text(tmp_path, "retinopathy_solution.csv", "image,level,Usage\n1_left,3,Public\n1_right,0,Private\n")
    return tmp_path


def test_it_keeps_the_contract(root: Path) -> None:
    check_source(SOURCE, root)


def test_splits_patients_and_eyes_come_from_folder_and_name(root: Path) -> None:
    listing = SOURCE.read(root)
    assert [(r.source_id, r.split, r.patient, r.view) for r in listing.records] == [
        ("10_left", "train", "eyepacs/10", "LEFT"),
        ("10_right", "train", "eyepacs/10", "RIGHT"),
        ("13_left", "train", "eyepacs/13", "LEFT"),
        ("1_left", "test", "eyepacs/1", "LEFT"),
        ("1_right", "test", "eyepacs/1", "RIGHT"),
    ]
    assert listing.patient_grouping == "patient"


def test_exactly_one_grade_is_1(root: Path) -> None:
    records = by_id(SOURCE.read(root))
    assert records["13_left"].labels == {f"DR grade {level}": int(level == 2) for level in range(5)}
    assert records["1_left"].labels["DR grade 3"] == 1
    assert all(sum(value or 0 for value in record.labels.values()) == 1 for record in records.values())


def test_lists_begin_as_published(tmp_path: Path) -> None:
    """Read the first lines of both lists; those of the second end in CR and LF.

    They are from gregwchase/eyenet, labels/trainLabels.csv, and Saty-17/diabetic-retinopathy-detection,
    testLabels15.csv.
    """
    write_files(tmp_path, ["train/10_left.jpeg", "train/10_right.jpeg", "test/1_left.jpeg", "test/1_right.jpeg"])
    write_text(tmp_path, "trainLabels.csv", "image,level\n10_left,0\n10_right,0\n")
    write_text(tmp_path, "retinopathy_solution.csv", "image,level,Usage\r\n1_left,0,Private\r\n1_right,0,Private\r\n")
    records = by_id(SOURCE.read(tmp_path))
    assert list(records) == ["10_left", "10_right", "1_left", "1_right"]
    assert {record.labels["DR grade 0"] for record in records.values()} == {1}


def test_without_a_list_grades_are_unknown_and_the_warning_says_so(root: Path) -> None:
    (root / "retinopathy_solution.csv").unlink()
    listing = SOURCE.read(root)
    assert set(by_id(listing)["1_left"].labels.values()) == {None}
    assert (
        "eyepacs: 2 images of test without a row of retinopathy_solution.csv: their grade is unknown"
        in listing.warnings
    )
    assert "eyepacs: 1 rows of trainLabels.csv without an image" in listing.warnings


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("image,level\n10_left,5\n", r"trainLabels\.csv line 2: level is '5'; expected one of 0, 1, 2, 3, 4"),
        ("image,level\n10_left,\n", r"line 2: level is ''"),
        ("image,level\n10_left,1\n10_left,1\n", r"line 3: 10_left is listed twice"),
        ("id,grade\n10_left,1\n", r"EyePACS' grades needs the columns image, level"),
    ],
)
def test_a_list_that_is_not_as_published_is_refused_by_its_row(rows: str, words: str, root: Path) -> None:
    write_text(root, "trainLabels.csv", rows)
    with pytest.raises(SourceError, match=words):
        SOURCE.read(root)


def test_a_patient_in_both_parts_is_refused(root: Path) -> None:
    write_files(root, ["test/10_left.jpeg"])
    with pytest.raises(SourceError, match="patient 10 and 0 others are in train and in test"):
        SOURCE.read(root)


def test_two_lists_of_the_same_grades_are_refused(root: Path) -> None:
    write_text(root, "copy/trainLabels.csv", "image,level\n10_left,0\n")
    with pytest.raises(SourceError, match=r"2 files of one kind, copy/trainLabels\.csv, trainLabels\.csv; keep one"):
        SOURCE.read(root)


def test_a_folder_without_images_names_the_layout(tmp_path: Path) -> None:
    write_files(tmp_path, ["train.zip.001", "trainLabels.csv"])
    with pytest.raises(SourceError, match=r"(?s)no image of eyepacs found.*train/10_left\.jpeg"):
        SOURCE.read(tmp_path)


def test_names_and_grades() -> None:
    assert patient_of("44351_right") == 44351
    assert grade_labels(None) == {f"DR grade {level}": None for level in range(5)}


@pytest.mark.slow
def test_the_full_list_is_read_whole(tmp_path: Path) -> None:
    """35,126 training and 53,576 test images: every number of 1 to 44,351 is a patient with two eyes."""
    numbers = list(range(1, 44_352))
    random.Random(0).shuffle(numbers)
    parts = {"train": numbers[:17_563], "test": numbers[17_563:]}
    for part, name in (("train", "trainLabels.csv"), ("test", "retinopathy_solution.csv")):
        (tmp_path / part).mkdir()
        images = [f"{number}_{eye}" for number in parts[part] for eye in ("left", "right")]
        for image in images:
            (tmp_path / part / f"{image}.jpeg").touch()
        with (tmp_path / name).open("w", newline="") as file:
            csv.writer(file).writerows([("image", "level"), *((image, 0) for image in images)])
    listing = SOURCE.read(tmp_path)
    assert listing.warnings == ()
    assert sum(record.split == "train" for record in listing.records) == 35_126
    assert len({record.patient for record in listing.records if record.split == "train"}) == 17_563
