from pathlib import Path

import pytest

from shards.core.errors import SourceError
from shards.core.records import Label, MaskFiles, Point
from shards.sources.check import check_source
from shards.sources.datasets.refuge import SOURCE
from tests.shards.sources.trees import by_id, mask_paths, write_files, write_workbook

TRAIN_GT = "Annotation-Training400/Annotation-Training400"
VAL_GT = "REFUGE-Validation400-GT"
TEST_GT = "REFUGE-Test-GT"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_files(
        tmp_path,
        [
            "REFUGE-Training400/Training400/Glaucoma/g0001.jpg",
            "REFUGE-Training400/Training400/Non-Glaucoma/n0001.jpg",
            f"{TRAIN_GT}/Disc_Cup_Masks/Glaucoma/g0001.bmp",
            f"{TRAIN_GT}/Disc_Cup_Masks/Non-Glaucoma/n0001.bmp",
            "REFUGE-Validation400/V0001.jpg",
            f"{VAL_GT}/Disc_Cup_Masks/V0001.bmp",
            "REFUGE-Test400/Test400/T0001.jpg",
            "REFUGE-Test400/Test400/T0002.jpg",
            f"{TEST_GT}/Disc_Cup_Masks/G/T0001.bmp",
            f"{TEST_GT}/Disc_Cup_Masks/N/T0002.bmp",
        ],
    )
    write_workbook(
        tmp_path / TRAIN_GT / "Fovea_location.xlsx",
        [("ID", "ImgName", "Fovea_X", "Fovea_Y"), ("1", "g0001.jpg", "1057.9", "1011.25")],
    )
    write_workbook(
        tmp_path / VAL_GT / "Fovea_locations.xlsx",
        [("ID", "ImgName", "Glaucoma Label", "Fovea_X", "Fovea_Y"), ("1", "V0001.jpg", "1", "800", "900.5")],
    )
    write_workbook(
        tmp_path / TEST_GT / "Glaucoma_label_and_Fovea_location.xlsx",
        [
            ("ID", "ImgName", "Label(Glaucoma=1)", "Fovea_X", "Fovea_Y"),
            ("1", "T0001.jpg", "1", "801", "901"),
            ("2", "T0002.jpg", "0", "802", "902"),
        ],
    )
    return tmp_path


def test_it_keeps_the_contract(root: Path) -> None:
    check_source(SOURCE, root)


def test_labels_come_from_folders_and_workbooks_and_splits_are_official(root: Path) -> None:
    listing = SOURCE.read(root)
    assert [(r.source_id, r.split, r.labels["Glaucoma"]) for r in listing.records] == [
        ("g0001", "train", 1),
        ("n0001", "train", 0),
        ("V0001", "val", 1),
        ("T0001", "test", 1),
        ("T0002", "test", 0),
    ]
    assert listing.patient_grouping == "image"
    assert listing.warnings == ("refuge: 5 images found, 1,200 published",)


def test_the_fovea_is_row_then_column(root: Path) -> None:
    records = by_id(SOURCE.read(root))
    assert records["g0001"].landmarks == {"fovea": (1011.25, 1057.9)}
    assert records["T0002"].landmarks == {"fovea": (902.0, 802.0)}
    assert records["n0001"].landmarks == {}
    assert (records["g0001"].size, records["V0001"].size, records["T0002"].size) == (
        (2056, 2124),
        (1634, 1634),
        (1634, 1634),
    )


def test_the_cup_is_0_the_rim_128_and_the_background_255(root: Path) -> None:
    record = by_id(SOURCE.read(root))["V0001"]
    disc, cup = record.masks["optic_disc"], record.masks["optic_cup"]
    assert isinstance(disc, MaskFiles)
    assert isinstance(cup, MaskFiles)
    assert mask_paths(record, "optic_disc") == mask_paths(record, "optic_cup") == [f"{VAL_GT}/Disc_Cup_Masks/V0001.bmp"]
    inside = {level: (disc.low <= level <= disc.high, cup.low <= level <= cup.high) for level in (0, 128, 255)}
    assert inside == {0: (True, True), 128: (True, False), 255: (False, False)}


def test_the_folders_of_test_masks_tell_the_label_where_the_workbook_is_missing(root: Path) -> None:
    (root / TEST_GT / "Glaucoma_label_and_Fovea_location.xlsx").unlink()
    records = by_id(SOURCE.read(root))
    assert [records[name].labels["Glaucoma"] for name in ("T0001", "T0002")] == [1, 0]


def test_a_label_on_which_folder_and_workbook_disagree_stays_unknown(root: Path) -> None:
    write_files(root, [f"{TEST_GT}/Disc_Cup_Masks/G/T0002.bmp"])
    (root / TEST_GT / "Disc_Cup_Masks/N/T0002.bmp").unlink()
    listing = SOURCE.read(root)
    assert by_id(listing)["T0002"].labels == {"Glaucoma": None}
    assert any("1 images on whose label folders and workbooks disagree" in warning for warning in listing.warnings)


def test_the_folder_amd_of_the_early_release_tells_no_label(root: Path) -> None:
    write_files(root, ["REFUGE-Training400/Training400/AMD/a0001.jpg"])
    record = by_id(SOURCE.read(root))["a0001"]
    assert (record.split, record.labels, record.masks) == ("train", {"Glaucoma": None}, {})


def test_all_three_parts_are_found_in_refuge2_s_archive(tmp_path: Path) -> None:
    top = "REFUGE2/Train"
    write_files(
        tmp_path,
        [
            f"{top}/REFUGE1-train/Training400/Glaucoma/g0001.jpg",
            f"{top}/REFUGE1-train/Disc_Cup_Masks/Glaucoma/g0001.bmp",
            f"{top}/REFUGE1-val/REFUGE-Validation400/V0001.jpg",
            f"{top}/REFUGE1-val/Disc_Cup_Masks/V0001.bmp",
            f"{top}/REFUGE1-test/Test400/T0001.jpg",
            f"{top}/REFUGE1-test/Disc_Cup_Masks/T0001.bmp",
        ],
    )
    records = SOURCE.read(tmp_path).records
    assert [(record.source_id, record.split) for record in records] == [
        ("g0001", "train"),
        ("V0001", "val"),
        ("T0001", "test"),
    ]
    assert all(len(record.masks) == 2 for record in records)


@pytest.mark.parametrize(
    ("values", "label", "fovea"),
    [
        (("2", "800", "900"), None, (900.0, 800.0)),
        (("1.0", "8.005E2", "900"), 1, (900.0, 800.5)),
        (("0", "-3", "900"), 0, None),
        (("0", "left", "900"), 0, None),
        (("0", "nan", "900"), 0, None),
        (("", "", ""), None, None),
    ],
)
def test_what_a_workbook_cannot_mean_is_unknown(
    values: tuple[str, ...], label: Label, fovea: Point | None, root: Path
) -> None:
    path = root / VAL_GT / "Fovea_locations.xlsx"
    write_workbook(path, [("ImgName", "Glaucoma Label", "Fovea_X", "Fovea_Y"), ("V0001.jpg", *values)])
    record = by_id(SOURCE.read(root))["V0001"]
    assert record.labels == {"Glaucoma": label}
    assert record.landmarks.get("fovea") == fovea


def test_a_workbook_in_another_form_is_a_warning(root: Path) -> None:
    (root / VAL_GT / "Fovea_locations.xlsx").write_text("<html>")
    listing = SOURCE.read(root)
    assert "expected REFUGE's labels as an Excel workbook" in listing.warnings[0]
    assert by_id(listing)["V0001"].labels == {"Glaucoma": None}


def test_rows_are_found_with_and_without_an_extension_and_those_without_an_image_are_counted(root: Path) -> None:
    write_workbook(
        root / VAL_GT / "Fovea_locations.xlsx",
        [("ImgName", "Glaucoma Label", "Fovea_X", "Fovea_Y"), ("V0001", "1", "800", "9"), ("V0009.jpg", "0", "1", "2")],
    )
    listing = SOURCE.read(root)
    assert by_id(listing)["V0001"].landmarks == {"fovea": (9.0, 800.0)}
    assert "refuge: 1 rows of the workbooks without an image" in listing.warnings


def test_a_folder_without_images_names_the_layout(tmp_path: Path) -> None:
    write_files(tmp_path, ["Training400.zip", "Annotation-Training400/Disc_Cup_Masks/Glaucoma/g0001.bmp"])
    with pytest.raises(SourceError, match=r"(?s)no image of refuge found.*Training400/Glaucoma/g0001\.jpg"):
        SOURCE.read(tmp_path)
