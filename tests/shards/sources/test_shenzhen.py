from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.core.canvas import is_coloured, with_channels
from shards.core.errors import SourceError
from shards.core.records import Sex
from shards.decode.image import decode
from shards.sources.check import check_source
from shards.sources.datasets.shenzhen import SOURCE, parse_demographics
from tests.shards.sources.trees import by_id, mask_paths, write_files, write_text

TOP = "ChinaSet_AllFiles"
NAMES = ["CHNCXR_0001_0", "CHNCXR_0326_0", "CHNCXR_0327_1", "CHNCXR_0662_1"]
SECRET = "bilateral secondary PTB, Mrs Example"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_files(tmp_path, [f"{TOP}/CXR_png/{name}.png" for name in NAMES])
    write_files(tmp_path, [f"{TOP}/CXR_png/Thumbs.db", f"{TOP}/NLM-ChinaCXRSet-ReadMe.docx"])
    write_files(tmp_path, [f"{TOP}/ManualMask/{name}_mask.png" for name in (NAMES[0], NAMES[2], "CHNCXR_0100_0")])
    for name, text in zip(
        NAMES, ["male 45yrs\r\nnormal", "Female, 28yrs \nnormal\n", f"{SECRET}\n", "male 16month"], strict=True
    ):
        write_text(tmp_path, f"{TOP}/ClinicalReadings/{name}.txt", text)
    return tmp_path


def test_it_keeps_the_contract(root: Path) -> None:
    check_source(SOURCE, root)


def test_labels_are_the_last_character_of_the_name_and_patients_are_images(root: Path) -> None:
    listing = SOURCE.read(root)
    assert {name: record.labels for name, record in by_id(listing).items()} == {
        NAMES[0]: {"Tuberculosis": 0},
        NAMES[1]: {"Tuberculosis": 0},
        NAMES[2]: {"Tuberculosis": 1},
        NAMES[3]: {"Tuberculosis": 1},
    }
    assert [record.patient for record in listing.records] == [f"shenzhen/{name}" for name in NAMES]
    assert listing.patient_grouping == "image"
    assert {(record.split, record.view) for record in listing.records} == {(None, "PA")}


def test_lung_masks_are_joined_by_name(root: Path) -> None:
    records = by_id(SOURCE.read(root))
    assert mask_paths(records[NAMES[2]], "lungs") == [f"{TOP}/ManualMask/{NAMES[2]}_mask.png"]
    assert records[NAMES[1]].masks == {}


def test_sex_and_age_come_from_a_first_line_that_says_nothing_else(root: Path) -> None:
    listing = SOURCE.read(root)
    assert [(record.sex, record.age_years) for record in listing.records] == [
        ("M", 45),
        ("F", 28),
        (None, None),
        ("M", pytest.approx(16 / 12)),
    ]
    assert SECRET not in repr(listing)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("male 45yrs", ("M", 45)),
        ("MALE  45 yrs", ("M", 45)),
        ("female,20yrs", ("F", 20)),
        ("female 1yr", ("F", 1)),
        ("female 73days", ("F", 73 / 365.25)),
        ("female 200yrs", ("F", None)),
        # As in CHNCXR_0018_0, 0030_0 and 0044_0 (Abdullah-Ejaz0/FYP_Pre-processing_pipelines, shenzhen_raw.csv).
        ("male 42", ("M", None)),
        ("Female 38yrs", ("F", 38)),
        ("femal 32yrs", ("F", 32)),
        # Variants that the same repository's tests/test_metadata.py lists as found in the files.
        ("male 16month", ("M", 16 / 12)),
        ("female 64days", ("F", 64 / 365.25)),
        ("female24yrs", ("F", 24)),
        ("male , 29yrs  \t", ("M", 29)),
        ("fema 20yrs", (None, None)),
        ("male 45yrs, PTB in the left upper field", (None, None)),
        ("Mr Example, male 45yrs", (None, None)),
        ("", (None, None)),
    ],
)
def test_demographics(line: str, expected: tuple[Sex | None, float | None]) -> None:
    assert parse_demographics(line) == expected


def test_what_does_not_fit_is_counted(root: Path) -> None:
    assert SOURCE.read(root).warnings == (
        "shenzhen: 4 images found, 662 published",
        "shenzhen: 1 masks without an image",
        "shenzhen: 1 clinical readings whose first line is not sex and age: what is missing stays unknown",
    )


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_palettes_and_colours_of_which_all_are_grey_are_grey_images(mode: str) -> None:
    """635 of the files have a palette and 27 are RGB (Abdullah-Ejaz0/FYP_Pre-processing_pipelines, CLAUDE.md)."""
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(grey if mode == "P" else np.stack([grey] * 3, -1))
    if mode == "P":
        # The palette runs backwards, so that indices are not levels.
        image = Image.fromarray(255 - grey, mode="P")
        image.putpalette([level for level in range(255, -1, -1) for _ in range(3)])
    file = BytesIO()
    image.save(file, "PNG")
    pixels = decode(file.getvalue(), max_pixels=1e6).pixels
    assert not is_coloured(pixels)
    np.testing.assert_array_equal(with_channels(pixels, 1).squeeze(), grey)


def test_lesion_masks_of_the_later_release_are_no_lung_masks(root: Path) -> None:
    """Layout of NLM's present site: mask/mask is Kaggle's, Annotations/masks the lesions'."""
    lesion = f"{TOP}/Annotations/masks/{NAMES[2]}_Calcified_Nodule_2.png"
    write_files(root, [lesion, f"{TOP}/shenzhen_consensus_roi.csv", f"{TOP}/mask/mask/{NAMES[1]}_mask.png"])
    records = by_id(SOURCE.read(root))
    assert mask_paths(records[NAMES[2]], "lungs") == [f"{TOP}/ManualMask/{NAMES[2]}_mask.png"]
    assert mask_paths(records[NAMES[1]], "lungs") == [f"{TOP}/mask/mask/{NAMES[1]}_mask.png"]


def test_images_outside_of_cxr_png_are_copies_and_are_not_taken(root: Path) -> None:
    write_files(root, [f"Lung Segmentation/test/{NAMES[0]}.png"])
    assert len(SOURCE.read(root).records) == len(NAMES)
    write_files(root, [f"Lung Segmentation/CXR_png/{NAMES[0]}.png"])
    with pytest.raises(SourceError, match=r"CHNCXR_0001_0 is there twice"):
        SOURCE.read(root)


def test_a_folder_without_images_names_the_layout(tmp_path: Path) -> None:
    write_files(tmp_path, ["CHNCXR_0001_0.png"])
    with pytest.raises(SourceError, match=r"(?s)no image of shenzhen found; expected below it.*CXR_png/CHNCXR_0001_0"):
        SOURCE.read(tmp_path)


def test_a_reading_without_an_age_is_counted_and_its_sex_is_known(tmp_path: Path) -> None:
    write_files(tmp_path, ["CXR_png/CHNCXR_0018_0.png", "CXR_png/CHNCXR_0019_0.png"])
    write_files(tmp_path, ["ClinicalReadings/CHNCXR_0018_0.txt", "ClinicalReadings/CHNCXR_0019_0.txt"])
    (tmp_path / "ClinicalReadings/CHNCXR_0018_0.txt").write_text("male 42\nnormal\n")
    (tmp_path / "ClinicalReadings/CHNCXR_0019_0.txt").write_text("male 42yrs\nnormal\n")
    listing = SOURCE.read(tmp_path)
    assert [(record.sex, record.age_years) for record in listing.records] == [("M", None), ("M", 42)]
    assert (
        "shenzhen: 1 clinical readings whose first line is not sex and age: what is missing stays unknown"
        in listing.warnings
    )
