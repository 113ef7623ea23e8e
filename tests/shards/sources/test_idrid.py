from pathlib import Path

import pytest

from shards.core.errors import SourceError
from shards.core.records import MaskFiles
from shards.sources.check import check_source
from shards.sources.datasets.idrid import LESIONS, SOURCE, parse_grades
from tests.shards.sources.trees import by_id, mask_paths, write_files, write_text

A = "A. Segmentation"
B = "B. Disease Grading"
C = "C. Localization"
IMAGES = "1. Original Images"
TRUTHS = "2. All Segmentation Groundtruths"
TRAIN, TEST = "a. Training Set", "b. Testing Set"
MARKUPS = f"{C}/2. Groundtruths"


def write_segmentation(root: Path, top: str = A) -> None:
    write_files(root, [f"{top}/{IMAGES}/{TRAIN}/IDRiD_{number}.jpg" for number in ("01", "02")])
    write_files(root, [f"{top}/{IMAGES}/{TEST}/IDRiD_55.jpg"])
    for part, names in ((TRAIN, ("01", "02")), (TEST, ("55",))):
        write_files(root, [f"{top}/{TRUTHS}/{part}/1. Microaneurysms/IDRiD_{name}_MA.tif" for name in names])
        write_files(root, [f"{top}/{TRUTHS}/{part}/2. Haemorrhages/IDRiD_{name}_HE.tif" for name in names])
        write_files(root, [f"{top}/{TRUTHS}/{part}/3. Hard Exudates/IDRiD_{name}_EX.tif" for name in names])
        write_files(root, [f"{top}/{TRUTHS}/{part}/5. Optic Disc/IDRiD_{name}_OD.tif" for name in names])
    write_files(root, [f"{top}/{TRUTHS}/{TRAIN}/4. Soft Exudates/IDRiD_02_SE.tif"])


def write_grading(root: Path) -> None:
    write_files(root, [f"{B}/{IMAGES}/{TRAIN}/IDRiD_{number}.jpg" for number in ("001", "002")])
    write_files(root, [f"{B}/{IMAGES}/{TEST}/IDRiD_001.jpg"])
    write_text(
        root,
        f"{B}/2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv",
        "Image name,Retinopathy grade,Risk of macular edema ,,,\r\nIDRiD_001,3,2,,,\r\nIDRiD_002,0,0,,,\r\n,,,,,\r\n",
    )
    write_text(
        root,
        f"{B}/2. Groundtruths/b. IDRiD_Disease Grading_Testing Labels.csv",
        "Image name,Retinopathy grade,Risk of macular edema \nIDRiD_001,4,1\n",
    )


def write_localization(root: Path) -> None:
    write_files(root, [f"{C}/{IMAGES}/{TRAIN}/IDRiD_{number}.jpg" for number in ("001", "002")])
    header = "Image No,X- Coordinate,Y - Coordinate,,,\n"
    write_text(
        root,
        f"{MARKUPS}/1. Optic Disc Center Location/a. IDRiD_OD_Center_Training Set_Markups.csv",
        f"{header}IDRiD_001,2800,1458,,,\nIDRiD_002,600.5,1500,,,\n,,,,,\n",
    )
    write_text(
        root,
        f"{MARKUPS}/2. Fovea Center Location/IDRiD_Fovea_Center_Training Set_Markups.csv",
        f"{header}IDRiD_001,1900,1500,,,\n",
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_segmentation(tmp_path)
    write_grading(tmp_path)
    write_localization(tmp_path)
    return tmp_path


def share(root: Path, *paths: str) -> None:
    """The same photograph under several names."""
    write_files(root, paths, b"one photograph" * 10)


def test_it_keeps_the_contract(root: Path) -> None:
    check_source(SOURCE, root)
    share(root, f"{A}/{IMAGES}/{TRAIN}/IDRiD_01.jpg", f"{B}/{IMAGES}/{TEST}/IDRiD_001.jpg")
    check_source(SOURCE, root)


@pytest.mark.parametrize("write", [write_segmentation, write_grading, write_localization])
def test_each_archive_alone_is_a_dataset(write, tmp_path: Path) -> None:
    write(tmp_path)
    check_source(SOURCE, tmp_path)


def test_names_of_two_and_of_three_digits_and_of_both_parts_are_different_images(root: Path) -> None:
    listing = SOURCE.read(root)
    assert {record.source_id: record.split for record in listing.records} == {
        "segmentation/IDRiD_01": "train",
        "segmentation/IDRiD_02": "train",
        "segmentation/IDRiD_55": "test",
        "grading/train/IDRiD_001": "train",
        "grading/train/IDRiD_002": "train",
        "grading/test/IDRiD_001": "test",
        "localization/train/IDRiD_001": "train",
        "localization/train/IDRiD_002": "train",
    }
    assert len({record.patient for record in listing.records}) == 8
    assert listing.patient_grouping == "image"


def test_a_lesion_without_a_file_is_absent_and_one_without_a_folder_unknown(root: Path) -> None:
    records = by_id(SOURCE.read(root))
    first, second, third = (records[f"segmentation/IDRiD_{number}"] for number in ("01", "02", "55"))
    assert first.masks["soft_exudates"] == MaskFiles(files=())
    assert mask_paths(second, "soft_exudates") == [f"{A}/{TRUTHS}/{TRAIN}/4. Soft Exudates/IDRiD_02_SE.tif"]
    assert mask_paths(second, "microaneurysms") == [f"{A}/{TRUTHS}/{TRAIN}/1. Microaneurysms/IDRiD_02_MA.tif"]
    assert set(first.masks) == {*LESIONS, "optic_disc"}
    assert "soft_exudates" not in third.masks, "the test set has no such folder here"
    warning = "idrid: 1 images of test whose soft exudates are unknown: no folder of masks"
    assert warning in SOURCE.read(root).warnings


def test_an_optic_disc_without_a_file_is_unknown_because_every_eye_has_one(root: Path) -> None:
    (root / A / TRUTHS / TRAIN / "5. Optic Disc" / "IDRiD_01_OD.tif").unlink()
    listing = SOURCE.read(root)
    assert set(by_id(listing)["segmentation/IDRiD_01"].masks) == set(LESIONS)
    assert "idrid: 1 images of segmentation without an optic disc" in listing.warnings


def test_grades_are_one_label_each_and_unknown_outside_of_grading(root: Path) -> None:
    records = by_id(SOURCE.read(root))
    graded = records["grading/train/IDRiD_001"].labels
    assert {name for name, value in graded.items() if value == 1} == {"DR grade 3", "DME risk 2"}
    assert {name for name, value in graded.items() if value == 0} == {
        *(f"DR grade {level}" for level in (0, 1, 2, 4)),
        *(f"DME risk {level}" for level in (0, 1)),
    }
    assert records["grading/test/IDRiD_001"].labels["DR grade 4"] == 1
    assert set(records["segmentation/IDRiD_01"].labels.values()) == {None}


def test_places_are_row_then_column(root: Path) -> None:
    records = by_id(SOURCE.read(root))
    assert records["localization/train/IDRiD_001"].landmarks == {
        "optic_disc_centre": (1458.0, 2800.0),
        "fovea": (1500.0, 1900.0),
    }
    assert records["localization/train/IDRiD_002"].landmarks == {"optic_disc_centre": (1500.0, 600.5)}
    assert {record.size for record in records.values()} == {(2848, 4288)}


def test_a_photograph_that_the_tasks_share_is_one_record_with_the_annotations_of_all(root: Path) -> None:
    share(
        root,
        f"{A}/{IMAGES}/{TRAIN}/IDRiD_02.jpg",
        f"{B}/{IMAGES}/{TRAIN}/IDRiD_001.jpg",
        f"{C}/{IMAGES}/{TRAIN}/IDRiD_001.jpg",
    )
    listing = SOURCE.read(root)
    assert len(listing.records) == 6
    record = by_id(listing)["segmentation/IDRiD_02"]
    assert record.labels["DR grade 3"] == 1
    assert set(record.landmarks) == {"optic_disc_centre", "fovea"}
    assert mask_paths(record, "soft_exudates")
    assert record.split == "train"
    assert "idrid: 1 photographs that several names share: one record each" in listing.warnings


def test_a_photograph_that_any_task_tests_on_is_never_trained_on(root: Path) -> None:
    share(root, f"{A}/{IMAGES}/{TRAIN}/IDRiD_01.jpg", f"{B}/{IMAGES}/{TEST}/IDRiD_001.jpg")
    listing = SOURCE.read(root)
    assert by_id(listing)["segmentation/IDRiD_01"].split == "test"
    assert "idrid: 1 of them in training and in test: they count as test" in listing.warnings


def test_of_two_grades_of_one_photograph_the_one_of_the_test_set_counts(root: Path) -> None:
    share(root, f"{B}/{IMAGES}/{TRAIN}/IDRiD_002.jpg", f"{B}/{IMAGES}/{TEST}/IDRiD_001.jpg")
    records = by_id(SOURCE.read(root))
    assert "grading/train/IDRiD_002" not in records
    assert records["grading/test/IDRiD_001"].labels["DR grade 4"] == 1


def test_of_two_items_of_one_photograph_the_first_counts_and_the_second_adds_what_is_missing(root: Path) -> None:
    share(root, *(f"{C}/{IMAGES}/{TRAIN}/IDRiD_{number}.jpg" for number in ("001", "002")))
    record = by_id(SOURCE.read(root))["localization/train/IDRiD_001"]
    assert record.landmarks == {"optic_disc_centre": (1458.0, 2800.0), "fovea": (1500.0, 1900.0)}


def test_files_of_one_size_and_other_bytes_stay_apart(root: Path) -> None:
    sizes = {(root / record.image.path).stat().st_size for record in SOURCE.read(root).records}
    assert len(sizes) < len(SOURCE.read(root).records)


def test_the_wrapped_folders_of_the_kaggle_copy_are_found(tmp_path: Path) -> None:
    write_segmentation(tmp_path, f"A.%20Segmentation/{A}")
    records = by_id(SOURCE.read(tmp_path))
    assert set(records) == {"segmentation/IDRiD_01", "segmentation/IDRiD_02", "segmentation/IDRiD_55"}
    assert records["segmentation/IDRiD_01"].masks["soft_exudates"] == MaskFiles(files=())


def test_rows_and_images_that_do_not_fit_are_counted(root: Path) -> None:
    (root / B / IMAGES / TRAIN / "IDRiD_002.jpg").rename(root / B / IMAGES / TRAIN / "IDRiD_003.jpg")
    listing = SOURCE.read(root)
    assert "idrid: 1 rows of grades without an image" in listing.warnings
    assert "idrid: 1 images of grading without a row: their grades are unknown" in listing.warnings
    assert set(by_id(listing)["grading/train/IDRiD_003"].labels.values()) == {None}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Image name,Retinopathy grade,Risk of macular edema\nIDRiD_001,5,0\n", r"line 2: Retinopathy grade is '5'"),
        (
            "Image name,Retinopathy grade,Risk of macular edema\nIDRiD_001,1,3\n",
            r"line 2: Risk of macular edema is '3'",
        ),
        ("Image name,Retinopathy grade,Risk of macular edema\n" + "IDRiD_001,1,0\n" * 2, r"line 3: .* listed twice"),
    ],
)
def test_a_list_with_values_that_it_cannot_have_is_refused(text: str, words: str, root: Path) -> None:
    write_text(root, f"{B}/2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv", text)
    with pytest.raises(SourceError, match=words):
        SOURCE.read(root)


@pytest.mark.parametrize("text", ["", "Image name,Retinopathy,Risk of macular edema\nIDRiD_001,3,1\n"])
def test_a_list_with_other_columns_is_a_warning_and_grades_are_unknown(text: str, root: Path) -> None:
    write_text(root, f"{B}/2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv", text)
    listing = SOURCE.read(root)
    assert "IDRiD's list needs the columns Image name, Retinopathy grade" in listing.warnings[0]
    assert set(by_id(listing)["grading/train/IDRiD_001"].labels.values()) == {None}
    assert by_id(listing)["grading/test/IDRiD_001"].labels["DR grade 4"] == 1


def test_a_place_that_is_none_is_refused(root: Path) -> None:
    path = f"{MARKUPS}/2. Fovea Center Location/IDRiD_Fovea_Center_Training Set_Markups.csv"
    write_text(root, path, "Image No,X- Coordinate,Y - Coordinate\nIDRiD_001,12,\n")
    with pytest.raises(SourceError, match=r"line 2: expected a position in pixels; found '12', ''"):
        SOURCE.read(root)


def test_a_row_cut_short_is_a_row_and_a_place_given_twice_is_refused(root: Path) -> None:
    grades = "Image name,Retinopathy grade, Risk of macular edema ,,\r\nIDRiD_001,3\r\nIDRiD_002,1,2,,\r\n,,,,\r\n"
    write_text(root, f"{B}/2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv", grades)
    labels = by_id(SOURCE.read(root))["grading/train/IDRiD_001"].labels
    assert (labels["DR grade 3"], labels["DME risk 0"]) == (1, None)
    path = f"{MARKUPS}/2. Fovea Center Location/IDRiD_Fovea_Center_Training Set_Markups.csv"
    write_text(root, path, "Image No,X- Coordinate,Y - Coordinate\n" + "IDRiD_001,12,13\n" * 2)
    with pytest.raises(SourceError, match="line 3: IDRiD_001 is listed twice"):
        SOURCE.read(root)


def test_empty_cells_are_unknown() -> None:
    labels = parse_grades({"Retinopathy grade": "", "Risk of macular edema": "2"}, "here")
    assert labels["DR grade 0"] is None
    assert labels["DME risk 2"] == 1


def test_a_folder_without_images_names_the_layout(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"(?s)no image of idrid found.*A\. Segmentation/\s+1\. Original Images"):
        SOURCE.read(tmp_path)
