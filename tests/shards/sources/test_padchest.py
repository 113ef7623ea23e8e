import ast
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shards.core.errors import SourceError
from shards.sources.base import Listing
from shards.sources.check import check_source
from shards.sources.csv_tables import read_columns
from shards.sources.datasets.padchest import (
    DAMAGED,
    LABELS,
    MISSING,
    RARE_LABELS,
    SOURCE,
    PadchestRow,
    known_defect,
    labels_of,
    parse_findings,
    read_entries,
)
from shards.sources.registry import open_source
from tests.shards.sources.trees import problem, write_files, write_lines, write_pixels

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
HEADER = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Report,MethodLabel,Labels,Localizations,LabelsLocalizationsBySentence,labelCUIS,LocalizationsCUIS"
)
LONG_STUDY = "128401136192941452468211919169675154235144414526674"
LONG_PATIENT = "839860488694292331637988235681460987123"
DEFECT = sorted(DAMAGED)[0]


def row(image: str, folder: int, study: str, patient: str, sex: str, view: str, labels: str) -> str:
    rest = """"[['nodule', 'loc basal']]",['C0034069' 'C0742362'],[]"""
    report = '"sin hallazg, de 1930 ."'
    return (
        f"0,{image},{folder},20140915,{study},{patient},1930.0,{sex},nan,{view},Manual review of DICOM fields,{report},"
        f'Physician,"{labels}",[],{rest}'
    )


ROWS = (
    row(f"{LONG_STUDY}_04-014-105.png", 50, LONG_STUDY, LONG_PATIENT, "F", "PA", "['normal']"),
    row("777_a.png", 0, "777", "12", "M", "L", "['pseudonodule', ' laminar atelectasis ', '']"),
    row("777_b.png", 54, "777", "0012", "O", "AP_horizontal", "['cardiomegaly', 'unchanged']"),
    row("888_k6ga29.png", 0, "888", "13", "nan", "UNK", "['']"),
    row("889_k6ga29.png", 0, "889", "13", "nan", "COSTAL", "nan"),
    row(DEFECT, 1, DEFECT.partition("_")[0], "14", "F", "EXCLUDE", "['mass']"),
)
NAMES = tuple(text.split(",")[1] for text in ROWS)


def write_tree(root: Path, *, rows: tuple[str, ...] = ROWS, is_flat: bool = False, end: str = "") -> Path:
    for text, name in zip(ROWS, NAMES, strict=True):
        write_pixels(root / ("images" if is_flat else text.split(",")[2]) / name, 4000, dtype=np.uint16)
    write_lines(root / f"{TABLE}{end}", HEADER, *rows)
    return root


def read(root: Path) -> Listing:
    return SOURCE.read(root)


@pytest.mark.parametrize("is_flat", [True, False])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_both_layouts_pass_the_battery(is_flat: bool, end: str, tmp_path: Path) -> None:
    assert open_source("padchest") is SOURCE
    check_source(SOURCE, write_tree(tmp_path, is_flat=is_flat, end=end))


def test_records_hold_what_the_files_say(tmp_path: Path) -> None:
    listing = read(write_tree(tmp_path))
    assert listing.patient_grouping == "patient"
    records = {record.source_id: record for record in listing.records}
    assert list(records) == sorted(NAMES)
    first, second, third, fourth, fifth, defect = (records[name] for name in NAMES)
    assert first.image.path == f"50/{LONG_STUDY}_04-014-105.png"
    assert (first.patient, first.study) == (f"padchest/{LONG_PATIENT}", f"padchest/{LONG_PATIENT}/{LONG_STUDY}")
    assert [record.view for record in (first, second, third, fourth, fifth, defect)] == [
        "PA",
        "L",
        "AP_HORIZONTAL",
        None,
        "COSTAL",
        "EXCLUDE",
    ]
    assert [record.sex for record in (first, second, third, fourth)] == ["F", "M", "O", None]
    assert {record.split for record in listing.records} == {None}
    assert [record.known_defect is None for record in listing.records].count(False) == 1
    assert defect.known_defect == "this image is damaged in PadChest's archives"


def test_ids_are_text_and_one_study_id_of_two_patients_is_two_studies(tmp_path: Path) -> None:
    records = {record.source_id: record for record in read(write_tree(tmp_path)).records}
    assert records["777_a.png"].patient == "padchest/12"
    assert records["777_b.png"].patient == "padchest/0012"
    assert records["777_a.png"].study != records["777_b.png"].study


def test_labels_are_compared_whole_and_stripped(tmp_path: Path) -> None:
    labels = {record.source_id: record.labels for record in read(write_tree(tmp_path)).records}["777_a.png"]
    assert {name for name, value in labels.items() if value == 1} == {"pseudonodule", "laminar atelectasis"}
    assert (labels["nodule"], labels["atelectasis"], labels["normal"]) == (0, 0, 0)


def test_what_an_inconclusive_or_missing_report_does_not_say_is_unknown(tmp_path: Path) -> None:
    records = {record.source_id: record for record in read(write_tree(tmp_path)).records}
    unchanged = records["777_b.png"].labels
    assert {name: value for name, value in unchanged.items() if value is not None} == {
        "cardiomegaly": 1,
        "unchanged": 1,
    }
    for name in ("888_k6ga29.png", "889_k6ga29.png"):
        assert set(records[name].labels.values()) == {None}
    assert set(records[DEFECT].labels.values()) == {0}, "a rare finding says that the others are absent"


def test_no_date_year_or_report_reaches_a_record(tmp_path: Path) -> None:
    text = repr(read(write_tree(tmp_path)).records)
    assert not any(secret in text for secret in ("20140915", "1930", "hallazg"))
    assert all(record.age_years is None for record in read(tmp_path).records)


def test_the_vocabulary_is_fixed_distinct_and_does_not_depend_on_the_rows(tmp_path: Path) -> None:
    assert (len(LABELS), len(RARE_LABELS), len({*LABELS, *RARE_LABELS})) == (141, 52, 193)
    listing = read(write_tree(tmp_path, rows=ROWS[:1]))
    assert tuple(listing.records[0].labels) == LABELS


def test_lost_images_and_strays_are_counted_not_used(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    (root / "0" / NAMES[1]).rename(root / "0" / "999_z.png")
    assert read(root).warnings[:2] == (
        "padchest: 1 of 6 listed images have no file; left out",
        "padchest: 1 of 6 image files are in no table; left out",
    )


def test_an_image_in_a_folder_and_beside_it_is_refused(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    write_pixels(root / NAMES[1])
    assert f"{NAMES[1]} is there twice" in problem(read, root)


def test_an_empty_folder_names_the_layout(tmp_path: Path) -> None:
    assert f"{TABLE} not found at any depth" in problem(read, tmp_path)
    write_lines(tmp_path / TABLE, HEADER, *ROWS)
    assert "6 named, 0 files found" in problem(read, tmp_path)


@pytest.mark.parametrize(
    "text", ["nodule", "['nodule'", "[1]", "{'nodule': 1}", "__import__('os').getcwd()", "['nodule'] * 9", "(" * 500]
)
def test_labels_that_are_no_list_of_texts_are_refused_without_being_run(text: str) -> None:
    with pytest.raises(SourceError, match="row 7: column Labels: expected the text of a Python list"):
        parse_findings(text, "row 7")


def test_a_label_of_no_vocabulary_is_refused() -> None:
    with pytest.raises(SourceError, match="'Nodule' is none of PadChest's 193 labels"):
        parse_findings("['nodule', 'Nodule']", "row 7")


@pytest.mark.parametrize(
    ("found", "nodule", "normal"),
    [
        ({"normal"}, 0, 1),
        ({"nodule"}, 1, 0),
        ({"nodule", "exclude"}, 1, None),
        ({"suboptimal study"}, None, None),
        ({"abscess"}, 0, 0),
        (set(), None, None),
    ],
)
def test_three_states(found: set[str], nodule: int | None, normal: int | None) -> None:
    labels = labels_of(frozenset(found))
    assert (labels["nodule"], labels["normal"]) == (nodule, normal)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (",L,", ",LL,", "projection unknown"),
        (",M,", ",X,", "sex or projection unknown"),
        (",12,1930", ",,1930", "with a patient"),
        (",777,", ",778,", "named after its study"),
        ("777_a.png", "777_b.png", "expected an image once"),
    ],
)
def test_a_row_that_cannot_be_is_named(old: str, new: str, words: str, tmp_path: Path) -> None:
    text = problem(read, write_tree(tmp_path, rows=(ROWS[0], ROWS[1].replace(old, new), *ROWS[2:])))
    assert words in text
    assert ".csv line " in text


@pytest.fixture(scope="module")
def entries(published: Callable[[str], Path]) -> dict[str, PadchestRow]:
    return read_entries(published(f"{TABLE}.gz"))


COLUMNS = ("ImageID", "StudyID", "PatientID", "ImageDir", "MethodLabel", "ViewPosition_DICOM", "BitsStored_DICOM")


@pytest.fixture(scope="module")
def columns(published: Callable[[str], Path]) -> list[tuple[str, ...]]:
    """`COLUMNS` and Labels of the published table."""
    return list(read_columns(published(f"{TABLE}.gz"), (*COLUMNS, "Labels"), "the table"))


@pytest.mark.slow
def test_the_published_table_has_its_exact_counts(entries: dict[str, PadchestRow]) -> None:
    values = list(entries.values())
    assert len(values) == 160_861
    assert len({entry.patient for entry in values}) == 67_625
    studies = {entry.study for entry in values}
    assert len(studies) == 109_931 + 1
    assert len({study.rpartition("/")[2] for study in studies}) == 109_931
    assert max(len(entry.patient.removeprefix("padchest/")) for entry in values) == 39
    assert max(len(study.rpartition("/")[2]) for study in studies) == 51
    assert Counter(entry.view for entry in values) == {
        "PA": 91_728,
        "L": 49_579,
        "AP_HORIZONTAL": 14_346,
        "AP": 4_559,
        "COSTAL": 630,
        "EXCLUDE": 11,
        None: 8,
    }
    frontal = [entry.patient for entry in values if entry.view in ("PA", "AP", "AP_HORIZONTAL")]
    assert (len(frontal), len(set(frontal))) == (110_633, 67_247)
    assert Counter(entry.sex for entry in values) == {"M": 80_920, "F": 79_919, "O": 18, None: 4}


@pytest.mark.slow
def test_the_published_labels_have_their_exact_counts(
    entries: dict[str, PadchestRow], columns: list[tuple[str, ...]]
) -> None:
    distinct = {id(entry.labels): entry.labels for entry in entries.values()}  # rows of one text share theirs
    num_rows = Counter(id(entry.labels) for entry in entries.values())
    images = Counter[str]()
    for key, labels in distinct.items():
        images.update({name: num_rows[key] for name, value in labels.items() if value == 1})
    known = ("normal", "COPD signs", "cardiomegaly", "unchanged", "aortic elongation", "pleural effusion", "scoliosis")
    assert [images[name] for name in known] == [50_616, 23_280, 15_022, 14_334, 10_824, 9_853, 8_333]
    assert (images["pneumonia"], images["exclude"], images["suboptimal study"]) == (7_953, 1_312, 1_839)
    assert [name for name, _ in images.most_common(8)] == [*known, "pneumonia"]
    assert set(images) == set(LABELS)
    texts = Counter(text for *_, text in columns)
    assert texts.pop("nan") == 103
    found = Counter[str]()
    for text, number in texts.items():
        found.update(dict.fromkeys(parse_findings(text, "row"), number))
    assert min(found[name] for name in LABELS) >= 100 > max(found[name] for name in RARE_LABELS)
    assert set(found) == {*LABELS, *RARE_LABELS}
    assert len(found) + 1 == 194, "with the empty text"
    assert sum(number for text, number in texts.items() if "''" in text) == 3_041
    padded = [text for text in texts if any(name != name.strip() for name in ast.literal_eval(text))]
    assert sum(texts[text] for text in padded) == 29_282
    assert sum(num_rows[key] for key, labels in distinct.items() if set(labels.values()) == {None}) == 103 + 777


@pytest.mark.slow
def test_what_the_docstring_says_of_the_published_table_holds(columns: list[tuple[str, ...]]) -> None:
    assert all(image.endswith(".png") and image.startswith(study) for image, study, *_ in columns)
    assert Counter(row[4] for row in columns) == {"RNN_model": 121_808, "Physician": 39_053}
    by_method = {method: {row[2] for row in columns if row[4] == method} for method in ("Physician", "RNN_model")}
    assert (len(by_method["Physician"]), len(by_method["Physician"] & by_method["RNN_model"])) == (24_491, 7_799)
    assert sum(row[5] == "nan" for row in columns) == 69_085
    assert Counter(row[6] for row in columns) == {"12": 144_051, "10": 16_810}
    folders = Counter(row[3] for row in columns)
    assert (len(folders), folders["50"], folders["54"]) == (52, 1, 4_297)
    assert [row[0] for row in columns if row[3] == "50"] == [f"{LONG_STUDY}_04-014-105.png"]


def test_the_published_headers_have_their_exact_counts(published: Callable[[str], Path]) -> None:
    tags = ("Modality", "Manufacturer", "PhotometricInterpretation", "PixelRepresentation", "WindowCenter")
    names = [f"{tag}_DICOM" for tag in (*tags, "StudyDate", "Rows", "Columns")] + [
        "Pediatric",
        "Report",
        "PatientBirth",
    ]
    table = pd.read_csv(published(f"{TABLE}.gz"), dtype=str, usecols=names)
    assert Counter(table["Modality_DICOM"]) == {"CR": 148_862, "DX": 11_999}
    makers = {"PhilipsMedicalSystems": 81_084, "ImagingDynamicsCompanyLtd": 79_777}
    assert Counter(table["Manufacturer_DICOM"]) == makers
    assert set(table["PhotometricInterpretation_DICOM"]) == {"MONOCHROME2"}
    assert set(table["PixelRepresentation_DICOM"]) == {"0"}
    assert Counter(table["Pediatric"]) == {"No": 160_587, "PED": 274}
    num_absent = table.isna().sum()
    assert (num_absent["WindowCenter_DICOM"], num_absent["Report"], num_absent["PatientBirth"]) == (1_223, 116, 6)
    assert len(table) - 1_223 == 159_638
    assert (table["StudyDate_DICOM"].min(), table["StudyDate_DICOM"].max()) == ("20070503", "20171117")
    rows, cols = (table[name].astype(int) for name in ("Rows_DICOM", "Columns_DICOM"))
    assert (rows.min(), rows.max(), cols.max()) == (636, 4_280, 4_280)


@pytest.mark.slow
def test_all_known_defects_are_images_of_the_published_table(entries: dict[str, PadchestRow]) -> None:
    assert (len(MISSING), len(DAMAGED)) == (11, 10)
    assert len((MISSING | DAMAGED) & entries.keys()) == 21
    assert sum(known_defect(name) is not None for name in entries) == 21


@pytest.mark.slow
def test_the_whole_list_is_read(
    entries: dict[str, PadchestRow], published: Callable[[str], Path], tmp_path: Path
) -> None:
    root = tmp_path / "padchest"
    write_files(root, [f"{number % 55}/{name}" for number, name in enumerate(entries) if name not in MISSING], b"")
    shutil.copy(published(f"{TABLE}.gz"), root)
    listing = read(root)
    assert listing.warnings[:1] == ("padchest: 11 of 160,861 listed images have no file; left out",)
    assert sum(record.known_defect is not None for record in listing.records) == 10
    shutil.rmtree(root)
