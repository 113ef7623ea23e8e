"""The steps of `make study`, without any training: its work tree, and its record."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from ace.study import Study, open_study, record_study
from shards.errors import ConfigError
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


@pytest.mark.parametrize(("name", "run"), [("..", "params"), ("mine", "../../params"), ("mine/work", "params")])
def test_a_path_is_no_name_of_a_study_or_of_a_run(name: str, run: str) -> None:
    with pytest.raises(ConfigError, match="expected the name of a folder in studies/"):
        Study(name, run)


def test_every_task_of_the_list_is_run_also_the_last_one_without_an_end_of_line(tmp_path: Path) -> None:
    (found,) = re.findall(r"while read .*? done <\"\$\$TASKS\"", (ROOT / "Makefile").read_text(encoding="utf-8"))
    loop = found.replace("$$", "$").replace("python -m ace finetune", "echo")
    (tmp_path / "the tasks.txt").write_text("phantom\nnih512 --batch real-b000", encoding="utf-8")
    environment = {**os.environ, "TASKS": str(tmp_path / "the tasks.txt")}
    done = subprocess.run(["bash", "-c", loop], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["phantom", "nih512 --batch real-b000"]


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
