from pathlib import Path

import pytest

from shards.core.errors import SourceError
from shards.core.records import MaskFiles, Sex
from shards.sources.check import check_source
from shards.sources.datasets.montgomery import SOURCE, parse_demographics
from tests.shards.sources.trees import by_id, mask_paths, write_files, write_text

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
    left, right = (f"{TOP}/ManualMask/{side}Mask/{NAMES[0]}.png" for side in ("left", "right"))
    assert record.image.path == f"{TOP}/CXR_png/{NAMES[0]}.png"
    assert mask_paths(record, "left_lung") == [left]
    assert mask_paths(record, "right_lung") == [right]
    assert mask_paths(record, "lungs") == [left, right]


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
        (["Patient's Sex: O", "Patient's Age: 4Y"], ("O", 4)),
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
