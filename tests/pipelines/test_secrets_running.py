"""Secrets that a run under Dagster has: whatever it writes, and however it fails, none of them is in it."""

import base64
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from ace.operations.residue import is_in_git, search
from shards.core.identity import KEY_FILE_VARIABLE, read_id_key
from shards.runtime.scratch import SCRATCH_VARIABLE
from tests.ace.operations.delivered import MEASURED, commit_all, deliver, lines_of_log, make_service, open_key
from tests.pipelines.test_process import DEFINITIONS
from tests.pipelines.toy import dvc
from tests.support.checkout import ROOT, git

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def run_deliveries(project: Path) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "service_definitions", "-j", "deliveries"]
    return subprocess.run(command, cwd=project, capture_output=True, check=False)


def test_the_identity_key_and_the_logins_of_stores_are_in_nothing_that_a_run_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_key(tmp_path, monkeypatch)
    home, store, origin = tmp_path / "home", tmp_path / "store", tmp_path / "origin.git"
    for name, value in {
        "DVC_SITE_CACHE_DIR": tmp_path / "site-cache",
        "PYTHONPATH": ROOT,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DAGSTER_HOME": home,
    }.items():
        monkeypatch.setenv(name, str(value))
    for folder in (home, store):
        folder.mkdir()
    (home / "dagster.yaml").write_text((ROOT / "pipelines/dagster.yaml").read_text())
    project = make_service(tmp_path)
    (project / "service_definitions.py").write_text(DEFINITIONS)
    git(tmp_path, "init", "--quiet", "--bare", str(origin))
    git(project, "init", "--quiet", "--initial-branch", "service")
    git(project, "remote", "add", "origin", str(origin))
    dvc(project, "init", "--quiet")
    dvc(project, "remote", "add", "--default", "store", str(store))
    dvc(project, "repro", "--single-item", f"shard@{MEASURED}")
    commit_all(project)

    planted = {name: secrets.token_hex(20) for name in (*VARIABLES, "access_key_id", "secret_access_key")}
    for name in VARIABLES:
        monkeypatch.setenv(name, planted[name])
    dvc(project, "remote", "add", "--local", "away", "s3://bucket/folder")
    for name in ("access_key_id", "secret_access_key"):
        dvc(project, "remote", "modify", "--local", "away", name, planted[name])
    local = project / ".dvc/config.local"
    assert planted["secret_access_key"] in local.read_text()

    deliver(project / "incoming" / "March", range(100, 130))
    with monkeypatch.context() as patch:
        patch.setenv(SCRATCH_VARIABLE, "relative")
        failed = run_deliveries(project)
    assert failed.returncode, "a stage that fails under Dagster, whose last lines Dagster keeps"
    assert b"expected an absolute path" in failed.stderr + failed.stdout
    done = run_deliveries(project)
    assert not done.returncode, done.stderr[-3000:]
    assert lines_of_log(project) == [("clinic-b001", "accepted", "the checks")]

    (tmp_path / "said").write_bytes(failed.stdout + failed.stderr + done.stdout + done.stderr)
    key, folders = read_id_key().secret, [tmp_path]
    needles = [value.encode() for value in planted.values()]
    needles += [key, key.hex().encode(), key.hex().upper().encode(), base64.b64encode(key)]
    own = {local, Path(os.environ[KEY_FILE_VARIABLE])}
    found = {path for needle in needles for path in search(folders, [needle], local)}
    assert found <= own, "a secret was written elsewhere"
    assert own - {local} <= found, "the search finds what is there"
    assert not any(is_in_git(root, needles) for root in (project, origin))
    assert is_in_git(origin, [b"clinic-b001"])
    for folder, text in ((home, b"clinic-b001"), (project / "registry", b"delivery_accepted"), (store, b"clinic")):
        assert search([folder], [text], local), f"{folder} has what the run wrote"
