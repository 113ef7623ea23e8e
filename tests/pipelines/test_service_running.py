"""The service as it runs: real processes of Dagster, a real dvc, and nobody at the keyboard."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dagster import DagsterInstance, DagsterRunStatus

from ace.operations.publishing import PUBLISHED
from pipelines.deliveries import KEY
from pipelines.lock import COMMIT
from tests.ace.operations.delivered import MEASURED, commit_all, deliver, lines_of_log, make_service, mixed, open_key
from tests.pipelines.test_process import DEFINITIONS, free_port
from tests.pipelines.toy import appears, dvc, make_dagsters_tables
from tests.support.checkout import ROOT, git

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
TIMEOUT_S = 500


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A service's clone with one built batch, definitions, an instance of its own, and remotes to publish to."""
    open_key(tmp_path, monkeypatch)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site-cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "dagster.yaml").write_text((ROOT / "pipelines/dagster.yaml").read_text())
    project = make_service(tmp_path)
    (project / "service_definitions.py").write_text(DEFINITIONS)
    subprocess.run(["git", "init", "--quiet", "--initial-branch", "service"], cwd=project, check=True)
    git(project, "init", "--quiet", "--bare", str(tmp_path / "origin.git"))
    git(project, "remote", "add", "origin", str(tmp_path / "origin.git"))
    dvc(project, "init", "--quiet")
    (tmp_path / "store").mkdir()
    dvc(project, "remote", "add", "--default", "store", str(tmp_path / "store"))
    dvc(project, "repro", "--single-item", f"shard@{MEASURED}")
    commit_all(project)
    return project


@pytest.fixture
def dev(project: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`dagster dev`: web server, daemon and code server."""
    make_dagsters_tables()
    command = [sys.executable, "-m", "dagster", "dev", "-m", "service_definitions", "--port", str(free_port())]
    with (project.parent / "dev.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=project, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


def observed(instance: DagsterInstance) -> list[str | None]:
    """What was observed of the deliveries, the newest first."""
    records = instance.fetch_observations(KEY, limit=10).records
    return [record.asset_observation.description for record in records if record.asset_observation]


def test_a_delivery_that_is_dropped_into_the_folder_becomes_an_accepted_batch(
    project: Path, dev: "subprocess.Popen[bytes]"
) -> None:
    head = git(project, "rev-parse", "HEAD").strip()
    folder = deliver(project.parent / "March", range(100, 130))
    folder.rename(project / "incoming" / "March")
    end = time.monotonic() + TIMEOUT_S
    with DagsterInstance.get() as instance:
        while not (runs := instance.get_runs()) or not runs[0].is_finished:
            assert dev.poll() is None, (project.parent / "dev.log").read_text()
            assert time.monotonic() < end, (project.parent / "dev.log").read_text()
            time.sleep(1)
        assert [(run.job_name, run.status) for run in runs] == [("deliveries", DagsterRunStatus.SUCCESS)]
        assert appears(lambda: "clinic-b001: accepted" in observed(instance), lambda: dev.poll() is None)
    assert runs[0].tags[COMMIT] == head
    assert mixed(project) == [MEASURED, "clinic-b001"]
    assert lines_of_log(project) == [("clinic-b001", "accepted", "the checks")]
    assert "Batch clinic-b001 is accepted" in git(project, "log", "--format=%s").splitlines()
    origin = project.parent / "origin.git"
    assert (
        git(origin, "rev-parse", "service") == git(project, "rev-parse", "HEAD") == git(project, "rev-parse", PUBLISHED)
    )
    assert not git(project, "status", "--porcelain", "registry")
    clone = project.parent / "clone"
    git(project, "clone", "--quiet", "--branch", "service", str(origin), str(clone))
    dvc(clone, "pull", "shard@clinic-b001")
    assert (clone / "data/shards/clinic-b001/index.json").read_bytes() == (
        project / "data/shards/clinic-b001/index.json"
    ).read_bytes()
