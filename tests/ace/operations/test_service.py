"""The service stopped and started, and the screen that says what it does."""

import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import ace.operations.deliveries as module
from ace.__main__ import build_parser
from ace.operations import retraining_state
from ace.operations.attempts import Attempts
from ace.operations.clone import SCHEDULE
from ace.operations.delivery import ATTEMPTS
from ace.operations.publishing import PUBLISHED
from ace.operations.repro import RWLOCK
from ace.operations.service import stopped
from ace.operations.status import NUM_REFUSED
from shards.cli import run_command
from tests.ace.operations.delivered import (
    MEASURED,
    build_here,
    commit_all,
    deliver,
    deliveries_of,
    make_service,
    open_key,
    status,
)
from tests.ace.operations.service import Service
from tests.support.checkout import git


def main(*arguments: str) -> int:
    return run_command(build_parser(), arguments)


@pytest.fixture
def own(service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Service:
    """Version 1 is accepted, and the service's clone is the working directory."""
    (service.root / "params.yaml").write_text("mix: {a-b000: {weight: 1.0}}\n")
    monkeypatch.chdir(service.root)
    monkeypatch.setenv("ACE_MODELS", str(service.models))
    service.train("one")
    assert main("models", "promote") == 0
    capsys.readouterr()
    return service


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose service has refused one delivery and accepted another."""
    root = tmp_path_factory.mktemp("service")
    with pytest.MonkeyPatch.context() as patch:
        open_key(root, patch)
        patch.setattr(module, "repro", build_here)
        project = make_service(root)
        assert build_here(f"shard@{MEASURED}", project, root / "log") is None
        commit_all(project)
        deliver(project / "incoming" / "March", range(100, 130))
        deliver(project / "incoming" / "negatives", range(200, 230), is_negative=True)
        list(deliveries_of(project).run())
        yield project


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert main("ops", "status", "--json", *arguments) == 0
    return json.loads(capsys.readouterr().out)


def test_stopping_twice_is_one_event_and_starting_ends_it(own: Service) -> None:
    for _ in range(2):
        assert main("ops", "stop", "--why", "the disk is changed") == 0
    event = stopped(own.registry.events())
    assert event is not None
    assert (event.who, event.facts) == ("Anna <anna@example.org>", {"why": "the disk is changed"})
    assert main("ops", "start", "--why", "it is changed") == 0
    assert stopped(own.registry.events()) is None
    assert main("ops", "start", "--why", "again") == 2
    assert own.kinds == ["registered", "promoted", "stopped", "started"]


def test_the_accepted_model_serves_while_the_service_is_stopped(own: Service) -> None:
    assert main("ops", "stop", "--why", "the disk is changed") == 0
    assert own.is_served("v1", "one")
    assert main("models", "audit") == 0


def test_nobody_stops_or_starts_the_service_in_another_checkout(
    own: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("ops", "stop", "--why", "the disk is changed") == 0
    subprocess.run(["git", "switch", "--quiet", "-c", "mine"], check=True)
    for word in ("stop", "start"):
        assert main("ops", word, "--why", "by mistake") == 2
        assert "is on the branch 'mine'" in capsys.readouterr().err


def test_a_stopped_service_takes_nothing_and_says_who_stopped_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    folder = deliver(project / "incoming" / "April", range(3))
    before = status(project)
    assert main("ops", "stop", "--why", "holidays") == 0
    capsys.readouterr()
    assert main("deliveries", "run") == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "Anna <anna@example.org> has stopped the service at" in said.err
    assert "holidays. To start it again: python -m ace ops start" in said.err
    assert folder.is_dir()
    assert status(project) == before
    assert main("ops", "start", "--why", "back") == 0
    folder.rename(project / "April")


def test_the_screen_names_the_accepted_model_a_hold_a_stop_and_the_last_event(
    own: Service, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own.train("two")
    assert main("models", "promote") == 0
    assert main("models", "rollback", "v1", "--why", "worse") == 0
    assert main("ops", "stop", "--why", "holidays") == 0
    found = shown(capsys)
    assert (found["accepted"]["facts"]["version"], found["serves"]) == (1, True)
    assert found["held"]["facts"]["why"] == "worse"
    assert found["stopped"] == found["last"]
    assert found["deliveries"] == []
    assert main("ops", "status") == 0
    text = capsys.readouterr().out
    assert "service         stopped since 20" in text
    assert "retraining      held since 20" in text
    assert "v1 rolled back" in text
    (own.models / "accepted").unlink()
    assert main("ops", "status") == 0
    assert "does not serve yet: python -m ace models promote v1" in capsys.readouterr().out
    monkeypatch.delenv("ACE_MODELS")
    assert shown(capsys)["serves"] is None


def test_the_screen_says_that_a_retraining_has_not_ended_why_the_last_model_was_rejected_and_what_is_published(
    own: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    def append(kind: str, facts: dict) -> None:
        own.registry.log.append(kind, facts, actor=SCHEDULE, now=datetime(2026, 12, 5, 1, tzinfo=UTC))

    found = shown(capsys)
    assert (found["began"], found["is_training"], found["rejected"], found["published"]) == (None, False, None, None)
    for end in retraining_state.ENDS:
        append(retraining_state.BEGAN, {})
        append(end, {"sentence": "correspondence is 61 px, above 60"})
        assert shown(capsys)["began"] is None
    append(retraining_state.BEGAN, {})
    head = git(own.root, "rev-parse", "HEAD").strip()
    git(own.root, "update-ref", PUBLISHED, head)
    found = shown(capsys)
    assert (found["began"]["sequence"], found["is_training"], found["published"]) == (9, False, head)
    assert main("ops", "status") == 0
    text = capsys.readouterr().out
    assert (
        "retraining      began 2026-12-05 01:00 UTC by schedule and has not ended: no process is at work on it" in text
    )
    assert "rejected        2026-12-05 01:00 UTC: correspondence is 61 px, above 60\n" in text
    assert f"published       {head[:12]}\n" in text
    with retraining_state.running(own.root):
        assert main("ops", "status") == 0
        assert "has not ended: at work\n" in capsys.readouterr().out


def test_new_images_are_those_of_batches_that_the_accepted_version_was_not_trained_with(
    own: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(capsys)["new_images"] == {}
    (own.root / "params.yaml").write_text("mix: {a-b000: {weight: 1.0}, b-b000: {weight: 1.0}, c-b000: {weight: 0}}\n")
    git(own.root, "commit", "--quiet", "--all", "-m", "a delivery was accepted")
    assert shown(capsys)["new_images"] == {"b-b000": None}


def test_of_many_refused_deliveries_the_screen_names_the_last(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = deliveries_of(project)
    (refused,) = [delivery for delivery in found.taken() if delivery.state == "refused"]
    many = [replace(refused, name=f"clinic-b{number:03}") for number in range(100, 100 + NUM_REFUSED + 2)]
    monkeypatch.setattr(type(found), "taken", lambda _: many)
    monkeypatch.chdir(project)
    assert main("ops", "status") == 0
    text = capsys.readouterr().out
    assert [line.split()[1] for line in text.splitlines() if line.startswith("refused")] == [
        f"{delivery.name}:" for delivery in many[-NUM_REFUSED:]
    ]
    assert f"0 accepted, {len(many)} refused" in text


def test_the_screen_of_a_clone_without_any_event_says_so(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (service.root / "params.yaml").write_text("mix: {}\n")
    subprocess.run(["git", "-C", service.root, "add", "--all"], check=True)
    subprocess.run(["git", "-C", service.root, "commit", "--quiet", "-m", "a project"], check=True)
    monkeypatch.chdir(service.root)
    assert main("ops", "status") == 0
    assert [line.split("  ", 1)[0] for line in capsys.readouterr().out.splitlines()] == [
        "service",
        "accepted model",
        "retraining",
        "published",
        "new images",
        "cost",
        "disk",
        "deliveries",
    ]


def num_trained(folder: Path) -> int:
    """Count the samples in the tars of the training split."""
    keys = set()
    for path in folder.glob("train-*.tar"):
        with tarfile.open(path) as tar:
            keys |= {name.split(".")[0] for name in tar.getnames()}
    return len(keys)


def test_the_screen_counts_images_that_the_accepted_model_has_not_seen(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = ("--params", str(project / "params.yaml"))
    numbers = {name: num_trained(project / "data/shards" / name) for name in (MEASURED, "clinic-b001")}
    assert 0 < numbers["clinic-b001"] < 30
    assert shown(capsys, *params)["new_images"] == numbers
    (project / "data/shards" / MEASURED).rename(project / "away")
    assert shown(capsys, *params)["new_images"] == {**numbers, MEASURED: None}
    (project / "away").rename(project / "data/shards" / MEASURED)


def test_the_screen_tells_deliveries_that_run_are_interrupted_held_waiting_or_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = {"step": "build", "started": "2026-11-30T12:00:00.000+00:00"}
    ended = {"step": "build", "finished": "2026-11-30T12:00:00.000+00:00", "outputs": {}}
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name, line in {
        "clinic-b010": {**begun, "pid": os.getpid()},
        "clinic-b011": {**begun, "pid": dead.pid},
        "clinic-b012": {**ended, "error": "NoSpaceError: the disk is full"},
        "clinic-b013": {**ended, "error": None},
    }.items():
        (project / "deliveries" / name).mkdir()
        Attempts(project / "deliveries" / name / ATTEMPTS).append(line)
    (project / "incoming" / "May").mkdir()
    (project / RWLOCK).parent.mkdir(parents=True, exist_ok=True)
    own, gone = ({"pid": pid, "cmd": "dvc repro"} for pid in (os.getpid(), dead.pid))
    written = {str(project / "models/ace"): own, str(project / "data"): gone}
    (project / RWLOCK).write_text(json.dumps({"write": written, "read": {str(project / "params"): [own]}}))
    params = ("--params", str(project / "params.yaml"))
    found = shown(capsys, *params)
    assert {item["batch"]: item["now"] for item in found["deliveries"]} == {
        "clinic-b001": "accepted",
        "clinic-b002": "refused",
        "clinic-b010": "running",
        "clinic-b011": "interrupted",
        "clinic-b012": "held",
        "clinic-b013": "waiting",
    }
    assert found["incoming"] == [{"folder": "May", "is_complete": False, "text": "empty"}]
    assert found["at_work"] == {"models/ace": os.getpid()}
    assert all(number > 0 for number in found["free_bytes"].values())
    assert found["cost"] == {"version": None, "delivery": None}
    assert set(found["full"].values()) == {None}
    assert main("ops", "status", *params) == 0
    text = capsys.readouterr().out
    assert "held            clinic-b012: build NoSpaceError: the disk is full at" in text
    assert "refused         clinic-b002: " in text
    assert "deliveries      1 accepted, 1 refused, 4 on the way" in text
