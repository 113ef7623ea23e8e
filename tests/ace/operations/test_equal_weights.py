"""`ops equal-weights` in a real clone: what leaves the weights equal, what does not, and whose code answers."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ace.__main__ import build_parser
from ace.config import use
from ace.engine.stop import EXIT_CODE
from ace.operations.equal_weights import Comparison
from shards.cli import run_command
from shards.delivery.yaml_lines import add_deps, add_item, set_dep
from shards.format.exclusion import exclusion_dep
from shards.runtime.scratch import SCRATCH_VARIABLE
from tests.support.checkout import ROOT, clone_checkout, commit, git

STEP = "ace/pretrain/step.py"
SMOKE = ["python -m ace config use smoke", "python -m dvc repro pretrain"]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clone = clone_checkout(tmp_path_factory.mktemp("template") / "clone")
    commit(clone)
    git(clone, "tag", "v0.1.0")
    return clone


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of unfinished work of the test's own; the packages of the checkout come first, as in a bad setup."""
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "scratch"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path / "scratch"


@pytest.fixture
def clone(template: Path, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose HEAD is v0.1.0, to change."""
    folder = Path(shutil.copytree(template, tmp_path / "clone", symlinks=True))
    monkeypatch.chdir(folder)
    return folder


def equal_weights(*arguments: str) -> int:
    return run_command(build_parser(), ["ops", "equal-weights", *arguments])


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, path
    path.write_text(text.replace(old, new), encoding="utf-8")


def state(clone: Path) -> dict[str, bytes]:
    """Every file of a checkout but git's own index, which `git status` refreshes."""
    files = [path for path in clone.rglob("*") if path.is_file() and path != clone / ".git/index"]
    return {path.relative_to(clone).as_posix(): path.read_bytes() for path in files}


def steps(text: str) -> list[str]:
    return [line.partition(": ")[2] for line in text.splitlines() if line[1:3] == "/4"]


@pytest.mark.slow
def test_a_commit_is_equal_to_itself_and_the_checkout_stays_as_it_is(
    clone: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(clone)
    assert equal_weights("HEAD") == 0
    said = capsys.readouterr().out
    assert steps(said) == [*SMOKE, *SMOKE]
    assert said.splitlines()[-1].startswith("equal: ")
    assert "models/ace/teacher_backbone.safetensors" in said
    assert "`dvc commit --force pretrain` records the model as it is" in said
    assert state(clone) == before
    assert [*scratch.iterdir()] == []


@pytest.mark.slow
def test_one_other_number_gives_other_weights_although_the_checkouts_code_comes_first_on_the_path(
    clone: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(clone / STEP, "lr=warmup_cosine(params.lr,", "lr=warmup_cosine(0.999 * params.lr,")
    commit(clone)
    assert equal_weights("v0.1.0") == 1
    said = capsys.readouterr().out
    assert "not equal: v0.1.0 (" in said
    (weights,) = [line for line in said.splitlines() if line.startswith("  weights: ")]
    assert "models/ace/student_backbone.safetensors" in weights
    assert "  shards: all equal\n" in said
    assert "the next retraining makes a new model" in said
    assert [*scratch.iterdir()] == []


@pytest.mark.slow
def test_a_docstring_and_a_clinics_own_batches_and_settings_leave_the_weights_equal(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The images of the clinic are not in git, so no clone could build its shards."""
    edit(clone / STEP, '"""One optimiser step: ', '"""A single optimiser step: ')
    use("cxr_small", clone / "params.yaml", clone / "configs")
    register_clinic(clone)
    commit(clone)
    assert equal_weights("v0.1.0") == 0, capsys.readouterr()


def register_clinic(clone: Path) -> None:
    """Make a batch of images that lie elsewhere part of a project: trained on, in part excluded, with a task."""
    params, dvc = clone / "params.yaml", clone / "dvc.yaml"
    text = add_item(params.read_text(), "batches", "clinic-b000", "data/manifests/clinic-b000.jsonl")
    text = add_item(text, "mix", "clinic-b000", {"weight": 1.0, "mean": 0.4, "std": 0.2})
    params.write_text(text.replace("finetune: {}", "finetune: {effusion: clinic-b000}"))
    text = add_deps(dvc.read_text(), "clinic-b000")
    dvc.write_text(set_dep(text, exclusion_dep("clinic-b000"), "clinic-b000", wanted=True))
    shutil.copy(clone / "batches/phantom-b000.yaml", clone / "batches/clinic-b000.yaml")


def test_each_clones_own_code_runs_in_a_clean_environment(
    clone: Path, scratch: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DAGSTER_HOME", "DVC_ROOT", "GIT_CONFIG_PARAMETERS", "LC_NUMERIC", "LANG"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (clone / "ace/__main__.py").write_text(
        "import os, sys\nprint(*sorted(os.environ))\nprint(sys.executable, 'this is the code of', __file__)\n"
        "sys.exit(3)\n"
    )
    commit(clone)
    assert equal_weights("HEAD", "--new", "v0.1.0") == 2
    said = capsys.readouterr()
    assert steps(said.out) == SMOKE[:1]
    assert "HEAD (" in said.err
    assert "config use smoke failed (exit code 3)" in said.err
    assert f"{sys.executable} this is the code of {scratch}" in said.err
    names = set(said.err.split())
    assert {"LC_ALL", "OMP_NUM_THREADS", "PYTHONPATH"} <= names
    assert not names & {"DAGSTER_HOME", "DVC_ROOT", "GIT_CONFIG_PARAMETERS", "LC_NUMERIC", "LANG"}
    assert [*scratch.iterdir()] == []


def test_code_from_elsewhere_is_refused(
    clone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit without a package would take that of an editable install."""
    shutil.rmtree(clone / "shards")
    commit(clone)
    other = tmp_path / "python/bin"
    other.mkdir(parents=True)
    (other / "python").write_text(f'#!/bin/sh\nPYTHONPATH=$PYTHONPATH:{ROOT} exec {sys.executable} "$@"\n')
    (other / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(other / "python"))
    assert equal_weights("HEAD", "--new", "v0.1.0") == 2
    said = capsys.readouterr().err
    assert f"the code that would run is {ROOT}/shards/__init__.py; expected that of its clone" in said


@pytest.mark.slow
def test_a_stage_that_fails_is_told_with_its_last_lines(
    clone: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(clone / "dvc.yaml", "python -m shards phantom", "echo no phantom today && false")
    commit(clone)
    assert equal_weights("HEAD", "--new", "v0.1.0") == 2
    said = capsys.readouterr()
    assert steps(said.out) == SMOKE
    assert "dvc repro pretrain failed" in said.err
    assert "no phantom today" in said.err
    assert [*scratch.iterdir()] == []


@pytest.mark.parametrize("name", ["v9.9.9", "--all", "HEAD:ace"])
def test_an_unknown_revision_is_refused(clone: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert equal_weights("--", name) == 2
    said = capsys.readouterr()
    assert f"git knows no commit '{name}'; expected a tag" in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    "name", [STEP, "ace/losses/new.py", "shards/new.py", "configs/smoke.yaml", "params.yaml", "versions.yaml"]
)
def test_what_is_not_committed_is_refused_by_name(clone: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    with (clone / name).open("a") as file:
        file.write("\n")
    assert equal_weights("v0.1.0") == 2
    assert f"not committed: {name}. " in capsys.readouterr().err


def test_other_files_may_be_changed(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (clone / "dvc.lock").write_text("schema: '2.0'\n")
    (clone / "docs/deploy.md").unlink()
    assert equal_weights("unknown") == 2
    assert "git knows no commit 'unknown'" in capsys.readouterr().err


def test_a_project_without_the_phantom_is_told_to_compare_tags(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = clone / "params.yaml"
    params.write_text(params.read_text().replace("phantom-b000", "clinic-b000"))
    commit(clone)
    assert equal_weights("HEAD") == 2
    said = capsys.readouterr().err
    assert "params.yaml has the batches clinic-b000; expected phantom-b000 among them" in said
    assert "--new v0.2.0" in said


@pytest.mark.slow
def test_a_signal_ends_all_that_runs_and_removes_the_folder(clone: Path, scratch: Path) -> None:
    command = [sys.executable, "-m", "ace", "ops", "equal-weights", "HEAD"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while "2/4" not in process.stdout.readline():
            assert process.poll() is None
        while len(at_work(scratch)) < 2:  # dvc and a stage
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == EXIT_CODE
        assert "ended by SIGTERM" in process.stderr.read()
    assert at_work(scratch) == []
    assert [*scratch.iterdir()] == []


def at_work(folder: Path) -> list[int]:
    """Processes whose working directory lies in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def test_a_comparison_names_what_differs_and_what_only_one_has() -> None:
    model, tar = "models/ace/heads.safetensors", "data/shards/phantom-b000/train-{}.tar"
    old, new = {model: "a", tar.format(0): "b", tar.format(1): "c"}, {model: "a", tar.format(0): "d"}
    found = Comparison(old="old", new="new", old_sums=old, new_sums=new)
    assert found.different == [tar.format(0), tar.format(1)]
    assert "  weights: all equal\n" in found.to_text()
    assert f"  shards: {tar.format(0)}, {tar.format(1)}\n" in found.to_text()
    assert Comparison(old="old", new="new", old_sums=new, new_sums=old).different == found.different
    same = Comparison(old="old", new="new", old_sums=new, new_sums=new)
    assert same.to_text().startswith("equal: old and new give the same 1 file of weights")
