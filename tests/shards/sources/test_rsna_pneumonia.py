import json
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from shards.core.records import Box
from shards.decode.dicom import parse_age, parse_sex
from shards.sources.check import check_source
from shards.sources.csv_tables import read_columns
from shards.sources.datasets.rsna_pneumonia import CLASSES, COLUMNS, OPACITY, SOURCE, parse_labels, read_classes
from shards.sources.dicom_facts import parse_view
from shards.sources.registry import open_source
from tests.shards.sources.trees import by_id, check_one_folder_more, problem, write_dicom, write_lines

NORMAL, ABNORMAL, SICK, UNLABELLED, STRAY, ABSENT = (
    f"0004cfab-14fd-4e49-80ba-63a80b6bddd{digit}" for digit in range(6)
)
NIH_IMAGES = {NORMAL: "00000007_000.png", ABNORMAL: "00000007_001.png", SICK: "00000008_000.png"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two boxes of one image, a row without a file, a file without a row, an unlabelled test image."""
    write_lines(
        tmp_path / "stage_2_train_labels.csv",
        "patientId,x,y,width,height,Target",
        f"{NORMAL},,,,,0",
        f"{SICK},264.0,152.0,213.0,379.0,1",
        f"{SICK},562.0,152.0,256.0,453.0,1",
        f"{ABNORMAL},,,,,0",
        f"{ABSENT},,,,,0",
    )
    write_classes(tmp_path, "patientId,class")
    write_dicom(tmp_path / f"stage_2_train_images/{NORMAL}.dcm", ViewPosition="PA", PatientSex="F", PatientAge="51")
    write_dicom(tmp_path / f"stage_2_train_images/{ABNORMAL}.dcm", ViewPosition="AP", PatientSex="M", PatientAge="148")
    write_dicom(tmp_path / f"stage_2_train_images/{SICK}.dcm", PixelSpacing=[0.143, 0.143])
    write_dicom(tmp_path / f"stage_2_train_images/{STRAY}.dcm")
    write_dicom(tmp_path / f"stage_2_test_images/{UNLABELLED}.dcm")
    return tmp_path


def write_classes(root: Path, *header: str, end: str = "\n") -> None:
    classes = {NORMAL: CLASSES[0], SICK: CLASSES[2], ABNORMAL: CLASSES[1], ABSENT: CLASSES[0]}
    lines = [f"{name},{group}" for name, group in classes.items()]
    write_lines(root / "stage_2_detailed_class_info.csv", *header, *lines, lines[1], end=end)


def write_mapping(root: Path, images: dict[str, str]) -> None:
    items = [{"SOPInstanceUID": "1.2", "img_id": image, "subset_img_id": name} for name, image in images.items()]
    (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(items))


def test_rsna_passes_the_battery(root: Path) -> None:
    check_source(open_source("rsna-pneumonia"), root)
    write_mapping(root, NIH_IMAGES)
    check_source(SOURCE, root)


def test_records_hold_what_the_files_say(root: Path) -> None:
    listing = SOURCE.read(root)
    records = by_id(listing)
    assert list(records) == [NORMAL, ABNORMAL, SICK, UNLABELLED]
    assert {name: list(record.labels.values()) for name, record in records.items()} == {
        NORMAL: [1, 0, 0],
        ABNORMAL: [0, 1, 0],
        SICK: [0, 0, 1],
        UNLABELLED: [None] * 3,
    }
    # (x, y, width, height) became (row0, col0, row1, col1).
    assert records[SICK].boxes == (
        Box(label=OPACITY, row0=152, col0=264, row1=531, col1=477),
        Box(label=OPACITY, row0=152, col0=562, row1=605, col1=818),
    )
    assert [records[NORMAL].view, records[NORMAL].sex, records[NORMAL].age_years] == ["PA", "F", 51.0]
    assert [records[ABNORMAL].view, records[ABNORMAL].sex, records[ABNORMAL].age_years] == ["AP", "M", None]
    # The header's spacing is that of the image before it was resized.
    assert {record.spacing_mm for record in records.values()} == {"unusable"}
    assert {record.size for record in records.values()} == {(1024, 1024)}
    assert {record.split for record in records.values()} == {None}
    assert records[SICK].image.path == f"stage_2_train_images/{SICK}.dcm"


def test_without_the_mapping_an_image_stands_for_its_patient(root: Path) -> None:
    listing = SOURCE.read(root)
    assert listing.patient_grouping == "image"
    assert listing.shares_images_with[0] == "nih-chestxray14"
    assert by_id(listing)[SICK].patient == f"rsna-pneumonia/{SICK}"


def test_one_folder_more_around_it_all_does_not_matter(root: Path) -> None:
    check_one_folder_more(SOURCE, root)


def test_what_is_missing_is_counted(root: Path) -> None:
    warnings = "\n".join(SOURCE.read(root).warnings)
    assert "3 images found, 26,684 published" in warnings
    assert "1 images of stage_2_train_labels.csv are not there" in warnings
    assert "1 images without a row in stage_2_train_labels.csv were left out" in warnings


def test_with_the_mapping_patients_and_split_are_nihs(root: Path) -> None:
    write_mapping(root, {**NIH_IMAGES, UNLABELLED: "00000009_000.png"})
    write_lines(root / "train_val_list.txt", *list(NIH_IMAGES.values())[:2], "00000009_000.png", end="\r\n")
    write_lines(root / "test_list.txt", "00000008_000.png", end="\r\n")
    listing = SOURCE.read(root)
    assert (listing.patient_grouping, listing.shares_images_with) == ("patient", ())
    assert {name: (record.patient[-8:], record.split) for name, record in by_id(listing).items()} == {
        NORMAL: ("00000007", "train"),
        ABNORMAL: ("00000007", "train"),
        SICK: ("00000008", "test"),
        UNLABELLED: ("00000009", "train"),
    }


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_classes_may_have_lost_their_header(end: str, root: Path) -> None:
    before = SOURCE.read(root)
    write_classes(root, end=end)
    assert SOURCE.read(root) == before


def test_without_the_classes_only_opacities_are_known(root: Path) -> None:
    (root / "stage_2_detailed_class_info.csv").unlink()
    listing = SOURCE.read(root)
    assert list(by_id(listing)[SICK].labels.values()) == [0, 0, 1]
    assert list(by_id(listing)[NORMAL].labels.values()) == [None, None, 0]
    assert any("stage_2_detailed_class_info.csv" in warning for warning in listing.warnings)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"{NORMAL},1,1,2,2,1", "line 7: an earlier row of the image has the other Target"),
        (f"{ABSENT},1,1,2,2,0", "line 7: expected Target 1 with"),
        (f"{SICK},,,,,1", "line 7: expected Target 1 with"),
        (f"{SICK},1,,2,2,1", "line 7: expected Target 1 with"),
        (f"{SICK},1,1,2,2,2", "line 7: expected Target 1 with"),
        (f"{SICK},1,one,2,2,1", "line 7: x, y, width, height must be numbers"),
        (f"{SICK},1,1,0,2,1", "line 7: expected a box inside the image"),
        (f"{SICK},1,nan,2,2,1", "line 7: expected a box inside the image"),
    ],
)
def test_a_row_that_cannot_be_is_named(line: str, expected: str, root: Path) -> None:
    with (root / "stage_2_train_labels.csv").open("a") as file:
        file.write(f"{line}\n")
    assert expected in problem(lambda: SOURCE.read(root))


def test_classes_that_contradict_the_boxes_are_refused(root: Path) -> None:
    path = root / "stage_2_detailed_class_info.csv"
    write_lines(path, f"{NORMAL},{OPACITY}")
    assert f"{NORMAL} contradicts its Target" in problem(lambda: SOURCE.read(root))
    write_lines(path, f"{NORMAL},Normal")
    assert f"no class for {SICK}" in problem(lambda: SOURCE.read(root))
    write_lines(path, f"{NORMAL},Normal", f"{NORMAL},{OPACITY}")
    assert "line 2: an earlier line gives the image another class" in problem(lambda: SOURCE.read(root))
    write_lines(path, f"{NORMAL},normal")
    assert "line 1: expected a patientId and one of" in problem(lambda: SOURCE.read(root))


def test_another_folder_is_told_from_the_dataset(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    assert "stage_2_train_labels.csv: not found" in problem(lambda: SOURCE.read(empty))
    (root / "stage_2_train_labels.csv").rename(empty / "stage_2_train_labels.csv")
    assert "stage_2_train_images/<patientId>.dcm" in problem(lambda: SOURCE.read(empty))


def test_a_mapping_of_another_form_is_refused(root: Path) -> None:
    for text in ("{", "[1]", '[{"img_id": "00000001_000.png"}]'):
        (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(text)
        assert "expected the RSNA's list" in problem(lambda: SOURCE.read(root))


def real_labels(published: Callable[[str], Path], folder: Path) -> Path:
    with zipfile.ZipFile(published("kaggle_stage_2_train_labels.csv.zip")) as archive:
        return Path(archive.extract("stage_2_train_labels.csv", folder))


def test_the_real_boxes_count_as_published(published: Callable[[str], Path], tmp_path: Path) -> None:
    path = real_labels(published, tmp_path)
    rows = list(read_columns(path, COLUMNS, "the real file"))
    opacities = parse_labels(rows, str(path))
    assert (len(rows), len(opacities)) == (30_227, SOURCE.info.num_images) == (30_227, 26_684)
    assert Counter(found.target for found in opacities.values()) == {0: 20_672, 1: 6_012}
    num_boxes = Counter(len(found.boxes) for found in opacities.values())
    assert num_boxes == {0: 20_672, 1: 2_614, 2: 3_266, 3: 119, 4: 13}
    boxes = [box for found in opacities.values() for box in found.boxes]
    assert len(boxes) == 9_555
    assert max(box.row1 for box in boxes) == max(box.col1 for box in boxes) == 1024


def test_the_real_headers_count_as_published(published: Callable[[str], Path], tmp_path: Path) -> None:
    headers = pd.read_csv(published("kaggle_stage_2_train_images_dicom_headers.csv.gz"), dtype=str)
    targets = {
        name: found.target
        for name, found in parse_labels(
            read_columns(real_labels(published, tmp_path), COLUMNS, "the real file"), "labels"
        ).items()
    }
    assert all(headers["Filename"] == headers["PatientID"] + ".dcm")
    assert headers["PatientID"].nunique() == 26_684
    constant = headers[["Modality", "ConversionType", "SamplesPerPixel"]].drop_duplicates()
    assert constant.to_numpy().tolist() == [["CR", "WSD", "1.0"]]
    views = headers["ViewPosition"].map(parse_view)
    assert Counter(views) == {"PA": 14_511, "AP": 12_173}
    assert Counter(views[headers["PatientID"].map(targets) == 1]) == {"PA": 1_348, "AP": 4_664}
    assert Counter(headers["PatientSex"].map(parse_sex)) == {"M": 15_166, "F": 11_518}
    assert sorted(headers["PatientAge"][[parse_age(age) is None for age in headers["PatientAge"]]]) == [
        *("148", "150", "151", "153", "155"),
    ]


@pytest.mark.slow
def test_the_whole_list_is_read_over_placeholders(published: Callable[[str], Path], tmp_path: Path) -> None:
    rows = read_columns(real_labels(published, tmp_path), ("patientId",), "the real file")
    (tmp_path / "stage_2_train_images").mkdir()
    for (name,) in set(rows):
        (tmp_path / "stage_2_train_images" / f"{name}.dcm").touch()
    listing = SOURCE.read(tmp_path)
    assert len(listing.records) == 26_684
    assert sum(record.labels[OPACITY] == 1 for record in listing.records) == 6_012
    assert len(listing.warnings) == 1, "only the file of classes is missing"


def test_a_class_that_is_repeated_for_every_box_counts_once(tmp_path: Path) -> None:
    write_classes(tmp_path, "patientId,class")
    assert Counter(read_classes(tmp_path / "stage_2_detailed_class_info.csv").values()) == {
        "Normal": 2,
        "No Lung Opacity / Not Normal": 1,
        "Lung Opacity": 1,
    }
