"""A person overrules the quality pass on single images, through the commands that users give."""

import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shards.__main__ import build_parser
from shards.build.stage import build_shards
from shards.cli import run_command
from shards.core.params import RegisteredSourceParams
from shards.delivery.batches import read_batch
from shards.delivery.keep_list import read_list
from shards.delivery.project import Project, keep_images
from shards.quality.reasons import BLANK, KEPT, SAME_FILE
from shards.reading.reader import ShardIndex
from tests.support.checkout import copy_project
from tests.support.datasets import Here, grid_params, shard_params, write_folder

REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path: Path, id_key: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registered folder: twenty pictures, a blank one and one file twice."""
    copy_project(tmp_path)
    write_folder(tmp_path / "own", [f"{number:02}.png" for number in range(20)])
    Image.fromarray(np.full((40, 30), 90, np.uint8)).save(tmp_path / "own" / "blank.png")
    shutil.copy(tmp_path / "own" / "03.png", tmp_path / "own" / "twice.png")
    monkeypatch.chdir(tmp_path)
    assert command("register", "own-b000", "own") == 0
    return tmp_path


def command(*arguments: str) -> int:
    return run_command(build_parser(), arguments)


def source() -> RegisteredSourceParams:
    found = read_batch("own-b000", Path()).source
    assert isinstance(found, RegisteredSourceParams)
    return found


def build(**changes: Any) -> dict[str, dict[str, Any]]:
    """Key → row of the report."""
    build_shards("own-b000", source(), grid_params(), shard_params(**changes), Path("out"), execution=Here())
    return {row["key"]: row for row in pq.read_table("out/quality.parquet").to_pylist()}


def quarantined(rows: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Reason → key."""
    return {row["reason"]: key for key, row in rows.items() if row["verdict"] == "quarantined"}


def test_a_kept_image_is_in_the_shards_with_a_remark(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = quarantined(build())
    assert set(found) == {BLANK, SAME_FILE}
    listed = Path("data/manifests/own-b000.quarantine.csv").read_text().splitlines()
    assert f"blank.png,{found[BLANK]},{BLANK}" in listed
    assert command("keep", "own-b000", found[BLANK]) == 0
    assert "keeps 1 image of own-b000. Now run `dvc repro`" in capsys.readouterr().err
    rows = build()
    assert (rows[found[BLANK]]["verdict"], rows[found[BLANK]]["reason"]) == ("suspect", f"{KEPT}: {BLANK}")
    assert found[BLANK] in ShardIndex.open(Path("out")).keys(np.arange(21))
    assert set(quarantined(rows)) == {SAME_FILE}


FILE = Path("batches/own-b000.yaml")


def test_the_batch_names_the_list_so_that_the_stage_runs_again_and_nothing_else_changes(project: Path) -> None:
    before, params = FILE.read_text(), Path("params.yaml").read_text()
    key = quarantined(build())[BLANK]
    keep_images("own-b000", [key], Project())
    after = FILE.read_text()
    assert Path("params.yaml").read_text() == params
    added = set(after.splitlines()) - set(before.splitlines())
    assert [line.split(":")[0].strip() for line in added] == ["keep_sha256"]
    keep_images("own-b000", [key, key], Project())
    assert FILE.read_text() == after
    path = Path("data/manifests/own-b000.keep.txt")
    assert path.read_text() == f"{key}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_list("own-b000", source()) == {key}
    assert command("register", "own-b000", "own") == 0
    assert FILE.read_text() == after, "a lost manifest is registered again, and the list stays"


def test_an_edited_list_is_refused_until_it_is_taken(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, copy = (quarantined(build())[reason] for reason in (BLANK, SAME_FILE))
    keep_images("own-b000", [key], Project())
    path = Path("data/manifests/own-b000.keep.txt")
    path.write_text(f"# seen on 2 May\n{copy}  # wanted twice")
    assert command("keep", "own-b000", key) == 0
    assert path.read_text().splitlines() == ["# seen on 2 May", f"{copy}  # wanted twice", key]
    path.write_text(f"{copy}\n")
    for content in (True, False):
        assert build_code() == 2
        said = capsys.readouterr().err
        assert "own-b000.keep.txt: " + ("sha256" if content else "not found") in said
        assert "`python -m shards keep own-b000` to take it as it is" in said
        path.unlink(missing_ok=True)
    path.write_text(f"{copy}\n")
    assert command("keep", "own-b000") == 0
    capsys.readouterr()
    assert set(quarantined(build())) == {BLANK, SAME_FILE}
    assert f"{copy} is on the keep list and left out all the same: {SAME_FILE}" in capsys.readouterr().err


def build_code() -> int:
    return command("build", "--batch", "own-b000", "--num-workers", "1", "--out", "out")


def test_what_cannot_be_kept_is_refused_before_anything_is_written(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = FILE.read_text()
    for arguments, message in (
        (("own-b000", "0123456789abcdef"), "1 of 1 keys belong to no image of data/manifests/own-b000.jsonl"),
        (("other", "a"), "has no batch 'other'; expected one of its batches: phantom-b000, own-b000"),
        (("phantom-b000", "a"), "is of the phantom, which has no manifest"),
    ):
        assert command("keep", *arguments) == 2
        assert message in capsys.readouterr().err
    assert FILE.read_text() == before
    assert not Path("data/manifests/own-b000.keep.txt").exists()
