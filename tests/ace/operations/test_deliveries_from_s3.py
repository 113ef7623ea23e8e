"""Deliveries on S3 go the same way as folders of incoming/, each once, whatever happens on the way."""

import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ace.__main__ import build_parser
from ace.operations import bucket
from ace.operations.bucket import Bucket
from ace.operations.deliveries import FETCHED, Deliveries
from ace.operations.errors import HeldDeliveryError
from ace.operations.params import read_operations
from shards.cli import run_command
from shards.core.errors import ConfigError, StoreError
from tests.ace.operations.delivered import (
    MEASURED,
    copy_built,
    deliver,
    deliveries_of,
    lines_of_log,
    make_built,
    mixed,
    status,
)
from tests.ace.operations.hospital import Hospital
from tests.ace.operations.service import ANNA
from tests.support.checkout import git
from tests.support.datasets import folder_bytes

NEW = range(100, 130)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("service")
    make_built(root)
    return root


@pytest.fixture
def project(made: Path, hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A service that takes deliveries from the hospital's bucket, and builds shards in the tests' own process."""
    project = copy_built(made, tmp_path / "service", monkeypatch)
    set_incoming(project, hospital.url)
    git(project, "commit", "--all", "--quiet", "--message", "deliveries come by S3")
    return project


def set_incoming(project: Path, text: str) -> None:
    params = project / "params.yaml"
    params.write_text(f"{params.read_text(encoding='utf-8')}    incoming: {text}\n", encoding="utf-8")


def run(project: Path) -> list[str]:
    return list(deliveries_of(project).run())


def due(params: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run_command(build_parser(), ["deliveries", "due", "--json", *params]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def states(project: Path) -> dict[str, str]:
    return {delivery.name: delivery.state for delivery in deliveries_of(project).taken()}


def test_a_delivery_on_s3_is_accepted_once_stays_there_and_another_one_of_its_name_is_named(
    project: Path, hospital: Hospital, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = hospital.put_folder("March", deliver(tmp_path / "March", NEW))
    before = hospital.bucket().objects(url)
    params = ["--params", str(project / "params.yaml")]
    assert run_command(build_parser(), ["deliveries", "list", *params]) == 0
    assert re.search(rf"{url} +on S3 +complete, it has _COMPLETE", capsys.readouterr().out)

    before_it = due(params, capsys)
    assert (before_it["due"], before_it["reason"]) == (True, "1 complete of 1 on S3 that were not taken")

    assert run(project) == [f"clinic-b001: taken from {url}", "clinic-b001: accepted"]
    assert (status(project), mixed(project)) == ("", [MEASURED, "clinic-b001"])
    assert lines_of_log(project) == [("clinic-b001", "accepted", "the checks")]
    delivery = deliveries_of(project).taken()[0]
    (tmp_path / "March" / "_COMPLETE").unlink()
    assert folder_bytes(delivery.folder / "images") == folder_bytes(tmp_path / "March")
    steps = [line for line in delivery.attempts.read() if line.get("step") == "fetch" and "finished" in line]
    assert [(line["error"], line["outputs"]["objects"]) for line in steps] == [(None, 31)]
    assert sorted(path.name for path in delivery.folder.iterdir() if path.is_dir()) == ["images"]
    assert hospital.bucket().objects(url) == before
    assert run(project) == []
    assert run_command(build_parser(), ["deliveries", "list", *params]) == 0
    assert "on S3" not in capsys.readouterr().out
    assert due(params, capsys)["due"] is False

    time.sleep(1.1)  # the server tells times by the second
    hospital.put_folder("March", deliver(tmp_path / "more", range(200, 230)))
    assert due(params, capsys)["run_key"] != before_it["run_key"]
    again = run(project)
    assert again[0] == f"clinic-b002: taken from {url}, where clinic-b001 came from with other contents"
    assert states(project)["clinic-b002"] != "taken"


@pytest.mark.slow
def test_what_was_taken_is_known_although_its_folder_is_gone(project: Path, hospital: Hospital, tmp_path: Path) -> None:
    hospital.put_folder("negatives", deliver(tmp_path / "negatives", NEW, is_negative=True))
    assert run(project)[1].startswith("clinic-b001: refused")
    shutil.rmtree(project / "quarantine" / "clinic-b001")
    assert run(project) == []


@pytest.mark.slow
def test_names_that_lead_out_are_refused_with_the_cause_and_nobody_can_accept_them(
    project: Path, hospital: Hospital, tmp_path: Path
) -> None:
    hospital.put("March", {"a.png": b"1", "A.png": b"2"})
    said = run(project)
    assert said[1].startswith("clinic-b001: refused: the name of the object a.png equals another one but for capitals")
    assert list(deliveries_of(project).overrule("clinic-b001", "accepted", ANNA, "all the same"))[-1] == said[1]
    assert states(project) == {"clinic-b001": "refused"}
    assert not list(project.rglob("a.png"))
    assert run(project) == []
    assert status(project) == ""


@pytest.mark.slow
def test_folders_are_taken_although_the_server_is_away_and_the_error_says_so(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise StoreError("s3://away: its objects cannot be listed")

    monkeypatch.setattr(Bucket, "_urls", refuse)
    deliver(project / "incoming" / "April", NEW)
    params = ["--params", str(project / "params.yaml")]
    assert run_command(build_parser(), ["deliveries", "run", *params]) == 2
    assert "cannot be listed" in capsys.readouterr().err
    assert states(project) == {"clinic-b001": "accepted"}
    assert run_command(build_parser(), ["deliveries", "list", *params]) == 0
    assert re.search(r"on S3 +s3://away: its objects cannot be listed", capsys.readouterr().out)


class KilledError(BaseException):
    """Ends a call where a kill would."""


def _killed(*arguments: object, **options: object) -> None:
    raise KilledError


def _reading(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Bucket, "_read", _killed)


def _before_the_rename(patch: pytest.MonkeyPatch) -> None:
    original: Callable[[Path, Path], Path] = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if path.parent.name == "fetching":
            raise KilledError
        return original(path, target)

    patch.setattr(Path, "rename", rename)


def _after_the_rename(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bucket, "sync_folder", _killed)


def _before_it_is_remembered(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Deliveries, "_remember", lambda deliveries: _killed() if deliveries.taken() else None)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [_reading, _before_the_rename, _after_the_rename, _before_it_is_remembered])
def test_a_call_that_is_killed_is_finished_by_the_next_one_and_nothing_is_taken_twice(
    kill: Callable[[pytest.MonkeyPatch], None],
    project: Path,
    hospital: Hospital,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = hospital.put_folder("March", deliver(tmp_path / "March", NEW))
    with monkeypatch.context() as patch:
        kill(patch)
        with pytest.raises(KilledError):
            run(project)
    assert states(project) == {"clinic-b001": "taken"}
    assert run(project) == ["clinic-b001: accepted"]
    assert run(project) == []
    assert len(list((project / "deliveries" / "clinic-b001" / "images").glob("*.png"))) == len(NEW)
    assert not (project / "deliveries" / "clinic-b001" / "fetching").exists()
    (line,) = (project / "deliveries" / FETCHED).read_text().splitlines()
    assert f'"url": "{url}"' in line


@pytest.mark.slow
def test_a_delivery_that_cannot_be_fetched_waits_and_a_person_may_refuse_it(
    project: Path, hospital: Hospital, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = hospital.put_folder("March", deliver(tmp_path / "March", NEW))

    def broken(*arguments: object) -> bytes:
        raise StoreError("the line is dead")

    monkeypatch.setattr(Bucket, "_read", broken)
    for _ in range(2):
        with pytest.raises(
            HeldDeliveryError, match="clinic-b001: the line is dead; the next call goes on, and `python"
        ):
            run(project)
    assert states(project) == {"clinic-b001": "taken"}
    assert url in str(deliveries_of(project).taken()[0].origin)
    list(deliveries_of(project).overrule("clinic-b001", "refused", ANNA, "it never came"))
    assert states(project) == {"clinic-b001": "refused"}
    assert run(project) == []


@pytest.mark.parametrize(
    "value",
    [
        "s3://key:p4ssw0rd@bucket/in",
        "s3://bucket/in?token=p4ssw0rd",
        "https://host/p4ssw0rd",
        "/srv/p4ssw0rd",
        "s3://bucket/p4ssw0rd/",
        "s3://",
        "s3://bucket/../p4ssw0rd",
        "[p4ssw0rd]",
    ],
)
def test_a_prefix_with_credentials_or_none_at_all_is_refused_and_not_shown(
    value: str, made: Path, tmp_path: Path
) -> None:
    shutil.copy(made / "project" / "params.yaml", tmp_path)
    set_incoming(tmp_path, value)
    with pytest.raises(ConfigError, match=r"operations\.deliveries\.incoming: .*expected s3://bucket/prefix") as found:
        read_operations(tmp_path / "params.yaml")
    assert "p4ssw0rd" not in str(found.value)


def test_a_bucket_alone_is_a_prefix(made: Path, tmp_path: Path) -> None:
    shutil.copy(made / "project" / "params.yaml", tmp_path)
    set_incoming(tmp_path, "s3://hospital-in.example")
    settings: Any = read_operations(tmp_path / "params.yaml").deliveries
    assert settings.incoming == "s3://hospital-in.example"
