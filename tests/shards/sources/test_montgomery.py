from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.core.errors import SourceError
from shards.core.records import MaskFiles, Sex
from shards.sources.check import check_source
from shards.sources.datasets.montgomery import SAME_PATIENT, SOURCE, parse_demographics
from tests.shards.sources.trees import by_id, drawn, mask_paths, write_files, write_text

TOP = "NLM-MontgomeryCXRSet/MontgomerySet"
NAMES = ["MCUCXR_0001_0", "MCUCXR_0104_1"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("CXR_png", "ManualMask/leftMask", "ManualMask/rightMask"):
        write_files(tmp_path, [f"{TOP}/{folder}/{name}.png" for name in NAMES])
    write_text(
        tmp_path, f"{TOP}/ClinicalReadings/{NAMES[0]}.txt", "Patient's Sex: F \r\nPatient's Age: 027Y\r\nnormal\r\n"
    )
    write_text(
        tmp_path, f"{TOP}/ClinicalReadings/{NAMES[1]}.txt", "Patient's Sex: M\nSeen by Dr Example\nPatient's Age: 040Y"
    )
    return tmp_path


def test_it_keeps_the_contract(root: Path) -> None:
    check_source(SOURCE, root)


def test_labels_and_demographics(root: Path) -> None:
    listing = SOURCE.read(root)
    normal, tuberculosis = (by_id(listing)[name] for name in NAMES)
    assert (normal.labels, normal.sex, normal.age_years) == ({"Tuberculosis": 0}, "F", 27)
    assert (tuberculosis.labels, tuberculosis.sex, tuberculosis.age_years) == ({"Tuberculosis": 1}, "M", None)
    assert "Example" not in repr(listing)
    assert listing.patient_grouping == "image"


def test_left_and_right_lung_are_structures_of_their_own_and_lungs_is_either(root: Path) -> None:
    record = by_id(SOURCE.read(root))[NAMES[0]]
    right, left = (f"{TOP}/ManualMask/{side}Mask/{NAMES[0]}.png" for side in ("left", "right"))
    assert record.image.path == f"{TOP}/CXR_png/{NAMES[0]}.png"
    assert mask_paths(record, "left_lung") == [left]
    assert mask_paths(record, "right_lung") == [right]
    assert mask_paths(record, "lungs") == [left, right]


def test_the_folders_are_named_by_the_side_of_the_image_and_the_lungs_are_the_patient_s(root: Path) -> None:
    """Hold to what two say who looked.

    ConstantinSeibold/2DAnatomyDatasets, prepare_montgomery_labels.py, by the R on the films; and
    Abdullah-Ejaz0/FYP_Pre-processing_pipelines, CLAUDE.md. The files are of one bit.
    """
    is_left_half = np.tile(np.arange(8) < 4, (6, 1))
    for side, pixels in (("left", is_left_half), ("right", ~is_left_half)):
        Image.fromarray(pixels).save(root / TOP / f"ManualMask/{side}Mask/{NAMES[0]}.png")
    masks = by_id(SOURCE.read(root))[NAMES[0]].masks
    np.testing.assert_array_equal(drawn(masks["right_lung"], root, (6, 8)), is_left_half)
    np.testing.assert_array_equal(drawn(masks["left_lung"], root, (6, 8)), ~is_left_half)
    assert drawn(masks["lungs"], root, (6, 8)).all()


def test_images_that_the_readings_say_are_of_one_patient_stay_together(root: Path) -> None:
    """The readings' words are in ngaggion/Chest-xray-landmark-dataset, clinical.csv."""
    names = [f"MCUCXR_{number:04}_1" for number in (108, 113, 117, 126, 140, 141, 142, 144, 150, 162, 166, 170, 173)]
    for folder in ("CXR_png", "ManualMask/leftMask", "ManualMask/rightMask"):
        write_files(root, [f"{TOP}/{folder}/{name}.png" for name in names])
    check_source(SOURCE, root)
    listing = SOURCE.read(root)
    patients = {name: record.patient for name, record in by_id(listing).items()}
    assert patients["MCUCXR_0113_1"] == patients["MCUCXR_0117_1"]
    assert patients["MCUCXR_0162_1"] == patients["MCUCXR_0166_1"] == patients["MCUCXR_0170_1"]
    assert len(set(patients.values())) == len(patients) - len(SAME_PATIENT) == len(patients) - 3
    assert listing.patient_grouping == "image", "of the others nothing is known"


def test_one_merged_mask_gives_lungs_alone(tmp_path: Path) -> None:
    write_files(tmp_path, [f"{folder}/{NAMES[0]}.png" for folder in ("CXR_png", "masks")])
    record = by_id(SOURCE.read(tmp_path))[NAMES[0]]
    assert set(record.masks) == {"lungs"}
    assert mask_paths(record, "lungs") == [f"masks/{NAMES[0]}.png"]
    check_source(SOURCE, tmp_path)


def test_the_mask_of_one_lung_alone_is_refused_because_lungs_would_be_half(root: Path) -> None:
    (root / TOP / "ManualMask" / "leftMask" / f"{NAMES[1]}.png").unlink()
    with pytest.raises(SourceError, match=r"one lung alone for 1 images, first MCUCXR_0104_1"):
        SOURCE.read(root)


def test_a_part_of_the_dataset_is_fine_and_counted(root: Path) -> None:
    assert SOURCE.read(root).warnings == (
        "montgomery: 2 images found, 138 published",
        "montgomery: 1 clinical readings that do not begin with sex and age: what is missing stays unknown",
    )


def test_masks_without_images_and_images_without_masks_are_counted(root: Path) -> None:
    (root / TOP / "CXR_png" / f"{NAMES[0]}.png").rename(root / TOP / "CXR_png" / "MCUCXR_0002_0.png")
    listing = SOURCE.read(root)
    assert by_id(listing)["MCUCXR_0002_0"].masks == {}
    assert "montgomery: 1 images without lung masks" in listing.warnings
    assert "montgomery: 1 masks without an image" in listing.warnings


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Patient's Sex: F ", "Patient's Age: 027Y"], ("F", 27)),
        (["Patient's Sex: O ", "Patient's Age: 005Y"], ("O", 5)),  # as in MCUCXR_0080_0
        (["Patient's Age: 999Y", "Patient's Sex: X"], (None, None)),
        (["Patient's Sex: F, Mrs Example", "Patient's Age: 027Y, Mrs Example"], (None, None)),
        ([], (None, None)),
    ],
)
def test_demographics(lines: list[str], expected: tuple[Sex | None, float | None]) -> None:
    assert parse_demographics(lines) == expected


def test_masks_are_never_taken_for_images(tmp_path: Path) -> None:
    write_files(tmp_path, [f"masks/{NAMES[0]}.png", f"ManualMask/leftMask/{NAMES[0]}.png"])
    with pytest.raises(SourceError, match="no image of montgomery"):
        SOURCE.read(tmp_path)


def test_masks_are_of_the_images_size_and_inside_is_the_brighter_half_of_their_range(root: Path) -> None:
    for mask in by_id(SOURCE.read(root))[NAMES[0]].masks.values():
        assert isinstance(mask, MaskFiles)
        assert (mask.low, mask.high, mask.is_scaled) == (None, 255, False)
