"""The way back of docs/operations.md, from a lost machine: the service's clone is gone, and the backup is not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterInstance, asset, materialize

import ace.operations.deliveries as module
from ace.operations import history
from ace.operations.audit import first_problem
from ace.operations.publishing import published_commit
from ace.operations.tags import read_events
from shards.core.errors import IdKeyError
from shards.core.identity import KEY_FILE_VARIABLE, create_key
from tests.ace.operations.delivered import (
    MEASURED,
    build_here,
    commit_all,
    deliver,
    deliveries_of,
    lines_of_log,
    make_service,
    mixed,
    open_key,
    status,
)
from tests.ace.operations.service import ANNA, Service
from tests.ace.operations.test_publishing import dvc, make_published
from tests.support.checkout import ROOT, git


def restored_clone(origin: Path, clone: Path) -> None:
    shutil.rmtree(clone)
    git(clone.parent, "clone", "--quiet", "--branch", "service", str(origin), str(clone))
    git(clone, "config", "user.name", "Anna")
    git(clone, "config", "user.email", "anna@example.org")


def command(root: Path, models: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ace", *words],
        cwd=root,
        env={**os.environ, "ACE_MODELS": str(models), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_origin_and_dvcs_remote_bring_back_decisions_versions_and_what_serves(tmp_path: Path) -> None:
    made = make_published(tmp_path, remote=str(tmp_path / "remote"))
    made.service.registry.hold(ANNA, "the week of the audit")
    made.publish()
    log = made.service.registry.log.read()
    shutil.rmtree(made.service.models)
    restored_clone(made.origin, made.root)
    dvc(made.root, "pull", "--quiet")
    dvc(made.root, "fetch", "--quiet", "--all-commits")
    service = Service(made.root, made.service.models)
    assert service.registry.log.read() == log
    last = history.accepted(service.registry.events())
    assert last is not None
    assert last.facts["version"] == 2
    restored = command(made.root, made.service.models, "models", "restore")
    assert [line.partition(" is back")[0] for line in restored.stdout.splitlines()] == ["v1", "v2", "v2 serves"], (
        restored
    )
    assert command(made.root, made.service.models, "models", "restore").stdout == "v2 serves\n"
    assert command(made.root, made.service.models, "models", "audit").returncode == 0
    assert (made.service.models / "accepted" / "README.md").read_text() == "two"
    assert service.registry.log.read() == log, "to serve again decides nothing"
    head = git(made.root, "rev-parse", "HEAD").strip()
    made.publish()
    assert published_commit(made.root) == head == made.at_origin["refs/heads/service"]
    service.registry.release(ANNA, "it is over")
    service.registry.rollback(1, ANNA, "worse")
    assert (made.service.models / "accepted" / "README.md").read_text() == "one"
    assert first_problem(service.registry) is None


def test_key_manifests_and_images_from_the_backup_take_the_next_delivery_as_if_nothing_had_been_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_key(tmp_path, monkeypatch)
    monkeypatch.setattr(module, "repro", build_here)
    project = make_service(tmp_path / "service")
    assert build_here(f"shard@{MEASURED}", project, tmp_path / "log") is None
    commit_all(project)
    deliver(project / "incoming" / "March", range(100, 130))
    list(deliveries_of(project).run())
    git(project, "add", "registry")
    git(project, "commit", "--quiet", "-m", "the log")
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch", "service", "origin.git")
    git(project, "push", "--quiet", str(tmp_path / "origin.git"), "service")
    events, backup, key = read_events(project), tmp_path / "backup", tmp_path / "id.key"
    for name in ("data/manifests", "deliveries"):
        shutil.copytree(project / name, backup / name)
    (tmp_path / "apart").mkdir()
    shutil.copy2(key, tmp_path / "apart" / "id.key")
    for name in (MEASURED, "clinic-b001"):  # as `dvc pull` brings them
        shutil.copytree(project / "data/shards" / name, backup / "data/shards" / name)

    restored_clone(tmp_path / "origin.git", project)
    key.unlink()
    monkeypatch.delenv(KEY_FILE_VARIABLE)
    shutil.copytree(backup, project, dirs_exist_ok=True)
    assert status(project) == ""
    assert mixed(project) == ["clinic-b000", "clinic-b001"]
    deliver(project / "incoming" / "April", range(129, 160))
    with pytest.raises(IdKeyError, match=f"{KEY_FILE_VARIABLE} is not set"):
        list(deliveries_of(project).run())
    create_key(tmp_path / "new.key")
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "new.key"))
    with pytest.raises(IdKeyError, match="With another key patients would change"):
        list(deliveries_of(project).run())
    assert mixed(project) == ["clinic-b000", "clinic-b001"]
    shutil.copy2(tmp_path / "apart" / "id.key", key)
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(key))
    list(deliveries_of(project).run())
    assert mixed(project) == ["clinic-b000", "clinic-b001", "clinic-b002"]
    assert read_events(project)[: len(events)] == events
    assert [verdict for _, verdict, _ in lines_of_log(project)] == ["accepted", "accepted"]
    lines = (project / "data/manifests/clinic-b002.left_out.csv").read_text(encoding="utf-8").splitlines()
    (copy,) = [line for line in lines if "clinic-b001" in line]
    assert copy.startswith("0129.png,"), "an image of the delivery before is known again"


@asset
def model() -> None:
    """Stand for what a stage makes."""


@pytest.mark.slow
def test_dagsters_history_comes_back_with_its_folder_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, backup = tmp_path / "home", tmp_path / "backup"
    home.mkdir()
    shutil.copy(ROOT / "pipelines/dagster.yaml", home)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    with DagsterInstance.get() as instance:
        first = materialize([model], instance=instance, tags={"ace/commit": "c0ffee"}).run_id
    shutil.copytree(home, backup)
    shutil.rmtree(home)
    home.mkdir()
    with DagsterInstance.get() as instance:
        assert not instance.get_runs(), "without a backup the history is lost"
    shutil.rmtree(home)
    shutil.copytree(backup, home)
    with DagsterInstance.get() as instance:
        (restored,) = instance.get_runs()
        assert (restored.run_id, restored.tags["ace/commit"]) == (first, "c0ffee")
        assert restored.is_success
        assert instance.all_logs(first)
        latest = instance.get_latest_materialization_event(AssetKey("model"))
        assert latest is not None
        assert latest.run_id == first
        second = materialize([model], instance=instance).run_id
        assert {run.run_id for run in instance.get_runs()} == {first, second}
