import csv
import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from shards.__main__ import build_parser
from shards.cli import run_command
from shards.core.errors import ConfigError
from shards.phantom.anatomy import Anatomy
from shards.phantom.dataset import build_phantom, fingerprint
from shards.phantom.findings import KINDS
from shards.phantom.labels import STRUCTURES
from shards.phantom.params import PhantomParams
from shards.phantom.study import draw_study
from shards.runtime.scratch import unfinished_work
from shards.sources.datasets.phantom import PhantomSource
from tests.shards.phantom.settings import TINY, phantom_params

PARAMS = phantom_params(**TINY, num_patients=12, images_per_patient=2, findings={"fraction": 0.8})
FEW = PARAMS.model_copy(update={"num_patients": 6})


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of `PARAMS`, made by one process."""
    return made(PARAMS, tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of `FEW`, made by one process."""
    return made(FEW, tmp_path_factory.mktemp("few"))


def made(params: PhantomParams, folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(folder / "scratch"))
        build_phantom(params, folder / "phantom", num_workers=1)
    assert {path.suffix for path in (folder / "scratch").rglob("*") if path.is_file()} <= {".lock"}
    return folder / "phantom"


@pytest.mark.slow
def test_every_image_has_all_structures_and_its_finding_and_no_other(dataset: Path) -> None:
    fields = {"lungfield_left", "lungfield_right"}
    labels = rows(dataset / "labels.csv")
    assert [row["image_id"] for row in labels] == sorted(path.stem for path in (dataset / "images").iterdir())
    for row in labels:
        found = {path.parent.name for path in (dataset / "masks").glob(f"*/{row['image_id']}.png")}
        finding = {kind for kind in KINDS if row[kind] == "1"}
        assert found == set(STRUCTURES) | fields | finding
        assert len(finding) <= 1
        has_side = bool(finding) and finding != {"cardiomegaly"}
        assert row["finding_side"] in (("left", "right") if has_side else ("",))
        for path in [dataset / "images", *(dataset / "masks" / name for name in found)]:
            with Image.open(path / f"{row['image_id']}.png") as image:
                assert image.size == (PARAMS.size_px, PARAMS.size_px)
                assert image.mode == ("L" if path.name == "images" else "1")


def test_images_of_a_patient_share_study_and_labels_but_not_pixels(dataset: Path) -> None:
    labels = rows(dataset / "labels.csv")
    assert len({row["patient_id"] for row in labels}) == PARAMS.num_patients
    pairs = [
        (row, other)
        for row in labels
        for other in labels
        if row["patient_id"] == other["patient_id"] and row["image_id"] < other["image_id"]
    ]
    assert pairs
    assert len(labels) == PARAMS.num_patients + len(pairs)
    for row, other in pairs:
        assert all(row[column] == other[column] for column in ("study_id", "finding_side", *KINDS))
        first, second = ((dataset / "images" / f"{item['image_id']}.png").read_bytes() for item in (row, other))
        assert first != second


def test_every_image_has_the_spacing_of_its_own_exposure(dataset: Path, anatomy: Anatomy) -> None:
    records = PhantomSource().read(dataset).records
    found = {record.source_id: record.spacing_mm for record in records}
    for number in range(PARAMS.num_patients):
        study = draw_study(PARAMS, anatomy, number)
        for name, exposure in zip(study.image_ids, study.exposures, strict=True):
            side_mm = pytest.approx(exposure.field_of_view_mm / PARAMS.size_px, abs=1e-6)
            assert found.pop(name) == (side_mm, side_mm)
    assert not found
    assert len({record.spacing_mm for record in records}) == len(records)


def test_landmarks_lie_inside_the_image_and_on_what_they_are_named_after(dataset: Path) -> None:
    landmarks = rows(dataset / "landmarks.csv")
    num_on, num_checked = 0, 0
    for row in landmarks:
        place = float(row["row"]), float(row["col"])
        assert all(0 <= coordinate < PARAMS.size_px for coordinate in place)
        structure = {"vertebra": "spine", "vessel": "lung"}.get(row["landmark"].split("_")[0])
        if structure:
            side = f"_{row['landmark'].split('_')[1]}" if structure == "lung" else ""
            with Image.open(dataset / "masks" / f"{structure}{side}" / f"{row['image_id']}.png") as mask:
                num_on += int(bool(np.asarray(mask)[int(place[0]), int(place[1])]))
                num_checked += 1
    assert num_checked > 100
    assert num_on >= 0.98 * num_checked
    per_image = len(landmarks) / len(rows(dataset / "labels.csv"))
    assert per_image > 100


def test_the_description_names_limits_licence_and_parameters(dataset: Path) -> None:
    description = json.loads((dataset / "dataset.json").read_text())
    assert "One subject" in description["limits"]
    assert "LIDC-IDRI" in description["notice"]
    assert PhantomParams.model_validate(description["params"]) == PARAMS
    labels = rows(dataset / "labels.csv")
    assert description["counts"]["images"] == len(labels)
    assert description["counts"]["findings"] == {kind: sum(int(row[kind]) for row in labels) for kind in KINDS}
    with Image.open(dataset / "contact_sheet.png") as sheet:
        assert len(np.unique(np.asarray(sheet))) > 100


@pytest.mark.slow
def test_more_processes_and_another_place_give_the_same_bytes(few: Path, tmp_path: Path) -> None:
    build_phantom(FEW, tmp_path / "deep" / "other", num_workers=2)
    assert folder_bytes(tmp_path / "deep" / "other") == folder_bytes(few)


def test_more_patients_leave_the_first_ones_as_they_were(dataset: Path, few: Path) -> None:
    before, after = folder_bytes(few), folder_bytes(dataset)
    images = [name for name in before if name.startswith(("images/", "masks/"))]
    assert len(images) > 20
    assert all(before[name] == after[name] for name in images)


def test_rendering_in_this_process_leaves_its_arithmetic_as_it_was(tmp_path: Path) -> None:
    build_phantom(PARAMS.model_copy(update={"num_patients": 1}), tmp_path / "one", num_workers=1)
    assert 5e-324 > 0, "denormals are flushed"
    assert torch.tensor(1e-40) * 1 > 0


def test_another_seed_gives_other_images(dataset: Path, tmp_path: Path) -> None:
    build_phantom(
        PARAMS.model_copy(update={"num_patients": 1, "seed": PARAMS.seed + 1}), tmp_path / "other", num_workers=1
    )
    name = "images/p0000-i0.png"
    assert folder_bytes(tmp_path / "other")[name] != folder_bytes(dataset)[name]


def test_the_fingerprint_depends_on_every_parameter() -> None:
    changed = [
        PARAMS.model_copy(update={"seed": 5}),
        PARAMS.model_copy(update={"num_depth_planes": 17}),
        phantom_params(**TINY, num_patients=12, images_per_patient=2, findings={"fraction": 0.7}),
    ]
    assert len({fingerprint(params) for params in [PARAMS, *changed]}) == 4


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_killed_run_goes_on_and_leaves_the_same_bytes(
    num_workers: int, few: Path, tmp_path: Path, scratch: Path
) -> None:
    YAML(typ="safe").dump({"phantom": FEW.model_dump(mode="json")}, tmp_path / "params.yaml")
    out = tmp_path / "out" / "phantom"
    command = ["phantom", "--params", str(tmp_path / "params.yaml"), "--out", str(out), "--num-workers"]
    process = subprocess.Popen([sys.executable, "-m", "shards", *command, str(num_workers)], stderr=subprocess.DEVNULL)
    while len(done := list(scratch.rglob("records/*.json"))) < 3:
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
        assert process.returncode is None, "the run ended before the kill"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()

    # One finished image loses a byte, as after a power cut: it is drawn again; the others are not.
    image = next(scratch.rglob(f"images/{done[0].stem}.png"))
    image.write_bytes(image.read_bytes()[:-1])
    kept = {path: path.stat().st_mtime_ns for path in scratch.rglob("images/*.png") if path.stem in names(done[1:])}
    assert run_command(build_parser(), [*command, "1"]) == 0
    assert folder_bytes(out) == folder_bytes(few)
    for path, changed_at in kept.items():
        assert (out / "images" / path.name).stat().st_mtime_ns == changed_at
    assert [path.name for path in out.parent.iterdir()] == ["phantom"]


def names(records: list[Path]) -> set[str]:
    return {record.stem for record in records}


def test_the_same_dataset_is_not_made_twice_at_once(tmp_path: Path) -> None:
    with unfinished_work("phantom", fingerprint(PARAMS)[:16]), pytest.raises(ConfigError, match="another process"):
        build_phantom(PARAMS, tmp_path / "phantom", num_workers=1)


def test_a_finished_dataset_replaces_an_older_one_whole(tmp_path: Path) -> None:
    out = tmp_path / "phantom"
    (out / "images").mkdir(parents=True)
    (out / "images" / "stale.png").write_bytes(b"")
    build_phantom(PARAMS.model_copy(update={"num_patients": 1}), out, num_workers=1)
    assert not (out / "images" / "stale.png").exists()
    assert (out / "labels.csv").is_file()
