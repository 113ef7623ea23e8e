"""Runs in Dagster: real dvc processes in the toy repository."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetObservation,
    AssetSelection,
    AssetSpec,
    DagsterEventType,
    DagsterInstance,
    DagsterInvalidDefinitionError,
    ExecuteInProcessResult,
    Failure,
    materialize,
)

import pipelines.process
from pipelines.assets import with_owners
from pipelines.definitions import build_definitions
from pipelines.graph import load_graph
from pipelines.lock import COMMIT, read_lock
from pipelines.sensors import lock_events
from shards.core.errors import ConfigError
from shards.runtime.scratch import unfinished_work
from tests.pipelines.toy import appears, dvc, edit
from tests.support.checkout import git


def run(root: Path, instance: DagsterInstance, *paths: str, raise_on_error: bool = True) -> ExecuteInProcessResult:
    """Materialize the assets of these out paths, or all, in this process."""
    definitions = build_definitions(root)
    keys = [AssetKey(path.split("/")) for path in paths]
    selection = AssetSelection.assets(*keys) if keys else AssetSelection.all()
    return materialize(definitions.assets, instance=instance, selection=selection, raise_on_error=raise_on_error)


def reported_tags(instance: DagsterInstance, root: Path) -> dict[str, dict[str, str]]:
    """The latest materialization's tags of every asset, without those that name a run or a storage."""
    found = {}
    for path in load_graph(root).produced:
        entry = instance.get_latest_materialization_event(AssetKey(path.split("/")))
        assert entry is not None
        assert entry.asset_materialization is not None
        found[path] = dict(entry.asset_materialization.tags or {})
    return found


def ran(root: Path) -> list[str]:
    """What the toy's commands logged since the copy was made."""
    log = root.parent / "log.txt"
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.slow
def test_a_run_and_a_runless_report_leave_the_same_provenance(toy: Path, instance: DagsterInstance) -> None:
    assert run(toy, instance).success
    with DagsterInstance.ephemeral() as other:
        for event in lock_events(other, toy, load_graph(toy), []):
            other.report_runless_asset_event(event)
        assert reported_tags(instance, toy) == reported_tags(other, toy)
    assert ran(toy) == []
    assert lock_events(instance, toy, load_graph(toy), []) == []


@pytest.mark.slow
def test_an_edit_runs_what_it_affects_and_the_rest_keeps_its_data_version(toy: Path, instance: DagsterInstance) -> None:
    before = {path: out.md5 for record in read_lock(toy, load_graph(toy)).values() for path, out in record.outs.items()}
    edit(toy / "manifest.csv", "a.png,1", "b.png,2")
    edit(toy / "params.yaml", "rate: 1.0e-3", "rate: 1.0e-2")
    assert run(toy, instance).success
    assert ran(toy) == ["shard data/shards/own", "train models/toy", "measure models/toy"]
    after = {path: tags["dagster/data_version"] for path, tags in reported_tags(instance, toy).items()}
    assert {path for path in before if before[path] != after[path]} == {"models/toy"}
    assert after["models/toy"] == read_lock(toy, load_graph(toy))["train"].outs["models/toy"].md5


def test_no_process_of_dvc_is_started_for_what_has_not_changed(
    toy: Path, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Sequence[str]] = []

    def counted(context: AssetExecutionContext, root: Path, stages: Sequence[str]) -> AbstractContextManager[Any]:
        started.append(stages)
        return start(context, root, stages)

    start = pipelines.process._start
    monkeypatch.setattr("pipelines.process._start", counted)
    assert run(toy, instance).success
    assert started == []
    assert lock_events(instance, toy, load_graph(toy), []) == []
    edit(toy / "manifest.csv", "a.png", "b.png")
    assert run(toy, instance, "data/shards/own", "data/shards/raw-b000").success
    assert (started, ran(toy)) == ([["shard@own"]], ["shard data/shards/own"])


def test_one_item_of_a_foreach_family_runs_alone(toy: Path, instance: DagsterInstance) -> None:
    edit(toy / "params.yaml", "scale: 2", "scale: 3")
    result = run(toy, instance, "data/shards/own")
    assert [event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key]
    assert ran(toy) == ["shard data/shards/own"]
    (tags,) = [event.materialization.tags for event in result.get_asset_materialization_events()]
    assert (tags or {})[COMMIT] == git(toy, "rev-parse", "HEAD").strip()


@pytest.mark.slow
def test_the_items_of_a_family_run_side_by_side(
    toy: Path, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each waits to meet the other, so one after the other would wait for ever."""
    for name in ("own", "raw-b000"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "own" / "door")
    monkeypatch.setenv(
        "TOY_HOOK", f"if stage == 'shard': open('{tmp_path}/own/door', 'w' if 'own' in out else 'r').close()"
    )
    edit(toy / "params.yaml", "scale: 2", "scale: 3")
    assert run(toy, instance, "data/shards/own", "data/shards/raw-b000").success
    assert sorted(ran(toy)) == ["shard data/shards/own", "shard data/shards/raw-b000"]


def test_an_item_that_fails_keeps_no_other_from_running_and_the_finished_ones_are_reported(
    toy: Path, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one process for both, the first in dvc.yaml fails; its earlier result is still in dvc.lock."""
    edit(toy / "dvc.yaml", "jobs: 2", "jobs: 1")
    edit(toy / "params.yaml", "scale: 2", "scale: 3")
    monkeypatch.setenv("TOY_HOOK", "if 'raw-b000' in out: sys.exit('bad delivery')")
    result = run(toy, instance, "data/shards/own", "data/shards/raw-b000", raise_on_error=False)
    assert not result.success
    assert ran(toy) == ["shard data/shards/raw-b000", "shard data/shards/own"]
    keys = [event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key]
    assert keys == ["data/shards/own"]
    description = failure_of(result).description
    assert "these have finished: shard@own" in str(description)
    assert lock_events(instance, toy, load_graph(toy), []) != []


def test_a_lock_file_that_something_else_replaced_while_a_stage_ran_fails_its_step_with_what_to_do(
    toy: Path, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reproduce(*arguments: object, **options: object) -> Iterator[AssetObservation]:
        (toy / "dvc.lock").write_text("schema: '2.0'\n")
        yield from ()

    monkeypatch.setattr("pipelines.assets.reproduce", reproduce)
    result = run(toy, instance, "data/raw", raise_on_error=False)
    (event,) = (event for event in result.all_events if event.event_type == DagsterEventType.STEP_FAILURE)
    assert "no record of raw, which dvc has just run" in event.step_failure_data.error_display_string


def failure_of(result: ExecuteInProcessResult) -> Failure:
    """What the one failed step raised."""
    (event,) = (event for event in result.all_events if event.event_type == DagsterEventType.STEP_FAILURE)
    data = event.step_failure_data.user_failure_data
    assert data is not None
    return Failure(data.description, metadata=data.metadata)


def test_a_login_shell_that_refuses_to_run_commands_keeps_no_stage_from_running(
    toy: Path, instance: DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /usr/sbin/nologin, the shell of service accounts."""
    shell = tmp_path / "nologin"
    shell.write_text("#!/bin/sh\necho this account is not available\nexit 1\n")
    shell.chmod(0o755)
    monkeypatch.setenv("SHELL", str(shell))
    edit(toy / "params.yaml", "count: 3", "count: 4")
    assert run(toy, instance, "data/raw").success


def test_an_out_that_dvc_takes_for_busy_says_what_to_remove(toy: Path, instance: DagsterInstance) -> None:
    """A dvc that was killed leaves its id behind, which another process may have by now; here this one has it."""
    edit(toy / "params.yaml", "count: 3", "count: 4")
    stale = {str(toy / "data/raw"): {"pid": os.getpid(), "cmd": "dvc repro"}}
    (toy / ".dvc/tmp/rwlock").write_text(json.dumps({"write": stale}))
    failure = failure_of(run(toy, instance, "data/raw", raise_on_error=False))
    assert f"remove {toy / '.dvc/tmp/rwlock'}" in str(failure.description)
    (toy / ".dvc/tmp/rwlock").unlink()
    assert run(toy, instance, "data/raw").success


def test_a_second_process_at_the_same_work_ends_at_the_lock_of_its_scratch(
    toy: Path, instance: DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What protects a training when DVC lets two of them start."""
    monkeypatch.setenv("ACE_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv(
        "TOY_HOOK", "from shards.runtime.scratch import unfinished_work\nunfinished_work('toy', 'ab').__enter__()"
    )
    edit(toy / "params.yaml", "count: 3", "count: 4")
    with unfinished_work("toy", "ab"):
        failure = failure_of(run(toy, instance, "data/raw", raise_on_error=False))
    assert "another process is at work on this" in str(failure.metadata["last_lines"].value)
    assert run(toy, instance, "data/raw").success


def test_every_asset_has_the_owners_of_the_params(toy: Path) -> None:
    def owners() -> set[tuple[str, ...]]:
        graph = build_definitions(toy).resolve_asset_graph()
        return {tuple(graph.get(key).owners) for key in graph.get_all_asset_keys()}

    assert owners() == {()}
    with (toy / "params.yaml").open("a") as file:
        file.write("operations: {owners: [anna@clinic.org, 'team:imaging'], deliveries: {name: clinic}}\n")
    assert owners() == {("anna@clinic.org", "team:imaging")}


@pytest.mark.parametrize("owner", ["Anna", "team:", "anna@clinic"])
def test_an_owner_that_dagster_refuses_is_named(owner: str) -> None:
    with pytest.raises(ConfigError, match=f"operations.owners: found '{owner}'; expected an e-mail address"):
        with_owners([AssetSpec("page")], ["anna@clinic.org", owner])
    with pytest.raises(DagsterInvalidDefinitionError, match="Owner must be"):
        AssetSpec("page", owners=[owner])


def test_a_failing_command_leaves_its_last_lines_in_the_failure(toy: Path, instance: DagsterInstance) -> None:
    edit(toy / "params.yaml", "fail: false", "fail: true")
    result = run(toy, instance, "models/toy", "metrics/train.json", "metrics/plots", raise_on_error=False)
    failure = failure_of(result)
    assert "exit code" in str(failure.description)
    log = str(failure.metadata["last_lines"].value).splitlines()[1:-1]
    assert len(log) == 50
    assert "the data are not to my taste" in log
    assert "step 99" in log
    assert "step 0" not in log
    assert not result.get_asset_materialization_events()


def test_the_commands_of_a_stage_find_the_python_that_runs_dagster_first(
    toy: Path, instance: DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster may be started by its path, from a shell in which another Python is the first."""
    other = tmp_path / "bin" / "python"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\necho the wrong python >&2\nexit 1\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{other.parent}{os.pathsep}{os.environ['PATH']}")
    edit(toy / "params.yaml", "count: 3", "count: 4")
    assert run(toy, instance, "data/raw").success
    assert ran(toy) == ["raw data/raw"]


@pytest.mark.slow
def test_a_run_waits_for_another_dvc_that_is_at_work_in_the_repository(toy: Path, instance: DagsterInstance) -> None:
    """Without its flag DVC gives up after three seconds; here it finds the repository held for long after its start."""
    edit(toy / "params.yaml", "count: 3", "count: 4")
    begun = time.monotonic()
    dvc(toy, "status")
    start_s = time.monotonic() - begun
    with ThreadPoolExecutor() as pool:
        with held_repository(toy):
            running = pool.submit(run, toy, instance, "data/raw", raise_on_error=False)
            with pytest.raises(TimeoutError):
                running.result(timeout=4 + 2 * start_s)
        assert running.result().success
    assert ran(toy) == ["raw data/raw"]


@contextmanager
def held_repository(root: Path) -> Iterator[None]:
    """DVC's lock on the repository, held by a process of its own while the block runs."""
    program = "from dvc.repo import Repo\nwith Repo().lock:\n  print('held', flush=True)\n  input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield
        finally:
            holder.communicate("\n")


def test_metrics_are_observed_while_the_command_still_runs(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.process.OBSERVE_EVERY_S", 0.25)
    os.mkfifo(tmp_path / "go-on")
    monkeypatch.setenv(
        "TOY_HOOK",
        (
            "if stage == 'train':\n"
            "    from ace.journal.pipes import open_reporter\n"
            "    with open_reporter() as report:\n"
            "        report({'loss': 3.0})\n"
            f"        open('{tmp_path}/go-on').close()\n"
        ),
    )
    edit(toy / "params.yaml", "1.0e-3", "2.0e-3")
    # Without captured output, for which Dagster starts processes that may outlive the run.
    no_capture = {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
    local = DagsterInstance.local_temp(str(tmp_path), overrides={"compute_logs": no_capture})
    with local as instance, ThreadPoolExecutor() as pool:
        running = pool.submit(run, toy, instance, "models/toy", "metrics/train.json", "metrics/plots")
        key = AssetKey(["models", "toy"])
        observed = appears(lambda: instance.fetch_observations(key, limit=1).records, lambda: not running.done())
        (tmp_path / "go-on").open("w").close()
        assert observed
        assert running.result().success


def test_metrics_reported_over_pipes_become_observations(
    toy: Path, instance: DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "TOY_HOOK",
        (
            "if stage == 'train':\n"
            "    from ace.journal.pipes import open_reporter\n"
            "    with open_reporter() as report:\n"
            "        report({'loss': 3.0, 'images_per_s': 7.0})\n"
            "        report({'loss': 2.0, 'rate': float('nan')})\n"
        ),
    )
    edit(toy / "params.yaml", "1.0e-3", "2.0e-3")
    result = run(toy, instance, "models/toy", "metrics/train.json", "metrics/plots")
    (observation,) = result.get_asset_observation_events()
    assert observation.asset_key == AssetKey(["models", "toy"])
    shown = observation.asset_observation_data.asset_observation.metadata
    assert {name: value.value for name, value in shown.items()} == {"loss": 2.0}
