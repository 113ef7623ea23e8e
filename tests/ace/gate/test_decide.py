"""The stage `decide` on drawn chests: what it reads of the answers, and what it refuses."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ace.embed.opening import EncoderParams
from ace.evaluation.at_once import evaluate_at_once
from ace.evaluation.measure import ANSWERS
from ace.evaluation.params import EvaluateParams
from ace.evaluation.setting import StagePaths, read_setting
from ace.gate.decide import _grouped, _subjects, check_frozen, decide
from ace.gate.params import FrozenParams, GateParams
from ace.gate.rules import Decision
from ace.pretrain.params import PretrainParams
from ace.properties.base import Measurement
from shards.core.config import read_params
from shards.core.errors import ConfigError
from shards.format.layout import sha256_of
from tests.ace.evaluation.drawn_project import BATCH, EVALUATE, paths_of, write_model, write_project
from tests.support.checkout import ROOT

GROUPED = (
    "composition",
    "decomposition",
    "correspondence",
    "retrieval",
    "symmetry",
    "separation",
    "interpolation",
    "cosegmentation",
)
PROPERTIES = {name: EVALUATE["properties"][name] for name in GROUPED}
PARAMS = EvaluateParams.from_params(
    EVALUATE | {"properties": PROPERTIES, "accept_shared_images": True, "checks": {}}, "evaluate"
)
FIGURES = ("compositionality", "decompositionality", "retrieval_top1", "separation", "interpolation")
PRETRAIN = PretrainParams.from_params(read_params(ROOT / "params.yaml")["pretrain"], "pretrain")
ENCODERS = {
    "trained": EncoderParams(model="models/ace", network="teacher"),
    "untrained": EncoderParams(model="models/ace", network="untrained"),
    "incumbent": EncoderParams(model="registry/incumbent", network="teacher"),
}


def gate_of(*names: str, margin: float = 2.0, min_subgroup_patients: int = 3) -> GateParams:
    figures = {name: {"margin": margin, "floor": -1.0} for name in names}
    frozen = {"batch": BATCH, "fingerprint": "0" * 64}
    own = {"frozen": frozen, "figures": figures, "min_patients": 2, "min_subgroup_patients": min_subgroup_patients}
    return GateParams.from_params(own, "gate")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> StagePaths:
    """Both models measured, and the last row of a training beside them."""
    root = write_project(tmp_path_factory.mktemp("project"))
    write_model(root / "registry/incumbent", seed=4)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(root)
        paths = paths_of(root, root / "out")
        evaluate_at_once(PARAMS, ENCODERS, paths)
    (root / "last.json").write_text(json.dumps({"feature_std": 0.5, "rank_fraction": 0.4}))
    return paths


def rules_of(paths: StagePaths, gate: GateParams, names: Sequence[str] = tuple(ENCODERS)) -> list[Any]:
    encoders = {name: ENCODERS[name] for name in names}
    last = paths.answers.parent.parent / "last.json"
    return list(decide(gate, PARAMS, encoders, PRETRAIN.collapse, PRETRAIN.global_head.out_dim, paths, last).rules)


def test_its_numbers_are_those_of_the_stage_evaluate(paths: StagePaths) -> None:
    metrics = json.loads(paths.metrics.read_text())
    rules = {(rule.rule, rule.figure): rule.value for rule in rules_of(paths, gate_of(*FIGURES)) if not rule.subgroup}
    for name in FIGURES:
        assert rules["floor", name] == metrics["trained"][name]["value"]
        assert rules["better_than_untrained", name] == metrics["gain"][name]["low"]
        assert rules["not_worse", name] == metrics["gain_over_incumbent"][name]["low"]
        assert rules["enough_patients", name] == metrics["trained"][name]["n"]


def test_a_model_is_not_worse_than_itself_and_one_of_unknown_training_is_not_accepted(paths: StagePaths) -> None:
    rules = rules_of(paths, gate_of("compositionality"))
    broken = {(rule.rule, rule.figure) for rule in rules if not rule.passed}
    # The fake model has no list of what it was trained on; whether it beats random weights is chance.
    assert {("not_leaked", "patients in both"), ("not_leaked", "batches that may share images")} <= broken
    assert broken <= {
        ("not_leaked", "patients in both"),
        ("not_leaked", "batches that may share images"),
        ("better_than_untrained", "compositionality"),
    }


def test_a_subgroup_that_has_every_patient_has_the_figures_of_all(paths: StagePaths) -> None:
    rules = rules_of(paths, gate_of(*FIGURES))
    whole = {rule.figure: rule.value for rule in rules if rule.rule == "not_worse"}
    assert {rule.figure: rule.value for rule in rules if rule.subgroup == "view PA"} == whole
    assert whole.keys() == set(FIGURES)


def test_the_patients_of_every_figure_are_known(paths: StagePaths) -> None:
    setting, found = read_setting(PARAMS, paths), set()
    for item, section in PARAMS.properties.chosen():
        plan = item.plan(setting, section)
        if isinstance(plan, Measurement):
            found.add(item.name)
            with np.load(paths.answers / "trained" / f"{item.name}.npz") as answers:
                readings = plan.read(dict(answers))
            for reading in readings.values():
                assert len(_subjects(item.name, plan, setting)[: reading.num_patients]) == reading.num_patients
    assert found == set(GROUPED)


def test_patients_are_grouped_by_what_is_known_of_them() -> None:
    told = [{"sex": sex, "age": age, "view": "PA"} for sex, age in (("F", None), ("M", "60-69"), (None, "60-69"))]
    groups = {name: is_member.tolist() for name, is_member in _grouped(told)}
    assert groups == {
        "sex F": [True, False, False],
        "sex M": [False, True, False],
        "age 60-69": [False, True, True],
        "view PA": [True, True, True],
    }


def test_without_an_incumbent_nothing_is_compared_with_it(paths: StagePaths) -> None:
    rules = rules_of(paths, gate_of("compositionality"), names=("trained", "untrained"))
    assert not [rule for rule in rules if rule.rule.startswith("not_worse")]


def test_a_figure_that_nothing_measures_is_named(paths: StagePaths) -> None:
    with pytest.raises(ConfigError, match="names probe_auroc; expected some of"):
        rules_of(paths, gate_of("compositionality", "probe_auroc"))


def test_another_first_encoder_or_none_that_is_untrained_is_refused(paths: StagePaths) -> None:
    for names in (("incumbent", "trained", "untrained"), ("trained", "incumbent")):
        with pytest.raises(ConfigError, match="expected an encoder of models/ace first, and one named untrained"):
            rules_of(paths, gate_of("compositionality"), names=names)


def test_the_frozen_set_is_one_batch_of_known_images_that_nobody_trains_on(tmp_path: Path) -> None:
    index = tmp_path / "frozen" / "index.json"
    index.parent.mkdir()
    index.write_text("{}")
    frozen = FrozenParams(batch="frozen", fingerprint=sha256_of(index))
    for mix in ({}, {"frozen": {"weight": 0.0}}):
        check_frozen(frozen, "frozen", mix, tmp_path)
    with pytest.raises(ConfigError, match="expected one batch"):
        check_frozen(frozen, "other", {}, tmp_path)
    with pytest.raises(ConfigError, match="is trained on"):
        check_frozen(frozen, "frozen", {"frozen": {"weight": 0.1}}, tmp_path)
    index.write_text("{} ")
    with pytest.raises(ConfigError, match="these are not the frozen images"):
        check_frozen(frozen, "frozen", {}, tmp_path)
    index.unlink()
    with pytest.raises(ConfigError, match="not found"):
        check_frozen(frozen, "frozen", {}, tmp_path)


def decide_here(paths: StagePaths, params: EvaluateParams = PARAMS, names: Sequence[str] = tuple(ENCODERS)) -> Decision:
    encoders = {name: ENCODERS[name] for name in names}
    last = paths.answers.parent.parent / "last.json"
    gate = gate_of("compositionality")
    return decide(gate, params, encoders, PRETRAIN.collapse, PRETRAIN.global_head.out_dim, paths, last)


def test_answers_to_other_questions_decide_nothing(paths: StagePaths) -> None:
    with pytest.raises(ConfigError, match="measures it"):
        decide_here(paths, PARAMS.model_copy(update={"seed": PARAMS.seed + 1}))


@pytest.mark.parametrize("name", ["incumbent", "untrained"])
def test_whom_a_candidate_is_compared_with_was_asked_the_same(paths: StagePaths, name: str) -> None:
    path = paths.answers / name / ANSWERS
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | {"asked": "something else"}))
    try:
        with pytest.raises(ConfigError, match=f"has asked something else.*dvc repro measure@{name}` measures it again"):
            decide_here(paths)
    finally:
        path.write_text(text)


def test_a_decision_says_whether_there_was_an_accepted_model(paths: StagePaths) -> None:
    assert decide_here(paths).has_incumbent
    assert not decide_here(paths, names=("trained", "untrained")).has_incumbent


def test_copies_that_were_left_in_have_leaked(paths: StagePaths) -> None:
    text = paths.independence.read_text()
    found = json.loads(text)
    found["trained"]["num_patients_with_copies"] = 1
    paths.independence.write_text(json.dumps(found))
    try:
        rules = {rule.figure: rule.value for rule in decide_here(paths).rules if rule.rule == "not_leaked"}
    finally:
        paths.independence.write_text(text)
    assert rules["patients with copies"] == 1


def test_the_teachers_entropy_is_held_to_its_bounds_where_the_training_logged_it(paths: StagePaths) -> None:
    last = paths.answers.parent.parent / "last.json"
    text = last.read_text()
    last.write_text(json.dumps(json.loads(text) | {"teacher_entropy": 0.0}))
    try:
        rules = [rule for rule in decide_here(paths).rules if rule.figure == "teacher_entropy"]
    finally:
        last.write_text(text)
    assert [rule.passed for rule in rules] == [False, True]
    assert not [rule for rule in decide_here(paths).rules if rule.figure == "teacher_entropy"]
