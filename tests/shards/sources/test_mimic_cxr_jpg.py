from pathlib import Path

import pytest

from shards.sources.base import Listing
from shards.sources.check import check_source
from shards.sources.datasets.mimic_cxr_jpg import LABELS, SOURCE, read_views
from shards.sources.registry import open_source
from tests.shards.sources.trees import problem, write_lines, write_pixels


def dicom_id(number: int) -> str:
    return "-".join(f"{number + part:08x}" for part in range(0, 50, 10))


METADATA_HEADER = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
IMAGES = (
    (dicom_id(1), "10000032", "50414267", "PA", "train"),
    (dicom_id(2), "10000032", "50414267", "LATERAL", "train"),
    (dicom_id(3), "10000032", "53189527", "", "train"),
    (dicom_id(4), "11000011", "51029426", "LL", "validate"),
    (dicom_id(5), "19999987", "58971208", "ap", "test"),
)
STUDIES = (
    "10000032,50414267,,,1.0,,,,,,,0.0,,,-1.0,",
    "10000032,53189527,,,,,,,,,1.0,,,,,",
    "19999987,58971208,1.0,,,,,,,,,,,,,1.0",
    "19999999,59999999,1.0,,,,,,,,,,,,,",
)
"""Study 51029426 has no report; study 59999999 has no image here."""


def path_of(image: str, subject: str, study: str, *, has_group: bool = True) -> str:
    group = f"{'p' + subject[:2]}/" if has_group else ""
    return f"files/{group}p{subject}/s{study}/{image}.jpg"


def write_tree(
    root: Path, *, end: str = ".csv.gz", has_group: bool = True, images: tuple = IMAGES, studies: tuple = STUDIES
) -> Path:
    for image, subject, study, *_ in IMAGES:
        write_pixels(root / path_of(image, subject, study, has_group=has_group))
    splits = (f"{image},{study},{subject},{split}" for image, subject, study, _, split in images)
    write_lines(root / f"mimic-cxr-2.0.0-split{end}", "dicom_id,study_id,subject_id,split", *splits)
    rows = (
        f'{image},{subject},{study},CHEST (PA AND LAT),{view},3056,2544,21800506,213014.531,"CHEST, TWO VIEWS",,Erect'
        for image, subject, study, view, _ in images
    )
    write_lines(root / f"mimic-cxr-2.0.0-metadata{end}", METADATA_HEADER, *rows)
    write_lines(root / f"mimic-cxr-2.0.0-chexpert{end}", "subject_id,study_id," + ",".join(LABELS), *studies)
    return root


def read(root: Path) -> Listing:
    return SOURCE.read(root)


@pytest.mark.parametrize("end", [".csv", ".csv.gz"])
@pytest.mark.parametrize("has_group", [True, False])
def test_packed_and_unpacked_with_and_without_the_first_folders_pass_the_battery(
    end: str, has_group: bool, tmp_path: Path
) -> None:
    assert open_source("mimic-cxr-jpg") is SOURCE
    check_source(SOURCE, write_tree(tmp_path, end=end, has_group=has_group))


def test_records_hold_what_the_files_say(tmp_path: Path) -> None:
    listing = read(write_tree(tmp_path))
    assert listing.patient_grouping == "patient"
    assert [record.source_id for record in listing.records] == [dicom_id(number) for number in range(1, 6)]
    assert [record.view for record in listing.records] == ["PA", "L", None, "LL", "AP"]
    assert [record.split for record in listing.records] == ["train", "train", "train", "val", "test"]
    assert [record.patient for record in listing.records] == [f"mimic-cxr-jpg/{subject}" for _, subject, *_ in IMAGES]
    assert [record.study for record in listing.records] == [f"mimic-cxr-jpg/{study}" for *_, study, _, _ in IMAGES]
    assert listing.records[0].image.path == path_of(*IMAGES[0][:3])


def test_labels_are_those_of_the_study_for_each_of_its_images(tmp_path: Path) -> None:
    first, second, third, unlabelled, last = read(write_tree(tmp_path)).records
    known = {"Consolidation": 1, "Pleural Effusion": 0, "Pneumothorax": -1}
    for record in (first, second):
        assert {name: value for name, value in record.labels.items() if value is not None} == known
    assert {name for name, value in third.labels.items() if value is not None} == {"No Finding"}
    assert list(unlabelled.labels.values()) == [None] * 14
    assert (last.labels["Atelectasis"], last.labels["Support Devices"]) == (1, 1)


def test_labels_go_by_name_whatever_the_order_of_columns(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    names = tuple(reversed(LABELS))
    values = ",".join("1.0" if name == "Edema" else "" for name in names)
    table = root / "mimic-cxr-2.0.0-chexpert.csv.gz"
    write_lines(table, ",".join(("study_id", *names, "subject_id")), f"50414267,{values},10000032")
    first = read(root).records[0]
    assert {name for name, value in first.labels.items() if value == 1} == {"Edema"}


def test_other_labels_beside_those_of_chexpert_are_not_read(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    before = read(root)
    write_lines(root / "mimic-cxr-2.0.0-negbio.csv.gz", "anything")
    write_lines(root / "mimic-cxr-2.1.0-test-set-labeled.csv", "study_id,Airspace Opacity", "58971208,1.0")
    assert read(root) == before


def test_no_date_reaches_a_record(tmp_path: Path) -> None:
    assert not any("2180" in repr(record) for record in read(write_tree(tmp_path)).records)


def test_documented_counts_that_differ_are_warnings(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    (root / path_of(*IMAGES[0][:3])).unlink()
    write_pixels(root / "files" / f"{dicom_id(77)}.jpg")
    assert read(root).warnings == (
        "mimic-cxr-jpg: 1 of 5 listed images have no file; left out",
        "mimic-cxr-jpg: 1 of 5 image files are in no table; left out",
        "mimic-cxr-jpg: the tables list 3 images of train, 368,960 documented",
        "mimic-cxr-jpg: the tables list 1 images of val, 2,991 documented",
        "mimic-cxr-jpg: the tables list 1 images of test, 5,159 documented",
        "mimic-cxr-jpg: the tables list 1 without view, 15,769 documented",
        "mimic-cxr-jpg: 4 images found, 377,110 published",
        "mimic-cxr-jpg: 3 patients found, 65,379 published",
    )


def test_a_view_that_is_no_short_code_is_unknown(tmp_path: Path) -> None:
    table = write_lines(
        tmp_path / "m.csv", "dicom_id,ViewPosition", "a,XTABLE LATERAL", "b,L5 S1 (spot view)", "c,lateral", "d,"
    )
    assert read_views(table) == {"a": "XTABLE LATERAL", "b": None, "c": "L", "d": None}


@pytest.mark.parametrize("what", ["split", "metadata", "chexpert"])
def test_a_missing_table_is_named_with_the_layout(what: str, tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    (root / f"mimic-cxr-2.0.0-{what}.csv.gz").unlink()
    text = problem(read, root)
    assert f"mimic-cxr-2.0.0-{what}.csv.gz not found" in text
    assert "files/p1N/pNNNNNNNN" in text


def test_a_table_packed_and_unpacked_is_there_twice(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    write_tree(root, end=".csv")
    assert "keep one of them" in problem(read, root)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ((dicom_id(1), "10000032", "50414267", "PA", "valid"), "split 'valid'; expected train, validate, test"),
        ((dicom_id(2), "10000032", "50414267", "PA", "train"), "is there twice"),
        ((dicom_id(1), "20000032", "50414267", "PA", "train"), "8 digits that begin with 1"),
        ((dicom_id(1), "10000032", "10000032", "PA", "train"), "with 5 as study_id"),
        ((dicom_id(1), "10000032", "50414267", "PA", "test"), "is in the splits test and train"),
    ],
)
def test_a_row_that_cannot_be_is_named(image: tuple, words: str, tmp_path: Path) -> None:
    assert words in problem(read, write_tree(tmp_path, images=(image, *IMAGES[1:])))


def test_tables_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    write_lines(root / "mimic-cxr-2.0.0-metadata.csv.gz", "dicom_id,ViewPosition", f"{dicom_id(1)},PA")
    assert "4 images of mimic-cxr-2.0.0-split.csv.gz are missing" in problem(read, root)


def test_a_study_labelled_twice_is_refused(tmp_path: Path) -> None:
    assert "study 50414267 is there twice" in problem(read, write_tree(tmp_path, studies=(*STUDIES, STUDIES[0])))


def test_a_label_that_is_none_is_named_by_row_and_column(tmp_path: Path) -> None:
    wrong = STUDIES[0].replace("1.0", "yes")
    assert "line 2: Consolidation: expected 1 (present)" in problem(read, write_tree(tmp_path, studies=(wrong,)))
