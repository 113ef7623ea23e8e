from collections.abc import Callable
from pathlib import Path

import pytest

from shards.core.records import File, MaskFiles
from shards.sources.check import check_source
from shards.sources.datasets.covid_qu_ex import CLASSES, SOURCE
from shards.sources.registry import open_source
from tests.shards.sources.trees import by_id, drawn, problem, write_pixels

LUNG, INFECTION = "Lung Segmentation Data", "Infection Segmentation Data"


def write_image(root: Path, tree: str, part: str, group: str, name: str, *masks: str) -> None:
    folder = root / tree / part / group
    write_pixels(folder / "images" / f"{name}.png", 100)
    for number, mask in enumerate(masks):
        write_pixels(folder / mask / f"{name}.png", 255 if number == 0 else 0)


def write_lungs(root: Path, tree: str = LUNG) -> None:
    write_image(root, tree, "Train", "COVID-19", "covid_1601", "lung masks")
    write_image(root, tree, "Val", "Non-COVID", "non_COVID (3265)", "lung masks")
    write_image(root, tree, "Train", "Normal", "Normal (21)", "lung masks")
    write_image(root, tree, "Test", "Normal", "Normal (7)")


def write_infections(root: Path, tree: str = INFECTION) -> None:
    write_image(root, tree, "Train", "COVID-19", "covid_1601", "infection masks", "lung masks")
    write_image(root, tree, "Test", "Normal", "Normal (21)", "lung masks", "infection masks")
    write_image(root, tree, "Val", "COVID-19", "covid_8", "infection masks", "lung masks")


def test_covid_qu_ex_passes_the_battery(tmp_path: Path) -> None:
    write_lungs(tmp_path)
    write_infections(tmp_path)
    check_source(open_source("covid-qu-ex"), tmp_path)


@pytest.mark.parametrize("write", [write_lungs, write_infections])
def test_a_tree_may_be_nested_twice_once_or_be_the_root(write: Callable[[Path, str], None], tmp_path: Path) -> None:
    name = LUNG if write is write_lungs else INFECTION
    listings = []
    for number, tree in enumerate((f"{name}/{name}", name, ".")):
        root = tmp_path / str(number)
        write(root, tree)
        check_source(SOURCE, root)
        listings.append(SOURCE.read(root))
        assert str(File(f"{tree}/Train/COVID-19/images/covid_1601.png").path).removeprefix("./") in {
            record.image.path for record in listings[-1].records
        }
    described = [
        [
            (record.source_id, record.patient, record.labels, record.split, list(record.masks))
            for record in found.records
        ]
        for found in listings
    ]
    assert described[0] == described[1] == described[2]


def test_records_hold_what_the_folders_say(tmp_path: Path) -> None:
    write_lungs(tmp_path)
    write_infections(tmp_path)
    listing = SOURCE.read(tmp_path)
    records = by_id(listing)
    assert list(records) == ["Normal (21)", "Normal (7)", "covid_1601", "covid_8", "non_COVID (3265)"]
    sick = records["covid_1601"]
    assert sick.labels == {"COVID-19": 1, "Non-COVID": 0, "Normal": 0}
    assert [group for group in CLASSES if records["non_COVID (3265)"].labels[group]] == ["Non-COVID"]
    folder = "Segmentation Data/Train/COVID-19"
    assert sick.image.path == f"Lung {folder}/images/covid_1601.png"
    assert sick.masks == {
        "lungs": MaskFiles(files=(File(f"Lung {folder}/lung masks/covid_1601.png"),)),
        "infection": MaskFiles(files=(File(f"Infection {folder}/infection masks/covid_1601.png"),)),
    }
    assert list(records["non_COVID (3265)"].masks) == ["lungs"], "nobody looked for infection: unknown, not absent"
    assert records["Normal (7)"].masks == {}
    assert (sick.patient, listing.patient_grouping) == ("covid-qu-ex/covid_1601", "image")


def test_masks_are_drawn_and_those_of_the_healthy_are_empty(tmp_path: Path) -> None:
    write_infections(tmp_path)
    records = by_id(SOURCE.read(tmp_path))
    assert drawn(records["covid_8"].masks["infection"], tmp_path, (4, 4)).all()
    assert not drawn(records["Normal (21)"].masks["infection"], tmp_path, (4, 4)).any()


def test_an_image_that_one_tree_tests_on_is_in_no_training_set(tmp_path: Path) -> None:
    write_lungs(tmp_path)
    assert by_id(SOURCE.read(tmp_path))["Normal (21)"].split == "train"
    write_infections(tmp_path)
    listing = SOURCE.read(tmp_path)
    assert {name: record.split for name, record in by_id(listing).items()} == {
        "Normal (21)": "test",
        "Normal (7)": "test",
        "covid_1601": "train",
        "covid_8": "val",
        "non_COVID (3265)": "val",
    }
    warnings = "\n".join(listing.warnings)
    assert "5 images found, 33,920 published" in warnings
    assert "2 images are in both trees and count once" in warnings
    assert "1 of these have another split in each tree" in warnings
    assert "1 images have no mask of the lungs" in warnings


def test_masks_without_an_image_are_counted(tmp_path: Path) -> None:
    write_infections(tmp_path)
    folder = tmp_path / INFECTION / "Train"
    write_pixels(folder / "COVID-19/lung masks/covid_9.png")
    write_pixels(folder / "COVID-19/infection masks/covid_9.png")
    write_pixels(folder / "Normal/lung masks/covid_1601.png")
    listing = SOURCE.read(tmp_path)
    assert len(listing.records) == 3
    assert any("3 masks have no image of their name" in warning for warning in listing.warnings)


def test_the_sharing_is_always_told(tmp_path: Path) -> None:
    write_lungs(tmp_path)
    shared = SOURCE.read(tmp_path).shares_images_with
    assert {"rsna-pneumonia", "padchest", "nih-chestxray14"} <= set(shared)


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    write_lungs(tmp_path)
    write_image(tmp_path, LUNG, "Test", "COVID-19", "covid_1601")
    assert "have one name" in problem(lambda: SOURCE.read(tmp_path))


def test_trees_that_do_not_mean_the_same_image_are_refused(tmp_path: Path) -> None:
    write_lungs(tmp_path)
    write_pixels(tmp_path / INFECTION / "Train/COVID-19/images/covid_1601.png", size=(40, 40))
    assert "Register the trees on their own" in problem(lambda: SOURCE.read(tmp_path))
    (tmp_path / INFECTION / "Train/COVID-19/images/covid_1601.png").unlink()
    write_image(tmp_path, INFECTION, "Train", "Normal", "covid_1601")
    assert "Register the trees on their own" in problem(lambda: SOURCE.read(tmp_path))


def test_another_folder_is_told_from_the_dataset(tmp_path: Path) -> None:
    expected = "{Train,Val,Test}/{COVID-19,Non-COVID,Normal}"
    assert expected in problem(lambda: SOURCE.read(tmp_path))
    (tmp_path / "Train").mkdir()
    assert expected in problem(lambda: SOURCE.read(tmp_path))
