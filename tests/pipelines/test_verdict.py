"""The stage `decide` in Dagster, beside the stages of the toy repository; its command copies a verdict."""

import json
import shutil
from pathlib import Path

import pytest
from dagster import AssetCheckEvaluation, AssetCheckSeverity, AssetKey, AssetMaterialization, DagsterInstance

from ace.gate.rules import Decision, Rule
from pipelines.definitions import build_definitions
from pipelines.graph import Out, load_graph
from pipelines.metadata import out_metadata, read_checks
from pipelines.sensors import lock_events
from tests.pipelines.test_assets import run
from tests.pipelines.test_metadata import RECORDED
from tests.pipelines.toy import dvc, edit
from tests.support.checkout import ROOT, copy_project

GATE = "metrics/gate.json"
KEY = AssetKey(["metrics", "gate.json"])
STAGE = """  decide:
    foreach: ${decide}
    do:
      cmd: cp verdict.json metrics/gate.json
      deps: [verdict.json]
      metrics: [metrics/gate.json: {cache: false, type: verdict}]
"""
KEPT = Rule(rule="floor", figure="compositionality", value=0.75, must_be=">=", bound=0.5)
BROKEN = Rule(
    rule="not_worse_in_subgroup",
    figure="compositionality",
    subgroup="sex F",
    patients=64,
    value=-0.0312,
    must_be=">=",
    bound=-0.02,
)
UNKNOWN = Rule(rule="not_collapsed", figure="feature_std", value=None, must_be=">=", bound=0.1)


def write_verdict(root: Path, *rules: Rule) -> dict:
    verdict = Decision(rules, "ab" * 32, has_incumbent=True).to_json()
    (root / "verdict.json").write_text(json.dumps(verdict))
    return verdict


@pytest.fixture
def gated(toy: Path) -> Path:
    """The toy repository with a stage `decide`, which has not run."""
    (toy / "dvc.yaml").write_text((toy / "dvc.yaml").read_text() + STAGE)
    (toy / "params.yaml").write_text((toy / "params.yaml").read_text() + "decide: [trained]\n")
    return toy


def test_a_run_shows_the_rules_and_a_check_that_fails_with_the_reason_of_a_rejection(
    gated: Path, instance: DagsterInstance
) -> None:
    verdict = write_verdict(gated, KEPT, BROKEN, UNKNOWN)
    result = run(gated, instance, GATE)
    assert result.success, "a rejection is no failure of the step"
    (event,) = result.get_asset_materialization_events()
    shown = event.materialization.metadata
    assert shown["accepted"].value is False
    assert (shown["sentence"].value, shown["reason"].value) == (verdict["sentence"], verdict["reason"])
    assert shown["broken_rules"].value == 2
    rows = [list(record.data.values()) for record in shown["rules"].records]
    assert rows == [
        ["not_worse_in_subgroup", "compositionality", "sex F", "-0.0312", ">= -0.02", False],
        ["not_collapsed", "feature_std", "", "not known", ">= 0.1", False],
        ["floor", "compositionality", "", "0.75", ">= 0.5", True],
    ]
    assert [column.name for column in shown["rules"].schema.columns] == list(shown["rules"].records[0].data)
    (check,) = result.get_asset_check_evaluations()
    assert (check.asset_key, check.check_name, check.passed) == (KEY, "accepted", False)
    assert check.description == verdict["sentence"]
    assert "sex F" in verdict["sentence"]
    assert check.severity == AssetCheckSeverity.WARN
    assert not check.blocking


def test_the_check_of_an_accepted_model_passes(gated: Path, instance: DagsterInstance) -> None:
    write_verdict(gated, KEPT)
    result = run(gated, instance, GATE)
    (event,) = result.get_asset_materialization_events()
    assert event.materialization.metadata["accepted"].value is True
    (check,) = result.get_asset_check_evaluations()
    assert (check.passed, check.description) == (True, "all 1 rules are kept")


def test_a_decision_on_the_command_line_shows_the_same_as_a_run(gated: Path, instance: DagsterInstance) -> None:
    write_verdict(gated, KEPT, BROKEN)
    dvc(gated, "repro", "--single-item", "decide@trained")
    graph = load_graph(gated)
    events = [
        event for event in lock_events(instance, gated, graph, read_checks(gated, graph)) if event.asset_key == KEY
    ]
    (made,) = [event for event in events if isinstance(event, AssetMaterialization)]
    (check,) = [event for event in events if isinstance(event, AssetCheckEvaluation)]
    result = run(gated, instance, GATE)
    (event,) = result.get_asset_materialization_events()
    assert event.materialization.metadata == made.metadata
    (evaluated,) = result.get_asset_check_evaluations()
    assert evaluated.severity == check.severity == AssetCheckSeverity.WARN
    assert (evaluated.passed, evaluated.description, evaluated.metadata) == (
        check.passed,
        check.description,
        check.metadata,
    )
    assert not [
        found for found in lock_events(instance, gated, graph, read_checks(gated, graph)) if found.asset_key == KEY
    ]


def test_without_anything_to_decide_there_is_neither_asset_nor_check(gated: Path) -> None:
    def found() -> tuple[bool, bool]:
        graph = build_definitions(gated).resolve_asset_graph()
        return graph.has(KEY), any(check.asset_key == KEY for check in graph.asset_check_keys)

    assert found() == (True, True)
    edit(gated / "params.yaml", "decide: [trained]", "decide: []")
    assert found() == (False, False)


@pytest.mark.parametrize("text", [None, "{}", '{"accepted": true}'])
def test_a_file_that_holds_no_verdict_fails_the_check_and_shows_none(
    tmp_path: Path, gated: Path, text: str | None
) -> None:
    (check,) = [check for check in read_checks(gated, load_graph(gated)) if check.out == GATE]
    (tmp_path / "metrics").mkdir()
    if text is not None:
        (tmp_path / GATE).write_text(text)
    done = check.evaluation(tmp_path)
    assert (done.passed, done.severity) == (False, AssetCheckSeverity.ERROR)
    assert "no verdict" in str(done.description)
    assert "rules" not in out_metadata(tmp_path, Out(GATE, "verdict"), RECORDED)


def test_the_gate_of_this_repository_has_the_check_once_there_is_something_to_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site-cache"))
    project = tmp_path / "project"
    project.mkdir()
    copy_project(project)
    shutil.copy(ROOT / "versions.yaml", project)
    dvc(project, "init", "--no-scm", "--quiet")
    edit(project / "params.yaml", "decide: []", "decide: [trained]")
    checks = [check.spec for check in read_checks(project, load_graph(project)) if check.out == GATE]
    assert [(check.asset_key, check.name) for check in checks] == [(KEY, "accepted")]
