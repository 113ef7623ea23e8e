"""The steps of `make study`, without any training: its work tree, and its record."""

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ace.study import Study, open_study, record_study
from shards.core.errors import ConfigError
from tests.ace.report.test_comparison import metrics
from tests.support.checkout import ROOT, commit, git


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of DVC and git with a study and a line of code."""
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "config", "user.name", "test")
    git(tmp_path, "config", "user.email", "test@localhost")
    files = {
        ".dvc/config": "",
        ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
        ".gitignore": "/studies/*/work/\n",
        "ace/code.py": "one\n",
        "dvc.lock": "the project's\n",
        "studies/encoders.yaml": "base: demo\n",
        "studies/mine/params.yaml": "base: demo\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    commit(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_work_tree_is_of_the_commit_and_has_the_params_and_lock_of_the_study_as_they_stand(checkout: Path) -> None:
    study = checkout / "studies/mine"
    work = open_study(Study("mine"))
    assert (work / "dvc.lock").read_text() == "the project's\n"
    (study / "dvc.lock").write_text("the study's\n")
    (study / "seed1.yaml").write_text("base: studies/mine/params.yaml\n")
    (checkout / "ace/code.py").write_text("two\n")
    (work / "params.yaml").write_text("written by a run\n")
    commit(checkout)
    (study / "params.yaml").write_text("base: smoke\n")
    assert open_study(Study("mine")) == work
    assert (work / "ace/code.py").read_text() == "two\n"
    assert (work / "dvc.lock").read_text() == "the study's\n"
    assert (work / "studies/mine/params.yaml").read_text() == "base: smoke\n"
    assert (work / "params.yaml").read_text() == "written by a run\n"
    assert str(checkout / ".dvc/cache") in (work / ".dvc/config.local").read_text()
    assert open_study(Study("mine", "seed1")) == Path("studies/mine/work/seed1")
    assert git(checkout, "status", "--porcelain").splitlines() == [" M studies/mine/params.yaml"]


def test_code_that_is_not_committed_and_unknown_studies_are_refused(checkout: Path) -> None:
    (checkout / "ace/code.py").write_text("two\n")
    (checkout / "ace/more.py").write_text("new\n")
    with pytest.raises(ConfigError, match=r"not committed: ace/code.py, ace/more.py; "):
        open_study(Study("mine"))
    with pytest.raises(ConfigError, match=r"studies/yours/params.yaml: not found; there are: mine"):
        open_study(Study("yours"))


def test_figures_of_tasks_are_recorded_where_this_commit_made_them_and_say_so(checkout: Path) -> None:
    own = checkout / "metrics/finetune/phantom.json"
    own.parent.mkdir(parents=True)
    own.write_text('{"trained": "of the project"}')
    commit(checkout)
    work = open_study(Study("mine"))
    (work / "metrics/properties.json").write_text(json.dumps(metrics()))
    (work / "params.yaml").write_text("variants: {}\n")
    record_study(Study("mine"))
    assert not (checkout / "studies/mine/finetune").exists(), "the project's own are not the study's"
    (work / "metrics/finetune").mkdir()
    (work / "metrics/finetune/phantom.json").write_text('{"trained": "of the study"}')
    record_study(Study("mine"))
    recorded = checkout / "studies/mine/finetune/phantom.json"
    assert json.loads(recorded.read_text()) == {
        "trained": "of the study",
        "commit": git(checkout, "rev-parse", "HEAD").strip(),
    }
    before = recorded.read_bytes()
    (checkout / "ace/code.py").write_text("two\n")
    commit(checkout)
    (open_study(Study("mine")) / "metrics").mkdir(exist_ok=True)
    record_study(Study("mine"))
    assert recorded.read_bytes() == before, "they are of the earlier commit still"


@pytest.mark.parametrize(("name", "run"), [("..", "params"), ("mine", "../../params"), ("mine/work", "params")])
def test_a_path_is_no_name_of_a_study_or_of_a_run(name: str, run: str) -> None:
    with pytest.raises(ConfigError, match="expected the name of a folder in studies/"):
        Study(name, run)


STAND_IN = """\
#!/bin/bash
echo "$(basename "$PWD")|$(basename "$0") $*|$ACE_ID_KEY_FILE" >>"$LOG"
[[ "$*" != "-m ace study open"* ]] || echo "studies/mine/work/params"
"""
"""In the place of python and dvc: writes down in which folder it is called with what."""


def test_make_study_takes_paths_relative_to_the_checkout_with_spaces_and_quotes_and_runs_every_task(
    tmp_path: Path,
) -> None:
    checkout = tmp_path / "a checkout"
    (checkout / "studies/mine/work/params").mkdir(parents=True)
    (checkout / "venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", checkout)
    for name in ("python", "dvc"):
        (checkout / f"venv/bin/{name}").write_text(STAND_IN, encoding="utf-8")
        (checkout / f"venv/bin/{name}").chmod(0o755)
    (checkout / "the patient's images").mkdir()
    for name in ("the labels.csv", "my id.key"):
        (checkout / name).touch()
    (checkout / "the tasks.txt").write_text("phantom\nnih512 --batch real-b000", encoding="utf-8")  # no end of line
    given = {"NAME": "mine", "DATA": "the patient's images", "LABELS": "the labels.csv", "ACE_ID_KEY_FILE": "my id.key"}
    given |= {"TASKS": str(checkout / "the tasks.txt"), "LOG": str(tmp_path / "log"), "SITE": ""}
    kept = {key: value for key, value in os.environ.items() if key in ("HOME", "LANG", "PATH", "TMPDIR")}
    command = ["make", "-ovenv/.installed", "VENV=venv", "study"]
    done = subprocess.run(command, cwd=checkout, env=kept | given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split("|") for line in (tmp_path / "log").read_text().splitlines()]
    images, labels, key = (str(checkout / name) for name in ("the patient's images", "the labels.csv", "my id.key"))
    assert [(folder, called.removeprefix("python -m ")) for folder, called, _ in lines] == [
        ("a checkout", "ace study open mine --run params"),
        ("params", "ace config use studies/mine/params.yaml"),
        ("params", f"shards register real-b000 {images} --source folder --labels {labels} --site  --only"),
        ("params", "ace config check"),
        ("params", "dvc repro --keep-going"),
        ("params", "ace summary"),
        ("params", "ace finetune phantom"),
        ("params", "ace finetune nih512 --batch real-b000"),
        ("params", "ace report --task phantom --task nih512"),
        ("a checkout", "ace study record mine --run params"),
    ]
    assert {own for folder, _, own in lines if folder == "params"} == {key}
    with (checkout / "studies/mine/work/params.lock").open("w") as other:  # as a second make study would hold it
        fcntl.flock(other, fcntl.LOCK_EX)
        again = subprocess.run(command, cwd=checkout, env=kept | given, capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "error: another make study is at work on studies/mine/work/params" in again.stderr
    assert len((tmp_path / "log").read_text().splitlines()) == len(lines)


def test_the_record_has_the_figures_as_they_were_measured_and_no_picture_of_a_patient(checkout: Path) -> None:
    work = open_study(Study("mine"))
    with pytest.raises(ConfigError, match=r"`make study NAME=mine` measures the study's encoders first"):
        record_study(Study("mine"))
    (work / "params.yaml").write_text("variants: {other: {seed: 1}}\n")
    for name in ("other", "no_longer_listed"):
        (work / "metrics/variants" / name).mkdir(parents=True)
        (work / f"metrics/variants/{name}/metrics.json").write_text('{"step": 9}')
    (work / "metrics/properties.json").write_text(json.dumps(metrics()))
    written = record_study(Study("mine"))
    names = ["dvc.lock", "properties.json", "trainings.json", "table.md", "table.svg"]
    assert written == [Path("studies/mine") / name for name in names]
    assert json.loads((checkout / "studies/mine/properties.json").read_text()) == metrics()
    assert json.loads((checkout / "studies/mine/trainings.json").read_text()) == {"variants.other": {"step": 9}}
    table = (checkout / "studies/mine/table.md").read_text()
    assert "| other | 90.0% [80.0%, 100.0%]<br>trained gains −10.0% [−20.0%, −5.0%] |" in table
    assert "<image" not in (checkout / "studies/mine/table.svg").read_text()
