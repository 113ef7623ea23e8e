from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.core.errors import SourceError
from shards.sources.check import check_source
from shards.sources.datasets.drive import SOURCE
from tests.shards.sources.trees import by_id, drawn, mask_paths, write_files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """All names of the newer archive; the older one's `1st_manual` and `2nd_manual` of test come below."""
    for number in range(21, 41):
        write_files(
            tmp_path,
            [
                f"DRIVE/training/images/{number}_training.tif",
                f"DRIVE/training/1st_manual/{number}_manual1.gif",
                f"DRIVE/training/mask/{number}_training_mask.gif",
            ],
        )
    for number in range(1, 21):
        write_files(tmp_path, [f"DRIVE/test/images/{number:02}_test.tif", f"DRIVE/test/mask/{number:02}_test_mask.gif"])
    return tmp_path


def test_it_keeps_the_contract(root: Path) -> None:
    check_source(SOURCE, root)


def test_the_official_split_is_20_to_20_and_every_image_a_patient(root: Path) -> None:
    listing = SOURCE.read(root)
    assert [record.split for record in listing.records] == ["train"] * 20 + ["test"] * 20
    assert len({record.patient for record in listing.records}) == 40
    assert listing.patient_grouping == "patient"
    assert by_id(listing)["05"].patient == "drive/05"


def test_the_field_of_view_and_the_vessels_are_different_structures(root: Path) -> None:
    record = by_id(SOURCE.read(root))["21"]
    assert mask_paths(record, "vessels") == ["DRIVE/training/1st_manual/21_manual1.gif"]
    assert mask_paths(record, "field_of_view") == ["DRIVE/training/mask/21_training_mask.gif"]


def test_a_field_of_view_among_the_vessels_is_not_taken_for_vessels(root: Path) -> None:
    manual = root / "DRIVE/training/1st_manual"
    (manual / "21_manual1.gif").rename(manual / "21_training_mask.gif")
    (manual / "22_manual1.gif").rename(root / "DRIVE/training/mask/22_manual1.gif")
    listing = SOURCE.read(root)
    assert "vessels" not in by_id(listing)["21"].masks
    assert "vessels" not in by_id(listing)["22"].masks
    assert "drive: 2 images of train without vessels" in listing.warnings


def test_vessels_of_the_test_images_are_unknown_in_the_newer_archive_and_there_in_the_older(root: Path) -> None:
    listing = SOURCE.read(root)
    assert set(by_id(listing)["01"].masks) == {"field_of_view"}
    assert listing.warnings == ("drive: 20 images of test without vessels",)
    write_files(root, [f"DRIVE/test/1st_manual/{number:02}_manual1.gif" for number in range(1, 21)])
    write_files(root, [f"DRIVE/test/2nd_manual/{number:02}_manual2.gif" for number in range(1, 21)])
    listing = SOURCE.read(root)
    assert listing.warnings == ()
    assert mask_paths(by_id(listing)["01"], "vessels_second_observer") == ["DRIVE/test/2nd_manual/01_manual2.gif"]


def test_png_copies_are_found_too(tmp_path: Path) -> None:
    write_files(tmp_path, ["training/images/21_training.png", "training/1st_manual/21_manual1.png"])
    (record,) = SOURCE.read(tmp_path).records
    assert mask_paths(record, "vessels") == ["training/1st_manual/21_manual1.png"]


def test_the_second_observers_greys_of_3_and_253_are_outside_and_inside(root: Path) -> None:
    inside = np.array([[0, 1, 0], [1, 1, 0]], bool)
    path = root / "DRIVE/test/2nd_manual/01_manual2.gif"
    path.parent.mkdir()
    Image.fromarray(np.where(inside, np.uint8(253), np.uint8(3))).save(path)
    mask = by_id(SOURCE.read(root))["01"].masks["vessels_second_observer"]
    np.testing.assert_array_equal(drawn(mask, root, (2, 3)), inside)


def test_a_folder_without_images_names_the_layout(tmp_path: Path) -> None:
    write_files(tmp_path, ["training/mask/21_training_mask.gif"])
    with pytest.raises(SourceError, match=r"(?s)no image of drive found.*training/images/21_training\.tif"):
        SOURCE.read(tmp_path)
