from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.core.errors import SourceError
from shards.core.records import Box, File, MaskFiles
from shards.sources.check import check_source
from shards.sources.datasets.jsrt import RAW, SOURCE, parse_clinical
from tests.shards.sources.trees import by_id, drawn, mask_paths, write_files, write_text

FOLDERS = ["heart", "left clavicle", "right clavicle", "left lung", "right lung"]
STRUCTURES = {"heart", "left_clavicle", "right_clavicle", "left_lung", "right_lung"}
NODULES = (
    "JPCLN001.IMG\t5\t15\t53\tmale\t1634\t692\tmalignant\tl.upper lobe\tlung cancer\t\r\n"
    "JPCLN002.IMG\t5\t30\t78\tfemale\t1614\t1090\tbenign\tl.upper lobe(S5)\tpulmonary hematoma"
    "JPCLN003.IMG\t4\t10\t?\tfemale\t3\t2040\tmalignant\tl.upper lobe(S1+2)\tlung cancer\r\n"
)
NO_NODULES = "JPCNN001.IMG\t49\tfemale\tnon-nodule\r\n"
# Rows as published, of a table made from both (farhanxaidi/Programming_for_Big_Data, jsrt_metadata.csv); their order of
# columns in Nickollee/radiology-cv, data/clinical/README.md, and the blanks of the second in harishanand95/jsrt-parser.
PUBLISHED = (
    "JPCLN003.IMG\t5\t30\t63\tfemale\t1303\t447\tmalignant\tl.upper lobe(S1+2)\tlung cancer\r\n"
    "JPCLN084.IMG\t3\t60\t59\tfemale\t1340\t854\tmalignant\tleft lung\tlung cancer\r\n"
    "JPCLN117.IMG\t2\t12\t?\tfemale\t377\t1045\tmalignant\tr.upper lobe\tlung cancer\r\n"
    "JPCLN154.IMG\t1\t8\t75\tfemale\t660\t688\tmalignant\tr.upper lobe(S1)\tsusp. lung metastasis\r\n"
    "JPCNN010.IMG 54  male   non-nodule\r\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    names = ["JPCLN001", "JPCLN002", "JPCLN003", "JPCNN001", "JPCNN002"]
    write_files(tmp_path, [f"All247images/{name}.IMG" for name in names])
    for name in names[:4]:
        fold = "fold1" if int(name[-3:]) % 2 else "fold2"
        write_files(tmp_path, [f"scratch/{fold}/masks/{folder}/{name}.gif" for folder in FOLDERS])
        write_files(tmp_path, [f"scratch/{fold}/landmarks/{name}.pfs"])
    write_text(tmp_path, "Clinical_Information/CLNDAT_EN.txt", NODULES)
    write_text(tmp_path, "Clinical_Information/CNNDAT_EN.TXT", NO_NODULES)
    return tmp_path


def test_it_keeps_the_contract(root: Path) -> None:
    check_source(SOURCE, root)


def test_labels_follow_the_name_and_the_clinical_tables(root: Path) -> None:
    records = by_id(SOURCE.read(root))
    assert {name: (record.labels["Nodule"], record.labels["Malignant nodule"]) for name, record in records.items()} == {
        "JPCLN001": (1, 1),
        "JPCLN002": (1, 0),
        "JPCLN003": (1, 1),
        "JPCNN001": (0, 0),
        "JPCNN002": (0, 0),
    }
    assert [(records[name].sex, records[name].age_years) for name in records] == [
        ("M", 53),
        ("F", 78),
        ("F", None),
        ("F", 49),
        (None, None),
    ]


def test_a_name_in_lower_case_is_the_same_case_with_the_same_labels_and_masks(tmp_path: Path) -> None:
    write_files(tmp_path, ["jpcln001.img", "jpcnn001.png", "fold1/masks/heart/jpcln001.gif"])
    nodule, none = SOURCE.read(tmp_path).records
    assert (nodule.source_id, nodule.labels["Nodule"], nodule.raw, list(nodule.masks)) == (
        *("JPCLN001", 1, RAW),
        ["heart"],
    )
    assert (none.source_id, none.labels["Nodule"], none.raw) == ("JPCNN001", 0, None)


def test_without_the_tables_malignancy_is_unknown_where_there_is_a_nodule(tmp_path: Path) -> None:
    write_files(tmp_path, ["JPCLN001.IMG", "JPCNN001.IMG"])
    nodule, none = SOURCE.read(tmp_path).records
    assert (nodule.labels["Malignant nodule"], none.labels["Malignant nodule"]) == (None, 0)


def test_a_nodule_s_box_is_the_square_of_its_size_around_its_centre_inside_the_image(root: Path) -> None:
    records = by_id(SOURCE.read(root))
    # 15 mm of .175 mm a pixel: 85.714 pixels; row 692, column 1634.
    (box,) = records["JPCLN001"].boxes
    assert (box.row0, box.row1) == pytest.approx((692 - 42.857, 692 + 42.857), abs=1e-3)
    assert (box.col0, box.col1) == pytest.approx((1634 - 42.857, 1634 + 42.857), abs=1e-3)
    (clipped,) = records["JPCLN003"].boxes
    assert (clipped.row1, clipped.col0) == (2048.0, 0.0)
    assert records["JPCNN001"].boxes == ()


def test_lines_that_run_together_are_told_apart_and_free_text_is_left(root: Path) -> None:
    assert set(parse_clinical(NODULES + NO_NODULES)) == {"JPCLN001", "JPCLN002", "JPCLN003", "JPCNN001"}
    assert parse_clinical("JPCLN004.IMG see the notes of Dr Example, male 53") == {}
    assert "hematoma" not in repr(SOURCE.read(root))


def test_published_rows_are_read_whole_an_unknown_age_among_them() -> None:
    found = parse_clinical(PUBLISHED)
    assert {name: (case.sex, case.age_years, case.is_malignant) for name, case in found.items()} == {
        "JPCLN003": ("F", 63, True),
        "JPCLN084": ("F", 59, True),
        "JPCLN117": ("F", None, True),
        "JPCLN154": ("F", 75, True),
        "JPCNN010": ("M", 54, False),
    }
    # 60 mm, the greatest of all, of .175 mm a pixel; column 1340, row 854.
    box = found["JPCLN084"].nodule
    assert box is not None
    assert (box.row0 + box.row1, box.col0 + box.col1) == pytest.approx((2 * 854, 2 * 1340))
    assert (box.row1 - box.row0, box.col1 - box.col0) == pytest.approx((342.857, 342.857), abs=1e-3)


def test_scr_s_folds_hold_odd_and_even_cases(tmp_path: Path) -> None:
    """Cases of bioidiap/bob.ip.binseg, bob/ip/binseg/data/JSRT/default.json, where this holds for all 247."""
    odd = ["JPCLN049", "JPCLN153", "JPCNN001", "JPCNN093"]
    even = ["JPCLN002", "JPCLN154", "JPCNN064", "JPCNN092"]
    for fold, names in (("fold1", odd), ("fold2", even)):
        write_files(tmp_path, [f"JSRT/images/{name}.png" for name in names])
        write_files(tmp_path, [f"JSRT/scratch/{fold}/masks/{lung}/{name}.gif" for name in names for lung in FOLDERS])
    splits = {record.source_id: record.split for record in SOURCE.read(tmp_path).records}
    assert splits == dict.fromkeys(odd, "train") | dict.fromkeys(even, "test")
    assert {int(name[-3:]) % 2 for name in odd} == {1}
    assert {int(name[-3:]) % 2 for name in even} == {0}


def test_scr_s_folds_are_the_split_and_cases_without_masks_have_none(root: Path) -> None:
    assert {name: record.split for name, record in by_id(SOURCE.read(root)).items()} == {
        "JPCLN001": "train",
        "JPCLN002": "test",
        "JPCLN003": "train",
        "JPCNN001": "train",
        "JPCNN002": None,
    }


def test_masks_are_found_in_folders_with_spaces_and_scale_to_the_image(root: Path) -> None:
    record = by_id(SOURCE.read(root))["JPCLN002"]
    assert set(record.masks) == STRUCTURES | {"lungs"}
    assert mask_paths(record, "left_lung") == ["scratch/fold2/masks/left lung/JPCLN002.gif"]
    assert mask_paths(record, "lungs") == [
        "scratch/fold2/masks/left lung/JPCLN002.gif",
        "scratch/fold2/masks/right lung/JPCLN002.gif",
    ]
    assert all(isinstance(mask, MaskFiles) and mask.is_scaled for mask in record.masks.values())


def test_masks_in_folders_with_underscores_as_others_convert_them(tmp_path: Path) -> None:
    write_files(tmp_path, ["images_png/JPCLN001.png"])
    write_files(tmp_path, [f"masks/{name}_png/JPCLN001.png" for name in STRUCTURES])
    (record,) = SOURCE.read(tmp_path).records
    assert record.image.path == "images_png/JPCLN001.png"
    assert set(record.masks) == STRUCTURES | {"lungs"}
    assert record.split is None
    check_source(SOURCE, tmp_path)


def test_only_img_files_are_raw_and_inverted(tmp_path: Path) -> None:
    write_files(tmp_path, ["JPCLN001.IMG", "JPCLN002.png", "JPCNN001.img", "JPCNN002.JPG", "JPCNN003.tiff"])
    write_text(tmp_path, "CLNDAT_EN.txt", NODULES)
    records = by_id(SOURCE.read(tmp_path))
    assert {name for name, record in records.items() if record.raw == RAW} == {"JPCLN001", "JPCNN001"}
    assert {name for name, record in records.items() if record.raw is None} == {"JPCLN002", "JPCNN002", "JPCNN003"}
    assert records["JPCLN001"].spacing_mm == (0.175, 0.175)
    assert records["JPCLN002"].spacing_mm is None
    assert (records["JPCLN001"].size, records["JPCLN002"].size) == ((2048, 2048), None)
    assert records["JPCLN002"].boxes == (), "its size is not known, so no place in it is"
    assert records["JPCLN002"].age_years == 78


def test_the_raw_layout_reads_a_file_of_the_published_size(tmp_path: Path) -> None:
    stored = np.full((RAW.height, RAW.width), 4095, RAW.dtype)
    stored[0, :3] = [0, 256, 5000]
    stored.tofile(tmp_path / "JPCLN001.IMG")
    (record,) = SOURCE.read(tmp_path).records
    assert (tmp_path / record.image.path).stat().st_size == 8_388_608
    assert record.raw is not None
    values = np.fromfile(tmp_path / record.image.path, record.raw.dtype).reshape(record.raw.height, record.raw.width)
    assert values[0, 1] == 256, "the high byte comes first"
    shown = record.raw.max_value - np.minimum(values, record.raw.max_value)
    assert record.raw.is_inverted
    assert shown[0, :4].tolist() == [4095, 3839, 0, 0]


def test_the_original_is_taken_where_a_converted_file_lies_beside_it(tmp_path: Path) -> None:
    write_files(tmp_path, ["img/JPCLN001.IMG", "png/JPCLN001.png"])
    listing = SOURCE.read(tmp_path)
    assert [record.image.path for record in listing.records] == ["img/JPCLN001.IMG"]
    assert "jsrt: 1 converted images passed over beside their .IMG files" in listing.warnings


def test_scr_s_gif_masks_are_inside_where_they_are_brighter_whatever_their_palette(tmp_path: Path) -> None:
    for name, high in (("one", 1), ("full", 255)):
        image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), mode="P")
        image.putpalette([0, 0, 0, high, high, high] + [0] * 762)
        image.save(tmp_path / f"{name}.gif")
        mask = MaskFiles(files=(File(f"{name}.gif"),), is_scaled=True)
        assert drawn(mask, tmp_path, (2, 2)).tolist() == [[False, True], [True, False]]


def test_a_mask_in_both_folds_or_twice_in_one_is_refused(root: Path) -> None:
    write_files(root, ["copy/scratch/fold1/masks/heart/JPCLN001.gif"])
    with pytest.raises(SourceError, match=r"two files for JPCLN001's heart"):
        SOURCE.read(root)
    (root / "copy/scratch/fold1/masks/heart/JPCLN001.gif").unlink()
    (root / "scratch/fold1/masks/heart/JPCLN001.gif").unlink()
    write_files(root, ["scratch/fold2/masks/heart/JPCLN001.gif"])
    with pytest.raises(SourceError, match=r"JPCLN001 lie in both folds"):
        SOURCE.read(root)


def test_mini_jsrt_brings_its_own_split_and_lungs_of_its_first_archive(tmp_path: Path) -> None:
    write_files(tmp_path, ["Segmentation01/train/org/case001.png", "Segmentation01/train/label/case001.png"])
    write_files(tmp_path, ["Segmentation01/test/org/case048.png", "Segmentation01/test/label/case048.png"])
    second = "segmentation02/segmentation"
    write_files(tmp_path, [f"{second}/org_train/case001.bmp", f"{second}/label_train/case001.png"])
    check_source(SOURCE, tmp_path)
    listing = SOURCE.read(tmp_path)
    records = by_id(listing)
    assert {name: record.split for name, record in records.items()} == {
        "segmentation01/test/case048": "test",
        "segmentation01/train/case001": "train",
        "segmentation02/train/case001": "train",
    }
    assert mask_paths(records["segmentation01/train/case001"], "lungs") == ["Segmentation01/train/label/case001.png"]
    assert records["segmentation02/train/case001"].masks == {}
    assert "jsrt: 1 images of segmentation02, whose masks are left" in listing.warnings
    assert all(record.raw is None for record in listing.records)
    assert (listing.patient_grouping, listing.shares_images_with) == ("image", ("jsrt",))


def test_the_same_images_under_two_sets_of_names_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path, ["JPCLN001.IMG", "Segmentation01/train/org/case001.png"])
    with pytest.raises(SourceError, match="under names that no list maps"):
        SOURCE.read(tmp_path)


def test_what_does_not_fit_is_counted(root: Path) -> None:
    write_files(root, ["scratch/fold1/masks/heart/JPCNN093.gif"])
    assert SOURCE.read(root).warnings == (
        "jsrt: 5 images found, 247 published",
        "jsrt: 5 patients found, 247 published",
        "jsrt: 1 images without SCR masks",
        "jsrt: 1 SCR masks without an image",
        "jsrt: 1 images of which the clinical tables say nothing",
    )


@pytest.mark.parametrize("folder", ["mask", "masks"])
def test_only_pictures_with_an_image_s_name_count_as_masks_of_no_structure(tmp_path: Path, folder: str) -> None:
    write_files(tmp_path, ["JPCLN001.png", f"{folder}/JPCLN001.png", f"{folder}/readme.txt", f"{folder}/overview.png"])
    listing = SOURCE.read(tmp_path)
    assert [record.image.path for record in listing.records] == ["JPCLN001.png"]
    assert "jsrt: 1 masks that name no structure were left" in listing.warnings


def test_the_files_of_scr_s_later_release_are_neither_masks_nor_radiographs_without_a_word(tmp_path: Path) -> None:
    """SCR at Zenodo: one mask of no stated structure a case, and pictures with the outlines drawn into them."""
    write_files(tmp_path, ["masks/JPCLN001.tif", "jpg/JPCLN001.jpg", "points/JPCLN001.pfs"])
    listing = SOURCE.read(tmp_path)
    (record,) = listing.records
    assert (record.image.path, record.masks) == ("jpg/JPCLN001.jpg", {})
    assert any("1 images in a folder jpg: SCR's release at Zenodo" in warning for warning in listing.warnings)
    assert "jsrt: 1 masks that name no structure were left" in listing.warnings
    write_files(tmp_path, ["All247images/JPCLN001.IMG"])
    listing = SOURCE.read(tmp_path)
    assert [record.image.path for record in listing.records] == ["All247images/JPCLN001.IMG"]
    assert not any("folder jpg" in warning for warning in listing.warnings)


def test_masks_alone_are_no_dataset(tmp_path: Path) -> None:
    write_files(tmp_path, ["scratch/fold1/masks/left lung/JPCLN001.gif", "masks/heart/JPCLN001.png"])
    write_files(tmp_path, ["masks/JPCLN002.tif"])
    with pytest.raises(SourceError, match=r"(?s)no image of jsrt found.*JPCLN001\.IMG.*left lung"):
        SOURCE.read(tmp_path)


def test_a_box_names_the_label_it_shows() -> None:
    box = parse_clinical(NODULES)["JPCLN001"].nodule
    assert isinstance(box, Box)
    assert box.label == "Nodule"
