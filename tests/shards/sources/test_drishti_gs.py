from pathlib import Path

import pytest

from shards.core.errors import SourceError
from shards.core.records import MaskFiles
from shards.sources.check import check_source
from shards.sources.datasets.drishti_gs import SOURCE, WORKBOOK
from tests.shards.sources.trees import by_id, mask_paths, write_files, write_workbook

TOP = "Drishti-GS1_files"
HEADER = ("Sl.", "Drishti-GS File", "Patient ID", "Marking 1", "Total")
TITLES = [("Drishti-GS1 diagnosis",), ("",), ("Glaucomatous = 1",)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part, folder, numbers in (("Training", "GT", (2, 4)), ("Test", "Test_GT", (1, 3))):
        for number in numbers:
            name = f"drishtiGS_{number:03}"
            write_files(
                tmp_path,
                [
                    f"{TOP}/{part}/Images/{name}.png",
                    f"{TOP}/{part}/{folder}/{name}/AvgBoundary/{name}_ODAvgBoundary.txt",
                    f"{TOP}/{part}/{folder}/{name}/SoftMap/{name}_ODsegSoftmap.png",
                    f"{TOP}/{part}/{folder}/{name}/SoftMap/{name}_cupsegSoftmap.png",
                ],
            )
    return tmp_path


# Numbers of the official training images; the others of 1 to 101 are test (bioidiap/bob.ip.binseg,
# bob/ip/binseg/data/drishtigs1/optic-cup.json).
TRAINING = (
    *(2, 4, 8, 10, 12, 15, 16, 17, 18, 22, 24, 26, 31, 32, 33, 35, 36, 37, 38, 40, 41, 42, 44, 45, 46, 47, 49, 51, 57),
    *(58, 60, 61, 62, 63, 64, 66, 68, 69, 75, 76, 80, 81, 84, 88, 89, 90, 92, 94, 98, 101),
)
# Numbers of the official training images whose patients have a test image (sreekaree/glaucoma_detection,
# results/audit/audit_summary.json); each is paired with the number before or after it.
SHARED = {4: 3, 8: 9, 12: 11, 22: 23, 35: 34, 40: 39, 44: 43, 49: 48, 51: 50, 57: 56, 60: 59, 64: 65, 76: 77, 81: 82}
SHARED |= {84: 85, 94: 95, 98: 97, 101: 100}


def test_the_official_split_and_what_the_workbook_changes_of_it(tmp_path: Path) -> None:
    """The workbook as two loaders read it: three lines above a header in the fourth and an empty line below it."""
    for number in range(1, 102):
        part = "Training" if number in TRAINING else "Test"
        write_files(tmp_path, [f"{TOP}/{TOP}/{part}/Images/drishtiGS_{number:03}.png"])
    assert sum(record.split == "train" for record in SOURCE.read(tmp_path).records) == len(TRAINING) == 50
    of_two = {test: training for training, test in SHARED.items()}
    header = ("Sl. No", "Drishti-GS File", "Patient ID", *["Marking"] * 4, "", "Total")
    rows = [
        (str(number), f"drishtiGS_{number:03}'", str(of_two.get(number, number)), "", "", "", "", "", "Normal")
        for number in range(1, 102)
    ]
    write_workbook(tmp_path / TOP / WORKBOOK, [*TITLES, header, ("", "", "", "Expert 1"), *rows])
    listing = SOURCE.read(tmp_path)
    assert (len(listing.records), listing.patient_grouping) == (101, "patient")
    assert sum(record.split == "train" for record in listing.records) == 50 - 18 == 50 - len(SHARED)
    assert any("18 official training images that count as test" in warning for warning in listing.warnings)
    check_source(SOURCE, tmp_path)


def test_kaggle_s_copy_with_folders_of_diagnoses_and_dates_is_read(tmp_path: Path) -> None:
    """Layout of the copy `drishtigs-retina-dataset-for-onh-segmentation`."""
    test, training = "Test-20211018T060000Z-001/Test", "Training-20211018T055246Z-001/Training"
    write_files(
        tmp_path,
        [
            f"{test}/Images/glaucoma/drishtiGS_001.png",
            f"{test}/Images/normal/drishtiGS_009.png",
            f"{training}/Images/GLAUCOMA/drishtiGS_002.png",
            *(f"{test}/Test_GT/drishtiGS_001/SoftMap/drishtiGS_001_{map}Softmap.png" for map in ("ODseg", "cupseg")),
            *(f"{training}/GT/drishtiGS_002/SoftMap/drishtiGS_002_{map}Softmap.png" for map in ("ODseg", "cupseg")),
        ],
    )
    records = by_id(SOURCE.read(tmp_path))
    assert {name: (record.split, len(record.masks)) for name, record in records.items()} == {
        "drishtiGS_001": ("test", 2),
        "drishtiGS_002": ("train", 2),
        "drishtiGS_009": ("test", 0),
    }
    assert {record.labels["Glaucoma"] for record in records.values()} == {None}


def diagnose(root: Path, rows: list[tuple[str, ...]]) -> None:
    write_workbook(root / TOP / WORKBOOK, [*TITLES, HEADER, *rows])


ROWS = [
    ("1", "drishtiGS_001'", "12", "1", "Glaucomatous"),
    ("2", "drishtiGS_002'", "7", "-1", "Normal"),
    ("3", "drishtiGS_003'", "12", "1", "Glaucomatous"),
    ("4", "drishtiGS_004'", "9", "-1", "Normal "),
]


def test_it_keeps_the_contract_with_and_without_the_workbook(root: Path) -> None:
    check_source(SOURCE, root)
    diagnose(root, ROWS)
    check_source(SOURCE, root)


def test_without_the_workbook_patients_are_images_and_diagnoses_unknown(root: Path) -> None:
    listing = SOURCE.read(root)
    assert listing.patient_grouping == "image"
    assert {(r.source_id, r.split, r.patient, r.labels["Glaucoma"]) for r in listing.records} == {
        ("drishtiGS_002", "train", "drishti-gs/drishtiGS_002", None),
        ("drishtiGS_004", "train", "drishti-gs/drishtiGS_004", None),
        ("drishtiGS_001", "test", "drishti-gs/drishtiGS_001", None),
        ("drishtiGS_003", "test", "drishti-gs/drishtiGS_003", None),
    }


def test_the_workbook_gives_diagnoses_and_patients(root: Path) -> None:
    diagnose(root, ROWS)
    listing = SOURCE.read(root)
    assert listing.patient_grouping == "patient"
    assert {(r.source_id, r.patient, r.labels["Glaucoma"]) for r in listing.records} == {
        ("drishtiGS_002", "drishti-gs/7", 0),
        ("drishtiGS_004", "drishti-gs/9", 0),
        ("drishtiGS_001", "drishti-gs/12", 1),
        ("drishtiGS_003", "drishti-gs/12", 1),
    }


def test_all_images_of_a_patient_with_a_test_image_are_test(root: Path) -> None:
    diagnose(root, [ROWS[0], ("2", "drishtiGS_002'", "12", "-1", "Normal"), *ROWS[2:]])
    listing = SOURCE.read(root)
    assert {r.source_id: r.split for r in listing.records if r.split == "train"} == {"drishtiGS_004": "train"}
    assert any("1 official training images that count as test" in warning for warning in listing.warnings)
    check_source(SOURCE, root)


def test_a_workbook_that_does_not_know_every_image_does_not_group_patients(root: Path) -> None:
    diagnose(root, ROWS[:3])
    listing = SOURCE.read(root)
    assert listing.patient_grouping == "image"
    assert by_id(listing)["drishtiGS_001"].labels == {"Glaucoma": 1}
    assert by_id(listing)["drishtiGS_004"].labels == {"Glaucoma": None}
    diagnose(root, [*ROWS[:3], ("4", "drishtiGS_004'", "", "-1", "Normal")])
    assert SOURCE.read(root).patient_grouping == "image"


def test_another_diagnosis_stays_unknown_and_is_counted(root: Path) -> None:
    diagnose(root, [*ROWS[:3], ("4", "drishtiGS_004'", "9", "1", "Suspect")])
    listing = SOURCE.read(root)
    assert by_id(listing)["drishtiGS_004"].labels == {"Glaucoma": None}
    assert any("1 images whose Total" in warning for warning in listing.warnings)
    assert listing.patient_grouping == "patient"


def test_an_image_listed_twice_is_refused(root: Path) -> None:
    diagnose(root, [*ROWS, ROWS[0]])
    with pytest.raises(SourceError, match=r"row 5 below the header: drishtiGS_001 is listed twice"):
        SOURCE.read(root)


def test_a_workbook_in_another_form_is_a_warning_and_leaves_patients_unknown(root: Path) -> None:
    write_workbook(root / TOP / WORKBOOK, [("Image", "Diagnosis"), ("drishtiGS_001", "Normal")])
    listing = SOURCE.read(root)
    assert "needs a row with the columns Drishti-GS File, Patient ID, Total" in listing.warnings[0]
    assert listing.patient_grouping == "image"
    check_source(SOURCE, root)


def test_the_masks_of_test_images_lie_in_test_gt(root: Path) -> None:
    record = by_id(SOURCE.read(root))["drishtiGS_001"]
    assert mask_paths(record, "optic_disc") == [
        f"{TOP}/Test/Test_GT/drishtiGS_001/SoftMap/drishtiGS_001_ODsegSoftmap.png"
    ]
    assert mask_paths(record, "optic_cup") == [
        f"{TOP}/Test/Test_GT/drishtiGS_001/SoftMap/drishtiGS_001_cupsegSoftmap.png"
    ]


def test_inside_is_what_three_of_four_annotators_drew(root: Path) -> None:
    mask = by_id(SOURCE.read(root))["drishtiGS_002"].masks["optic_cup"]
    assert isinstance(mask, MaskFiles)
    levels = {0: False, 64: False, 127: False, 128: False, 191: True, 192: True, 255: True}
    assert {level: mask.low <= level <= mask.high for level in levels} == levels


def test_a_folder_between_and_a_missing_map_are_fine_and_counted(root: Path) -> None:
    images = root / TOP / "Test/Images"
    (images / "glaucoma").mkdir()
    (images / "drishtiGS_001.png").rename(images / "glaucoma/drishtiGS_001.png")
    (root / TOP / "Test/Test_GT/drishtiGS_003/SoftMap/drishtiGS_003_cupsegSoftmap.png").unlink()
    listing = SOURCE.read(root)
    assert set(by_id(listing)["drishtiGS_003"].masks) == {"optic_disc"}
    assert len(by_id(listing)["drishtiGS_001"].masks) == 2
    assert "drishti-gs: 1 images without both soft maps" in listing.warnings


def test_a_folder_without_images_names_the_layout(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"(?s)no image of drishti-gs found.*Training/Images/drishtiGS_002\.png"):
        SOURCE.read(tmp_path)
