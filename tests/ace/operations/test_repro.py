"""`dvc repro` after a dvc that was killed, which leaves its own record of busy outs behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ace.operations.repro import RWLOCK, at_work, repro
from tests.support.checkout import git

STAGE = f"stages: {{make: {{cmd: cp {RWLOCK} busy.json && echo made > out, outs: [out]}}}}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site-cache"))
    root = tmp_path / "project"
    root.mkdir()
    git(root, "init", "--quiet")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--quiet"], cwd=root, check=True)
    (root / "dvc.yaml").write_text(STAGE)
    return root


def busy(project: Path, pid: int) -> str:
    """The record of a dvc that makes the out."""
    return json.dumps({"write": {str(project / "out"): {"pid": pid, "cmd": "dvc repro make"}}, "read": {}})


def test_what_a_killed_dvc_has_left_keeps_no_later_one_from_its_work(project: Path, tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    whole = busy(project, dead.pid)
    for left in (whole, whole[:30], ""):
        (project / "out").unlink(missing_ok=True)
        (project / RWLOCK).write_text(left)
        assert at_work(project) == {}
        assert repro("make", project, tmp_path / "log") is None, (tmp_path / "log").read_text()
        assert (project / "out").read_text() == "made\n"
        assert "dvc repro make" not in (project / RWLOCK).read_text()
        assert [*json.loads((project / "busy.json").read_text())["write"]] == [str(project / "out")], "as dvc writes it"


def test_the_record_of_a_process_that_lives_is_left_and_named(project: Path, tmp_path: Path) -> None:
    (project / RWLOCK).write_text(busy(project, os.getpid()))
    assert at_work(project) == {"out": os.getpid()}, "as the screen shows it"
    said = repro("make", project, tmp_path / "log")
    assert said is not None
    assert f"PID {os.getpid()}" in said
    assert (project / RWLOCK).read_text() == busy(project, os.getpid())
