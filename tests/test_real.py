"""`make real`: from a folder of images to a report on them alone, and a second call that does nothing."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from shards.core.config import read_params
from tests.support.checkout import MAKE, ROOT, clone_checkout, run
from tests.support.datasets import smooth_image, write_csv

NIH = ROOT.parent / "shared" / "data" / "nih-512"
NUM_REAL = 120


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh clone of somebody with an empty home and no identity key."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site-cache"))
    monkeypatch.setenv("ACE_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("ACE_ID_KEY_FILE", raising=False)
    (tmp_path / "home").mkdir()
    return clone_checkout(tmp_path / "clone")


def write_delivery(folder: Path) -> None:
    """80 small grey images of as many patients: whatever the key, enough of them are test patients."""
    (folder / "images").mkdir(parents=True)
    for number in range(80):
        Image.fromarray(smooth_image(96, 80, number)).save(folder / "images" / f"{number:02}.png")
    rows = [(f"{number:02}.png", f"patient-{number}", number % 2) for number in range(80)]
    write_csv(folder / "labels.csv", ("path", "patient", "effusion"), rows)


def make_real(clone: Path, data: Path, labels: Path) -> str:
    return run(clone, *MAKE, "real", f"DATA={data}", f"LABELS={labels}", "CONFIG=smoke")


STAGES = {
    *("shard@real-b000", "pretrain", "import@imagenet", "cohort"),
    *("measure@trained", "measure@untrained", "measure@imagenet", "evaluate", "report", "explore"),
}


def stages_run(printed: str) -> set[str]:
    return set(re.findall(r"Running stage '(.*)'", printed))


def refusal(*arguments: str, cwd: Path = ROOT) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("DATA", "LABELS")}
    done = subprocess.run(
        [*MAKE, "real", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert "for example: make real DATA=/path/to/images LABELS=/path/to/labels.csv" in done.stderr
    assert "config" not in done.stdout
    return done.stderr


def test_what_make_real_is_given_is_looked_at_first(tmp_path: Path) -> None:
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    assert "DATA='' is not a folder of images" in refusal()
    assert f"DATA='{tmp_path}/none' is not a folder" in refusal(f"DATA={tmp_path}/none")
    assert "LABELS='none.csv' is not a file" in refusal(f"DATA={folder}", "LABELS=none.csv")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_make_real_runs_on_a_folder_alone_and_a_second_call_does_nothing(clone: Path, tmp_path: Path) -> None:
    data = tmp_path / "a delivery"
    write_delivery(data)
    key = tmp_path / "home" / "ace-id.key"
    first = make_real(clone, data / "images", data / "labels.csv")
    assert stages_run(first) == STAGES
    assert first.count(f"made {key}, the secret behind patient pseudonyms and splits") == 1
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert "decompositionality" in first
    assert str(clone / "reports/report.html") in first
    assert not (clone / "data/phantom").exists()
    values = read_params(clone / "params.yaml")
    assert list(values["batches"]) == ["real-b000"]
    assert values["evaluate"]["batch"] == "real-b000"
    secret = key.read_bytes()
    second = make_real(clone, data / "images", data / "labels.csv")
    assert stages_run(second) == set()
    assert "up to date" in second
    assert "made" not in second
    assert "decompositionality" in second
    assert key.read_bytes() == secret


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_make_real_runs_on_real_radiographs(clone: Path, tmp_path: Path) -> None:
    if not NIH.is_dir():
        pytest.skip(f"REAL IMAGES NOT TESTED: {NIH} is missing")
    data = tmp_path / "nih"
    (data / "images").mkdir(parents=True)
    header, *rows = (NIH / "labels.csv").read_text(encoding="utf-8").splitlines()
    for row in rows[:NUM_REAL]:
        shutil.copy(NIH / "images" / row.split(",")[0], data / "images")
    (data / "labels.csv").write_text("\n".join([header, *rows[:NUM_REAL]]) + "\n", encoding="utf-8")
    command = [*MAKE, "real", f"DATA={data}", f"LABELS={data / 'labels.csv'}", "CONFIG=smoke"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(clone)}
    refused = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert f"its paths fit the folder {data / 'images'}, not {data}" in refused.stderr
    printed = make_real(clone, data / "images", data / "labels.csv")
    assert stages_run(printed) == STAGES
    assert "not measured: fewer than two" in printed
