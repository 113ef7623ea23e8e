"""What only shows with processes: kills, two tools in one environment, a running `dagster dev`."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from select import select
from socket import socket
from textwrap import indent
from typing import Any
from urllib.request import Request, urlopen

import pytest
from dagster import AssetKey, DagsterInstance, DagsterRunStatus

from ace.operations.repro import RWLOCK, drop_torn_rwlock
from pipelines.graph import load_graph
from pipelines.lock import read_lock
from tests.pipelines.toy import OUTS, appears, dvc, edit

DEFINITIONS = """
from pathlib import Path

import dagster

import pipelines.definitions
from pipelines.definitions import build_definitions

pipelines.definitions.ROOT = Path(__file__).parent  # at home, where the steps of a run are forked


@dagster.definitions
def defs():
    return build_definitions(Path(__file__).parent)
"""


@pytest.fixture
def project(toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy with definitions and an instance of its own, as a checkout of this project has them."""
    (toy / "toy_definitions.py").write_text(DEFINITIONS)
    (toy / "home").mkdir()
    template = Path(__file__).parents[2] / "pipelines" / "dagster.yaml"
    (toy / "home" / "dagster.yaml").write_text(template.read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(toy / "home"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return toy


@contextmanager
def started(root: Path, *arguments: str, in_terminal: bool = False) -> Iterator["subprocess.Popen[str]"]:
    """A dagster command, gone when the block ends; `in_terminal` gives it a process group and lets it hear Ctrl-C."""
    program = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program += "runpy.run_module('dagster', run_name='__main__', alter_sys=True)"
    process = subprocess.Popen(
        [sys.executable, *(("-c", program) if in_terminal else ("-m", "dagster")), *arguments],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0 if in_terminal else None,
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()


@pytest.mark.slow
def test_ending_a_run_ends_dvc_and_the_command_it_runs(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command holds a pipe open; the pipe's end tells the test of its death without any waiting."""
    monkeypatch.setenv("TOY_HOOK", hold_open(tmp_path / "alive"))
    edit(project / "params.yaml", "count: 3", "count: 4")
    with started(project, "asset", "materialize", "-m", "toy_definitions", "--select", "data/raw") as run:
        with ended_life(tmp_path / "alive"):
            run.send_signal(signal.SIGTERM)
        output, _ = run.communicate()
        assert run.returncode != 0, output
    monkeypatch.delenv("TOY_HOOK")
    dvc(project, "repro", "--single-item", "raw")


@pytest.mark.slow
@pytest.mark.parametrize(
    "signals", [["SIGTERM"], ["SIGINT", "SIGINT"], ["SIGKILL"]], ids=["SIGTERM", "SIGINT-SIGINT", "SIGKILL"]
)
def test_a_command_that_is_deaf_and_has_left_the_session_does_not_outlive_its_step(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: list[str]
) -> None:
    edit(project / "toy_definitions.py", "import dagster\n", "import dagster\n\nimport pipelines.process\n")
    with (project / "toy_definitions.py").open("a") as definitions:
        definitions.write("\n\npipelines.process.TERMINATION_GRACE_S = 0.3\n")
    hook = hold_open(tmp_path / "alive")
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.setsid()"
    monkeypatch.setenv("TOY_HOOK", f"{deaf}; {hook}")
    edit(project / "params.yaml", "count: 3", "count: 4")
    with (
        started(project, "asset", "materialize", "-m", "toy_definitions", "--select", "data/raw") as run,
        ended_life(tmp_path / "alive"),
    ):
        for name in signals:
            run.send_signal(signal.Signals[name])
            time.sleep(0.5)


@pytest.mark.parametrize("left", ["", '{"data/raw": {"wri'], ids=["emptied", "cut off"])
def test_what_a_kill_leaves_of_dvcs_file_of_busy_outs_keeps_no_later_dvc_from_running(toy: Path, left: str) -> None:
    path = toy / RWLOCK
    path.write_text(left)
    with pytest.raises(AssertionError, match="RWLock-file"):
        dvc(toy, "repro", "--force", "--single-item", "raw")
    drop_torn_rwlock(toy)
    dvc(toy, "repro", "--force", "--single-item", "raw")
    path.write_text("{}")
    drop_torn_rwlock(toy)
    assert path.read_text() == "{}", "of a dvc that may be at work"


@pytest.mark.slow
def test_the_workers_that_torchrun_starts_do_not_outlive_the_step(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOY_HOOK", raising=False)
    (project / "worker.py").write_text(f"import os, sys\n{hold_open(tmp_path / 'alive')}\n")
    torchrun = "python -m torch.distributed.run --standalone --nproc-per-node 1 worker.py"
    edit(project / "dvc.yaml", "cmd: python -m toy raw data/raw", f"cmd: {torchrun}")
    with (
        started(project, "asset", "materialize", "-m", "toy_definitions", "--select", "data/raw") as run,
        ended_life(tmp_path / "alive") as worker,
    ):
        assert os.getsid(worker) != os.getsid(run.pid)
        run.kill()


@pytest.mark.slow
@pytest.mark.parametrize("signals", [["SIGTERM"], ["SIGINT"], ["SIGINT", "SIGINT"]], ids="-".join)
def test_a_run_ends_with_dagster_dev(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signals: list[str]
) -> None:
    """SIGTERM to it alone, as a service manager sends it, and Ctrl-C in its terminal, once and twice."""
    monkeypatch.setenv("TOY_HOOK", hold_open(tmp_path / "alive"))
    edit(project / "params.yaml", "count: 3", "count: 4")
    port = free_port()
    dev_command = ("dev", "-m", "toy_definitions", "--host", "127.0.0.1", "--port", str(port))
    with started(project, *dev_command, in_terminal=signals[0] == "SIGINT") as dev:
        wait_for(dev, "Sensor dvc_lock skipped: dvc.lock holds nothing new")
        run_id = launch(port, {"data/raw"})
        with ended_life(tmp_path / "alive"):
            for name in signals:
                if name == "SIGINT":
                    os.killpg(dev.pid, signal.SIGINT)  # a terminal sends it to all processes of its group
                    time.sleep(0.5)
                else:
                    dev.terminate()
            dev.communicate()
    with DagsterInstance.from_config(str(project / "home")) as instance:
        assert appears(lambda: instance.get_run_by_id(run_id).is_finished)
        status = instance.get_run_by_id(run_id).status
        assert status in {DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED}


@pytest.mark.slow
def test_asset_selection_and_experiments_work_in_one_environment(project: Path) -> None:
    """Both parse with antlr4, of versions that exclude each other unless pinned as in pyproject.toml."""
    command = [sys.executable, "-m", "dagster", "asset", "list", "-m", "toy_definitions"]
    selection = '* and (key:"data/shards/*" or group:"model")'
    done = subprocess.run([*command, "--select", selection], cwd=project, check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) == OUTS - {"data/raw"}
    dvc(project, "exp", "run", "-S", "train.rate=0.5")
    assert "rate: 0.5" in (project / "params.yaml").read_text()


@pytest.mark.slow
def test_dagster_dev_shows_the_graph_follows_the_command_line_runs_and_ends_runs(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "TOY_HOOK", f"if os.path.exists('{tmp_path}/alive'):\n" + indent(hold_open(tmp_path / "alive"), "  ")
    )
    (tmp_path / "alive").unlink()
    port = free_port()
    with started(project, "dev", "-m", "toy_definitions", "--host", "127.0.0.1", "--port", str(port)) as dev:
        wait_for(dev, "Sensor dvc_lock skipped: dvc.lock holds nothing new")
        nodes = assets(port)
        assert set(nodes) == OUTS
        assert {key: node["groupName"] for key, node in nodes.items()} == {
            key: "data" if key.startswith("data") else "model" for key in OUTS
        }
        assert nodes["data/shards/own"]["description"] == "One delivery"
        assert nodes["data/shards/own"]["opNames"] == ["shard"]
        assert nodes["models/toy"]["pools"] == ["gpu"]
        assert {node["staleStatus"] for node in nodes.values()} == {"FRESH"}

        edit(project / "params.yaml", "scale: 2", "scale: 3")
        wait_for(dev, "the code location was asked to reload")
        wait_for(dev, "Sensor dvc_lock skipped: dvc.lock holds nothing new")
        stale = {key for key, node in assets(port).items() if node["staleStatus"] == "STALE"}
        assert stale == {"data/shards/own", "data/shards/raw-b000"}

        launch(port, OUTS)
        wait_for(dev, "RUN_SUCCESS")
        assert {node["staleStatus"] for node in assets(port).values()} == {"FRESH"}

        hold_open(tmp_path / "alive")
        edit(project / "params.yaml", "count: 3", "count: 4")
        run_id = launch(port, {"data/raw"})
        with ended_life(tmp_path / "alive"):
            graphql(port, f'mutation {{ terminateRun(runId: "{run_id}") {{ __typename }} }}')
        wait_for(dev, "RUN_CANCELED")


@pytest.mark.slow
def test_a_code_server_that_cannot_reload_still_reports_and_is_named(project: Path) -> None:
    """`dagster api grpc`, as in Docker and Helm."""
    port, code_port = free_port(), free_port()
    location = {"host": "127.0.0.1", "port": code_port, "location_name": "toy"}
    (project / "workspace.yaml").write_text(json.dumps({"load_from": [{"grpc_server": location}]}))
    serve = ["api", "grpc", "-m", "toy_definitions", "--host", "127.0.0.1", "--port", str(code_port)]
    develop = ["dev", "-w", "workspace.yaml", "--host", "127.0.0.1", "--port", str(port)]
    with started(project, *serve) as server:
        wait_for(server, "Started Dagster code server")
        with started(project, *develop) as dev:
            wait_for(dev, "Sensor dvc_lock skipped: dvc.lock holds nothing new")
            edit(project / "params.yaml", "scale: 2", "scale: 3")
            dvc(project, "repro", "--single-item", "shard@own")
            wait_for(dev, "restart the code server")
    with DagsterInstance.from_config(str(project / "home")) as instance:
        event = instance.get_latest_materialization_event(AssetKey(["data", "shards", "own"]))
    assert event is not None
    assert event.asset_materialization is not None
    recorded = read_lock(project, load_graph(project))["shard@own"].outs["data/shards/own"].md5
    assert (event.asset_materialization.tags or {})["dagster/data_version"] == recorded


def hold_open(pipe: Path) -> str:
    """A named pipe, and code that holds it open for as long as its process lives."""
    os.mkfifo(pipe)
    return (
        f"import signal; life = open('{pipe}', 'w'); print(os.getpid(), file=life, flush=True)\n"
        "while True: signal.pause()"
    )


@contextmanager
def ended_life(pipe: Path) -> Iterator[int]:
    """Of the process that holds the pipe open the id; when the block ends, it must end within two minutes."""
    with pipe.open() as life:
        pid = int(life.readline())
        try:
            yield pid
            ready, _, _ = select([life], [], [], 120)
            assert ready, f"process {pid} is still alive"
            assert life.read() == ""
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(process: "subprocess.Popen[str]", text: str) -> None:
    """Read the output until a line has `text`; the test's timeout ends it otherwise."""
    assert process.stdout is not None
    assert any(text in line for line in process.stdout), f"ended without saying: {text}"


def assets(port: int) -> dict[str, dict[str, Any]]:
    fields = "assetKey { path } groupName description opNames pools staleStatus"
    nodes = graphql(port, f"{{ assetNodes {{ {fields} }} }}")["assetNodes"]
    return {"/".join(node["assetKey"]["path"]): node for node in nodes}


def launch(port: int, paths: set[str]) -> str:
    """What the button "Materialize" sends; the run's id."""
    selector = {
        "repositoryLocationName": "toy_definitions",
        "repositoryName": "__repository__",
        "pipelineName": "__ASSET_JOB",
        "assetSelection": [{"path": path.split("/")} for path in sorted(paths)],
    }
    mutation = """mutation Launch($parameters: ExecutionParams!) {
        launchPipelineExecution(executionParams: $parameters) {
            __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
        }
    }"""
    answer = graphql(port, mutation, {"parameters": {"selector": selector, "mode": "default"}})[
        "launchPipelineExecution"
    ]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    run_id: str = answer["run"]["runId"]
    return run_id


def graphql(port: int, query: str, variables: dict[str, Any] | None = None) -> dict[str, Any]:
    request = Request(
        f"http://127.0.0.1:{port}/graphql",
        data=json.dumps({"query": query, "variables": variables}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urlopen(request) as response:
        answer = json.load(response)
    assert "errors" not in answer, answer
    data: dict[str, Any] = answer["data"]
    return data
