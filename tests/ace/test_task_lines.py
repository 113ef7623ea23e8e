"""A task in params.yaml and one command: the report then waits for its figures, in DVC and in Dagster."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dagster import AssetKey, Definitions

from ace.__main__ import build_parser
from ace.config import Config, check_graph, migrate, use
from ace.encoder_lines import with_tasks
from pipelines.assets import build_assets
from pipelines.graph import load_graph
from shards.cli import run_command
from shards.core.config import read_params
from shards.core.errors import ConfigError
from shards.delivery.yaml_lines import set_deps
from tests.support.checkout import ROOT, git

FIGURES = "metrics/finetune/{}.json"


def set_tasks(project: Path, *names: str) -> None:
    """Write the section `finetune` as a user does."""
    params = project / "params.yaml"
    before, _, rest = params.read_text(encoding="utf-8").partition("finetune:")
    tasks = ", ".join(f"{name}: phantom-b000" for name in names)
    params.write_text(f"{before}finetune: {{{tasks}}}\n{rest.partition(chr(10))[2]}", encoding="utf-8")


def config_of(project: Path) -> Config:
    return Config.from_params(read_params(project / "params.yaml"), "params.yaml")


def listed(*arguments: str) -> int:
    return run_command(build_parser(), ["encoder", "list", *arguments])


def test_one_command_makes_the_report_wait_for_every_task_and_for_no_other(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dvc = project / "dvc.yaml"
    before = dvc.read_text(encoding="utf-8")
    check_graph(config_of(project), dvc)
    set_tasks(project, "phantom", "phantom_masks")
    message = (
        r"report.deps has none of them, and `finetune` in params.yaml asks for metrics/finetune/phantom.json, "
        r"metrics/finetune/phantom_masks.json; `python -m ace encoder list` writes these there instead"
    )
    with pytest.raises(ConfigError, match=message):
        check_graph(config_of(project), dvc)
    assert listed() == 0
    printed = capsys.readouterr().out
    paths = [FIGURES.format(name) for name in ("phantom", "phantom_masks")]
    assert f"dvc.yaml: report depends on {', '.join(paths)}\n" in printed
    assert "task phantom_masks: trained and measured on phantom-b000\n" in printed
    check_graph(config_of(project), dvc)
    assert dvc.read_text(encoding="utf-8").replace(f"      {', '.join(paths)},\n", "") == before
    assert listed() == 0
    assert "report depends" not in capsys.readouterr().out
    set_tasks(project, "phantom_masks")
    with pytest.raises(ConfigError, match=r"report.deps has .*phantom.json, .*asks for metrics/finetune/phantom_masks"):
        check_graph(config_of(project), dvc)
    assert listed() == 0
    check_graph(config_of(project), dvc)
    set_tasks(project)
    with pytest.raises(ConfigError, match="asks for nothing of metrics/finetune/"):
        check_graph(config_of(project), dvc)
    assert listed() == 0
    assert "report depends on nothing of metrics/finetune/" in capsys.readouterr().out
    assert dvc.read_text(encoding="utf-8") == before


def test_the_report_of_dagster_and_of_dvc_comes_after_every_task(project: Path) -> None:
    git(project, "init", "--quiet")
    shutil.copytree(ROOT / ".dvc", project / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    for folder in ("ace", "shards"):
        (project / folder).symlink_to(ROOT / folder)
    report = {stage.name: stage for stage in load_graph(project).stages}["report"]
    assert not [path for path in report.inputs if path.startswith("metrics/finetune")]
    set_tasks(project, "phantom", "phantom_masks")
    assert listed() == 0
    graph = load_graph(project)
    stages = {stage.name: stage for stage in graph.stages}
    paths = {FIGURES.format(name) for name in ("phantom", "phantom_masks")}
    assert paths < set(stages["report"].inputs)
    assert set(stages["report"].inputs) - paths == set(report.inputs)
    assert stages["report"].params["params.yaml"]["finetune"] == dict.fromkeys(
        ("phantom", "phantom_masks"), "phantom-b000"
    )
    assets = Definitions(build_assets(project, graph, [])).resolve_asset_graph()
    parents = {key.to_user_string() for key in assets.get(AssetKey(["reports", "report.html"])).parent_keys}
    assert paths < parents
    assert assets.get(AssetKey(["metrics", "finetune", "phantom.json"])).group_name == "evidence"


def test_another_configuration_keeps_the_tasks_and_their_lines(project: Path) -> None:
    set_tasks(project, "phantom")
    use("smoke")
    assert config_of(project).finetune == {"phantom": "phantom-b000"}
    check_graph(config_of(project), project / "dvc.yaml")


def test_a_project_whose_tasks_the_report_did_not_show_is_brought_to_this_version(project: Path) -> None:
    set_tasks(project, "phantom")
    assert migrate() == [f"dvc.yaml: report depends on {FIGURES.format('phantom')}"]
    check_graph(config_of(project), project / "dvc.yaml")
    assert migrate() == []


DVC = """\
stages:
  report:
    cmd: echo report >>log && cat {figures} >report.html
    params: [finetune]
    deps: [
      evidence,
      shards, ace/report]
    outs: [report.html]
  finetune:
    foreach: ${{finetune}}
    do:
      cmd: mkdir -p metrics/finetune && echo ${{key}} >>log && cat ${{item}} >metrics/finetune/${{key}}.json
      deps: ["${{item}}"]
      metrics: ["metrics/finetune/${{key}}.json": {{cache: false}}]
"""


def test_dvc_runs_every_task_before_the_report_and_the_report_again_after_one_of_them(tmp_path: Path) -> None:
    """The report stands first in the file: what it depends on, and nothing else, says when it runs."""

    def repro() -> list[str]:
        (tmp_path / "log").unlink(missing_ok=True)
        subprocess.run([sys.executable, "-m", "dvc", "repro", "--quiet"], cwd=tmp_path, check=True)
        return (tmp_path / "log").read_text().splitlines() if (tmp_path / "log").is_file() else []

    def project(*tasks: str) -> None:
        figures = " ".join(FIGURES.format(name) for name in tasks) or "evidence"
        text, changed = with_tasks(DVC.format(figures=figures), tasks)
        assert len(changed) == bool(tasks)
        (tmp_path / "dvc.yaml").write_text(text)
        (tmp_path / "params.yaml").write_text(json.dumps({"finetune": dict.fromkeys(tasks, "images")}))

    (tmp_path / "ace/report").mkdir(parents=True)
    for name in ("evidence", "shards", "images", "ace/report/page.py"):
        (tmp_path / name).write_text(f"{name}\n")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "--quiet"], cwd=tmp_path, check=True)
    project()
    assert repro() == ["report"]
    project("one", "two")
    *tasks, last = repro()
    assert sorted(tasks) == ["one", "two"]
    assert last == "report"
    assert repro() == []
    project("one", "two", "three")
    assert repro() == ["three", "report"]
    (tmp_path / "images").write_text("other\n")
    *tasks, last = repro()
    assert sorted(tasks) == ["one", "three", "two"]
    assert last == "report"


DEPS = "stages:\n  report:\n    deps: [\n      ace/data,\n      data/x]\n"


def test_the_first_deps_of_one_beginning_stand_first_and_the_last_ones_go() -> None:
    one = set_deps(DEPS, "report", ("metrics/",), ["metrics/a", "metrics/b"])
    assert one == DEPS.replace("      ace/data", "      metrics/a, metrics/b,\n      ace/data")
    assert set_deps(one, "report", ("metrics/",), []) == DEPS
    assert set_deps(DEPS, "report", ("metrics/",), []) == DEPS
    many = [f"metrics/task-{number}" for number in range(20)]
    text = set_deps(DEPS, "report", ("metrics/",), many)
    assert max(map(len, text.splitlines())) <= 120
    assert set_deps(text, "report", ("metrics/",), []) == DEPS
    beside_the_bracket = DEPS.replace("[\n      ace/data,", "[ace/data, ace/models,\n      data/a,")
    one = set_deps(beside_the_bracket, "report", ("metrics/",), ["metrics/a"])
    assert one == beside_the_bracket.replace("      data/a", "      metrics/a,\n      data/a")


def test_a_comment_behind_paths_that_are_written_anew_stands_above_them() -> None:
    text = DEPS.replace(
        "      ace/data", "      # of mine\n      metrics/a,  # the first: ask Anna\n      metrics/b,\n      ace/data"
    )
    kept = "      # of mine\n      # the first: ask Anna\n"
    more = set_deps(text, "report", ("metrics/",), ["metrics/a", "metrics/b", "metrics/c"])
    assert more == DEPS.replace("      ace/data", f"{kept}      metrics/a, metrics/b, metrics/c,\n      ace/data")
    assert set_deps(more, "report", ("metrics/",), []) == DEPS.replace("      ace/data", f"{kept}      ace/data")


@pytest.mark.parametrize(
    "text",
    [
        "stages:\n  report:\n    deps: [ace/data, data/x]\n",
        "stages:\n  report:\n    deps:\n    - ace/data\n",
        "stages:\n  report:\n    cmd: x\n",
    ],
)
def test_deps_that_are_written_otherwise_are_left_to_their_writer(text: str) -> None:
    with pytest.raises(ConfigError, match=r"report.deps: expected the paths metrics/… .* write metrics/a there"):
        set_deps(text, "report", ("metrics/",), ["metrics/a"])
