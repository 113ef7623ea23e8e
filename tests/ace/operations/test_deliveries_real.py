"""The judge on real images: parts of one hospital are accepted, and what does not belong to them is refused."""

import csv
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ace.operations.deliveries as module
from ace.operations.incoming import MARKER
from tests.ace.operations.delivered import (
    MEASURED,
    build_here,
    commit_all,
    deliveries_of,
    make_service,
    mixed,
    open_key,
)
from tests.real.data import DATA, needs
from tests.support.datasets import write_csv

pytestmark = [*needs("nih-512"), *needs("idrid-768"), pytest.mark.slow]
Levels = np.ndarray


def third(number: int) -> list[tuple[Path, str, str]]:
    """Path, patient and view of the radiographs of every third patient."""
    with (DATA / "nih-512" / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        (DATA / "nih-512" / "images" / row["path"], row["patient"], row["view"])
        for row in rows
        if hashlib.sha256(row["patient"].encode()).digest()[0] % 3 == number
    ]


def fundus() -> list[tuple[Path, str, str]]:
    with (DATA / "idrid-768" / "labels.csv").open(newline="", encoding="utf-8") as file:
        return [(DATA / "idrid-768" / "images" / row["path"], row["patient"], "") for row in csv.DictReader(file)]


def write(
    folder: Path, images: Sequence[tuple[Path, str, str]], change: Callable[[Levels], Levels] | None = None
) -> Path:
    """Write a delivery of these images, byte for byte or changed."""
    folder.mkdir(parents=True)
    rows = []
    for path, patient, view in images:
        name = path.name if change is None else f"{path.stem}.png"
        rows.append((name, patient, view))
        if change is None:
            (folder / name).write_bytes(path.read_bytes())
        else:
            with Image.open(path) as image:
                Image.fromarray(change(np.asarray(image))).save(folder / name)
    write_csv(folder / "labels.csv", ("path", "patient", "view"), rows)
    (folder / MARKER).touch()
    return folder


def test_radiographs_of_the_same_hospital_are_accepted_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_key(tmp_path, monkeypatch)
    monkeypatch.setattr(module, "repro", build_here)
    first = third(0)[:150]
    project = make_service(tmp_path, write(tmp_path / "first", first))
    assert build_here(f"shard@{MEASURED}", project, tmp_path / "log") is None
    commit_all(project)
    incoming = project / "incoming"
    write(incoming / "1 second part", third(1)[:100])
    write(incoming / "2 third part", third(2)[:100])
    write(incoming / "3 copies", first)
    write(incoming / "4 fundus", fundus()[:40])
    write(incoming / "5 grey fundus", fundus()[:40], lambda levels: levels.mean(axis=2).astype(np.uint8))
    write(incoming / "6 negatives", third(2)[100:140], lambda levels: 255 - levels)
    write(incoming / "7 stored again", first[:40], lambda levels: levels[2:-2, 2:-2] // 2 * 2)
    write(incoming / "8 white", first[:40], lambda levels: np.full_like(levels, 255))
    list(deliveries_of(project).run())
    found = {item.sent_as: item for item in deliveries_of(project).taken()}
    assert [name for name, item in found.items() if item.state == "accepted"] == ["1 second part", "2 third part"]
    assert mixed(project) == [MEASURED, "clinic-b001", "clinic-b002"]
    reports = {name: item.report or {} for name, item in found.items()}
    failed = {
        name: {item["check"] for item in report["findings"] if not item["passed"]} for name, report in reports.items()
    }
    assert "nothing to add" in reports["3 copies"]["cause"]
    assert {"pictures", "view_drift", "mean_drift", "likeness"} <= failed["4 fundus"]
    assert {"view_drift", "mean_drift", "likeness"} <= failed["5 grey fundus"]
    assert "likeness" in failed["6 negatives"]
    assert failed["7 stored again"] == {"near_copies"}
    assert "images cannot be used" in reports["8 white"]["cause"]
