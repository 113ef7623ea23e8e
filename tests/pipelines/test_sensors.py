import os
import shutil
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
from ruamel.yaml import YAML

from ace.operations.params import read_operations
from pipelines.definitions import build_definitions
from pipelines.graph import Graph, load_graph
from pipelines.lock import COMMIT, commit_tag
from pipelines.metadata import read_checks
from pipelines.sensors import build_dvc_lock_sensor, lock_events
from tests.pipelines.toy import OUTS, dvc, edit, git
from tests.support import checkout


def tick(root: Path, instance: DagsterInstance, loaded: Path) -> SensorResult:
    """Evaluate the sensor of definitions loaded from the state of `loaded`, and store what it reports."""
    graph = load_graph(loaded)
    sensor = build_dvc_lock_sensor(root, graph, read_checks(loaded, graph), read_operations(loaded / "params.yaml"))
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


def test_a_materialization_has_the_commit_and_a_further_commit_is_no_news(toy: Path, instance: DagsterInstance) -> None:
    head = checkout.git(toy, "rev-parse", "HEAD").strip()
    events = tick(toy, instance, toy).asset_events
    assert {(event.tags or {})[COMMIT] for event in events if isinstance(event, AssetMaterialization)} == {head}
    git(
        toy, "-c", "user.name=toy", "-c", "user.email=toy@localhost", "commit", "--quiet", "--allow-empty", "-m", "more"
    )
    assert checkout.git(toy, "rev-parse", "HEAD").strip() != head
    assert not tick(toy, instance, toy).asset_events


def test_without_git_no_commit_is_named(tmp_path: Path) -> None:
    assert commit_tag(tmp_path) == {}


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


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1.0e-3", "2.0e-3"),
        ("min: 0.9", "min: 0.05"),
        ("train:\n", "operations: {schedule: {cron: 0 2 * * 6}}\ntrain:\n"),
    ],
)
def test_changed_params_ask_for_a_reload(
    toy: Path, finished_toy: Path, instance: DagsterInstance, old: str, new: str
) -> None:
    edit(toy / "params.yaml", old, new)
    first, second = tick(toy, instance, finished_toy), tick(toy, instance, finished_toy)
    assert "reload" in str(first.skip_reason)
    assert len({event.asset_key for event in first.asset_events}) == len(OUTS)
    assert "reload" in str(second.skip_reason)
    assert not second.asset_events


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml", "toy/__main__.py", "manifest.csv"])
def test_the_graph_is_resolved_again_only_when_a_file_that_it_is_made_of_has_changed(
    name: str, toy: Path, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, loads = load_graph(toy), []

    def counted(root: Path) -> Graph:
        loads.append(root)
        return load_graph(root)

    monkeypatch.setattr("pipelines.sensors.load_graph", counted)
    sensor = build_dvc_lock_sensor(toy, graph, read_checks(toy, graph), read_operations(toy / "params.yaml"))
    counts, reasons = [], []
    for step in range(5):
        if step == 2:
            with (toy / name).open("a") as file:
                file.write("\n")
        reasons.append(str(sensor(build_sensor_context(instance)).skip_reason))
        counts.append(len(loads))
    assert counts == [1, 1, 2, 2, 2]
    is_data = name in ("toy/__main__.py", "manifest.csv")  # a new line there is another content, and it stays one
    assert ["reload" in reason for reason in reasons] == [False, False, *3 * [is_data]]


def test_dvc_lock_is_parsed_again_only_when_its_text_has_changed(
    toy: Path, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its text, not its time and size: both can stay when DVC writes it twice in a moment."""
    texts = []

    class Counted(YAML):
        def load(self, text: str) -> object:
            texts.append(text)
            return super().load(text)

    monkeypatch.setattr("pipelines.lock.YAML", Counted)
    path = toy / "dvc.lock"
    text = f"# of this test\n{path.read_text()}"
    path.write_text(text)
    tick(toy, instance, toy)
    assert not tick(toy, instance, toy).asset_events
    status = path.stat()
    (out,) = YAML(typ="safe").load(text)["stages"]["raw"]["outs"]
    changed = text.replace(out["md5"], "".join(reversed(out["md5"])))
    path.write_text(changed)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "data/raw" in {event.asset_key.to_user_string() for event in tick(toy, instance, toy).asset_events}
    assert texts == [text, changed]


def test_another_bound_is_another_check(toy: Path, instance: DagsterInstance) -> None:
    tick(toy, instance, toy)
    edit(toy / "params.yaml", "trained.accuracy: {min: 0.5}", "trained.accuracy: {min: 0.8}")
    (event,) = tick(toy, instance, toy).asset_events
    assert isinstance(event, AssetCheckEvaluation)
    assert (event.check_name, event.passed) == ("trained_accuracy", False)
    assert not tick(toy, instance, toy).asset_events


def test_an_out_that_is_not_in_the_work_tree_is_named_and_not_reported(toy: Path, instance: DagsterInstance) -> None:
    """As in a fresh clone: dvc.lock and the metrics are in git, the data are not."""
    shutil.rmtree(toy / "models")
    (toy / "models").mkdir()
    first = tick(toy, instance, toy)
    assert {event.asset_key.to_user_string() for event in first.asset_events} == OUTS - {"models/toy"}
    assert "not in the work tree: models/toy" in str(tick(toy, instance, toy).skip_reason)
    dvc(toy, "checkout")
    (event,) = tick(toy, instance, toy).asset_events
    assert event.asset_key == AssetKey(["models", "toy"])


@pytest.mark.parametrize("look", ["get_latest_materialization_events", "get_runs"])
def test_a_run_that_ends_while_the_sensor_looks_is_not_reported_a_second_time(
    toy: Path, instance: DagsterInstance, look: str
) -> None:
    """The run reports and ends right after one of the two looks at the instance."""
    graph = load_graph(toy)
    run = create_run_for_test(instance, status=DagsterRunStatus.STARTED)
    with DagsterInstance.ephemeral() as empty:
        reports = lock_events(empty, toy, graph, [])

    def look_before_the_run_ends(*arguments: object) -> object:
        patch.undo()
        seen = getattr(instance, look)(*arguments)
        for event in reports:
            instance.report_runless_asset_event(event)
        instance.report_run_failed(run)
        return seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instance, look, look_before_the_run_ends)
        assert lock_events(instance, toy, graph, []) == []
    assert instance.get_run_by_id(run.run_id).status == DagsterRunStatus.FAILURE


def test_a_graph_that_is_being_edited_is_a_reason_to_wait(
    toy: Path, finished_toy: Path, instance: DagsterInstance
) -> None:
    edit(toy / "dvc.yaml", "stages:", "stages: [")
    assert "cannot read the graph" in str(tick(toy, instance, finished_toy).skip_reason)


def test_definitions_of_a_graph_that_cannot_be_read_wait_until_it_can(toy: Path, instance: DagsterInstance) -> None:
    edit(toy / "dvc.yaml", "stages:", "stages: [")
    repository = build_definitions(toy).get_repository_def()
    assert not repository.asset_graph.get_all_asset_keys()
    (sensor,) = repository.sensor_defs
    assert "cannot read the graph" in str(sensor(build_sensor_context(instance)).skip_reason)
    edit(toy / "dvc.yaml", "stages: [", "stages:")
    assert "reload" in str(sensor(build_sensor_context(instance)).skip_reason)
