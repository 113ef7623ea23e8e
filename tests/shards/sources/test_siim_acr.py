import gzip
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from shards.core.records import MaskRuns
from shards.decode import masks
from shards.sources.check import check_source
from shards.sources.csv_tables import read_columns
from shards.sources.datasets.siim_acr import COLUMNS, SOURCE, parse_runs
from shards.sources.registry import open_source
from tests.oracles.masks import walk_runs
from tests.shards.sources.trees import by_id, check_one_folder_more, problem, write_dicom, write_lines

UID = "1.2.276.0.7230010.3.1.4.8323329.{}.1517875201.850819"
SICK, WELL, TESTED, HIDDEN, STRAY = (UID.format(number) for number in (6904, 13666, 11104, 10231, 5))
# Pixels 1026, 1027 and 2050 to 2052, counted down the columns; the second row overlaps the first in 1027.
ROWS = (f"{SICK}, 1026 2 1022 3", f"{WELL}, -1", f"{SICK},1027 2", f"{TESTED},-1", f"{UID.format(1)},-1")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Stage 2: a header with a space, two rows of one image, a row without a file, a file without a row."""
    write_lines(tmp_path / "stage_2_train.csv", "ImageId, EncodedPixels", *ROWS)
    write_dicom(tmp_path / f"dicom-images-train/{UID.format(1)}0/{UID.format(2)}0/{SICK}.dcm", ViewPosition="AP")
    write_dicom(tmp_path / f"dicom-images-train/{UID.format(3)}0/{UID.format(4)}0/{WELL}.dcm", ViewPosition="PA")
    write_dicom(tmp_path / f"dicom-images-train/{UID.format(3)}0/{UID.format(4)}0/{STRAY}.dcm")
    write_dicom(tmp_path / f"dicom-images-test/{UID.format(5)}0/{UID.format(6)}0/{TESTED}.dcm")
    write_dicom(tmp_path / f"stage_2_images/{HIDDEN}.dcm")
    return tmp_path


def test_siim_passes_the_battery(root: Path) -> None:
    check_source(open_source("siim-acr"), root)
    write_lines(root / "siim_to_nih.csv", "sop_uid,nih_image", f"{SICK},00000007_000.png", f"{TESTED},00000007_001.png")
    check_source(SOURCE, root)


def test_records_hold_what_the_files_say(root: Path) -> None:
    listing = SOURCE.read(root)
    records = by_id(listing)
    assert {name: (record.labels["Pneumothorax"], record.split) for name, record in records.items()} == {
        SICK: (1, "train"),
        WELL: (0, "train"),
        TESTED: (0, "test"),
        HIDDEN: (None, None),
    }
    assert records[SICK].view == "AP"
    assert records[SICK].patient == f"siim-acr/{SICK}"
    assert records[SICK].masks == {"Pneumothorax": MaskRuns((((1026, 2), (1022, 3)), ((1027, 2),)), 1024, 1024)}
    assert records[WELL].masks == {"Pneumothorax": MaskRuns((), 1024, 1024)}
    assert records[HIDDEN].masks == {}
    # The header's spacing is that of the image before it was resized.
    assert {record.spacing_mm for record in records.values()} == {"unusable"}
    assert (listing.patient_grouping, listing.shares_images_with[0]) == ("image", "nih-chestxray14")


def test_a_folder_in_another_case_is_the_same_folder(root: Path) -> None:
    expected = {name: record.split for name, record in by_id(SOURCE.read(root)).items()}
    for name in ("dicom-images-train", "dicom-images-test", "stage_2_images"):
        (root / name).rename(root / name.upper())
    assert {name: record.split for name, record in by_id(SOURCE.read(root)).items()} == expected


def drawn_of(runs: tuple[tuple[tuple[int, int], ...], ...]) -> np.ndarray:
    """The mask of run lengths, which needs no file."""
    return masks.draw(MaskRuns(runs, 1024, 1024), (1024, 1024), lambda file: pytest.fail("a file was read"), 1e9)


def test_the_rows_of_an_image_are_ored_down_the_columns(root: Path) -> None:
    mask = by_id(SOURCE.read(root))[SICK].masks["Pneumothorax"]
    assert isinstance(mask, MaskRuns)
    drawn = drawn_of(mask.runs)
    assert np.argwhere(drawn).tolist() == [[2, 1], [2, 2], [3, 1], [3, 2], [4, 1], [4, 2]]


def test_one_folder_more_around_it_all_does_not_matter(root: Path) -> None:
    check_one_folder_more(SOURCE, root)


def test_what_is_missing_is_counted(root: Path) -> None:
    warnings = "\n".join(SOURCE.read(root).warnings)
    assert "3 images found, 12,047 published" in warnings
    assert "1 images of stage_2_train.csv are not there" in warnings
    assert "1 images without a row in stage_2_train.csv were left out" in warnings


def test_stage_1_labels_its_training_images_only(root: Path) -> None:
    (root / "stage_2_train.csv").unlink()
    write_lines(root / "train-rle.csv", "ImageId, EncodedPixels", *ROWS[:3], end="\r\n")
    records = by_id(SOURCE.read(root))
    assert records[TESTED].labels == {"Pneumothorax": None}
    assert (records[TESTED].split, records[SICK].labels) == ("test", {"Pneumothorax": 1})


def test_a_mapping_of_ones_own_gives_nih_patients(root: Path) -> None:
    names = (SICK, WELL, TESTED, HIDDEN)
    lines = [f"{name},0000000{number}_000.png" for number, name in enumerate(names)]
    write_lines(root / "siim_to_nih.csv", "sop_uid,nih_image", *lines)
    listing = SOURCE.read(root)
    assert (listing.patient_grouping, listing.shares_images_with) == ("patient", ())
    assert [by_id(listing)[name].patient for name in names] == [f"nih-chestxray14/0000000{n}" for n in range(4)]
    write_lines(root / "siim_to_nih.csv", "sop_uid,nih_image", *lines, f"{SICK},00000009_000.png")
    assert "is mapped to two images of NIH ChestX-ray14" in problem(lambda: SOURCE.read(root))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1 2 3", "line 2: expected -1, or pairs of numbers"),
        ("", "line 2: expected -1, or pairs of numbers"),
        ("-2", "line 2: expected -1, or pairs of numbers"),
        ("5 -1", "line 2: expected -1, or pairs of numbers"),
        ("1.5 2", "line 2: expected -1, or pairs of numbers"),
        ("² 2", "line 2: expected -1, or pairs of numbers"),
        ("1048575 2", "line 2: the runs end outside 1024 x 1024 pixels"),
        # Absolute starts, as in other competitions.
        ("600000 5 601024 5", "line 2: the runs end outside 1024 x 1024 pixels"),
    ],
)
def test_a_row_that_cannot_be_is_named(value: str, expected: str) -> None:
    assert expected in problem(lambda: parse_runs([(SICK, value)], "the list"))


def test_an_image_with_and_without_a_mask_is_refused() -> None:
    rows = [(SICK, "-1"), (SICK, "5 2")]
    assert f"{SICK} has both -1 and a mask" in problem(lambda: parse_runs(rows, "the list"))


def test_another_folder_is_told_from_the_dataset(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    assert "stage_2_train.csv: not found" in problem(lambda: SOURCE.read(empty))
    (root / "stage_2_train.csv").rename(empty / "stage_2_train.csv")
    assert "dicom-images-train/<study>/<series>/<image>.dcm" in problem(lambda: SOURCE.read(empty))


@cache
def real_rows(path: Path) -> list[tuple[str, ...]]:
    """Read once: the list is long."""
    return list(read_columns(path, COLUMNS, "the real file"))


def test_the_real_masks_count_as_published(published: Callable[[str], Path]) -> None:
    rows = real_rows(published("siim-pneumothorax-train-rle.csv.gz"))
    runs = parse_runs(rows, "the real file")
    assert (len(rows), len(runs)) == (12_954, SOURCE.info.num_images) == (12_954, 12_047)
    positive = {name: annotations for name, annotations in runs.items() if annotations}
    assert (len(runs) - len(positive), len(positive)) == (9_378, 2_669)
    num_rows = Counter(len(annotations) for annotations in positive.values())
    assert num_rows.total() == 2_669
    assert sum(number * count for number, count in num_rows.items()) == 3_576
    assert (sum(count for number, count in num_rows.items() if number > 1), max(num_rows)) == (624, 10)
    assert all(name.startswith("1.2.276.0.7230010.3.1.4.8323329") and name.count(".") == 11 for name in runs)
    with gzip.open(published("siim-pneumothorax-train-rle.csv.gz"), "rt") as file:
        assert file.readline() == "ImageId, EncodedPixels\n"
    ends = [sum(map(sum, annotation)) for annotations in positive.values() for annotation in annotations]
    assert max(ends) == 1_021_949
    firsts = [[skipped for skipped, _ in runs] for found in positive.values() for runs in found if len(runs) > 1]
    assert not any(starts == sorted(starts) for starts in firsts), "absolute starts would go up"


def test_the_real_masks_have_the_published_areas(published: Callable[[str], Path]) -> None:
    runs = parse_runs(real_rows(published("siim-pneumothorax-train-rle.csv.gz")), "the real file")
    positive = [annotations for annotations in runs.values() if annotations]
    by_row = [[sum(inside for _, inside in annotation) for annotation in annotations] for annotations in positive]
    assert sum(sum(areas) < 1024 for areas in by_row) == 80
    areas_of_rows = [area for areas in by_row for area in areas]
    assert (min(areas_of_rows), float(np.median(areas_of_rows)), max(areas_of_rows)) == (55, 6_504.5, 161_421)
    # Where rows overlap, the mask is smaller than their sum.
    several = [(annotations, areas) for annotations, areas in zip(positive, by_row, strict=True) if len(areas) > 1]
    drawn = [drawn_of(annotations).sum() for annotations, _ in several]
    assert sum(area < sum(areas) for area, (_, areas) in zip(drawn, several, strict=True)) == 183
    # A reader that keeps an image's last row alone has it right where that row holds all others.
    assert sum(area != areas[-1] for area, (_, areas) in zip(drawn, several, strict=True)) == 623


def test_a_real_mask_is_what_a_pen_draws(published: Callable[[str], Path]) -> None:
    runs = parse_runs(real_rows(published("siim-pneumothorax-train-rle.csv.gz")), "the real file")
    name = max(runs, key=lambda name: len(runs[name]))
    drawn = drawn_of(runs[name])
    np.testing.assert_array_equal(drawn, walk_runs(runs[name], 1024, 1024))


@pytest.mark.slow
def test_the_whole_list_is_read_over_placeholders(published: Callable[[str], Path], tmp_path: Path) -> None:
    packed = published("siim-pneumothorax-train-rle.csv.gz")
    (tmp_path / "stage_2_train.csv").write_bytes(gzip.decompress(packed.read_bytes()))
    for name in {name for name, _ in real_rows(packed)}:
        folder = tmp_path / "dicom-images-train" / f"{name}.study" / f"{name}.series"
        folder.mkdir(parents=True)
        (folder / f"{name}.dcm").touch()
    listing = SOURCE.read(tmp_path)
    assert (len(listing.records), listing.warnings) == (12_047, ())
    assert sum(record.labels["Pneumothorax"] == 1 for record in listing.records) == 2_669
