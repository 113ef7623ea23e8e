from pathlib import Path

import pytest

from shards.core.records import File, Record, Split
from shards.reading.contamination import Origin, shared_images
from shards.sources.base import Listing
from shards.sources.datasets import covid_qu_ex
from shards.sources.datasets.chestx_det import SOURCE
from shards.sources.datasets.nih_identity import find_nih_splits, list_nih_images, nih_patient, parse_mapping, relatives
from shards.sources.files import list_files
from tests.shards.sources.trees import by_id, problem, write_lines

KIND = "chestx-det"


def record(name: str, split: Split | None = None) -> Record:
    return Record(source_id=name, image=File(f"{name}.png"), patient=f"{KIND}/{name}", split=split)


def splits_in(root: Path) -> dict[str, Split]:
    return find_nih_splits(root, list_files(root))


def listing_of(root: Path, records: tuple[Record, ...], images: dict[str, str] | None, *warnings: str) -> Listing:
    return list_nih_images(SOURCE.info, root, list_files(root), records, images, warnings)


def test_the_patient_is_the_eight_digits_of_the_file_name() -> None:
    assert nih_patient("00000042_006.png", "here") == "nih-chestxray14/00000042"
    for name in ("42_006.png", "00000042_006", "00000042_006.png.png", "x00000042_006.png", ""):
        assert problem(lambda name=name: nih_patient(name, "here")).startswith("here: expected a file name of NIH")


@pytest.mark.parametrize("end", ["\n", "\r\n", " \r\n", " 0 1 0\n"])
def test_official_lists_are_read_whatever_ends_their_lines(end: str, tmp_path: Path) -> None:
    write_lines(tmp_path / "train_val_list.txt", "00000001_000.png", "00000001_001.png", end=end)
    write_lines(tmp_path / "test_list.txt", "00000002_000.png", "", end=end.replace(" 0 1 0", ""))
    assert splits_in(tmp_path) == {
        "00000001_000.png": "train",
        "00000001_001.png": "train",
        "00000002_000.png": "test",
    }


def test_official_lists_are_found_at_any_depth_once(tmp_path: Path) -> None:
    write_lines(tmp_path / "lists" / "train_val_list.txt", "00000001_000.png")
    write_lines(tmp_path / "lists" / "test_list.txt", "00000002_000.png")
    assert splits_in(tmp_path) == {"00000001_000.png": "train", "00000002_000.png": "test"}
    write_lines(tmp_path / "copy" / "test_list.txt", "00000002_000.png")
    assert "keep one" in problem(splits_in, tmp_path)


def test_lists_that_are_not_the_official_two_are_refused(tmp_path: Path) -> None:
    assert splits_in(tmp_path) == {}
    write_lines(tmp_path / "train_val_list.txt", "00000001_000.png")
    assert "test_list.txt is missing; expected both" in problem(lambda: splits_in(tmp_path))
    write_lines(tmp_path / "test_list.txt", "00000001_000.png")
    assert "is in both" in problem(lambda: splits_in(tmp_path))
    write_lines(tmp_path / "test_list.txt", "00000002_000.png", "name")
    assert "test_list.txt line 2" in problem(lambda: splits_in(tmp_path))


def test_without_a_mapping_every_image_stands_alone_and_the_sharing_is_told(tmp_path: Path) -> None:
    records = (record("1", "train"), record("2"))
    listing = listing_of(tmp_path, records, None, "a word")
    assert (listing.records, listing.patient_grouping, listing.warnings) == (records, "image", ("a word",))
    assert listing.shares_images_with == relatives(KIND)
    assert relatives(KIND) == ("nih-chestxray14", "rsna-pneumonia", "siim-acr", "covid-qu-ex")


def test_a_complete_mapping_gives_nih_patients_and_nothing_stays_untold(tmp_path: Path) -> None:
    images = {"1": "00000007_000.png", "2": "00000007_003.png", "3": "00000008_000.png"}
    records = (record("1", "train"), record("2", "train"), record("3", "test"))
    listing = listing_of(tmp_path, records, images)
    found = {name: (one.patient, one.split) for name, one in by_id(listing).items()}
    assert found == {
        "1": ("nih-chestxray14/00000007", "train"),
        "2": ("nih-chestxray14/00000007", "train"),
        "3": ("nih-chestxray14/00000008", "test"),
    }
    assert (listing.patient_grouping, listing.shares_images_with, listing.warnings) == ("patient", (), ())


def test_two_mapped_datasets_may_be_trained_and_measured_on_and_covid_qu_ex_with_neither(tmp_path: Path) -> None:
    mapped = listing_of(tmp_path, (record("1"),), {"1": "00000007_000.png"}).shares_images_with
    covid = Origin("covid-qu-ex", covid_qu_ex.SOURCE.info.shares_images_with)
    rsna, chestx_det = Origin("rsna-pneumonia", mapped), Origin(KIND, mapped)
    assert shared_images({"rsna": rsna}, chestx_det) == ()
    assert shared_images({"rsna": rsna}, Origin("siim-acr", relatives("siim-acr"))) == ("rsna",)
    assert shared_images({"covid": covid}, rsna) == ("covid",)
    assert shared_images({"rsna": rsna}, covid) == ("rsna",)


def test_an_image_mapped_to_two_is_refused_and_to_one_twice_is_not() -> None:
    pairs = [("1", "00000007_000.png"), ("1", "00000007_000.png")]
    assert parse_mapping(pairs, "here") == {"1": "00000007_000.png"}
    assert "here: 1 is mapped to two" in problem(parse_mapping, [*pairs, ("1", "00000007_001.png")], "here")


def test_nihs_lists_beside_the_mapping_decide_the_split(tmp_path: Path) -> None:
    write_lines(tmp_path / "train_val_list.txt", "00000007_000.png")
    write_lines(tmp_path / "test_list.txt", "00000008_000.png")
    records = (record("1", "test"), record("2", "train"))
    images = {"1": "00000007_000.png", "2": "00000008_000.png"}
    listing = listing_of(tmp_path, records, images)
    assert {name: one.split for name, one in by_id(listing).items()} == {"1": "train", "2": "test"}
    images["2"] = "00000009_000.png"
    assert "00000009_000.png is in neither" in problem(lambda: listing_of(tmp_path, records, images))


def test_an_incomplete_mapping_is_used_and_told(tmp_path: Path) -> None:
    listing = listing_of(tmp_path, (record("1"), record("2")), {"1": "00000007_000.png"})
    assert [one.patient for one in listing.records] == ["nih-chestxray14/00000007", "chestx-det/2"]
    assert listing.shares_images_with == relatives(KIND)
    assert "1 of 2 images have no NIH image in the mapping" in listing.warnings[0]


def test_without_nihs_lists_a_patient_of_several_splits_goes_to_train(tmp_path: Path) -> None:
    splits: dict[str, Split | None] = {"1": "train", "2": "test", "3": "test", "4": None, "5": None}
    patients = {"1": 7, "2": 7, "3": 8, "4": 8, "5": 9}
    records = tuple(record(name, split) for name, split in splits.items())
    images = {name: f"{patient:08d}_00{name}.png" for name, patient in patients.items()}
    listing = listing_of(tmp_path, records, images)
    found = {name: one.split for name, one in by_id(listing).items()}
    assert found == {"1": "train", "2": "train", "3": "test", "4": "test", "5": None}
    assert listing.warnings[0].startswith("chestx-det: 1 images went to train")
