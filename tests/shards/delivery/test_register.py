import csv
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import traceback
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.build.stage import build_shards
from shards.core.config import read_params
from shards.core.errors import ConfigError, IdKeyError, SourceError
from shards.core.identity import KEY_FILE_VARIABLE, SPLITS, create_key, split_of
from shards.core.params import BatchParams, MixParams, parse_mix
from shards.core.records import File, Record
from shards.delivery.batches import read_batches, settings_of
from shards.delivery.manifest import Delivery, Entry, check_records, hashed, identify, iterate_manifest
from shards.delivery.project import Project, remove_batch
from shards.delivery.register import check_paths_fit, register_batch
from shards.delivery.yaml_lines import add_deps, add_item, consumers, drop_deps, keep_items, set_dep, set_value
from shards.reading.reader import ShardIndex
from shards.runtime.atomic import write_text
from shards.sources.base import Listing
from shards.sources.datasets.dicom_tree import DicomTreeSource
from shards.sources.datasets.folder import NO_ROW, FolderSource
from shards.sources.patients import parse_patient_rule
from tests.shards.decode.dicom_files import RAMP, data_of, dataset_of
from tests.support.checkout import copy_project
from tests.support.datasets import Here, folder_bytes, grid_params, shard_params, smooth_image, write_csv, write_folder

REPOSITORY = Path(__file__).parents[3]
NAMES = [f"patient {number}/{view}.png" for number in range(6) for view in ("a", "b")]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The repository's own params.yaml and dvc.yaml in a folder of their own."""
    (tmp_path / "project").mkdir()
    copy_project(tmp_path / "project")
    return tmp_path / "project"


def test_a_file_that_cannot_be_hashed_is_an_error_that_does_not_name_it(tmp_path: Path) -> None:
    record = Record(source_id="1", image=File("Doe^Jane/1.png"), patient="1")
    with pytest.raises(SourceError, match="No such file or directory") as error:
        list(hashed([record], tmp_path))
    assert "Doe" not in "".join(traceback.format_exception(error.value))


class FragileSource:
    """A source that opens a file which is not there to be opened."""

    info = FolderSource().info

    def read(self, root: Path) -> Listing:
        (root / "Doe^Jane.txt").read_bytes()
        raise AssertionError("the file was read")


def test_a_file_that_a_source_cannot_open_is_an_error_that_does_not_name_it(
    project: Path, tmp_path: Path, id_key: str
) -> None:
    with pytest.raises(SourceError, match=r"a file below it cannot be read \(No such file or directory\)") as error:
        register_batch(
            "own-b000", tmp_path, FragileSource(), project=Project(project / "params.yaml", project / "dvc.yaml")
        )
    assert "Doe" not in "".join(traceback.format_exception(error.value))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_folder(tmp_path / "own", NAMES)
    return tmp_path / "own"


def register(
    project: Path,
    root: Path,
    name: str = "clinic-b000",
    labels: Path | None = None,
    weight: float = 1.0,
    site: str | None = None,
    modality: str | None = None,
) -> None:
    files = Project(project / "params.yaml", project / "dvc.yaml")
    register_batch(name, root, FolderSource(labels), weight=weight, site=site, modality=modality, project=files)


def registered(project: Path, name: str = "clinic-b000") -> list[Entry]:
    _, entries = iterate_manifest(project / "data" / "manifests" / f"{name}.jsonl")
    return [entry for _, entry in entries]


def registered_images(project: Path, name: str = "clinic-b000") -> list[str]:
    return sorted(entry.record.image.path for entry in registered(project, name))


def left_out(project: Path, name: str = "clinic-b000") -> dict[str, str]:
    """Path → reason, of the private list."""
    path = project / "data" / "manifests" / f"{name}.left_out.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def patient_of(project: Path, path: str, name: str = "clinic-b000") -> str:
    """The pseudonym of an image's patient."""
    (found,) = (entry.record.patient for entry in registered(project, name) if entry.record.image.path == path)
    return found


def batches_of(project: Path) -> dict[str, BatchParams]:
    return read_batches(project / "params.yaml", read_params(project / "params.yaml"))


def mix_of(project: Path) -> dict[str, MixParams]:
    return parse_mix(read_params(project / "params.yaml").get("mix"), "mix")


def added(before: Path, after: Path) -> list[str]:
    """Lines of `after` that are not in `before`; fails if any line of `before` is gone or moved."""
    rest = iter(after.read_text().splitlines())
    new = []
    for line in before.read_text().splitlines():
        for candidate in rest:
            if candidate == line:
                break
            new.append(candidate)
        else:
            raise AssertionError(f"lost: {line}")
    return [*new, *rest]


def test_consumers_in_dvc_yaml_depend_on_exactly_the_batches_of_params_yaml() -> None:
    batches = list(batches_of(REPOSITORY))
    found = consumers((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))
    assert set(found) == {"pretrain", "variant", "report"}
    assert all(deps == batches for deps in found.values())


def test_registering_adds_a_manifest_an_item_and_a_dep_line_for_each_consumer(
    project: Path, root: Path, id_key: str
) -> None:
    register(project, root, weight=2.0)
    assert registered_images(project) == sorted(NAMES)
    manifest = project / "data" / "manifests" / "clinic-b000.jsonl"
    first = registered(project)[0].record
    content = (root / first.image.path).read_bytes()
    assert (first.image.num_bytes, first.image.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    batch = batches_of(project)["clinic-b000"]
    assert batch.source.model_dump(exclude_none=True) == {
        "kind": "folder",
        "dep": "data/manifests/clinic-b000.jsonl",
        "dep_sha256": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        "channels": 1,
        "shares_images_with": (),
        "site": "clinic",
        "id_key_fingerprint": id_key,
    }
    assert (project / "data/manifests/clinic-b000.root.txt").read_text() == f"{root}\n"
    assert (batch.grid, batch.shard) == settings_of(read_params(project / "params.yaml"), project / "params.yaml")
    assert mix_of(project)["clinic-b000"].weight == 2.0
    batches = list(batches_of(project))
    found = consumers((project / "dvc.yaml").read_text())
    assert all(deps == batches == [*batches[:-1], "clinic-b000"] for deps in found.values())


def test_registering_keeps_every_other_line_and_comment(project: Path, root: Path, id_key: str) -> None:
    register(project, root)
    assert set(added(REPOSITORY / "dvc.yaml", project / "dvc.yaml")) == {"      data/shards/clinic-b000,"}
    assert (
        added(REPOSITORY / "params.yaml", project / "params.yaml")[0]
        == "  clinic-b000: data/manifests/clinic-b000.jsonl"
    )


def test_registering_twice_changes_nothing(
    project: Path, root: Path, id_key: str, capsys: pytest.CaptureFixture
) -> None:
    register(project, root)
    once = folder_bytes(project)
    register(project, root)
    assert folder_bytes(project) == once
    assert "already registered: clinic-b000" in capsys.readouterr().err


@pytest.mark.parametrize("killed_after", ["manifest", "dvc.yaml"])
def test_registering_again_completes_what_a_kill_interrupted(
    killed_after: str, project: Path, root: Path, id_key: str
) -> None:
    originals = {name: (project / name).read_bytes() for name in ("params.yaml", "dvc.yaml")}
    register(project, root)
    whole = folder_bytes(project)
    (project / "params.yaml").write_bytes(originals["params.yaml"])
    if killed_after == "manifest":
        (project / "dvc.yaml").write_bytes(originals["dvc.yaml"])
    register(project, root)
    assert folder_bytes(project) == whole


def test_a_batch_never_changes(project: Path, root: Path, id_key: str) -> None:
    register(project, root)
    before = folder_bytes(project)
    write_folder(root, ["late/arrival.png"], first=100)
    with pytest.raises(ConfigError, match=r"clinic-b000 exists with other files.*another name"):
        register(project, root)
    assert folder_bytes(project) == before
    register(project, root, name="clinic-b001")
    assert list(batches_of(project))[-2:] == ["clinic-b000", "clinic-b001"]


def test_a_folder_that_has_grown_is_registered_again_without_what_was_there(
    project: Path, root: Path, id_key: str, capsys: pytest.CaptureFixture
) -> None:
    labels = project / "labels.csv"
    write_csv(labels, ("path", "patient", "Effusion"), [(name, name[:9], 1) for name in NAMES])
    register(project, root, labels=labels)
    once = (project / "data" / "manifests" / "clinic-b000.jsonl").read_bytes()
    write_folder(root, ["late/arrival.png", "later/arrival.png"], first=100)
    with labels.open("a") as file:
        file.write("late/arrival.png,patient 0,0\nlater/arrival.png,patient 9,0\n")
    capsys.readouterr()
    register(project, root, name="clinic-b001", labels=labels)
    assert registered_images(project, "clinic-b001") == ["late/arrival.png", "later/arrival.png"]
    said = capsys.readouterr().err
    assert (
        "copies of images in earlier batches, whatever their files are called: 12 images (clinic-b000 has 12)" in said
    )
    assert "in earlier batches too, where they keep their splits: 1 patient\n" in said
    assert left_out(project, "clinic-b001") == dict.fromkeys(NAMES, "an image that batch clinic-b000 has")
    assert (project / "data" / "manifests" / "clinic-b000.jsonl").read_bytes() == once
    names = ("clinic-b000", "clinic-b001")
    old, new = ({entry.record.patient: entry.position for entry in registered(project, name)} for name in names)
    (shared,) = old.keys() & new.keys()
    assert old[shared] == new[shared], "a patient of both deliveries has one pseudonym and one split"
    with pytest.raises(SourceError, match="found 14 images, all of earlier batches"):
        register(project, root, name="clinic-b002", labels=labels)


def test_an_image_of_an_earlier_batch_that_has_changed_is_noticed(project: Path, root: Path, id_key: str) -> None:
    register(project, root)
    (root / NAMES[0]).write_bytes(b"another image")
    with pytest.raises(SourceError, match="an image of an earlier batch that has changed"):
        register(project, root, name="clinic-b001")


def test_a_lost_manifest_is_written_again_as_it_was(project: Path, root: Path, id_key: str) -> None:
    register(project, root)
    manifest = project / "data" / "manifests" / "clinic-b000.jsonl"
    before = manifest.read_bytes()
    manifest.unlink()
    register(project, root)
    assert manifest.read_bytes() == before


def test_a_lost_manifest_of_a_folder_that_has_grown_is_written_again_too(
    project: Path, root: Path, id_key: str
) -> None:
    register(project, root)
    write_folder(root, ["late/arrival.png"], first=100)
    register(project, root, name="clinic-b001")
    whole = folder_bytes(project)
    for name in ("clinic-b000", "clinic-b001"):
        (project / "data" / "manifests" / f"{name}.jsonl").unlink()
        register(project, root, name)
        assert folder_bytes(project) == whole


def splits_of(project: Path, *names: str) -> dict[str, set[str]]:
    """Patient → splits that the images of some batches are in."""
    found: dict[str, set[str]] = {}
    for name in names:
        for entry in registered(project, name):
            split = split_of(entry.position, shard_params().splits, entry.splits)
            found.setdefault(entry.record.patient, set()).add(split)
    return found


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "test"),
        ("test", ""),
        ("train test", "train val test"),
        ("train val test", "train"),
        ("train val test", "train test"),
    ],
)
def test_official_splits_that_come_or_go_move_no_patient_of_earlier_batches(
    before: str, after: str, project: Path, root: Path, id_key: str, capsys: pytest.CaptureFixture
) -> None:
    """Two images of each of 40 patients, one in either batch; all have the official splits in turn."""
    patients = [f"p{number:02d}" for number in range(40)]
    old, new = ([f"{patient}/{batch}.png" for patient in patients] for batch in ("old", "new"))
    labels = project / "labels.csv"
    for name, names, listed, splits in (("b000", old, old, before), ("b001", new, old + new, after)):
        write_folder(root.parent / "grown", names, first=40 * (name == "b001"))
        official = splits.split() or [""]
        rows = [(path, path[:3], official[patients.index(path[:3]) % len(official)]) for path in listed]
        write_csv(labels, ("path", "patient", "split"), rows)
        register(project, root.parent / "grown", name, labels)
    assert {len(splits) for splits in splits_of(project, "b000", "b001").values()} == {1}
    assert "of earlier batches would get other splits" in capsys.readouterr().err


def test_new_images_alone_do_not_decide_which_official_splits_there_are(
    project: Path, root: Path, id_key: str, capsys: pytest.CaptureFixture
) -> None:
    rows = [(name, name[:9], SPLITS[int(name[8]) % 3]) for name in NAMES]
    write_csv(project / "labels.csv", ("path", "patient", "split"), rows)
    register(project, root, labels=project / "labels.csv")
    late = [f"late {number}.png" for number in range(20)]
    write_folder(root, late, first=100)
    write_csv(project / "labels.csv", ("path", "patient", "split"), rows + [(name, name, "train") for name in late])
    register(project, root, "clinic-b001", project / "labels.csv")
    assert {entry.splits for entry in registered(project, "clinic-b001")} == {("train",)}
    assert "would get other splits" not in capsys.readouterr().err


def test_a_patient_of_another_folders_batch_keeps_its_split(project: Path, root: Path, id_key: str) -> None:
    write_csv(project / "a.csv", ("path", "patient", "split"), [(name, name[:9], "test") for name in NAMES])
    register(project, root, labels=project / "a.csv")
    write_folder(root.parent / "other", ["x.png", "y.png"], first=100)
    write_csv(project / "b.csv", ("path", "patient"), [("x.png", "patient 3"), ("y.png", "somebody")])
    register(project, root.parent / "other", "other-b000", project / "b.csv", site="clinic")
    splits = {entry.record.image.path: entry.splits for entry in registered(project, "other-b000")}
    assert splits == {"x.png": ("test",), "y.png": SPLITS}


def test_a_list_that_gives_old_images_to_other_patients_who_have_new_ones_is_refused(
    project: Path, root: Path, id_key: str
) -> None:
    labels = root.parent / "labels.csv"
    write_csv(labels, ("path", "patient"), [(name, name[:9]) for name in NAMES])
    register(project, root, labels=labels)
    before = folder_bytes(project)
    write_folder(root, ["late.png"], first=100)
    renamed = [(name, f"MRN {name[8]}") for name in NAMES]
    write_csv(labels, ("path", "patient"), [*renamed, ("late.png", "MRN 0")])
    with pytest.raises(SourceError, match=r"12 images of clinic-b000 belong to other .* 1 of these patients have new"):
        register(project, root, "clinic-b001", labels)
    assert folder_bytes(project) == before
    write_csv(labels, ("path", "patient"), [*renamed, ("late.png", "MRN 9")])
    register(project, root, "clinic-b001", labels)
    assert registered_images(project, "clinic-b001") == ["late.png"]


def test_a_picture_that_several_patients_have_says_nothing_about_who_they_are(
    project: Path, tmp_path: Path, id_key: str
) -> None:
    for batch in ("old", "new"):
        write_folder(tmp_path / batch, [f"{number}.png" for number in range(4)], first=100 * (batch == "new"))
        for number in range(2):
            Image.new("L", (40, 30)).save(tmp_path / batch / f"blank {number}.png")
        rows = [(path.name, f"{batch} {path.stem[-1]}") for path in sorted((tmp_path / batch).iterdir())]
        write_csv(tmp_path / f"{batch}.csv", ("path", "patient"), rows)
    register(project, tmp_path / "old", "old-b000", tmp_path / "old.csv")
    register(project, tmp_path / "new", "new-b000", tmp_path / "new.csv")
    assert registered_images(project, "new-b000") == [f"{number}.png" for number in range(4)]


def test_images_of_an_earlier_batch_are_left_out_wherever_they_lie_and_whatever_they_are_called(
    project: Path, root: Path, id_key: str, capsys: pytest.CaptureFixture
) -> None:
    """A second release, in a folder of its own, renamed and without patients."""
    labels = root.parent / "labels.csv"
    write_csv(labels, ("path", "patient"), [(name, name[:9]) for name in NAMES])
    register(project, root, labels=labels)
    second = root.parent / "second"
    second.mkdir()
    for number, name in enumerate(NAMES):
        shutil.copy(root / name, second / f"release2_{number:02}.png")
    with pytest.raises(SourceError, match=r"found 12 images, all of earlier batches \(clinic-b000: 12\)"):
        register(project, second, "second-b000")
    write_folder(second, ["new.png"], first=100)
    (second / "notes.txt").write_text("x")
    capsys.readouterr()
    register(project, second, "second-b000")
    assert registered_images(project, "second-b000") == ["new.png"]
    assert "left out as copies of images in earlier batches" in (said := capsys.readouterr().err)
    listed = project / "data" / "manifests" / "second-b000.left_out.csv"
    assert f"{listed} lists 13 files that were left out, with the reasons" in said
    assert stat.S_IMODE(listed.stat().st_mode) == 0o600
    reasons = left_out(project, "second-b000")
    assert reasons.pop("notes.txt") == "files that are no images"
    assert reasons == {f"release2_{n:02}.png": "an image that batch clinic-b000 has" for n in range(12)}


@pytest.mark.parametrize("has_patients", [False, True])
def test_new_images_of_a_folder_around_a_registered_one_are_new_whatever_they_are_called(
    has_patients: bool, project: Path, tmp_path: Path, id_key: str
) -> None:
    names = [f"{number:03}.png" for number in range(3)]
    outer, inner, labels = tmp_path / "clinic", tmp_path / "clinic" / "2023", tmp_path / "labels.csv"

    def listed(paths: list[str]) -> Path | None:
        write_csv(labels, ("path", "patient"), [(path, Path(path).stem) for path in paths])
        return labels if has_patients else None

    write_folder(inner, names)
    register(project, inner, "clinic-b000", listed(names))
    write_folder(outer, names, first=100)
    register(project, outer, "clinic-b001", listed([*names, *(f"2023/{name}" for name in names)]))
    assert registered_images(project, "clinic-b001") == names
    for name in names:
        old, new = (patient_of(project, name, batch) for batch in ("clinic-b000", "clinic-b001"))
        assert (old == new) == has_patients


def test_an_image_without_a_patient_is_the_same_one_in_every_folder(project: Path, tmp_path: Path, id_key: str) -> None:
    """So that a model trained on one project's copy is not measured on another's."""
    patients = []
    for number in range(2):
        write_folder(tmp_path / f"{number}" / "own", [f"{'x' * number}a.png"])
        other = tmp_path / f"{number}" / "project"
        shutil.copytree(project, other)
        register(other, tmp_path / f"{number}" / "own", f"clinic{number}-b000")
        patients.append(registered(other, f"clinic{number}-b000")[0].record.patient)
    assert patients[0] == patients[1]


def test_patients_of_two_sites_with_the_same_ids_are_two_people(
    project: Path, tmp_path: Path, id_key: str, capsys: pytest.CaptureFixture
) -> None:
    names = [f"{number}.png" for number in range(6)]
    for first, (site, split) in enumerate({"north": "train", "south": "test"}.items()):
        write_folder(tmp_path / site, names, first=100 * first)
        write_csv(tmp_path / f"{site}.csv", ("path", "patient", "split"), [(n, n[0], split) for n in names])
        register(project, tmp_path / site, f"{site}-b000", tmp_path / f"{site}.csv")
    assert {entry.splits for entry in registered(project, "south-b000")} == {("test",)}
    assert not {patient_of(project, n, "north-b000") for n in names} & {
        patient_of(project, n, "south-b000") for n in names
    }
    said = capsys.readouterr().err
    assert "6 patients with the same ids as patients of the site north are taken for other people" in said
    assert "register it with --site north" in said


def test_deliveries_of_one_site_share_their_patients(
    project: Path, tmp_path: Path, id_key: str, capsys: pytest.CaptureFixture
) -> None:
    """By the name without its number, by the folder, or by what the user says."""
    deliveries = [("a", "north-b000", None), ("b", "north-b001", None), ("a/deep", "x-b000", None), ("c", "y", "north")]
    for number, (folder, name, site) in enumerate(deliveries):
        write_folder(tmp_path / folder, [f"{name}.png"], first=number)
        write_csv(tmp_path / f"{name}.csv", ("path", "patient"), [(f"{name}.png", "1")])
        register(project, tmp_path / folder, name, tmp_path / f"{name}.csv", site=site)
    assert len({patient_of(project, f"{name}.png", name) for _, name, _ in deliveries}) == 1
    assert {batches_of(project)[name].source.site for _, name, _ in deliveries} == {"north"}
    said = capsys.readouterr().err
    assert said.count("patient_grouping: patient, site: north") == 4
    assert "are taken for other people" not in said


def test_the_kind_of_own_pictures_is_said_once_a_site_and_kept(
    project: Path, tmp_path: Path, id_key: str, capsys: pytest.CaptureFixture
) -> None:
    for number, (name, site, said) in enumerate(
        [("north-b000", "north", "chest"), ("north-b001", "north", None), ("south-b000", "south", None)]
    ):
        write_folder(tmp_path / name, [f"{name}.png"], first=number)
        register(project, tmp_path / name, name, site=site, modality=said)
        assert ("the kind of pictures in" in capsys.readouterr().err) is (site == "south")
    found = {name: batch.source.modality for name, batch in batches_of(project).items() if name != "phantom-b000"}
    assert found == {"north-b000": "chest", "north-b001": "chest", "south-b000": None}
    write_folder(tmp_path / "hands", ["a.png"], first=9)
    register(project, tmp_path / "hands", "hands-b000", modality="hand")
    assert "different pictures: phantom-b000 (chest radiographs, grey), " in capsys.readouterr().err
    with pytest.raises(ConfigError, match="expected one word in lower case"):
        register(project, tmp_path / "hands", "hands-b001", modality="X ray")
    with pytest.raises(ConfigError, match=r"batch hands-b000|never changes"):
        register(project, tmp_path / "hands", "hands-b000", modality="chest")


def test_a_folder_with_batches_of_two_sites_needs_a_word(project: Path, tmp_path: Path, id_key: str) -> None:
    for number, site in enumerate(("north", "south")):
        write_folder(tmp_path / "all" / site, ["a.png"], first=number)
        register(project, tmp_path / "all" / site, f"{site}-b000")
    write_folder(tmp_path / "all", ["new.png"], first=9)
    with pytest.raises(ConfigError, match="of the sites 'north', 'south'; say which one gave"):
        register(project, tmp_path / "all", "all-b000")
    register(project, tmp_path / "all", "all-b000", site="south")
    with pytest.raises(ConfigError, match=r"--site 'St\. Mary': expected letters"):
        register(project, tmp_path / "all", "all-b001", site="St. Mary")


FORMER_SITE = ""
"""What batches of earlier versions have in the place of a site."""


def as_earlier_versions_wrote(project: Path, root: Path, labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Register clinic-b000 with the manifest and the item of earlier versions: by path, without a site."""

    def former(*arguments: Any, **options: Any) -> Delivery:
        return identify(*arguments, **{**options, "as_former": True})

    with monkeypatch.context() as patch:
        patch.setattr("shards.delivery.register.identify", former)
        register(project, root, labels=labels, site=FORMER_SITE)


@pytest.mark.parametrize("columns", [("path", "patient"), ("path", "Effusion")])
def test_a_batch_of_an_earlier_version_stays_as_it_is_and_its_patients_who_they_are(
    columns: tuple[str, str], project: Path, root: Path, id_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = root.parent / "labels.csv"
    write_csv(labels, columns, [(name, name[8]) for name in NAMES if name[8] in "01"])
    as_earlier_versions_wrote(project, root, labels, monkeypatch)
    assert [entry.record.image.path for entry in registered(project)] == [n for n in NAMES if n[8] in "01"]
    whole = folder_bytes(project)
    assert b"site" not in whole["params.yaml"]
    register(project, root, labels=labels)
    assert folder_bytes(project) == whole
    (project / "data" / "manifests" / "clinic-b000.jsonl").unlink()
    register(project, root, labels=labels)
    assert folder_bytes(project) == whole
    write_csv(labels, ("path", "patient"), [(name, name[8]) for name in NAMES if name[8] in "12"])
    if columns == ("path", "patient"):
        register(project, root, "clinic-b001", labels)
        assert set(registered_images(project, "clinic-b001")) == {n for n in NAMES if n[8] == "2"}
        write_folder(root, ["late.png"], first=100)
        write_csv(labels, columns, [("late.png", "0")])
        register(project, root, "clinic-b002", labels)
        assert patient_of(project, "late.png", "clinic-b002") == patient_of(project, NAMES[0])


def test_a_batch_whose_patients_were_guessed_says_how_to_name_them(project: Path, root: Path, id_key: str) -> None:
    files = Project(project / "params.yaml", project / "dvc.yaml")
    guessed = FolderSource(patient_from=parse_patient_rule(r"^([^/]+)/|([^/]+)\.[^.]+$"))
    register_batch("clinic-b000", root, guessed, project=files)
    whole = folder_bytes(project)
    with pytest.raises(ConfigError) as error:
        register(project, root)
    rule = str(error.value).split("--patient-from '")[1].split("' takes them again")[0]
    register_batch("clinic-b000", root, FolderSource(patient_from=parse_patient_rule(rule)), project=files)
    assert folder_bytes(project) == whole


def test_the_order_of_a_manifest_tells_nothing_of_the_names_of_files(
    project: Path, tmp_path: Path, id_key: str
) -> None:
    names = [f"{number:03}.png" for number in range(40)]
    write_folder(tmp_path / "own", names)
    register(project, tmp_path / "own")
    ids = [entry.record.source_id for entry in registered(project)]
    assert ids == sorted(ids)
    assert [entry.record.image.path for entry in registered(project)] != names


def test_a_folder_within_a_registered_one_has_nothing_new(project: Path, root: Path, id_key: str) -> None:
    labels = root.parent / "labels.csv"
    write_csv(labels, ("path", "patient"), [(name, name[:9]) for name in NAMES])
    register(project, root, labels=labels)
    write_csv(labels, ("path", "patient"), [(name[10:], name[:9]) for name in NAMES if name.startswith("patient 3")])
    with pytest.raises(SourceError, match="found 2 images, all of earlier batches"):
        register(project, root / "patient 3", "clinic-b001", labels)


def test_a_copy_of_a_known_image_under_another_name_is_known_too(project: Path, tmp_path: Path, id_key: str) -> None:
    """Of copies with one SOP Instance UID the source takes the larger: which may be the one that came later."""
    root, files = tmp_path / "export", Project(project / "params.yaml", project / "dvc.yaml")
    one, other = (
        dataset_of(RAMP, PatientID="a", StudyInstanceUID="1.2", Modality="CR", SOPInstanceUID=f"1.2.{number}")
        for number in (3, 4)
    )
    root.mkdir()
    (root / "first.dcm").write_bytes(data_of(one))
    register_batch("dicom-b000", root, DicomTreeSource(), project=files)
    one.ImageComments = "sent again" * 50
    (root / "again.dcm").write_bytes(data_of(one))
    with pytest.raises(SourceError, match="found 1 image, all of earlier batches"):
        register_batch("dicom-b001", root, DicomTreeSource(), project=files)
    (root / "new.dcm").write_bytes(data_of(other))
    register_batch("dicom-b001", root, DicomTreeSource(), project=files)
    assert registered_images(project, "dicom-b001") == ["new.dcm"]


def test_two_images_with_one_id_are_refused(tmp_path: Path) -> None:
    records = [
        Record(source_id="a", image=File("1.png"), patient="p"),
        Record(source_id="a", image=File("2.png"), patient="p"),
    ]
    with pytest.raises(SourceError, match="image 2: an earlier one has the same id"):
        check_records(records, "there")


def test_a_file_that_is_gone_when_it_is_hashed_is_an_error_with_a_place(tmp_path: Path) -> None:
    write_folder(tmp_path / "own", ["a.png"])
    records = [
        Record(source_id="a", image=File("a.png"), patient="p"),
        Record(source_id="b", image=File("Doe.png"), patient="p"),
    ]
    with pytest.raises(SourceError, match="own image 2 of the delivery: No such file") as error:
        list(hashed(records, tmp_path / "own"))
    assert "Doe" not in str(error.value)


def test_a_project_without_dvc_yaml_is_named(project: Path, root: Path, id_key: str) -> None:
    (project / "dvc.yaml").unlink()
    with pytest.raises(ConfigError, match=r"dvc\.yaml: no such file.*--dvc FILE"):
        register(project, root)


def test_a_manifest_holds_no_id_of_a_patient(project: Path, root: Path, id_key: str) -> None:
    labels = project / "labels.csv"
    header = ("path", "patient", "study", "sex", "age_years", "Effusion")
    write_csv(labels, header, [(name, "MRN-4711", "ACC-9", "F", 63.5, 1) for name in NAMES])
    register(project, root, labels=labels)
    text = (project / "data" / "manifests" / "clinic-b000.jsonl").read_text()
    assert not any(secret in text for secret in ("MRN-4711", "ACC-9", "63.5", '"F"'))
    record = registered(project)[0].record
    assert (record.sex, record.age_years) == (None, 60.0)


def test_a_patient_on_both_sides_of_an_official_split_is_refused(project: Path, root: Path, id_key: str) -> None:
    labels = project / "labels.csv"
    rows = [(name, "one", "train" if number else "test") for number, name in enumerate(NAMES)]
    write_csv(labels, ("path", "patient", "split"), rows)
    with pytest.raises(SourceError, match=r"1 of 1 patients .* --splits hash"):
        register(project, root, labels=labels)
    files = Project(project / "params.yaml", project / "dvc.yaml")
    register_batch("clinic-b000", root, FolderSource(labels), split_rule="hash", project=files)
    assert {entry.splits for entry in registered(project)} == {SPLITS}


def test_a_weight_edited_later_does_not_make_it_another_batch(project: Path, root: Path, id_key: str) -> None:
    register(project, root)
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("    weight: 1.0\n    mean", "    weight: 3.0\n    mean"))
    register(project, root)
    assert mix_of(project)["clinic-b000"].weight == 3.0


def test_the_phantoms_name_is_taken(project: Path, root: Path, id_key: str) -> None:
    with pytest.raises(ConfigError, match="phantom-b000 exists"):
        register(project, root, name="phantom-b000")


def test_a_registered_batch_builds_and_its_mix_is_what_the_index_finds(
    project: Path, root: Path, id_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(project, root)
    batch = batches_of(project)["clinic-b000"]
    monkeypatch.chdir(project)
    params = shard_params(splits={"train": 1.0, "val": 0.0, "test": 0.0})
    values = read_params(project / "params.yaml")["grid"]
    build_shards("clinic-b000", batch.source, grid_params(**values), params, project / "set", execution=Here())
    index = ShardIndex.open(project / "set")
    assert index.description.counts.images["train"] == 12
    assert index.description.dataset.patient_grouping == "image"
    assert index.description.statistics.mean == pytest.approx(batch.measured.mean[0], abs=1e-4)
    assert index.description.statistics.std == pytest.approx(batch.measured.std[0], abs=1e-4)


def test_with_a_csv_only_its_images_are_registered(project: Path, root: Path, id_key: str) -> None:
    labels = project / "labels.csv"
    write_csv(labels, ("path", "patient", "Effusion"), [(NAMES[3], "x", 1), (NAMES[0], "y", 0)])
    register(project, root, labels=labels)
    assert registered_images(project) == sorted([NAMES[0], NAMES[3]])


def test_images_without_a_row_in_the_csv_are_counted(
    project: Path, root: Path, id_key: str, capsys: pytest.CaptureFixture
) -> None:
    labels = project / "labels.csv"
    write_csv(labels, ("path", "patient"), [(name, "x") for name in NAMES[:3]])
    register(project, root, labels=labels)
    text = capsys.readouterr().err
    assert f"left out 9 {NO_ROW}" in text
    assert left_out(project) == dict.fromkeys(NAMES[3:], NO_ROW)
    assert "registered: clinic-b000, 3 images of 1 patient (patient_grouping: patient, site: clinic)" in text
    write_csv(labels, ("path", "patient"), [(name, "x") for name in NAMES])
    register(project, root, "clinic-b001", labels)
    assert NO_ROW not in capsys.readouterr().err


def test_a_csv_row_without_a_file_is_named_by_number(project: Path, root: Path, id_key: str) -> None:
    labels = project / "labels.csv"
    write_csv(labels, ("path", "patient"), [(NAMES[3], "x"), ("gone.png", "y")])
    with pytest.raises(SourceError, match="1 rows name no file, first: line 3"):
        register(project, root, labels=labels)


def test_it_is_said_whether_patients_are_known(
    project: Path, root: Path, id_key: str, capsys: pytest.CaptureFixture
) -> None:
    register(project, root)
    said = capsys.readouterr().err
    assert "patients are unknown, so each image is put into a split by itself" in said
    assert "give them in the column patient of a CSV (--labels) or by --patient-from" in said
    assert "registered: clinic-b000, 12 images (patient_grouping: image), 1 channel," in said
    (project / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    (project / "data" / "manifests" / "clinic-b000.jsonl").unlink()
    files = Project(project / "params.yaml", project / "dvc.yaml")
    source = FolderSource(patient_from=parse_patient_rule("^[^/]+"))
    register_batch("clinic-b000", root, source, project=files)
    said = capsys.readouterr().err
    assert "are unknown" not in said
    assert "12 images of 6 patients (patient_grouping: patient, site: clinic)" in said


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


def test_where_no_image_can_be_read_the_reasons_are_counted(project: Path, root: Path, id_key: str) -> None:
    for number, name in enumerate(NAMES):
        (root / name).write_bytes(LFS if number < 9 else b"<html>")
    with pytest.raises(SourceError) as error:
        register(project, root)
    assert str(error.value) == (
        f"{root}: looked at 12 images, none can be read:\n"
        "     9  a Git LFS pointer instead of the image: run `git lfs pull`\n"
        "     3  a web page or an XML message instead of an image: the download was refused"
    )
    assert not (project / "data").exists()


def test_of_images_that_are_too_large_the_largest_and_the_bound_are_said(
    project: Path, root: Path, id_key: str
) -> None:
    params = project / "params.yaml"
    text = params.read_text(encoding="utf-8")
    params.write_text(set_value(text, "shard", "max_source_megapixels", "0.01"), encoding="utf-8")
    for number, name in enumerate(NAMES):
        Image.new("L", (100, 101 + number)).save(root / name)
    with pytest.raises(SourceError) as error:
        register(project, root)
    assert str(error.value) == (
        f"{root}: looked at 12 images, none can be read:\n"
        "    12  too large: the largest has 11,200 pixels, and at most 10,000 are read: make it smaller, or raise "
        "shard.max_source_megapixels"
    )


def test_where_some_images_cannot_be_read_it_is_said_before_the_stage_fails(
    project: Path, root: Path, id_key: str, capsys: pytest.CaptureFixture
) -> None:
    for name in NAMES[:9]:
        (root / name).write_bytes(LFS)
    register(project, root)
    said = capsys.readouterr().err
    assert "of 12 images that were tried, 9 cannot be read and will be quarantined:\n     9  a Git LFS pointer" in said


def test_colour_beside_grey_images_in_one_mix_is_said_at_once(
    project: Path, root: Path, id_key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(root / f"colour {number}.png")
    register(project, root)
    said = capsys.readouterr().err
    assert (
        "warning: mix has batches of different pictures: phantom-b000 (chest radiographs, grey), clinic-b000 (own"
        in said
    )
    assert "pretrain.accept_mixed_images: true" in said


def test_one_coloured_image_makes_the_batch_coloured(
    project: Path, root: Path, id_key: str, capsys: pytest.CaptureFixture
) -> None:
    grey = np.full((20, 20, 3), 90, np.uint8)
    Image.fromarray(grey).save(root / "grey as colour.png")
    register(project, root)
    grey[4, 4, 0] = 200
    Image.fromarray(grey).save(root / "stained.png")
    register(project, root, name="clinic-b001")
    batches = batches_of(project)
    channels = [batches[name].source.model_dump()["channels"] for name in ("clinic-b000", "clinic-b001")]
    assert channels == [1, 3]
    mixes = [read_params(project / "params.yaml")["mix"][name] for name in ("clinic-b000", "clinic-b001")]
    assert all(isinstance(mix[name], float) for mix in mixes for name in ("mean", "std")), "the network takes grey"
    assert "if you set pretrain.backbone.in_channels to 3, also set mean [0." in capsys.readouterr().err


def test_a_coloured_batch_is_normalised_as_the_projects_network_sees_it(
    project: Path, root: Path, id_key: str, capsys: pytest.CaptureFixture
) -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[:] = (200, 90, 30)
    image[20:] += 20
    for path in list(root.rglob("*")):
        if path.is_file():
            path.unlink()
    for number in range(3):
        Image.fromarray(image + np.uint8(number)).save(root / f"{number}.png")
    params = project / "params.yaml"
    grey = params.read_text(encoding="utf-8")
    register(project, root)
    assert (
        capsys.readouterr().err.count("in grey; if you set pretrain.backbone.in_channels to 3, also set mean [0.") == 1
    )
    seen_in_grey = read_params(params)["mix"]["clinic-b000"]
    (project / "data/manifests/clinic-b000.jsonl").unlink()
    assert "in_channels: 1" in grey
    params.write_text(grey.replace("in_channels: 1", "in_channels: 3"), encoding="utf-8")
    register(project, root)
    mix = read_params(params)["mix"]["clinic-b000"]
    assert "in colour; if you set pretrain.backbone.in_channels to 1, also set mean 0." in capsys.readouterr().err
    assert mix["mean"] == pytest.approx([211 / 255, 101 / 255, 41 / 255], abs=2e-3)
    assert mix["std"] == pytest.approx([10 / 255] * 3, abs=3e-3)
    luma = 0.299 * 211 + 0.587 * 101 + 0.114 * 41
    assert seen_in_grey["mean"] == pytest.approx(luma / 255, abs=5e-3)


def test_unreadable_images_are_left_to_the_stage_but_not_all_of_them(project: Path, root: Path, id_key: str) -> None:
    (root / NAMES[0]).write_bytes(b"\x89PNG broken")
    register(project, root)
    (root / "late.png").write_bytes(b"\x89PNG broken too")
    with pytest.raises(SourceError, match="looked at 1 images, none can be read"):
        register(project, root, name="clinic-b001")


def test_registering_needs_the_projects_key(
    project: Path, root: Path, id_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(project, root)
    create_key(tmp_path / "other.key")
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "other.key"))
    with pytest.raises(IdKeyError, match=id_key):
        register(project, root, name="clinic-b001")
    monkeypatch.delenv(KEY_FILE_VARIABLE)
    with pytest.raises(IdKeyError, match="is not set"):
        register(project, root, name="clinic-b001")
    assert "clinic-b001" not in batches_of(project)


def test_an_item_goes_to_the_end_of_its_section_before_comments_of_the_next() -> None:
    text = "a: 1\nbatches:\n  x:\n    k: 1   # why\n    # inside\n\n# the next\nb: [1,\n  2]\n"
    assert add_item(text, "batches", "y", {"k": None, "m": {"w": 1.0}}) == (
        "a: 1\nbatches:\n  x:\n    k: 1   # why\n    # inside\n  y:\n    k: null\n    m:\n      w: 1.0\n"
        "\n# the next\nb: [1,\n  2]\n"
    )
    assert add_item("batches:\n    x: 1", "batches", "y", {"k": 2}) == "batches:\n    x: 1\n    y:\n      k: 2\n"


@pytest.mark.parametrize("text", ["batches: {x: 1}\n", "other: 1\n", "batches:\n", "- 1\n", "batches: [1]\n"])
def test_a_section_that_cannot_be_added_to_line_by_line_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="one item a line"):
        add_item(text, "batches", "y", {})


def test_dep_lines_are_added_where_batches_are_read_by_name_and_only_there() -> None:
    text = (
        'stages:\n  shard:\n    foreach: ${batches}\n    do:\n      outs: ["data/shards/${key}"]\n'
        "  one:\n    deps:\n    - data/shards/a   # first\n    - data/other\n"
        "  two:\n    deps:\n        - models\n        - 'data/shards/a'\n        - data/shards/b\n"
        '  three:\n    deps: ["data/shards/${evaluate.batch}", models]\n'
    )
    expected = text.replace("# first\n", "# first\n    - data/shards/b\n")
    assert add_deps(text, "b") == expected
    assert add_deps(expected, "b") == expected
    assert consumers(expected) == {"one": ["a", "b"], "two": ["a", "b"]}


def test_deps_in_brackets_are_edited_where_each_has_a_line_and_a_comma() -> None:
    text = (
        "stages:\n  one:\n    deps: [\n      ace/data, ace/models,\n      data/shards/a,  # first\n    ]\n"
        '  two:\n    foreach: ${encoders}\n    do:\n      deps: [\n        "data/shards/${evaluate.batch}",\n      ]\n'
    )
    with_b = text.replace("# first\n", "# first\n      data/shards/b,\n")
    assert add_deps(text, "b") == with_b
    assert drop_deps(with_b, ["data/shards/b"]) == text
    excluded = set_dep(text, "batches/a.exclude.yaml", "a", wanted=True)
    assert excluded == text.replace("# first\n", "# first\n      batches/a.exclude.yaml,\n").replace(
        'batch}",\n', 'batch}",\n        batches/a.exclude.yaml,\n'
    )
    assert set_dep(excluded, "batches/a.exclude.yaml", "a", wanted=False) == text


def test_deps_in_brackets_on_one_line_are_left_to_the_user() -> None:
    with pytest.raises(ConfigError, match=r"one\.deps: expected one dep a line"):
        add_deps("stages:\n  one:\n    deps: [data/shards/a]\n", "b")
    with pytest.raises(ConfigError, match="no stage has a line '- data/shards/NAME'"):
        add_deps("stages:\n  one:\n    deps: [models]\n", "b")


def many(folder: Path, number: int = 150) -> Path:
    """A folder with enough patients for the evaluation: one image each."""
    write_folder(folder, [f"p{number:03d}.png" for number in range(number)], (20, 15))
    return folder


COPY = ".before-real-b000"
"""What `--only` adds to the name of a file to keep it as it was."""


def register_only(project: Path, root: Path, name: str = "real-b000") -> None:
    files = Project(project / "params.yaml", project / "dvc.yaml")
    register_batch(name, root, FolderSource(), only=True, project=files)


def test_the_only_batch_leaves_no_other_and_every_other_byte(
    project: Path, tmp_path: Path, id_key: str, capsys: pytest.CaptureFixture
) -> None:
    register(project, many(tmp_path / "first", 12), "real-b0001")  # a name that begins like the next one's
    before = {name: (project / name).read_text() for name in ("params.yaml", "dvc.yaml")}
    capsys.readouterr()
    register_only(project, many(tmp_path / "many"))
    assert "taken out of params.yaml and dvc.yaml: phantom-b000, real-b0001" in capsys.readouterr().err
    values = read_params(project / "params.yaml")
    assert list(values["batches"]) == ["real-b000"]
    assert values["evaluate"]["batch"] == "real-b000"
    stages, others = read_params(project / "dvc.yaml")["stages"], read_params(REPOSITORY / "dvc.yaml")["stages"]
    assert stages["variant"]["do"]["deps"] == stages["pretrain"]["deps"], "they share their list"
    for name, stage in stages.items():
        deps = others[name].get("deps", [])
        if name == "variant":
            continue
        if name in ("pretrain", "report"):
            deps = [dep for dep in deps if dep not in ("data/phantom", "data/shards/phantom-b000")]
            assert sorted(stage["deps"]) == sorted([*deps, "data/shards/real-b000"])
        else:
            assert stage == others[name]
    head, _, rest = before["dvc.yaml"].partition("\n  phantom:\n")  # the stage goes with the batch
    rest = rest.partition("\n  shard:\n")[2]
    gone = {f"      data/{name}," for name in ("phantom", "shards/phantom-b000", "shards/real-b0001")}
    kept = [*head.split("\n"), "  shard:", *(line for line in rest.splitlines() if line not in gone)]
    now = [line for line in (project / "dvc.yaml").read_text().splitlines() if "real-b000" not in line]
    assert now == kept
    head, _, rest = before["params.yaml"].partition("\nbatches:\n")
    tail = rest[rest.index("\npretrain:") :].replace("\n  batch: phantom-b000", "\n  batch: real-b000", 1)
    text = (project / "params.yaml").read_text()
    assert text.startswith(head + "\nbatches:\n  real-b000: data/manifests/real-b000.jsonl\n")
    assert text.endswith(tail)


def test_no_batch_becomes_the_only_one_while_a_task_is_trained_on_another(
    project: Path, tmp_path: Path, id_key: str
) -> None:
    params = project / "params.yaml"
    text = params.read_text(encoding="utf-8")
    params.write_text(text.replace("finetune: {}", "finetune: {phantom: phantom-b000}", 1), encoding="utf-8")
    before = [path.read_bytes() for path in (params, project / "dvc.yaml")]
    with pytest.raises(ConfigError, match=r"finetune has phantom, of a batch that would be taken out"):
        register_only(project, many(tmp_path / "many"))
    assert [path.read_bytes() for path in (params, project / "dvc.yaml")] == before


def test_the_files_that_lose_batches_are_kept_as_they_were(
    project: Path, tmp_path: Path, id_key: str, capsys: pytest.CaptureFixture
) -> None:
    register(project, many(tmp_path / "first", 12), "mine-b000")
    assert not list(project.glob("*.before-*")), "nothing is taken out without --only"
    before = {name: (project / name).read_bytes() for name in ("params.yaml", "dvc.yaml")}
    capsys.readouterr()
    register_only(project, many(tmp_path / "many"))
    said = capsys.readouterr().err
    for name, content in before.items():
        copy = project / f"{name}{COPY}"
        assert copy.read_bytes() == content
        assert str(copy) in said
        assert any(fnmatch(copy.name, line) for line in (REPOSITORY / ".gitignore").read_text().splitlines())


def test_a_batch_that_is_removed_leaves_both_files_as_they_were_without_it(
    project: Path, root: Path, id_key: str, capsys: pytest.CaptureFixture
) -> None:
    files = Project(project / "params.yaml", project / "dvc.yaml")
    before = folder_bytes(project)
    register(project, root)
    entered = folder_bytes(project)
    remove_batch("clinic-b000", files)
    assert {name: data for name, data in folder_bytes(project).items() if name in before} == before
    register(project, root)
    assert folder_bytes(project) == entered
    said = capsys.readouterr().err
    assert "taken out of" in said
    assert "manifest and shards stay on the disk" in said


def test_the_phantom_makes_room_for_a_users_batch(
    project: Path, root: Path, id_key: str, capsys: pytest.CaptureFixture
) -> None:
    register(project, root)
    remove_batch("phantom-b000", Project(project / "params.yaml", project / "dvc.yaml"))
    values = read_params(project / "params.yaml")
    assert list(values["batches"]) == ["clinic-b000"]
    assert values["evaluate"]["batch"] == "clinic-b000"
    assert "the evaluation now measures on clinic-b000" in capsys.readouterr().err
    stages = read_params(project / "dvc.yaml")["stages"]
    assert not {"data/phantom", "data/shards/phantom-b000"} & {*stages["pretrain"]["deps"], *stages["report"]["deps"]}
    assert "phantom" not in stages, "a bare `dvc repro` would render what nothing reads"


def test_what_cannot_be_removed_is_refused_before_anything_is_written(
    project: Path, root: Path, tmp_path: Path, id_key: str
) -> None:
    files = Project(project / "params.yaml", project / "dvc.yaml")

    def refuses(name: str, match: str) -> None:
        before = files.params.read_bytes(), files.dvc.read_bytes()
        with pytest.raises(ConfigError, match=match):
            remove_batch(name, files)
        assert before == (files.params.read_bytes(), files.dvc.read_bytes())

    refuses("other", r"has no batch 'other'; expected one of its batches: phantom-b000")
    refuses("phantom-b000", "is the project's only one")
    register(project, root)
    register(project, many(tmp_path / "many"), "many-b000")
    refuses("phantom-b000", r"first set evaluate\.batch to one of clinic-b000, many-b000")
    with pytest.raises(ConfigError, match="no such file; run from the project's root"):
        remove_batch("many-b000", Project(files.params, tmp_path / "dvc.yaml"))


@pytest.mark.slow
def test_two_registrations_at_once_lose_nothing(project: Path, tmp_path: Path, id_key: str) -> None:
    roots = {f"clinic-b00{number}": many(tmp_path / f"many{number}", 12) for number in range(3)}
    for name, folder in roots.items():
        for number, path in enumerate(sorted(folder.rglob("*.png"))):
            Image.fromarray(smooth_image(24, 24, 1000 * int(name[-1]) + number)).save(path)
    command = [sys.executable, "-m", "shards", "register"]
    running = [subprocess.Popen([*command, name, str(folder)], cwd=project) for name, folder in roots.items()]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    assert set(read_params(project / "params.yaml")["batches"]) == {"phantom-b000", *roots}
    deps = read_params(project / "dvc.yaml")["stages"]["pretrain"]["deps"]
    assert {f"data/shards/{name}" for name in roots} <= set(deps)


@pytest.mark.parametrize("only", [False, True])
def test_a_registration_that_is_killed_between_any_two_writes_leaves_a_graph_that_runs(
    only: bool, project: Path, tmp_path: Path, id_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, states = many(tmp_path / "many"), []

    def write_and_look(path: Path, text: str) -> None:
        write_text(path, text)
        states.append([read_params(project / "params.yaml"), read_params(project / "dvc.yaml")])

    monkeypatch.setattr("shards.delivery.register.write_text", write_and_look)
    register_batch(
        "real-b000", folder, FolderSource(), only=only, project=Project(project / "params.yaml", project / "dvc.yaml")
    )
    assert len(states) >= 3
    for values, graph in states:
        needed = {dep for stage in ("pretrain", "report") for dep in graph["stages"][stage]["deps"]}
        made = {f"data/shards/{name}" for name in values["batches"]}
        assert {dep for dep in needed if dep.startswith("data/shards/")} <= made
        assert values["evaluate"]["batch"] in values["batches"]


def test_a_kept_copy_is_never_written_over(project: Path, tmp_path: Path, id_key: str) -> None:
    before = (project / "params.yaml").read_bytes()
    a, b = many(tmp_path / "a"), many(tmp_path / "b")
    register_only(project, a)
    register_only(project, b, "other-b000")
    between = (project / "params.yaml").read_bytes()
    register_only(project, a)
    assert (project / f"params.yaml{COPY}").read_bytes() == before
    assert (project / f"params.yaml{COPY}-2").read_bytes() == between


def test_statistics_that_are_in_force_are_told_where_others_are_measured_now(
    project: Path, root: Path, id_key: str, capsys: pytest.CaptureFixture
) -> None:
    register(project, root)
    mean = read_params(project / "params.yaml")["mix"]["clinic-b000"]["mean"]
    register(project, root)
    assert "params.yaml keeps" not in capsys.readouterr().err
    params = project / "params.yaml"
    params.write_text(params.read_text().replace(f"mean: {mean}", "mean: 0.123"))
    register(project, root)
    assert f"mean {mean}" in (said := capsys.readouterr().err)
    assert "params.yaml keeps mean 0.123" in said


def test_the_only_batch_twice_changes_nothing(project: Path, tmp_path: Path, id_key: str) -> None:
    register_only(project, many(tmp_path / "many"))
    once = folder_bytes(project)
    register_only(project, tmp_path / "many")
    assert folder_bytes(project) == once


@pytest.mark.parametrize(
    "killed_after",
    [
        "real-b000.jsonl",
        pytest.param(f"dvc.yaml{COPY}", marks=pytest.mark.slow),
        "dvc.yaml",
        pytest.param(f"params.yaml{COPY}", marks=pytest.mark.slow),
    ],
)
def test_a_kill_while_the_only_batch_is_entered_is_completed_by_the_same_call(
    killed_after: str, project: Path, tmp_path: Path, id_key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(tmp_path / "many")
    copy = Path(shutil.copytree(project, tmp_path / "copy"))
    register_only(copy, tmp_path / "many")

    written = []

    def killed(target: Path, text: str) -> None:
        if written and written[-1] == killed_after:
            raise KeyboardInterrupt
        written.append(target.name)
        write_text(target, text)

    for name in ("write_text", "write_private_text"):
        monkeypatch.setattr(f"shards.delivery.register.{name}", killed)
    with pytest.raises(KeyboardInterrupt):
        register_only(project, tmp_path / "many")
    monkeypatch.undo()
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "keys" / "id.key"))
    assert folder_bytes(project) != folder_bytes(copy)
    register_only(project, tmp_path / "many")
    assert folder_bytes(project) == folder_bytes(copy)


def test_the_only_batch_may_be_one_that_is_there_and_another_may_follow(
    project: Path, tmp_path: Path, id_key: str
) -> None:
    register(project, many(tmp_path / "many"), "real-b000")
    register_only(project, tmp_path / "many")
    assert list(batches_of(project)) == ["real-b000"]
    write_folder(tmp_path / "many", ["late.png"], first=1000)
    register_only(project, tmp_path / "many", "real-b001")
    assert list(batches_of(project)) == ["real-b001"]
    assert len(registered(project, "real-b001")) == 151, "what the batch taken out had is not left out"
    assert all(deps == ["real-b001"] for deps in consumers((project / "dvc.yaml").read_text()).values())


def test_too_few_test_patients_are_refused_before_anything_is_written(project: Path, root: Path, id_key: str) -> None:
    before = [(project / file).read_bytes() for file in ("params.yaml", "dvc.yaml")]
    with pytest.raises(SourceError, match=r"of its 12 patients are in the test split, and the evaluation compares 32"):
        register_only(project, root)
    assert before == [(project / file).read_bytes() for file in ("params.yaml", "dvc.yaml")]
    assert not (project / "data").exists()


@pytest.mark.parametrize("given", ["own", "own/sub/deeper", "elsewhere"])
def test_a_csv_whose_paths_fit_another_folder_names_it(given: str, tmp_path: Path) -> None:
    write_folder(tmp_path / "own" / "sub", NAMES)
    write_folder(tmp_path / "own" / "sub" / "deeper", ["x.png"])
    write_folder(tmp_path / "elsewhere", ["y.png"])
    write_csv(tmp_path / "own" / "labels.csv", ("path", "patient"), [(name, "x") for name in NAMES])
    with pytest.raises(SourceError, match=rf"its paths fit the folder {tmp_path}/own/sub, not .*: give that folder"):
        check_paths_fit(tmp_path / "own" / "labels.csv", tmp_path / given)
    check_paths_fit(tmp_path / "own" / "labels.csv", tmp_path / "own" / "sub")
    write_csv(tmp_path / "labels.csv", ("path",), [("nowhere.png",)])
    check_paths_fit(tmp_path / "labels.csv", tmp_path / "elsewhere")  # the source says which row names no file


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_a_folder_closed_to_the_user_is_named_where_it_was_given_and_passed_over_beside_it(tmp_path: Path) -> None:
    write_folder(tmp_path / "closed", NAMES)
    write_folder(tmp_path / "open", ["x.png"])
    write_csv(tmp_path / "labels.csv", ("path",), [(name,) for name in NAMES])
    (tmp_path / "closed").chmod(0)
    try:
        check_paths_fit(tmp_path / "labels.csv", tmp_path / "open")
        for given in ("closed", "closed/sub"):
            with pytest.raises(SourceError, match=rf"{tmp_path}/{given}: .*\(Permission denied\); expected .*: check"):
                check_paths_fit(tmp_path / "labels.csv", tmp_path / given)
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_one_item_is_kept_with_the_comments_between_the_items() -> None:
    text = (
        "# top\nbatches:   # deliveries\n  # the first\n  a:\n    k: 1\n    # inside a\n\n  # the second\n"
        "  ab: {k: 2}   # beside\n  # the third\n  b:\n    k: 3\n# the next\nother: 1\n"
    )
    assert keep_items(text, "batches", ["ab"]) == (
        "# top\nbatches:   # deliveries\n  # the first\n\n  # the second\n"
        "  ab: {k: 2}   # beside\n  # the third\n# the next\nother: 1\n"
    )
    assert keep_items(text, "batches", ["b"]).endswith("  # the third\n  b:\n    k: 3\n# the next\nother: 1\n")
    once = keep_items(text, "batches", ["a"])
    assert keep_items(once, "batches", ["a"]) == once


def test_items_that_share_an_anchor_are_left_to_the_user() -> None:
    with pytest.raises(ConfigError, match="do so by hand"):
        keep_items("batches:\n  a: &x {k: 1}\n  b:\n    <<: *x\n", "batches", ["b"])
    with pytest.raises(ConfigError, match="one item a line"):
        keep_items("batches: {a: 1, b: 2}\n", "batches", ["b"])


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("evaluate:\n  batch: a   # why\n  seed: 0\n", "evaluate:\n  batch: b-1   # why\n  seed: 0\n"),
        ("evaluate: {batch: a, seed: 0}  # all\n", "evaluate: {batch: b-1, seed: 0}  # all\n"),
        ("evaluate:\n  batch: 'a # b'\n", "evaluate:\n  batch: b-1\n"),
        ('evaluate:\n  batch: "b-1"\n', 'evaluate:\n  batch: "b-1"\n'),
    ],
)
def test_a_value_is_set_in_its_place(before: str, after: str) -> None:
    assert set_value(before, "evaluate", "batch", "b-1") == after


def test_a_value_that_reads_as_no_word_is_quoted_and_what_cannot_be_set_is_refused() -> None:
    assert set_value("evaluate:\n  batch: a\n", "evaluate", "batch", "null") == 'evaluate:\n  batch: "null"\n'
    with pytest.raises(ConfigError, match=r"evaluate\.batch: not found"):
        set_value("evaluate:\n  seed: 0\n", "evaluate", "batch", "b")
    with pytest.raises(ConfigError, match="by hand"):
        set_value("evaluate:\n  batch: &x a\n", "evaluate", "batch", "b")


def test_other_batches_and_what_was_read_of_them_leave_the_consumers() -> None:
    text = (
        "stages:\n  phantom:\n    outs:\n      - data/phantom\n"
        "  one:\n    deps:\n    - data/shards/a   # first\n    - data/other\n    - data/shards/a1\n"
        "  two:\n    deps:\n        - 'data/phantom'  # gone\n        - 'data/shards/b'\n        - data/shards/a\n"
        "  three:\n    deps:\n      - data/phantom\n"
    )
    expected = text
    for line in ("    - data/shards/a1\n", "        - 'data/phantom'  # gone\n", "        - 'data/shards/b'\n"):
        expected = expected.replace(line, "")
    gone = {"data/phantom", "data/shards/a1", "data/shards/b"}
    assert drop_deps(text, gone) == expected
    assert drop_deps(expected, gone) == expected
    with pytest.raises(ConfigError, match=r"one\.deps: expected one dep a line, as '- data/shards/b'"):
        drop_deps("stages:\n  one:\n    deps: [data/shards/a, data/shards/b]\n", {"data/shards/b"})
    with pytest.raises(ConfigError, match="one would read no batch at all"):
        drop_deps("stages:\n  one:\n    deps:\n    - data/shards/a\n", {"data/shards/a"})
