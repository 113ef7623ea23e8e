"""Deliveries in Dagster: a real clone with real images, whose shards are built in the tests' own process."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from dagster import AssetKey, AssetObservation, DagsterInstance, SensorResult, build_sensor_context

import ace.operations.deliveries as module
from ace.operations.errors import HeldDeliveryError
from ace.operations.events import LOG
from ace.operations.params import read_operations
from pipelines.definitions import build_definitions
from pipelines.deliveries import KEY
from pipelines.service import build_service
from tests.ace.operations.delivered import (
    build_here,
    copy_built,
    deliver,
    deliveries_of,
    make_built,
)
from tests.ace.operations.service import ANNA
from tests.pipelines.test_sets import MANIFEST, SET, report, stale
from tests.pipelines.toy import dvc, edit

NEW = range(100, 130)
OPERATIONS = "operations: {deliveries: {name: clinic}}\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project once for all tests of this file, and its key beside it."""
    root = tmp_path_factory.mktemp("service")
    make_built(root)
    return root


@pytest.fixture
def project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to change."""
    return copy_built(made, tmp_path / "service", monkeypatch)


class Ticks:
    """The sensor `incoming`, evaluated again and again with its own cursor."""

    def __init__(self, project: Path, instance: DagsterInstance) -> None:
        (self.sensor,) = build_service(project, read_operations(project / "params.yaml")).sensors
        self.instance = instance
        self.cursor: str | None = None

    def __call__(self) -> list[tuple[str | None, dict[str, Any]]]:
        """Evaluate it once; text and facts of each observation."""
        result = self.sensor(build_sensor_context(self.instance, cursor=self.cursor))
        assert isinstance(result, SensorResult)
        self.cursor = result.cursor
        assert all(isinstance(event, AssetObservation) and event.asset_key == KEY for event in result.asset_events)
        return [
            (event.description, {name: value.value for name, value in event.metadata.items()})
            for event in result.asset_events
        ]


@pytest.fixture
def ticks(project: Path, instance: DagsterInstance) -> Ticks:
    ticks = Ticks(project, instance)
    assert ticks() == []
    return ticks


def run(project: Path) -> None:
    list(deliveries_of(project).run())


def overrule(project: Path, verdict: Any) -> None:
    list(deliveries_of(project).overrule("clinic-b001", verdict, ANNA, "I looked at them"))


def test_each_change_of_a_delivery_is_reported_once_with_its_facts(project: Path, ticks: Ticks) -> None:
    deliver(project / "incoming" / "March", NEW)
    assert ticks() == [("incoming: 1 of 1 complete", {"state": "incoming", "items": 1, "complete": 1})]
    assert ticks() == []
    run(project)
    accepted = {
        "delivery": "clinic-b001",
        "state": "accepted",
        "attempts": 1,
        "folder": str(project / "deliveries/clinic-b001"),
        "decided_by": "the checks",
        "images": 30,
    }
    gone = ("incoming: 0 of 0 complete", {"state": "incoming", "items": 0, "complete": 0})
    assert ticks() == [("clinic-b001: accepted", accepted), gone]
    assert ticks() == []
    overrule(project, "refused")
    refused = {
        **accepted,
        "state": "refused",
        "folder": str(project / "quarantine/clinic-b001"),
        "decided_by": ANNA.name,
        "reason": "I looked at them",
    }
    assert ticks() == [("clinic-b001: refused", refused)]
    assert ticks() == []


def test_a_refusal_names_the_checks_that_failed_and_nothing_that_names_the_folder(project: Path, ticks: Ticks) -> None:
    deliver(project / "incoming" / "Jane Doe", NEW, is_negative=True)
    told = ticks()
    run(project)
    told += ticks()
    (facts,) = [facts for text, facts in told if text == "clinic-b001: refused"]
    assert re.fullmatch(r"mean_drift 0\.\d+, bound 0\.1; likeness -0\.\d+, bound 0\.75", facts["reason"])
    assert facts["images"] == 30
    assert "Jane" not in str(told)
    assert "Jane" not in str(ticks.cursor)


def test_a_refusal_before_any_check_says_where_the_cause_is(project: Path, ticks: Ticks) -> None:
    folder = deliver(project / "incoming" / "March", NEW[:3])
    (folder / "Jane.png").symlink_to("/etc/hosts")
    run(project)
    facts = dict(ticks())["clinic-b001: refused"]
    assert facts["reason"] == "its images cannot be used; report.json says why"
    assert "images" not in facts, "it was not registered"


def test_a_delivery_that_is_held_is_reported_once_for_all_attempts_that_fail_alike(
    project: Path, ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(project / "incoming" / "Jane Doe", NEW)
    told: list[tuple[str | None, dict[str, Any]]] = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "repro", lambda *_: told.extend(ticks()) or "No space left on device: Jane Doe")
        for _ in range(3):
            with pytest.raises(HeldDeliveryError):
                run(project)
            told += ticks()
    begun, (text, facts) = [(text, facts) for text, facts in told if "clinic" in str(text)]
    assert begun[0] == "clinic-b001: begun", "and at no later attempt"
    assert text == "clinic-b001: held, build failed with HeldDeliveryError"
    assert (facts["state"], facts["reason"]) == ("held", "build failed with HeldDeliveryError")
    assert "Jane" not in str(told)
    told.clear()
    monkeypatch.setattr(module, "judge", lambda *_: told.extend(ticks()) or [])
    run(project)
    assert [text for text, _ in told] == ["clinic-b001: begun"], "no longer held, once its shards are built"
    assert dict(ticks())["clinic-b001: accepted"]["attempts"] == 4


def test_a_delivery_at_work_is_begun_whatever_step_it_is_at(
    project: Path, ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    def build(*arguments: Any) -> str | None:
        told.extend(ticks())
        return build_here(*arguments)

    monkeypatch.setattr(module, "repro", build)
    monkeypatch.setattr(module, "judge", lambda *_: told.extend(ticks()) or [])
    deliver(project / "incoming" / "March", NEW)
    run(project)
    assert [text for text, _ in told] == ["clinic-b001: begun"]


def test_a_decision_is_reported_once_the_log_has_it(
    project: Path, ticks: Ticks, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(project / "incoming" / "March", NEW)
    with monkeypatch.context() as patch:
        patch.setattr(module, "log_decision", lambda *_: None)
        run(project)
    assert [text for text, _ in ticks()] == []
    run(project)
    assert [text for text, _ in ticks()] == ["clinic-b001: accepted"]
    with monkeypatch.context() as patch:
        patch.setattr(module, "log_decision", lambda *_: None)
        overrule(project, "refused")
    assert [text for text, _ in ticks()] == [], "the log has the earlier decision"
    run(project)
    assert [text for text, _ in ticks()] == ["clinic-b001: refused"]


def test_a_log_that_was_changed_keeps_the_sensor_from_nothing(project: Path, ticks: Ticks) -> None:
    deliver(project / "incoming" / "March", NEW)
    run(project)
    text = (project / LOG).read_text()
    (project / LOG).write_text(text.replace("clinic-b001", "clinic-b002"))
    assert ticks() == []
    (project / LOG).write_text(text)
    assert [text for text, _ in ticks()] == ["clinic-b001: accepted"]


@pytest.mark.slow
def test_deliveries_are_a_source_of_the_batches_that_were_taken_in_and_observing_them_makes_nothing_stale(
    toy: Path, instance: DagsterInstance
) -> None:
    manifests = {name: MANIFEST.replace("own", name) for name in ("clinic-b000", "by-hand")}
    (toy / MANIFEST).parent.mkdir()
    for path in manifests.values():
        shutil.copy(toy / "manifest.csv", toy / path)
    edit(toy / "params.yaml", "own: {dep: manifest.csv}", f"own: {{dep: {manifests['clinic-b000']}}}")
    edit(toy / "params.yaml", "raw-b000: {dep: data/raw}", f"raw-b000: {{dep: {manifests['by-hand']}}}")
    (toy / "params.yaml").write_text((toy / "params.yaml").read_text() + OPERATIONS)
    dvc(toy, "repro")
    report(toy, instance)
    graph = build_definitions(toy).resolve_asset_graph()
    source = graph.get(KEY)
    assert source.is_external
    assert source.group_name == "data"
    assert source.child_keys == {AssetKey(manifests["clinic-b000"].split("/"))}
    assert stale(toy, instance) == set()
    instance.report_runless_asset_event(AssetObservation(KEY, metadata={"state": "accepted"}))
    assert instance.fetch_observations(KEY, limit=1).records
    assert stale(toy, instance) == set()
    edit(toy / manifests["clinic-b000"], "a.png", "b.png")
    assert stale(toy, instance) == {SET}


def test_without_deliveries_there_is_no_such_asset(toy: Path) -> None:
    assert not build_definitions(toy).resolve_asset_graph().has(KEY)
