"""What Dagster keeps of a patient goes, down to the bytes of its files, and nothing of others."""

import json
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterInstance, Failure, asset, job, materialize, op

from ace.operations.dagster_runs import erase_runs as let_erase
from ace.operations.residue import search
from pipelines.erased_runs import erase_runs
from tests.support.checkout import ROOT

PSEUDONYM = "a1b2c3d4e5f60718"
TEXTS = [PSEUDONYM.encode(), b"never there"]
BEFORE = "an image of somebody else\n" * 400
"""So long that SQLite cuts the event into pieces."""


@asset
def printing() -> None:
    print(f"warning: {PSEUDONYM}")


@asset
def failing() -> None:
    lines = f"{BEFORE}3 of 7 test patients are among the model's training patients, as {PSEUDONYM}"
    raise Failure("dvc failed", metadata={"last_lines": lines})


@asset
def other() -> None:
    print("nothing of the patient")


@op
def work() -> None:
    pass


@job
def waiting() -> None:
    work()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


def left(home: Path) -> list[str]:
    return [path.relative_to(home).as_posix() for path in search([home], TEXTS, home / "none")]


def test_output_and_runs_of_a_patient_go_and_others_stay_while_a_service_has_the_files_open(home: Path) -> None:
    with DagsterInstance.get() as instance, ExitStack() as stack:
        runs = {
            one.key.to_user_string(): materialize([one], instance=instance, raise_on_error=False).run_id
            for one in (printing, failing, other)
        }
        for path in home.rglob("*.db"):
            # As a daemon has: while somebody has a file open, its journal stays.
            daemon = stack.enter_context(closing(sqlite3.connect(path)))
            daemon.execute("SELECT count(*) FROM sqlite_master").fetchall()
        assert len(left(home)) > 1
        found = erase_runs(instance, TEXTS)
        assert found == {"output": [runs["printing"]], "removed": [runs["failing"]], "running": []}
        assert left(home) == []
        assert {run.run_id for run in instance.get_runs()} == {runs["printing"], runs["other"]}
        latest = instance.get_latest_materialization_event(AssetKey("printing"))
        assert latest is not None
        assert latest.run_id == runs["printing"], "what its events say of the asset stays"
        assert list((home / "storage" / runs["other"]).rglob("*.out"))
        assert erase_runs(instance, TEXTS) == {"output": [], "removed": [], "running": []}


def test_a_run_that_has_not_ended_is_named_and_left_until_it_has(home: Path) -> None:
    with DagsterInstance.get() as instance:
        run = instance.create_run_for_job(waiting, tags={"why": PSEUDONYM})
        assert erase_runs(instance, TEXTS)["running"] == [run.run_id]
        assert instance.has_run(run.run_id)
        instance.report_run_canceled(run)
        assert erase_runs(instance, TEXTS)["removed"] == [run.run_id]
        assert not instance.has_run(run.run_id)
    assert left(home) == []


@pytest.mark.slow
def test_an_erasure_asks_for_it_and_the_texts_stand_on_no_command_line(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with DagsterInstance.get() as instance:
        run = materialize([failing], instance=instance, raise_on_error=False).run_id
    commands = []
    original = subprocess.run

    def watched(command: list[str], **options: object) -> object:
        commands.append(command)
        return original(command, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", watched)
    assert let_erase([text.hex() for text in TEXTS]) == {"output": [], "removed": [run], "running": []}
    assert commands == [[sys.executable, "-m", "pipelines.erased_runs"]]
    assert left(home) == []
    assert json.dumps(commands).count(PSEUDONYM) == 0
