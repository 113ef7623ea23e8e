import itertools
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.reading.policies import targets_of
from shards.sources.base import Listing
from shards.sources.check import check_source
from shards.sources.datasets.chexpert import LABELS, SOURCE, ChexpertRow, read_entries
from shards.sources.registry import open_source
from tests.shards.sources.trees import problem, write_files, write_lines, write_pixels

HEADER = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(LABELS)
TEST_HEADER = "Path," + ",".join(LABELS)
TRAIN = (
    "{prefix}/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0",
    "{prefix}/train/patient00002/study2/view1_frontal.jpg,Male,90,Frontal,LL,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
    "{prefix}/train/patient00002/study2/view2_lateral.jpg,Male,90,Lateral,,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
    "{prefix}/train/patient30000/study1/view1_frontal.jpg,Unknown,0,Frontal,PA,,,,,,,,,,,,,,",
    "{prefix}/train/patient64540/study1/view1_frontal.jpg,Male,40,Frontal,AP,,,,,,,,,,,1.0,,,",
)
VALID = ("{prefix}/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP," + ",".join(["0.0"] * 13 + ["1.0"]),)
TEST = ("test/patient64741/study1/view1_frontal.jpg,0,1,1,1,0,0,0,0,1,0,0,0,0,1",)
"""CheXlocalize's table: no prefix, whole numbers, and nothing but labels."""
KEYS = tuple("/".join(row.partition(",")[0].split("/")[-3:]) for row in (*TRAIN, *VALID, *TEST))
BATCHES = {"1": "CheXpert-v1.0 batch 1 (validate & csv)"} | {
    str(number): f"CheXpert-v1.0 batch {number} (train {number - 1})" for number in (2, 3, 4)
}

COMPETITION_LABELS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The labels that the challenge scored, and most papers report."""


def write_tables(folder: Path, prefix: str, train: tuple[str, ...] = TRAIN) -> None:
    write_lines(folder / "train.csv", HEADER, *(row.format(prefix=prefix) for row in train))
    write_lines(folder / "valid.csv", HEADER, *(row.format(prefix=prefix) for row in VALID))


def write_small(root: Path, *, train: tuple[str, ...] = TRAIN, inside: str = "CheXpert-v1.0-small") -> Path:
    folder = root / inside
    write_tables(folder, "CheXpert-v1.0-small", train)
    for key in KEYS[:5]:
        write_pixels(folder / "train" / key)
    write_pixels(folder / "valid" / KEYS[5])
    return root


def write_full(root: Path) -> Path:
    """As its four archives unpack: no `train/` level, spaces and brackets in the folders' names; and the test set."""
    write_tables(root / BATCHES["1"], "CheXpert-v1.0")
    for key, batch in zip(KEYS[:5], "22234", strict=True):
        write_pixels(root / BATCHES[batch] / key)
    write_pixels(root / BATCHES["1"] / "valid" / KEYS[5])
    write_pixels(root / "test" / KEYS[6])
    write_lines(root / "test_labels.csv", TEST_HEADER, *TEST, end="\r\n")
    return root


def write_plain(root: Path) -> Path:
    """The full images in the folders that the tables name."""
    write_tables(root, "CheXpert-v1.0")
    for key in KEYS[:5]:
        write_pixels(root / "train" / key)
    return root


def read(root: Path) -> Listing:
    return SOURCE.read(root)


def test_every_layout_passes_the_battery(tmp_path: Path) -> None:
    assert open_source("chexpert") is SOURCE
    for name, write in {"small": write_small, "full": write_full, "plain": write_plain}.items():
        check_source(SOURCE, write(tmp_path / name))
    check_source(SOURCE, tmp_path / "small" / "CheXpert-v1.0-small")


def test_all_layouts_give_the_same_records_but_for_their_paths(tmp_path: Path) -> None:
    def told(root: Path) -> list[tuple]:
        return [
            (r.source_id, r.patient, r.study, r.view, dict(r.labels), r.split, r.sex, r.age_years)
            for r in read(root).records
            if r.split == "train"
        ]

    small = told(write_small(tmp_path / "small"))
    assert len(small) == 5
    assert small == told(write_full(tmp_path / "full")) == told(write_plain(tmp_path / "plain"))


def test_records_hold_what_the_files_say(tmp_path: Path) -> None:
    listing = read(write_full(tmp_path))
    records = {record.source_id: record for record in listing.records}
    assert list(records) == list(KEYS)
    assert listing.patient_grouping == "patient"
    frontal, sideways, lateral, unknown, _, valid, test = listing.records
    assert frontal.image.path == "CheXpert-v1.0 batch 2 (train 1)/patient00001/study1/view1_frontal.jpg"
    assert (frontal.patient, frontal.study) == ("chexpert/patient00001", "chexpert/patient00001/study1")
    assert (frontal.sex, frontal.age_years) == ("F", 68)
    assert {name: value for name, value in frontal.labels.items() if value is not None} == {
        "No Finding": 1,
        "Pneumothorax": 0,
        "Support Devices": 1,
    }
    assert {name for name, value in sideways.labels.items() if value == -1} == {
        "Cardiomegaly",
        "Edema",
        "Consolidation",
        "Atelectasis",
        "Pleural Effusion",
    }
    assert sideways.study == lateral.study
    assert [record.view for record in listing.records] == ["AP", "LL", "L", "PA", "AP", "AP", "FRONTAL"]
    assert set(unknown.labels.values()) == {None}
    assert (unknown.sex, unknown.age_years) == (None, 0)
    assert [record.split for record in listing.records] == ["train"] * 5 + ["val", "test"]
    assert (valid.labels["Support Devices"], valid.labels["Edema"]) == (1, 0)
    assert (test.sex, test.age_years, test.labels["Cardiomegaly"], test.labels["Edema"]) == (None, None, 1, 0)


def test_labels_are_never_collapsed(tmp_path: Path) -> None:
    records = read(write_small(tmp_path)).records
    assert {value for record in records for value in record.labels.values()} == {1, 0, -1, None}


def test_small_and_full_together_are_refused(tmp_path: Path) -> None:
    write_full(tmp_path)
    write_pixels(tmp_path / "CheXpert-v1.0-small" / "train" / KEYS[0])
    assert "is there twice" in problem(read, tmp_path)
    write_small(tmp_path)
    assert "keep one" in problem(read, tmp_path)


def test_lost_images_and_strays_are_counted_not_used(tmp_path: Path) -> None:
    root = write_small(tmp_path)
    (root / "CheXpert-v1.0-small" / "train" / KEYS[0]).unlink()
    write_pixels(root / "CheXpert-v1.0-small" / "train" / "patient00009" / "study1" / "view1_frontal.jpg")
    listing = read(root)
    assert [record.source_id for record in listing.records] == list(KEYS[1:6])
    assert listing.warnings[:2] == (
        "chexpert: 1 of 6 listed images have no file; left out",
        "chexpert: 1 of 6 image files are in no table; left out",
    )


def test_an_empty_folder_names_every_layout(tmp_path: Path) -> None:
    text = problem(read, tmp_path)
    assert "CheXpert-v1.0-small" in text
    assert "batch 1 (validate & csv)" in text
    write_tables(tmp_path, "CheXpert-v1.0")
    assert "6 named, 0 files found" in problem(read, tmp_path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (TRAIN[0].replace("_frontal", ""), "no path of an image"),
        (
            "{prefix}/../../etc/passwd" + TRAIN[0][len("{prefix}/train/patient00001/study1/view1_frontal.jpg") :],
            "no path",
        ),
        (TRAIN[1], "is there twice"),
        (TRAIN[0].replace("Frontal", "Lateral"), "says 'Lateral' of view1_frontal.jpg"),
        (TRAIN[0].replace("AP", "XX"), "view 'XX'"),
        (TRAIN[0].replace("Female", "F"), "sex 'F'"),
        (TRAIN[0].replace(",68,", ",old,"), "age in whole years"),
        (TRAIN[0].replace(",1.0,,", ",2.0,,"), "No Finding: expected 1 (present)"),
    ],
)
def test_a_row_that_cannot_be_is_named(row: str, words: str, tmp_path: Path) -> None:
    text = problem(read, write_small(tmp_path, train=(row, *TRAIN[1:])))
    assert words in text
    assert "train.csv line " in text


def test_a_table_of_the_train_set_must_have_views(tmp_path: Path) -> None:
    root = write_small(tmp_path)
    write_lines(root / "CheXpert-v1.0-small" / "train.csv", TEST_HEADER, *TEST)
    assert "needs the columns" in problem(read, root)


def test_an_image_or_a_patient_of_two_sets_is_refused(tmp_path: Path) -> None:
    root = write_small(tmp_path)
    folder = root / "CheXpert-v1.0-small"
    write_lines(folder / "valid.csv", HEADER, TRAIN[0].format(prefix="x"))
    assert "is also in the table of train" in problem(read, root)
    other = TRAIN[0].format(prefix="x").replace("study1", "study9")
    write_lines(folder / "valid.csv", HEADER, other)
    write_pixels(folder / "valid" / "patient00001" / "study9" / "view1_frontal.jpg")
    assert "patient chexpert/patient00001 is in the splits train and val" in problem(read, root)


@pytest.fixture(scope="module")
def entries(published: Callable[[str], Path]) -> dict[str, ChexpertRow]:
    return read_entries(published("chexpert_train.csv.gz"), "train")


@pytest.mark.slow
def test_the_published_train_table_has_its_exact_counts(entries: dict[str, ChexpertRow]) -> None:
    values = list(entries.values())
    assert len(values) == 223_414
    assert len({entry.study for entry in values}) == 187_641
    numbers = {int(entry.patient.removeprefix("chexpert/patient")) for entry in values}
    assert numbers == set(range(1, 64_541))
    assert Counter(entry.view for entry in values) == {"AP": 161_590, "PA": 29_420, "L": 32_387, "LL": 16, "RL": 1}
    frontal = {name: entry for name, entry in entries.items() if name.endswith("_frontal.jpg")}
    assert (len(frontal), len({entry.patient for entry in frontal.values()})) == (191_027, 64_534)
    assert sum(entry.view in ("LL", "RL") for entry in frontal.values()) == 17
    assert Counter(entry.sex for entry in values) == {"M": 132_636, "F": 90_777, None: 1}
    assert {entry.patient for entry in values if entry.sex is None} == {"chexpert/patient33093"}
    ages = [entry.age_years for entry in values if entry.age_years is not None]
    assert (len(ages), ages.count(0), max(ages)) == (223_414, 3, 90)
    assert sum(set(entry.labels.values()) == {None} for entry in values) == 12
    bounds = (0, 21_514, 43_018, 64_541)
    patients = [int(entry.patient.removeprefix("chexpert/patient")) for entry in values]
    in_batches = [sum(low <= number < high for number in patients) for low, high in itertools.pairwise(bounds)]
    assert in_batches == [89_484, 92_953, 40_977]


@pytest.mark.slow
def test_no_finding_goes_with_support_devices_alone(entries: dict[str, ChexpertRow]) -> None:
    beside = Counter(
        tuple(name for name, value in entry.labels.items() if value == 1 and name != "No Finding")
        for entry in entries.values()
        if entry.labels["No Finding"] == 1
    )
    assert beside == {(): 22_381 - 8_808, ("Support Devices",): 8_808}


def test_the_published_train_labels_have_their_exact_counts(entries: dict[str, ChexpertRow]) -> None:
    values = entries.values()
    found = {name: Counter(entry.labels[name] for entry in values) for name in LABELS}
    assert {name: tuple(found[name][value] for value in (1, 0, -1, None)) for name in LABELS} == {
        "No Finding": (22_381, 0, 0, 201_033),
        "Enlarged Cardiomediastinum": (10_798, 21_638, 12_403, 178_575),
        "Cardiomegaly": (27_000, 11_116, 8_087, 177_211),
        "Lung Opacity": (105_581, 6_599, 5_598, 105_636),
        "Lung Lesion": (9_186, 1_270, 1_488, 211_470),
        "Edema": (52_246, 20_726, 12_984, 137_458),
        "Consolidation": (14_783, 28_097, 27_742, 152_792),
        "Pneumonia": (6_039, 2_799, 18_770, 195_806),
        "Atelectasis": (33_376, 1_328, 33_739, 154_971),
        "Pneumothorax": (19_448, 56_341, 3_145, 144_480),
        "Pleural Effusion": (86_187, 35_396, 11_628, 90_203),
        "Pleural Other": (3_523, 316, 2_653, 216_922),
        "Fracture": (9_040, 2_512, 642, 211_220),
        "Support Devices": (116_001, 6_137, 1_079, 100_197),
    }


def test_u_ones_gives_the_positives_that_chexperts_five_labels_have(entries: dict[str, ChexpertRow]) -> None:
    labels = [[entry.labels[name] for name in COMPETITION_LABELS] for entry in entries.values()]
    ones = targets_of(labels, "U-Ones", "zeros")
    assert ones.values.sum(axis=0).tolist() == [67_115, 35_087, 42_525, 65_230, 97_815]
    zeros = targets_of(labels, "U-Zeros", "zeros")
    assert zeros.values.sum(axis=0).tolist() == [33_376, 27_000, 14_783, 52_246, 86_187]
    ignored = targets_of(labels, "U-Ignore", "ignore")
    assert ignored.mask.sum(axis=0).tolist() == [
        33_376 + 1_328,
        27_000 + 11_116,
        14_783 + 28_097,
        52_246 + 20_726,
        121_583,
    ]


@pytest.mark.slow
def test_a_part_of_the_published_train_set_is_read_in_full(
    entries: dict[str, ChexpertRow], published: Callable[[str], Path], tmp_path: Path
) -> None:
    root = tmp_path / "small" / "CheXpert-v1.0-small"
    names = sorted(entries)[:20_000]
    write_files(root / "train", names, b"")
    shutil.copy(published("chexpert_train.csv.gz"), root / "train.csv.gz")
    listing = read(root.parent)
    assert [record.source_id for record in listing.records] == names
    assert [record.labels for record in listing.records] == [entries[name].labels for name in names]
    assert listing.warnings[0] == "chexpert: 203,414 of 223,414 listed images have no file; left out"
    shutil.rmtree(root)
