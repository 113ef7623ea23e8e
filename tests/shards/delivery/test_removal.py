"""Taking a batch out of the project: what other batches need stays, and a kill at any moment does no harm."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ace.__main__ import build_parser
from shards.cli import run_command
from shards.core.config import read_params
from shards.core.errors import ConfigError
from shards.delivery.batches import batch_path
from shards.delivery.project import Project, remove_batch
from shards.delivery.yaml_lines import add_deps, add_item
from tests.support.checkout import ROOT, copy_project

FIRST, SECOND = "phantom-b000", "phantom-b001"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The repository's own project with a second batch of the same phantom."""
    root = tmp_path / "project"
    root.mkdir()
    copy_project(root)
    found = Project(root / "params.yaml", root / "dvc.yaml")
    batch_path(SECOND, root).write_bytes(batch_path(FIRST, root).read_bytes())
    params = add_item(found.params.read_text(encoding="utf-8"), "batches", SECOND, "data/phantom")
    mix = {"weight": 1.0, "mean": 0.482, "std": 0.269}
    found.params.write_text(add_item(params, "mix", SECOND, mix), encoding="utf-8")
    found.dvc.write_text(add_deps(found.dvc.read_text(encoding="utf-8"), SECOND), encoding="utf-8")
    return found


def deps_of(project: Project) -> dict[str, set[str]]:
    """The deps of the stages that read every batch."""
    stages = read_params(project.dvc)["stages"]
    return {name: set(stages[name]["deps"]) for name in ("pretrain", "report")}


@pytest.mark.parametrize(("name", "left"), [(FIRST, SECOND), (SECOND, FIRST)])
def test_what_a_batch_that_is_left_is_made_of_stays(
    name: str, left: str, project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    before = deps_of(project)
    assert "data/phantom" in before["report"], "a stage depends on what both batches are made of"
    remove_batch(name, project)
    assert deps_of(project) == {stage: deps - {f"data/shards/{name}"} for stage, deps in before.items()}
    values = read_params(project.params)
    assert list(values["batches"]) == list(values["mix"]) == [left]
    # Not all of the graph: the phantom's stage stays in it, also without a batch of the phantom.
    assert "Now run `dvc repro`" in capsys.readouterr().err


def test_a_batch_that_a_task_is_trained_on_is_not_taken_out(project: Project) -> None:
    text = project.params.read_text(encoding="utf-8")
    with_task = text.replace("finetune: {}", f"finetune: {{phantom: {SECOND}}}", 1)
    assert with_task != text
    project.params.write_text(with_task, encoding="utf-8")
    before = content(project)
    with pytest.raises(ConfigError, match=r"finetune has phantom, of a batch that would be taken out"):
        remove_batch(SECOND, project)
    assert content(project) == before
    remove_batch(FIRST, project)
    for command in (("encoder", "list"), ("config", "check")):
        assert run_command(build_parser(), (*command, "--params", str(project.params))) == 0


KILLED = """
import os, shutil, signal, sys
from itertools import count
from pathlib import Path
from shards.delivery.project import Project, remove_batch

folder, name = Path(sys.argv[1]), sys.argv[2]
num_events = 0
sys.stderr = open(os.devnull, "w")


def remove(root):
    remove_batch(name, Project(root / "params.yaml", root / "dvc.yaml"))


# What is imported and parsed here, each child finds done.
remove(Path(shutil.copytree(folder / "begun", folder / "whole")))
for moment in count(1):
    copy = folder / f"killed{moment:04d}"
    shutil.copytree(folder / "begun", copy)
    child = os.fork()
    if child == 0:
        def tell(event, arguments):
            global num_events
            is_write = event.startswith("os.") or (event == "open" and ".tmp" in str(arguments[0]))
            if is_write and str(copy) in str(arguments[0]):
                num_events += 1
                if num_events == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(tell)
        remove(copy)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""
"""Python tells before it opens, renames or removes a file; each removal ends at one more of these moments."""


def content(project: Project) -> tuple[bytes, bytes]:
    return project.dvc.read_bytes(), project.params.read_bytes()


def test_a_removal_that_is_killed_at_any_moment_leaves_a_project_that_works_and_is_finished_by_the_next(
    project: Project, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    shutil.copytree(project.root, begun)
    before = content(project)
    remove_batch(FIRST, project)
    after = content(project)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), FIRST], env=environment, check=True)
    seen = {}
    for folder in sorted(tmp_path.glob("killed*")):
        killed = Project(folder / "params.yaml", folder / "dvc.yaml")
        seen.setdefault((content(killed), bool(list(folder.glob(".*.tmp")))), killed)
    assert {state for state, _ in seen} == {before, (after[0], before[1]), after}
    assert {has_leftovers for _, has_leftovers in seen} == {False, True}
    halfway = next(killed for (state, _), killed in seen.items() if state not in (before, after))
    assert run_command(build_parser(), ("config", "check", "--params", str(halfway.params))) == 0
    for (state, _), killed in seen.items():
        if state != after:
            remove_batch(FIRST, killed)
            assert content(killed) == after
            assert not list(killed.root.glob(".*.tmp"))
