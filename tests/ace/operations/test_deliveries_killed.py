"""Deliveries that are killed at any moment: the next call finishes them, with nothing lost and nothing doubled."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import ace.operations.deliveries as module
from ace.operations.clone import Clone
from ace.operations.events import EventLog
from tests.ace.operations.delivered import (
    MEASURED,
    build_here,
    commit_all,
    deliver,
    deliveries_of,
    lines_of_log,
    load,
    make_service,
    mixed,
    open_key,
)
from tests.ace.operations.service import init_clone
from tests.support.checkout import ROOT, git

NUM_ROUNDS = 10
LIMIT_S = 600
RUN = [sys.executable, "-m", "ace", "deliveries", "run"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A service with an accepted batch that is not built yet."""
    open_key(tmp_path, monkeypatch)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return make_service(tmp_path)


def started(project: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(RUN, cwd=project, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def use_dvc(project: Path) -> None:
    """Let dvc build the batch, and commit."""
    (project / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(ROOT / ".dvc" / name, project / ".dvc")
    init_clone(project)
    command = [sys.executable, "-m", "dvc", "repro", "-s", f"shard@{MEASURED}"]
    subprocess.run(command, cwd=project, check=True, capture_output=True)
    commit_all(project)


class KilledError(BaseException):
    """Stands for a kill."""


def test_a_commit_and_its_line_in_the_log_that_are_killed_before_or_after_are_made_once(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "repro", build_here)
    build_here(f"shard@{MEASURED}", project, project)
    commit_all(project)
    deliver(project / "incoming" / "March", range(100, 130))

    def kill(owner: Any, name: str) -> None:
        whole = getattr(owner, name)

        def before(*_: Any, **__: Any) -> None:
            raise KilledError

        def after(*arguments: Any, **options: Any) -> None:
            whole(*arguments, **options)
            raise KilledError

        for killed in (before, after):
            monkeypatch.setattr(owner, name, killed)
            with pytest.raises(KilledError):
                list(deliveries_of(project).run())
        monkeypatch.setattr(owner, name, whole)

    kill(Clone, "commit")
    kill(EventLog, "append")
    assert list(deliveries_of(project).run()) == []
    assert lines_of_log(project) == [("clinic-b001", "accepted", "the checks")]
    assert git(project, "log", "--format=%s").splitlines() == ["Batch clinic-b001 is accepted", "the project"]
    assert mixed(project) == [MEASURED, "clinic-b001"]


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_change_on_the_disk_is_finished_by_the_next_one(project: Path) -> None:
    build_here(f"shard@{MEASURED}", project, project)
    commit_all(project)
    deliver(project / "incoming" / "March", range(100, 130))
    deliver(project / "incoming" / "negatives", range(200, 230), is_negative=True)
    command = [sys.executable, "-m", "tests.ace.operations.killed", str(project), "0", "17"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    num_killed = int(done.stdout.splitlines()[-1].split()[0])
    assert num_killed > 10


@pytest.mark.slow
def test_processes_that_are_killed_at_random_lose_and_double_nothing(project: Path) -> None:
    use_dvc(project)
    sent = {"March": range(100, 130), "may": range(300, 330)}
    for name, seeds in sent.items():
        deliver(project / "incoming" / name, seeds)
    shutil.copytree(project.parent / "first", project / "incoming" / "again")
    generator = random.Random(16)
    begun = time.monotonic()
    for number in range(NUM_ROUNDS):
        process = started(project)
        try:
            process.communicate(timeout=generator.uniform(0.5, 8))
        except subprocess.TimeoutExpired:
            # With all that it has started, or alone: then dvc goes on.
            kill = os.killpg if number % 3 else os.kill
            kill(process.pid, signal.SIGKILL)
            process.communicate()
        if time.monotonic() - begun > LIMIT_S / 3:
            break
    said = ""
    while said != "nothing is due\n":  # while a dvc of a killed call is at work, they do nothing and say so
        process = started(project)
        said, complained = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, complained
        time.sleep(0.5)
    found = {item.sent_as: item for item in deliveries_of(project).taken()}
    assert {name: item.state for name, item in found.items()} == dict.fromkeys(sent, "accepted") | {"again": "refused"}
    assert mixed(project) == sorted([MEASURED, *(found[name].name for name in sent)])
    for name, seeds in sent.items():
        assert len(list((found[name].folder / "images").glob("*.png"))) == len(seeds)
        assert f"shard@{found[name].name}" in load(project / "dvc.lock")["stages"]
        verify = [sys.executable, "-m", "shards", "verify", f"data/shards/{found[name].name}"]
        subprocess.run(verify, cwd=project, check=True, capture_output=True)
    assert len(git(project, "log", "--format=%s").splitlines()) == 3
    assert sorted(lines_of_log(project)) == sorted((item.name, item.state, "the checks") for item in found.values())
    assert git(project, "status", "--porcelain", "--untracked-files=no", "--", ":!registry") == ""
    assert not list((project / "incoming").iterdir())


@pytest.mark.slow
def test_of_two_calls_at_once_one_does_all_and_the_other_says_so(project: Path) -> None:
    use_dvc(project)
    deliver(project / "incoming" / "March", range(100, 130))
    processes = [started(project) for _ in range(2)]
    answers = sorted(process.communicate(timeout=LIMIT_S) for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[1][0] == "clinic-b001: taken from incoming/March\nclinic-b001: accepted\n"
    assert "another call is at work" in answers[0][1] or answers[0][0] == "nothing is due\n"
    assert mixed(project) == [MEASURED, "clinic-b001"]
