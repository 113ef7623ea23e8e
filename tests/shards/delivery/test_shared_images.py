"""Datasets that hold the same images, from their folders through manifests to indices."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shards.build.stage import build_shards
from shards.core.errors import SourceError
from shards.delivery.batches import read_batch
from shards.delivery.manifest import Entry, Header, iterate_manifest
from shards.delivery.project import Project
from shards.delivery.register import register_batch
from shards.reading.copies import find_trained_copies
from shards.reading.lineage import write_lineage
from shards.reading.reader import ShardIndex, ShardReader
from shards.sources.registry import open_source
from tests.shards.sources.trees import write_lines
from tests.support.checkout import copy_project
from tests.support.datasets import NO_CHECKS, Here, grid_params, shard_params, write_folder

REPOSITORY = Path(__file__).parents[3]
NUMBERS = ("7", "57", "36199", "40003")
UIDS = tuple(f"1.2.276.0.7230010.3.1.4.8323329.{number}.1517875201.850819" for number in range(4))
NIH_IMAGES = tuple(f"0000000{patient}_00{image}.png" for patient, image in ((1, 0), (1, 1), (2, 0), (3, 0)))


@pytest.fixture
def project(tmp_path: Path, id_key: str) -> Project:
    folder = tmp_path / "project"
    folder.mkdir()
    copy_project(folder)
    return Project(folder / "params.yaml", folder / "dvc.yaml")


@pytest.fixture
def chestx_det(tmp_path: Path) -> Path:
    root = tmp_path / "chestx-det"
    write_folder(root / "train_data", [f"{number}.png" for number in NUMBERS])
    items = [{"file_name": f"{number}.png", "syms": [], "boxes": [], "polygons": []} for number in NUMBERS]
    (root / "ChestX_Det_train.json").write_text(json.dumps(items))
    return root


@pytest.fixture
def siim(tmp_path: Path) -> Path:
    """The same images as ChestX-Det's, byte for byte."""
    root = tmp_path / "siim"
    write_folder(root / "dicom-images-train", [f"{uid}.png" for uid in reversed(UIDS)])
    write_lines(root / "stage_2_train.csv", "ImageId, EncodedPixels", *(f"{uid}, -1" for uid in UIDS))
    return root


def map_to_nih(chestx_det: Path, siim: Path) -> None:
    """Mapping files, the same images in another order in each; and NIH's lists beside both."""
    mapping = {f"{number}.png": image for number, image in zip(NUMBERS, NIH_IMAGES, strict=True)}
    (chestx_det / "mapping.json").write_text(json.dumps(mapping))
    lines = [f"{uid},{image}" for uid, image in zip(UIDS, reversed(NIH_IMAGES), strict=True)]
    write_lines(siim / "siim_to_nih.csv", "sop_uid,nih_image", *lines)
    for root in (chestx_det, siim):
        write_lines(root / "train_val_list.txt", *NIH_IMAGES[:3])
        write_lines(root / "test_list.txt", NIH_IMAGES[3])


def register(project: Project, kind: str, root: Path) -> tuple[Header, list[Entry]]:
    register_batch(f"{kind}-b000", root, open_source(kind), project=project)
    header, entries = iterate_manifest(project.root / f"data/manifests/{kind}-b000.jsonl")
    return header, [entry for _, entry in entries]


def test_without_a_mapping_manifest_params_index_and_a_warning_name_the_others(
    project: Project, chestx_det: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = ("nih-chestxray14", "rsna-pneumonia", "siim-acr", "covid-qu-ex")
    header, _ = register(project, "chestx-det", chestx_det)
    assert (header.shares_images_with, header.patient_grouping) == (others, "image")
    errors = capsys.readouterr().err
    assert all(
        f"some images may be in {other} too, and nothing in the folder tells which" in errors for other in others
    )
    source = read_batch("chestx-det-b000", project.root).source
    assert source.shares_images_with == others
    source = source.model_copy(update={"dep": str(project.root / source.dep)})
    params = shard_params(splits={"train": 1.0, "val": 0.0, "test": 0.0})
    build_shards("chestx-det-b000", source, grid_params(), params, tmp_path / "set", execution=Here())
    dataset = ShardIndex.open(tmp_path / "set").description.dataset
    assert (dataset.shares_images_with, dataset.patient_grouping) == (tuple(others), "image")


def test_with_mappings_an_image_has_one_pseudonym_and_one_split_in_both(
    project: Project, chestx_det: Path, siim: Path
) -> None:
    map_to_nih(chestx_det, siim)
    ours, theirs = register(project, "chestx-det", chestx_det), register(project, "siim-acr", siim)
    assert len(theirs[1]) == len(UIDS), "each keeps its images, which have other labels"
    assert ours[0].shares_images_with == theirs[0].shares_images_with == ()
    ours_by_file = {Path(entry.record.image.path).stem: entry for entry in ours[1]}
    theirs_by_file = {Path(entry.record.image.path).name.removesuffix(".png"): entry for entry in theirs[1]}
    for number, uid in zip(NUMBERS, reversed(UIDS), strict=True):
        one, other = ours_by_file[number], theirs_by_file[uid]
        assert (one.record.patient, one.position, one.splits) == (other.record.patient, other.position, other.splits)
    patients = [ours_by_file[number].record.patient for number in NUMBERS]
    assert patients[0] == patients[1]
    assert len(set(patients)) == 3
    assert [ours_by_file[number].splits for number in NUMBERS] == [*[("train", "val")] * 3, ("test",)]


def test_without_a_mapping_an_image_that_another_dataset_has_is_left_out(
    project: Project, chestx_det: Path, siim: Path
) -> None:
    register(project, "chestx-det", chestx_det)
    with pytest.raises(SourceError, match=r"found 4 images, all of earlier batches \(chestx-det-b000: 4\)"):
        register(project, "siim-acr", siim)
    write_folder(siim / "dicom-images-train", [f"{UIDS[0]}.png"], first=100)
    _, (entry,) = register(project, "siim-acr", siim)
    assert Path(entry.record.image.path).name == f"{UIDS[0]}.png"


def test_a_picture_stored_again_with_the_same_pixels_is_new_to_register_and_found_before_an_evaluation(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Register compares files: to compare pixels it would have to decode every image (docs/log.md, 2026-11-29)."""
    monkeypatch.setenv("ACE_SCRATCH", str(tmp_path / "scratch"))
    roots = {"measured-b000": tmp_path / "measured", "trained-b000": tmp_path / "trained"}
    first, second = roots.values()
    write_folder(first, [f"{number}.png" for number in range(4)])
    write_folder(second, [f"other/{number}.png" for number in range(4)], first=100)
    again = second / "renamed.png"
    Image.open(first / "2.png").save(again, compress_level=0)
    assert again.read_bytes() != (first / "2.png").read_bytes()
    assert np.array_equal(Image.open(again), Image.open(first / "2.png"))
    for name, root in roots.items():
        register_batch(name, root, open_source("folder"), project=project)
        source = read_batch(name, project.root).source
        source = source.model_copy(update={"dep": str(project.root / source.dep), "root": str(root)})
        split = {"splits": {"train": 0.0, "val": 0.0, "test": 0.0} | {"test" if root == first else "train": 1.0}}
        params = shard_params(quality=NO_CHECKS, **split)
        build_shards(name, source, grid_params(), params, tmp_path / name, execution=Here())
    measured, trained = (ShardIndex.open(tmp_path / name) for name in roots)
    assert len(trained.rows) == 5, "register takes it for a new image"
    write_lineage(tmp_path, {trained.name: trained})
    keys = measured.keys(measured.select("test"))
    pairs = find_trained_copies(tmp_path, measured, keys, lambda name: tmp_path / name)
    assert pairs is not None
    (pair,) = pairs
    assert pair.correlation == pytest.approx(1)
    one, other = (pixels_of(index, found.key) for index, found in ((measured, pair.first), (trained, pair.second)))
    assert np.array_equal(one, other)


def pixels_of(index: ShardIndex, key: str) -> np.ndarray:
    return ShardReader(index).read(int(np.flatnonzero(index.rows["key"] == key.encode())[0])).image
