import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.core.records import Box
from shards.sources.base import Listing
from shards.sources.check import check_source
from shards.sources.csv_tables import read_columns
from shards.sources.datasets.nih_chestxray14 import FINDINGS, LABELS, SOURCE, NihRow, read_boxes, read_entries
from shards.sources.registry import open_source
from tests.shards.sources.trees import problem, write_files, write_lines, write_pixels

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,{sex},View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
ROWS = (
    "00000001_000.png,Cardiomegaly|Emphysema,0,1,57,M,PA,2682,2749,0.143,0.15",
    "00000001_001.png,No Finding,5,1,58,M,PA,2048,2048,0.168,0.168",
    "00012345_000.png,Infiltration|Pleural_Thickening,0,12345,0,F,AP,2500,2048,0.168,0.168",
    "00030805_000.png,Hernia,0,30805,95,F,PA,2048,2500,0.171,0.171",
)
NAMES = tuple(row.partition(",")[0] for row in ROWS)
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
BOXES = ("00012345_000.png,Infiltrate,100.5,200.25,50,60.5", "00012345_000.png,Mass,1,2,3,4")


def write_tree(
    root: Path, *, rows: tuple[str, ...] = ROWS, sex: str = "Patient Gender", folder: str = "images"
) -> Path:
    """As unpacked from the Box archives."""
    for number, name in enumerate(NAMES):
        write_pixels(root / folder / name, size=(1024, 1024, 4) if number == 1 else (1024, 1024))
    write_lines(root / "Data_Entry_2017_v2020.csv", HEADER.format(sex=sex), *rows)
    write_lines(root / "train_val_list.txt", NAMES[3], *NAMES[:2], end="\r\n")
    write_lines(root / "test_list.txt", NAMES[2], end="")
    write_lines(root / "BBox_List_2017.csv", BOX_HEADER, *BOXES)
    return root


def write_mirror(root: Path) -> Path:
    """As Kaggle has it: two levels of folders, the older table with a comma at each end and ages that cannot be."""
    for number, name in enumerate(NAMES, start=1):
        write_pixels(root / f"images_{number:03d}" / "images" / name, size=(1024, 1024))
    ages = ("058Y", "411", "011M", "95")
    rows = (row.split(",") for row in ROWS)
    old = (",".join([*row[:4], age, *row[5:], ""]) for row, age in zip(rows, ages, strict=True))
    write_lines(root / "Data_Entry_2017.csv", HEADER.format(sex="Patient Gender") + ",", *old)
    return root


def read(root: Path) -> Listing:
    return SOURCE.read(root)


def test_both_layouts_pass_the_battery(tmp_path: Path) -> None:
    assert open_source("nih-chestxray14") is SOURCE
    check_source(SOURCE, write_tree(tmp_path / "box"))
    check_source(SOURCE, write_mirror(tmp_path / "kaggle"))


def test_records_hold_what_the_files_say(tmp_path: Path) -> None:
    listing = read(write_tree(tmp_path))
    records = {record.source_id: record for record in listing.records}
    assert list(records) == list(NAMES)
    assert listing.patient_grouping == "patient"
    first, second, third, fourth = listing.records
    assert first.image.path == "images/00000001_000.png"
    assert {name for name, value in first.labels.items() if value} == {"Cardiomegaly", "Emphysema"}
    assert {name for name, value in second.labels.items() if value} == {"No Finding"}
    assert set(first.labels.values()) == {0, 1}
    assert [record.patient for record in listing.records] == [
        f"nih-chestxray14/{number}" for number in ("00000001", "00000001", "00012345", "00030805")
    ]
    assert [record.split for record in listing.records] == ["train", "train", "test", "train"]
    assert [record.view for record in listing.records] == ["PA", "PA", "AP", "PA"]
    assert [record.sex for record in listing.records] == ["M", "M", "F", "F"]
    assert [record.age_years for record in listing.records] == [57, 58, 0, 95]
    assert third.boxes == (
        Box(label="Infiltration", row0=200.25, col0=100.5, row1=260.75, col1=150.5),
        Box(label="Mass", row0=2, col0=1, row1=6, col1=4),
    )
    assert first.boxes == fourth.boxes == ()


def test_the_spacing_is_that_of_the_stretched_image(tmp_path: Path) -> None:
    first = read(write_tree(tmp_path)).records[0]
    assert first.spacing_mm == pytest.approx((0.15 * 2749 / 1024, 0.143 * 2682 / 1024))
    assert first.size == (1024, 1024)


def test_the_column_of_sex_has_two_names(tmp_path: Path) -> None:
    records = read(write_tree(tmp_path, sex="Patient Sex")).records
    assert [record.sex for record in records] == ["M", "M", "F", "F"]


def test_the_mirrors_table_is_read_with_a_warning_and_impossible_ages_are_unknown(tmp_path: Path) -> None:
    listing = read(write_mirror(tmp_path))
    assert [record.age_years for record in listing.records] == [58, None, None, 95]
    assert listing.records[2].image.path == "images_003/images/00012345_000.png"
    assert [record.split for record in listing.records] == [None] * 4
    assert any("labels of 2017" in text for text in listing.warnings)
    assert any("no official split" in text for text in listing.warnings)
    assert any("no boxes" in text for text in listing.warnings)


def test_the_newer_table_wins_where_both_are_there(tmp_path: Path) -> None:
    write_mirror(tmp_path)
    write_lines(tmp_path / "Data_Entry_2017_v2020.csv", HEADER.format(sex="Patient Gender"), *ROWS)
    listing = read(tmp_path)
    assert [record.age_years for record in listing.records] == [57, 58, 0, 95]
    assert not any("2017, which differ" in text for text in listing.warnings)


def test_lost_images_and_strays_are_counted_not_used(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    (root / "images" / NAMES[0]).rename(root / "images" / "00000009_000.png")
    listing = read(root)
    assert [record.source_id for record in listing.records] == list(NAMES[1:])
    assert "nih-chestxray14: 1 of 4 listed images have no file; left out" in listing.warnings
    assert "nih-chestxray14: 1 of 4 image files are in no table; left out" in listing.warnings
    assert "nih-chestxray14: 3 images found, 112,120 published" in listing.warnings


def test_an_empty_folder_names_the_layout(tmp_path: Path) -> None:
    assert "BBox_List_2017.csv (optional)" in problem(read, tmp_path)
    write_lines(tmp_path / "Data_Entry_2017_v2020.csv", HEADER.format(sex="Patient Sex"), *ROWS)
    text = problem(read, tmp_path)
    assert "4 named, 0 files found" in text
    assert "images_001/images/*.png" in text


def test_an_image_in_two_folders_is_refused(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    write_pixels(root / "images_001" / "images" / NAMES[0], size=(1024, 1024))
    assert f"{NAMES[0]} is there twice" in problem(read, root)


def test_a_resized_copy_is_refused_for_its_boxes_would_be_elsewhere(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    for name in NAMES:
        write_pixels(root / "images" / name, size=(224, 224))
    assert "224 x 224 pixels; expected the published 1024 x 1024" in problem(read, root)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (ROWS[0].replace(",1,57", ",2,57"), "of patient '2'"),
        (ROWS[0].replace("Emphysema", "Emphysem"), "findings 'Cardiomegaly|Emphysem'"),
        (ROWS[0].replace("PA", "LL"), "view 'LL'"),
        (ROWS[0].replace(",M,", ",X,"), "sex 'X'"),
        (ROWS[0].replace("00000001_000", "../1_000"), "image '../1_000.png'"),
        (ROWS[1], "is there twice"),
        (ROWS[0].rpartition(",")[0], "10 fields; the header has 11"),
    ],
)
def test_a_row_that_cannot_be_is_named(row: str, words: str, tmp_path: Path) -> None:
    text = problem(read, write_tree(tmp_path, rows=(row, *ROWS[1:])))
    assert words in text
    assert ".csv line " in text


def test_lists_that_contradict_are_refused(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    write_lines(root / "test_list.txt", NAMES[2], NAMES[3])
    assert "00030805_000.png is in both train_val_list.txt and test_list.txt" in problem(read, root)
    write_lines(root / "train_val_list.txt", NAMES[0], NAMES[3])
    write_lines(root / "test_list.txt", NAMES[1], NAMES[2])
    assert "patient nih-chestxray14/00000001 is in the splits train and test" in problem(read, root)
    write_lines(root / "test_list.txt", NAMES[2])
    assert "1 images of the table, as 00000001_001.png, are in neither" in problem(read, root)
    (root / "test_list.txt").unlink()
    assert "expected both of train_val_list.txt and test_list.txt, or none" in problem(read, root)


def test_listed_images_that_the_table_lacks_are_counted(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    write_lines(root / "test_list.txt", NAMES[2], "00000099_000.png")
    assert "nih-chestxray14: 1 images of the lists are not in the table" in read(root).warnings


@pytest.mark.parametrize("row", ["00012345_000.png,Effusions,1,2,3,4", "00012345_000.png,Mass,1,2,3,wide"])
def test_a_box_that_cannot_be_is_named_by_its_row(row: str, tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    write_lines(root / "BBox_List_2017.csv", BOX_HEADER, BOXES[0], row)
    assert "BBox_List_2017.csv line 3" in problem(read, root)


def test_boxes_of_images_that_the_table_lacks_are_counted(tmp_path: Path) -> None:
    root = write_tree(tmp_path)
    write_lines(root / "BBox_List_2017.csv", BOX_HEADER, *BOXES, "00000099_000.png,Mass,1,2,3,4")
    assert "nih-chestxray14: 1 images with boxes are not in the table; left out" in read(root).warnings


def counts(values: list) -> dict:
    return dict(Counter(values))


@pytest.fixture(scope="module")
def entries(published: Callable[[str], Path]) -> dict[str, NihRow]:
    return read_entries(published("Data_Entry_2017_v2020.csv.gz"))


@pytest.mark.slow
def test_the_published_table_has_its_exact_counts(entries: dict[str, NihRow], published: Callable[[str], Path]) -> None:
    table = published("Data_Entry_2017_v2020.csv.gz")
    values = list(entries.values())
    assert len(values) == 112_120
    images_of = Counter(entry.patient for entry in values)
    assert len(images_of) == 30_805
    assert (list(images_of.values()).count(1), max(images_of.values())) == (17_503, 184)
    assert counts([entry.view for entry in values]) == {"PA": 67_310, "AP": 44_810}
    assert len({entry.patient for entry in values if entry.view == "PA"}) == 28_868
    assert counts([entry.sex for entry in values]) == {"M": 63_340, "F": 48_780}
    ages = [entry.age_years for entry in values if entry.age_years is not None]
    assert (len(ages), min(ages), max(ages), ages.count(0)) == (112_120, 0, 95, 14)
    assert all(entry.spacing_mm and min(entry.spacing_mm) > 0.1 for entry in values)
    assert sum(sum(filter(None, entry.labels.values())) > 1 for entry in values) == 20_796
    rows = list(read_columns(table, ("Image Index", "Follow-up #", "Finding Labels"), "labels"))
    assert sum(int(name[9:12]) != int(follow_up) for name, follow_up, _ in rows) == 24_106
    texts = {text for *_, text in rows}
    assert len(texts) == 836
    assert len({frozenset(text.split("|")) for text in texts}) == len({tuple(e.labels.values()) for e in values}) == 801


def test_the_published_labels_have_their_exact_counts(entries: dict[str, NihRow]) -> None:
    values = entries.values()
    assert all(tuple(entry.labels) == LABELS for entry in values)
    images = {name: sum(entry.labels[name] or 0 for entry in values) for name in LABELS}
    assert images == dict(
        zip(
            LABELS,
            (60361, 11559, 2776, 13317, 19894, 5782, 6331, 1431, 5302, 4667, 2303, 2516, 1686, 3385, 227),
            strict=True,
        )
    )
    frontal = {name: sum(entry.labels[name] or 0 for entry in values if entry.view == "PA") for name in LABELS}
    assert frontal == dict(
        zip(
            LABELS,
            (39302, 5728, 1563, 6589, 9353, 3567, 4177, 630, 3407, 1521, 276, 1499, 1408, 2418, 192),
            strict=True,
        )
    )


def test_the_published_boxes_have_their_exact_counts(
    entries: dict[str, NihRow], published: Callable[[str], Path]
) -> None:
    boxes = read_boxes(published("BBox_List_2017.csv.gz"))
    all_boxes = [box for found in boxes.values() for box in found]
    assert (len(all_boxes), len(boxes), len({name[:8] for name in boxes})) == (984, 880, 726)
    assert counts([box.label for box in all_boxes]) == {
        "Atelectasis": 180,
        "Effusion": 153,
        "Cardiomegaly": 146,
        "Infiltration": 123,
        "Pneumonia": 120,
        "Pneumothorax": 98,
        "Mass": 85,
        "Nodule": 79,
    }
    assert {box.label for box in all_boxes} < set(FINDINGS)
    assert all(entries[name].labels[box.label] == 1 for name, found in boxes.items() for box in found)
    assert round(max(box.col1 for box in all_boxes), 1) == 1012.1
    assert round(max(box.row1 for box in all_boxes), 1) == 1022.0
    assert all(0 <= box.row0 < box.row1 and 0 <= box.col0 < box.col1 for box in all_boxes)


def test_googles_second_labels_are_of_images_and_patients_that_we_name_alike(
    entries: dict[str, NihRow], published: Callable[[str], Path]
) -> None:
    names = ("Fracture", "Pneumothorax", "Airspace opacity", "Nodule or mass")
    table = published("google2019_nih-chest-xray-labels.csv.gz")
    rows = list(read_columns(table, ("Image Index", "Set Id", *names), "Google's labels"))
    assert len({row[0] for row in rows} & entries.keys()) == len(rows) == 4_376
    assert len({entries[row[0]].patient for row in rows}) == 1_695
    assert counts([row[1] for row in rows]) == {"val": 2_414, "test": 1_962}
    assert [sum(row[2 + place] == "YES" for row in rows) for place in range(4)] == [186, 238, 2_166, 605]


@pytest.mark.slow
def test_the_whole_list_is_read_and_passes_the_battery(
    entries: dict[str, NihRow], published: Callable[[str], Path], tmp_path: Path
) -> None:
    root = tmp_path / "nih"
    write_files(root, [f"images_{1 + number // 10_000:03d}/images/{name}" for number, name in enumerate(entries)], b"")
    shutil.copy(published("Data_Entry_2017_v2020.csv.gz"), root)
    shutil.copy(published("BBox_List_2017.csv.gz"), root)
    check_source(SOURCE, root)
    listing = read(root)
    assert listing.warnings == ("nih-chestxray14: no train_val_list.txt and test_list.txt; no official split",)
    assert sum(len(record.boxes) for record in listing.records) == 984
    shutil.rmtree(root)
