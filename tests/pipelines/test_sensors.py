from pathlib import Path

import pytest
from dagster import (
    AssetCheckEvaluation,
    AssetKey,
    AssetMaterialization,
    DagsterInstance,
    DagsterRunStatus,
    SensorResult,
    build_sensor_context,
)
from dagster._core.test_utils import create_run_for_test

from pipelines.graph import load_graph
from pipelines.metadata import read_checks
from pipelines.sensors import build_dvc_lock_sensor, lock_events
from tests.pipelines.toy import OUTS, edit


def tick(root: Path, instance: DagsterInstance, loaded: Path) -> SensorResult:
    """Evaluate the sensor of definitions loaded from the state of `loaded`, and store what it reports."""
    graph = load_graph(loaded)
    sensor = build_dvc_lock_sensor(root, graph, read_checks(loaded, graph))
    result = sensor(build_sensor_context(instance))
    assert isinstance(result, SensorResult)
    for event in result.asset_events:
        instance.report_runless_asset_event(event)
    return result


def test_a_repro_on_the_command_line_is_reported_once_with_its_checks(toy: Path, instance: DagsterInstance) -> None:
    events = tick(toy, instance, toy).asset_events
    assert {event.asset_key.to_user_string() for event in events if isinstance(event, AssetMaterialization)} == OUTS
    checks = {event.check_name: event.passed for event in events if isinstance(event, AssetCheckEvaluation)}
    assert checks == {"trained_accuracy": True, "trained_loss": True, "untrained_accuracy": False}
    second = tick(toy, instance, toy)
    assert not second.asset_events
    assert second.skip_reason is not None


def test_a_wiped_asset_is_reported_again(toy: Path, instance: DagsterInstance) -> None:
    tick(toy, instance, toy)
    instance.wipe_assets([AssetKey(["models", "toy"])])
    (event,) = tick(toy, instance, toy).asset_events
    assert event.asset_key == AssetKey(["models", "toy"])


@pytest.mark.parametrize("status", [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING])
@pytest.mark.parametrize("selection", [frozenset({AssetKey(["models", "toy"])}), None])
def test_assets_of_a_run_in_progress_are_left_to_it(
    toy: Path, instance: DagsterInstance, selection: frozenset[AssetKey] | None, status: DagsterRunStatus
) -> None:
    run = create_run_for_test(instance, asset_selection=selection, status=status)
    reported = {event.asset_key.to_user_string() for event in lock_events(instance, toy, load_graph(toy), [])}
    assert reported == (OUTS - {"models/toy"} if selection else set())
    instance.delete_run(run.run_id)
    assert len(lock_events(instance, toy, load_graph(toy), [])) == len(OUTS)


@pytest.mark.parametrize(("old", "new"), [("1.0e-3", "2.0e-3"), ("min: 0.9", "min: 0.05")])
def test_changed_params_ask_for_a_reload(
    toy: Path, finished_toy: Path, instance: DagsterInstance, old: str, new: str
) -> None:
    edit(toy / "params.yaml", old, new)
    result = tick(toy, instance, finished_toy)
    assert "reload" in str(result.skip_reason)
    assert not result.asset_events


def test_a_graph_that_is_being_edited_is_a_reason_to_wait(
    toy: Path, finished_toy: Path, instance: DagsterInstance
) -> None:
    edit(toy / "dvc.yaml", "stages:", "stages: [")
    assert "cannot read the graph" in str(tick(toy, instance, finished_toy).skip_reason)
