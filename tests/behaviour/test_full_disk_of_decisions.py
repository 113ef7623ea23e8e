"""A disk that is really full while a model is accepted: under the exported models, and under the event log."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ace.operations.service import ANNA, Service, make_service
from tests.behaviour.test_full_disk import own_mounts  # noqa: F401, a fixture
from tests.support.checkout import ROOT

SCRIPT = """
import json, os, shutil, subprocess, sys
from pathlib import Path
from ace.__main__ import build_parser
from shards.cli import run_command

disk, models, root = map(Path, sys.argv[1:4])
os.environ["ACE_MODELS"] = str(models)
os.chdir(root)
before = disk.with_name("before")
shutil.copytree(disk, before, symlinks=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=True)
shutil.copytree(before, disk, symlinks=True, dirs_exist_ok=True)
try:
    with (disk / "fill").open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
except OSError:
    pass


def run(*arguments):
    return run_command(build_parser(), arguments)


def look():
    log = (root / "registry/events.jsonl").read_bytes()
    folders = sorted(path.name for path in models.iterdir() if path.name != "fill")
    text = (models / "accepted/README.md").read_text()
    return {"code": code, "folders": folders, "serves": text, "half": not log.endswith(b"\\n")}


answers = []
code = run("models", "promote")
answers.append(look())
(disk / "fill").unlink()
code = run("models", "promote")
answers.append({**look(), "audit": run("models", "audit")})
events = [json.loads(line) for line in (root / "registry/events.jsonl").read_text().splitlines()]
print("answers", json.dumps([*answers, [event["kind"] for event in events]]))
"""


def promote_on(disk: Path, service: Service, own_mounts: tuple[str, ...]) -> list[Any]:  # noqa: F811
    command = [*own_mounts, sys.executable, "-c", SCRIPT, str(disk), str(service.models), str(service.root)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"error: {disk}"), done.stderr
    assert "0.0 kB free" in done.stderr
    return list(json.loads(done.stdout.rpartition("answers ")[2]))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["models", "log"])
def test_a_model_that_is_accepted_on_a_full_disk_serves_whole_or_not_at_all_and_the_same_command_finishes_it(
    place: str,
    tmp_path: Path,
    own_mounts: tuple[str, ...],  # noqa: F811
) -> None:
    service = make_service(tmp_path)
    service.train("one")
    service.registry.promote(ANNA)
    service.train("two")
    log = service.root / "registry/events.jsonl"
    service.registry.hold(ANNA, "new models wait")
    service.registry.release(ANNA, "y" * (4096 - log.stat().st_size - 350))
    assert 4096 - 300 < log.stat().st_size < 4096, "the next line is cut off at the end of the page"
    is_log = place == "log"
    full, finished, kinds = promote_on(log.parent if is_log else service.models, service, own_mounts)
    assert full == {"code": 2, "folders": ["accepted", "v1"], "serves": "# one\n", "half": is_log}
    folders = ["accepted", "v1", "v2"]
    assert finished == {"code": 0, "folders": folders, "serves": "# two\n", "half": False, "audit": 0}
    assert kinds[4:] == [*(["set_aside"] if is_log else []), "registered", "promoted"]
