"""The processes of deploy/, started apart as the units of systemd start them."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from dagster import DagsterInstance
from dagster._daemon.controller import all_daemons_healthy
from ruamel.yaml import YAML

from tests.pipelines.test_process import DEFINITIONS, free_port
from tests.pipelines.toy import appears, dvc, edit
from tests.support.checkout import ROOT
from tests.test_deploy import DEPLOY, service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
END = 'mutation { terminateRun(runId: "of nobody") { __typename } }'
LOCATIONS = "{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError { __typename } } } } }"


@contextmanager
def unit(name: str, project: Path, ports: dict[str, str], log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Start what a unit starts, with the toy's definitions, at ports that are free."""
    command = service(DEPLOY / f"systemd/{name}.service")["ExecStart"].replace(
        "pipelines.definitions", "toy_definitions"
    )
    for port, free in ports.items():
        command = command.replace(f"--port {port}", f"--port {free}")
    program, *words = command.split()
    with log.open("ab") as file:
        started = [f"{sys.prefix}/bin/{Path(program).name}", *words]
        process = subprocess.Popen(started, cwd=project, stdout=file, stderr=file)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def ask(port: str, query: str) -> dict:
    request = Request(f"http://127.0.0.1:{port}/graphql", json.dumps({"query": query}).encode())
    request.add_header("Content-Type", "application/json")
    with urlopen(request, timeout=60) as answer:
        return json.load(answer)


def locations(port: str) -> list[tuple[str, str]]:
    try:
        entries = ask(port, LOCATIONS)["data"]["workspaceOrError"]["locationEntries"]
    except (URLError, ConnectionError):
        time.sleep(0.5)
        return []
    return [(entry["name"], (entry["locationOrLoadError"] or {}).get("__typename")) for entry in entries]


def test_code_server_daemon_and_web_servers_find_each_other_and_the_view_changes_nothing(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (toy / "toy_definitions.py").write_text(DEFINITIONS)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_text((ROOT / "pipelines/dagster.yaml").read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    ports = {port: str(free_port()) for port in ("4266", "3000", "3001")}
    (toy / "deploy").mkdir()
    workspace = (DEPLOY / "workspace.yaml").read_text()
    (toy / "deploy" / "workspace.yaml").write_text(workspace.replace("4266", ports["4266"]))
    log = tmp_path / "log.txt"
    with ExitStack() as stack, DagsterInstance.get() as instance:
        names = ("ace-code", "ace-daemon", "ace-webserver", "ace-view")
        started = [stack.enter_context(unit(name, toy, ports, log)) for name in names]

        def is_alive() -> bool:
            return all(process.poll() is None for process in started)

        loaded = [("ace", "RepositoryLocation")]
        assert appears(lambda: locations(ports["3000"]) == loaded, is_alive), log.read_text()
        assert appears(lambda: locations(ports["3001"]) == loaded, is_alive), log.read_text()
        assert appears(lambda: all_daemons_healthy(instance), is_alive), log.read_text()
        answers = [ask(ports[port], END)["data"]["terminateRun"]["__typename"] for port in ("3000", "3001")]
    assert answers == ["RunNotFoundError", "UnauthorizedError"]


def outs_and_deps(project: Path, stage: str) -> tuple[list, list]:
    found = YAML(typ="safe").load(project / "dvc.lock")["stages"][stage]
    return found["outs"], found["deps"]


def test_after_an_upgrade_dvc_lock_says_whether_the_bytes_are_the_same(toy: Path) -> None:
    """The steps of docs/deploy.md, Upgrade, for code that changes and makes the same."""
    before = {stage: outs_and_deps(toy, stage) for stage in ("shard@own", "shard@raw-b000", "train")}
    edit(toy / "toy/__main__.py", "import json", "# another version\nimport json")
    assert "shard@own" in dvc(toy, "status")
    dvc(toy, "repro", "shard")
    for stage in ("shard@own", "shard@raw-b000"):
        outs, deps = outs_and_deps(toy, stage)
        assert outs == before[stage][0]
        assert deps != before[stage][1]
    assert "train" in dvc(toy, "status")
    dvc(toy, "commit", "--force", "train")
    outs, deps = outs_and_deps(toy, "train")
    assert outs == before["train"][0]
    assert deps != before["train"][1]
    assert "up to date" in dvc(toy, "status")
