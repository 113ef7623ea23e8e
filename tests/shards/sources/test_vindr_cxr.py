import gzip
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from shards.core.records import Box
from shards.delivery.survey import survey_images
from shards.sources.check import check_source
from shards.sources.datasets.vindr_cxr import (
    GLOBAL_FINDINGS,
    KAGGLE_FINDINGS,
    LOCAL_FINDINGS,
    SOURCE,
    parse_boxes,
    read_kaggle,
    vote,
)
from shards.sources.registry import open_source
from tests.shards.sources.trees import (
    by_id,
    check_one_folder_more,
    problem,
    write_dicom,
    write_lines,
    write_pixels,
    write_table,
)
from tests.support.datasets import grid_params, shard_params

ONE, TWO, THREE, ABSENT, STRAY = (f"50a418190bc3fb1ef1633bf9678929b{digit}" for digit in range(5))
FINDINGS = (*LOCAL_FINDINGS, *GLOBAL_FINDINGS)
KAGGLE_HEADER = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """Three readers an image: one agreed finding, one of a single reader, two boxes of one reader, no findings."""
    write_lines(
        tmp_path / "train.csv",
        KAGGLE_HEADER,
        f"{ONE},Cardiomegaly,3,R10,691.0,1375.0,1653.0,1831.0",
        f"{ONE},Cardiomegaly,3,R9,700.0,1380.0,1650.0,1830.0",
        f"{ONE},Nodule/Mass,8,R9,10.0,20.0,30.0,40.0",
        f"{ONE},Nodule/Mass,8,R9,110.0,120.0,130.0,140.0",
        f"{ONE},No finding,14,R8,,,,",
        *(f"{TWO},No finding,14,R{reader},,,," for reader in (8, 9, 10)),
        *(f"{ABSENT},No finding,14,R{reader},,,," for reader in (1, 2, 3)),
    )
    write_dicom(tmp_path / f"train/{ONE}.dicom", PatientSex="F", PatientAge="061Y", PixelSpacing=[0.139, 0.14])
    write_pixels(tmp_path / f"train/{TWO}.png")
    write_pixels(tmp_path / f"train/{STRAY}.png")
    write_dicom(tmp_path / f"test/{THREE}.dicom")
    return tmp_path


@pytest.fixture
def physionet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images; labels by reader with `Other diseases`, and by consensus with `Other disease`."""
    root = tmp_path_factory.mktemp("physionet")
    marks = {
        (ONE, "R8"): {"No finding"},
        (ONE, "R9"): {"Cardiomegaly", "Nodule/Mass", "Other diseases"},
        (ONE, "R10"): {"Cardiomegaly"},
        **{(TWO, f"R{reader}"): {"No finding"} for reader in (8, 9, 10)},
    }
    write_table(
        root / "annotations/image_labels_train.csv",
        ("image_id", "rad_id", *FINDINGS),
        [(image, reader, *(int(name in found) for name in FINDINGS)) for (image, reader), found in marks.items()],
    )
    variant = [name.replace("Other diseases", "Other disease") for name in FINDINGS]
    write_table(
        root / "annotations/image_labels_test.csv",
        ("image_id", *variant),
        [(THREE, *(int(name in ("Other disease", "COPD")) for name in variant))],
    )
    write_lines(
        root / "annotations/annotations_train.csv",
        "image_id,rad_id,class_name,x_min,y_min,x_max,y_max",
        f"{ONE},R10,Cardiomegaly,691,1375,1653,1831",
        f"{ONE},R9,nodule/mass,-2.5,20,30,40",
        f"{ONE},R9,Nodule/Mass,10,20,10,40",
        f"{ONE},R9,Something new,10,20,30,40",
        f"{STRAY},R9,Cardiomegaly,10,20,30,40",
        f"{ONE},R8,No finding,,,,",
    )
    write_lines(
        root / "annotations/annotations_test.csv",
        "image_id,class_name,x_min,y_min,x_max,y_max",
        f"{THREE},Other disease,1,2,3,4",
    )
    for path in (f"train/{ONE}.dicom", f"train/{TWO}.dicom", f"test/{THREE}.dicom", f"test/{STRAY}.dicom"):
        write_dicom(root / path)
    return root


def test_vindr_passes_the_battery_from_both_places(kaggle: Path, physionet: Path) -> None:
    check_source(open_source("vindr-cxr"), kaggle)
    check_source(open_source("vindr-cxr"), physionet)


def test_kaggles_records_hold_what_the_list_says(kaggle: Path) -> None:
    listing = SOURCE.read(kaggle)
    records = by_id(listing)
    assert list(records) == [ONE, TWO, THREE]
    assert {name: value for name, value in records[ONE].labels.items() if value} == {
        "Cardiomegaly": 1,
        "Nodule/Mass": -1,
        "No finding": -1,
    }
    assert {name: value for name, value in records[TWO].labels.items() if value} == {"No finding": 1}
    assert set(records[THREE].labels.values()) == {None}
    # (x, y) became (row, col); every reader's boxes.
    assert records[ONE].boxes == (
        Box(label="Cardiomegaly", row0=1375, col0=691, row1=1831, col1=1653),
        Box(label="Cardiomegaly", row0=1380, col0=700, row1=1830, col1=1650),
        Box(label="Nodule/Mass", row0=20, col0=10, row1=40, col1=30),
        Box(label="Nodule/Mass", row0=120, col0=110, row1=140, col1=130),
    )
    assert [record.split for record in records.values()] == ["train", "train", "test"]
    one = records[ONE]
    assert (one.view, one.sex, one.age_years, one.spacing_mm) == ("PA", "F", 61.0, (0.139, 0.14))
    assert listing.patient_grouping == "image"


def test_physionets_records_hold_what_the_lists_say(physionet: Path) -> None:
    records = by_id(SOURCE.read(physionet))
    assert list(records) == [ONE, TWO, THREE]
    assert {name: value for name, value in records[ONE].labels.items() if value} == {
        "Cardiomegaly": 1,
        "Nodule/Mass": -1,
        "Other diseases": -1,
        "No finding": -1,
    }
    assert {name for name, value in records[THREE].labels.items() if value == 1} == {"COPD", "Other diseases"}
    assert -1 not in records[THREE].labels.values(), "a consensus is never uncertain"
    assert all(tuple(record.labels) == FINDINGS for record in records.values())
    assert records[ONE].boxes == (
        Box(label="Cardiomegaly", row0=1375, col0=691, row1=1831, col1=1653),
        Box(label="Nodule/Mass", row0=20, col0=0, row1=40, col1=30),
    )
    assert records[THREE].boxes == (Box(label="Other diseases", row0=2, col0=1, row1=4, col1=3),)
    assert [record.split for record in records.values()] == ["train", "train", "test"]


def test_an_image_is_the_same_from_both_places(kaggle: Path, physionet: Path) -> None:
    ours, theirs = by_id(SOURCE.read(kaggle)), by_id(SOURCE.read(physionet))
    assert list(ours) == list(theirs)
    for name in ours:
        assert (ours[name].source_id, ours[name].patient, ours[name].split) == (
            theirs[name].source_id,
            theirs[name].patient,
            theirs[name].split,
        )
        shared = set(KAGGLE_FINDINGS) & set(theirs[name].labels)
        assert shared == set(KAGGLE_FINDINGS), "Kaggle's findings have PhysioNet's names"


def test_physionets_lists_are_read_where_both_are_there(kaggle: Path, physionet: Path) -> None:
    expected = SOURCE.read(physionet)
    (kaggle / "train.csv").rename(physionet / "train.csv")
    assert SOURCE.read(physionet) == expected


def test_one_folder_more_around_it_all_does_not_matter(kaggle: Path, physionet: Path) -> None:
    check_one_folder_more(SOURCE, kaggle)
    check_one_folder_more(SOURCE, physionet)


def test_what_is_missing_is_counted(kaggle: Path, physionet: Path) -> None:
    warnings = "\n".join(SOURCE.read(kaggle).warnings)
    assert "3 images found, 18,000 published" in warnings
    assert "1 images of the lists are not there" in warnings
    assert "1 images without labels were left out" in warnings
    warnings = "\n".join(SOURCE.read(physionet).warnings)
    assert "1 images without labels were left out" in warnings
    assert "3 boxes without an area, or of a finding or image that the labels lack" in warnings


@pytest.mark.parametrize(
    ("num_positive", "num_readers", "expected"),
    [(0, 3, 0), (1, 3, -1), (2, 3, 1), (3, 3, 1), (0, 1, 0), (1, 1, 1), (1, 2, -1), (2, 2, 1)],
)
def test_a_finding_needs_more_than_half_of_the_readers(num_positive: int, num_readers: int, expected: int) -> None:
    assert vote(num_positive, num_readers) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"{ONE},Cardiomegalie,3,R8,1,2,3,4", "line 13: class_name is none of"),
        (f"{ONE},Cardiomegaly,3,R8,1,2,,4", "line 13: x_min, y_min, x_max, y_max must be numbers"),
    ],
)
def test_a_row_of_kaggle_that_cannot_be_is_named(line: str, expected: str, kaggle: Path) -> None:
    with (kaggle / "train.csv").open("a") as file:
        file.write(f"{line}\n")
    assert expected in problem(lambda: SOURCE.read(kaggle))


def test_labels_of_physionet_that_cannot_be_are_named(physionet: Path) -> None:
    path = physionet / "annotations/image_labels_test.csv"
    text = path.read_text()
    path.write_text(text.replace("Tuberculosis", "TB"))
    assert "no column Tuberculosis" in problem(lambda: SOURCE.read(physionet))
    path.write_text(text + text.splitlines()[1] + "\n")
    assert "line 3: an earlier row has the same image and reader" in problem(lambda: SOURCE.read(physionet))
    path.write_text(text.replace(f"{THREE},0", f"{THREE},2"))
    assert "line 2: column Aortic enlargement: expected 1 or 0" in problem(lambda: SOURCE.read(physionet))
    path.write_text(text.replace(THREE, ONE))
    assert f"{ONE} is in the labels of train as well" in problem(lambda: SOURCE.read(physionet))
    path.write_text(text)
    (physionet / "annotations/annotations_test.csv").unlink()
    assert "annotations_test.csv: not found" in problem(lambda: SOURCE.read(physionet))


def test_an_image_twice_in_two_forms_is_refused(kaggle: Path) -> None:
    write_pixels(kaggle / f"train_jpeg/{ONE}.jpeg")
    assert "keep one of them" in problem(lambda: SOURCE.read(kaggle))


def test_another_folder_is_told_from_the_dataset(kaggle: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    assert "train.csv: not found" in problem(lambda: SOURCE.read(empty))
    (kaggle / "train.csv").rename(empty / "train.csv")
    assert "train/<image>.dicom" in problem(lambda: SOURCE.read(empty))


# Finding → rows, images that any reader marked, images that at least two of three did; in the order of class_id.
REAL = {
    "Aortic enlargement": (7162, 3067, 2346),
    "Atelectasis": (279, 186, 62),
    "Calcification": (960, 452, 177),
    "Cardiomegaly": (5427, 2300, 1817),
    "Consolidation": (556, 353, 121),
    "ILD": (1000, 386, 152),
    "Infiltration": (1247, 613, 245),
    "Lung Opacity": (2483, 1322, 547),
    "Nodule/Mass": (2580, 826, 405),
    "Other lesion": (2203, 1134, 362),
    "Pleural effusion": (2476, 1032, 634),
    "Pleural thickening": (4842, 1981, 882),
    "Pneumothorax": (226, 96, 58),
    "Pulmonary fibrosis": (4655, 1617, 1017),
    "No finding": (31818, 10606, 10606),
}


def real_list(published: Callable[[str], Path], folder: Path) -> Path:
    path = folder / "train.csv"
    path.write_bytes(gzip.decompress(published("vinbigdata-train.csv.gz").read_bytes()))
    return path


@pytest.mark.slow
def test_the_real_readings_count_as_published(published: Callable[[str], Path], tmp_path: Path) -> None:
    readings, num_skipped = read_kaggle(real_list(published, tmp_path))
    assert (len(readings), num_skipped) == (15_000, 0)
    counts = {name: Counter(found.labels[name] for found in readings.values()) for name in KAGGLE_FINDINGS}
    assert {name: (found[1] + found[-1], found[1]) for name, found in counts.items()} == {
        name: (any_reader, majority) for name, (_, any_reader, majority) in REAL.items()
    }
    assert counts["No finding"] == {1: 10_606, 0: 4_394}
    with_finding = [
        found for found in readings.values() if any(v for n, v in found.labels.items() if n != "No finding")
    ]
    assert len(with_finding) == 4_394
    boxes = [box for found in readings.values() for box in found.boxes]
    assert len(boxes) == 36_096
    assert Counter(box.label for box in boxes) == {name: rows for name, (rows, _, _) in REAL.items() if rows != 31_818}


def test_the_real_list_counts_as_published(published: Callable[[str], Path]) -> None:
    rows = pd.read_csv(published("vinbigdata-train.csv.gz"))
    assert (len(rows), rows["rad_id"].nunique()) == (67_914, 17)
    assert set(rows.groupby("image_id")["rad_id"].nunique()) == {3}
    order = rows[["class_id", "class_name"]].drop_duplicates().sort_values("class_id")
    assert tuple(order["class_name"]) == KAGGLE_FINDINGS == tuple(REAL)
    assert tuple(rows["class_name"].value_counts()[list(REAL)]) == tuple(number for number, _, _ in REAL.values())


def test_the_real_boxes_have_an_area(published: Callable[[str], Path]) -> None:
    rows = pd.read_csv(published("vinbigdata-train.csv.gz"), dtype=str, keep_default_na=False)
    boxes, num_skipped = parse_boxes(rows.to_dict("records"), KAGGLE_FINDINGS, "the real file")
    assert (len(boxes), num_skipped) == (4_394, 0)


@pytest.mark.slow
def test_the_whole_list_is_read_over_placeholders(published: Callable[[str], Path], tmp_path: Path) -> None:
    path = real_list(published, tmp_path)
    (tmp_path / "train").mkdir()
    for name in pd.read_csv(path)["image_id"].unique():
        (tmp_path / "train" / f"{name}.dicom").touch()
    listing = SOURCE.read(tmp_path)
    assert len(listing.records) == 15_000
    assert listing.warnings == ("vindr-cxr: 15,000 images found, 18,000 published",)


def test_boxes_of_resized_copies_are_refused_where_they_are_registered(kaggle: Path) -> None:
    (kaggle / f"train/{ONE}.dicom").unlink()
    write_pixels(kaggle / f"train/{ONE}.png", 90, (512, 512))

    def survey() -> None:
        survey_images(kaggle, SOURCE.read(kaggle).records, grid_params(), shard_params())

    assert "do not fit 1 of the 1 images that have some" in problem(survey)
    write_pixels(kaggle / f"train/{ONE}.png", 90, (1840, 1660))
    survey_images(kaggle, SOURCE.read(kaggle).records, grid_params(), shard_params(max_source_megapixels=4.0))
