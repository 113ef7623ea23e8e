"""What only shows with processes: kills, two tools in one environment, a running `dagster dev`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests.pipelines.toy import OUTS, dvc, edit

DEFINITIONS = """
from pathlib import Path

import dagster

from pipelines.definitions import build_definitions


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
def started(root: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A dagster command in its own process group, gone when the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dagster", *arguments],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()


def test_ending_a_run_ends_dvc_and_the_command_it_runs(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command holds a pipe open; the pipe's end tells the test of its death without any waiting."""
    monkeypatch.setenv("TOY_HOOK", hold_open(tmp_path / "alive"))
    edit(project / "params.yaml", "count: 3", "count: 4")
    with started(project, "asset", "materialize", "-m", "toy_definitions", "--select", "data/raw") as run:
        with (tmp_path / "alive").open() as life:
            assert life.readline() == "here\n"
            run.send_signal(signal.SIGTERM)
            assert life.read() == ""
        output, _ = run.communicate()
        assert run.returncode != 0, output
    monkeypatch.delenv("TOY_HOOK")
    dvc(project, "repro", "--single-item", "raw")


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
    monkeypatch.setenv("TOY_HOOK", f"if os.path.exists('{tmp_path}/alive'):\n  {hold_open(tmp_path / 'alive')}")
    (tmp_path / "alive").unlink()
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
        wait_for(dev, "the code location was reloaded")
        wait_for(dev, "Sensor dvc_lock skipped: dvc.lock holds nothing new")
        stale = {key for key, node in assets(port).items() if node["staleStatus"] == "STALE"}
        assert stale == {"data/shards/own", "data/shards/raw-b000"}

        launch(port, OUTS)
        wait_for(dev, "RUN_SUCCESS")
        assert {node["staleStatus"] for node in assets(port).values()} == {"FRESH"}

        hold_open(tmp_path / "alive")
        edit(project / "params.yaml", "count: 3", "count: 4")
        run_id = launch(port, {"data/raw"})
        with (tmp_path / "alive").open() as life:
            assert life.readline() == "here\n"
            graphql(port, f'mutation {{ terminateRun(runId: "{run_id}") {{ __typename }} }}')
            assert life.read() == ""
        wait_for(dev, "RUN_CANCELED")


def hold_open(pipe: Path) -> str:
    """A named pipe, and code that holds it open for as long as its process lives."""
    os.mkfifo(pipe)
    return f"import signal; life = open('{pipe}', 'w'); print('here', file=life, flush=True); signal.pause()"


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
