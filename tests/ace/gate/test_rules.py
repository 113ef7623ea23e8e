"""The rules of the gate on drawn values of patients, beside a bootstrap written out anew."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ace.evaluation.params import EvaluateParams
from ace.gate.figures import ERRORS
from ace.gate.params import GateParams
from ace.gate.rules import (
    Comparison,
    Decision,
    Readings,
    Rule,
    collapse_rules,
    figure_rules,
    hash_of_gate,
    leak_rules,
)
from ace.operations.params import OperationsParams
from ace.pretrain.monitor_params import CollapseParams
from ace.pretrain.monitors import collapse_bounds
from ace.properties.base import Reading
from ace.protocol.intervals import per_patient
from shards.core.errors import ConfigError
from tests.ace.evaluation.drawn_project import EVALUATE
from tests.support.checkout import ROOT

SEED, NUM_RESAMPLES, LEVEL = 3, 300, 0.9
PARAMS = EvaluateParams.from_params(
    EVALUATE | {"seed": SEED, "bootstrap": {"num_resamples": NUM_RESAMPLES, "level": LEVEL}}, "evaluate"
)
FROZEN = {"batch": "frozen", "fingerprint": "0" * 64}
NUM_PATIENTS = 60
COLLAPSE = CollapseParams(
    min_feature_std=0.1, min_rank_fraction=0.2, min_entropy_fraction=0.05, max_entropy_fraction=0.9, patience_rows=5
)
HEALTHY = {"feature_std": 0.5, "rank_fraction": 0.4, "teacher_entropy": 3.0}
INDEPENDENT = {"num_shared_patients": 0, "batches_that_may_share_images": []}


def gate_of(**bounds: Any) -> GateParams:
    own = {"margin": 0.05, "floor": 0.5} | bounds
    return GateParams.from_params({"frozen": FROZEN, "figures": {"score": own}, "min_subgroup_patients": 20}, "gate")


def reading(values: np.ndarray, *, is_error: bool = False) -> Reading:
    return Reading(
        measure=per_patient(values, np.ones(len(values))), num_patients=len(values), chance=None, is_error=is_error
    )


def low_of(gains: np.ndarray) -> float:
    """Draw patients again and again, and take the lower end of their mean gains: each resample is a loop."""
    rng = np.random.default_rng([SEED, len(gains)])
    times = rng.multinomial(len(gains), [1 / len(gains)] * len(gains), size=NUM_RESAMPLES)
    means = sorted(np.mean(np.repeat(gains, own)) for own in times)
    position = (1 - LEVEL) / 2 * (len(means) - 1)
    below, share = int(position), position % 1
    return float(round(means[below] * (1 - share) + means[below + 1] * share, 5))


def drawn(seed: int, gain: float, *, is_error: bool = False) -> tuple[Readings, dict[str, np.ndarray]]:
    """Figures around .7 and .1, of which the candidate's is better than the incumbent's by a gain."""
    rng = np.random.default_rng(seed)
    incumbent = rng.normal(0.7, 0.1, NUM_PATIENTS)
    untrained = rng.normal(0.1, 0.1, NUM_PATIENTS)
    candidate = incumbent + rng.normal(gain, 0.1, NUM_PATIENTS)
    if is_error:
        candidate, incumbent, untrained = 1 - candidate, 1 - incumbent, 1 - untrained
    is_female = np.arange(NUM_PATIENTS) < 24
    values = {"candidate": candidate, "untrained": untrained, "incumbent": incumbent}
    own = {name: reading(found, is_error=is_error) for name, found in values.items()}
    return Readings(**own, groups={"sex F": is_female, "sex M": ~is_female}), values


def rules_of(readings: Readings, gate: GateParams) -> dict[tuple[str, str | None], Rule]:
    return {(rule.rule, rule.subgroup): rule for rule in figure_rules("score", readings, gate, PARAMS)}


def decision_of(*rules: Rule) -> dict[str, Any]:
    return Decision(rules, "0" * 64, True).to_json()


@given(seed=st.integers(0, 10**6), gain=st.floats(-0.3, 0.3), is_error=st.booleans())
def test_the_incumbent_is_compared_by_the_paired_bootstrap_of_all_and_of_each_large_subgroup(
    seed: int, gain: float, is_error: bool
) -> None:
    readings, values = drawn(seed, gain, is_error=is_error)
    found = rules_of(readings, gate_of(subgroup_margin=0.08))
    gains = (values["candidate"] - values["incumbent"]) * (-1 if is_error else 1)
    for rule, group, own, margin in (
        ("not_worse", None, gains, 0.05),
        ("not_worse_in_subgroup", "sex F", gains[:24], 0.08),
        ("not_worse_in_subgroup", "sex M", gains[24:], 0.08),
    ):
        low = low_of(own)
        assert found[rule, group].value == pytest.approx(low, abs=2e-5)
        assert found[rule, group].patients == len(own)
        if abs(low + margin) > 1e-4:
            assert found[rule, group].passed == (low >= -margin)
    better = (values["candidate"] - values["untrained"]) * (-1 if is_error else 1)
    assert found["better_than_untrained", None].value == pytest.approx(low_of(better), abs=2e-5)


@pytest.mark.parametrize(
    ("must_be", "below", "at", "above"),
    [(">=", False, True, True), ("<=", True, True, False), (">", False, False, True)],
)
def test_a_bound_is_kept_or_broken_at_its_very_value(must_be: Comparison, below: bool, at: bool, above: bool) -> None:
    for value, expected in ((0.29, below), (0.3, at), (0.31, above), (None, False), (float("nan"), False)):
        rule = Rule(rule="floor", figure="score", value=value, must_be=must_be, bound=0.3)
        assert rule.passed is expected


def test_a_candidate_that_is_as_good_as_the_incumbent_keeps_every_rule() -> None:
    readings, _ = drawn(0, 0.0)
    readings = replace(readings, candidate=readings.incumbent)
    rules = rules_of(readings, gate_of(margin=0.0))
    assert len(rules) == 6
    assert decision_of(*rules.values())["accepted"] is True
    assert decision_of(*rules.values())["reason"] == {"rule": "all_kept"}


def _worse(readings: Readings) -> Readings:
    return replace(readings, incumbent=reading(np.full(NUM_PATIENTS, 0.96)))


def _worse_for_women(readings: Readings) -> Readings:
    values = np.full(NUM_PATIENTS, 0.9)
    values[:24] = 0.8
    return replace(readings, candidate=reading(values), incumbent=reading(np.full(NUM_PATIENTS, 0.85)))


CASES: dict[str, tuple[Callable[[Readings], Readings], dict[str, Any], float]] = {
    "floor": (lambda own: own, {"floor": 0.91}, 0.91),
    "ceiling": (lambda own: own, {"ceiling": 0.89}, 0.89),
    "better_than_untrained": (lambda own: replace(own, untrained=own.candidate), {}, 0),
    "not_worse": (_worse, {"subgroup_margin": 1.0}, -0.05),
    "not_worse_in_subgroup": (_worse_for_women, {"margin": 0.04}, -0.04),
    "enough_patients": (lambda own: own, {"min_patients": 61}, 61),
}


@pytest.mark.parametrize("rule", CASES)
def test_each_rule_alone_rejects_and_is_the_reason(rule: str) -> None:
    change, bounds, bound = CASES[rule]
    steady = reading(np.full(NUM_PATIENTS, 0.9))
    readings = replace(drawn(0, 0.0)[0], candidate=steady, incumbent=steady)
    own = gate_of(**{key: value for key, value in bounds.items() if key != "min_patients"})
    gate = own.model_copy(update={key: value for key, value in bounds.items() if key == "min_patients"})
    assert decision_of(*figure_rules("score", readings, gate_of(), PARAMS))["accepted"] is True
    found = decision_of(*figure_rules("score", change(readings), gate, PARAMS))
    assert found["accepted"] is False
    assert [item["rule"] for item in found["rules"] if not item["passed"]] == [rule]
    assert (found["reason"]["rule"], found["reason"]["figure"]) == (rule, "score")
    assert found["reason"]["bound"] == pytest.approx(bound)
    assert "score" in found["sentence"]
    json.dumps(found, allow_nan=False)


def test_a_small_subgroup_is_not_looked_at_by_itself() -> None:
    few, just_enough = (np.arange(NUM_PATIENTS) < number for number in (19, 20))
    readings = replace(drawn(0, 0.0)[0], groups={"view lateral": few, "age 60-69": just_enough})
    assert [rule[1] for rule in rules_of(readings, gate_of()) if rule[1]] == ["age 60-69"]


def test_without_an_incumbent_the_candidate_is_held_to_floors_and_to_the_untrained_network() -> None:
    readings = replace(drawn(0, 0.0)[0], incumbent=None)
    rules = rules_of(readings, gate_of())
    assert [name for name, _ in rules] == ["enough_patients", "floor", "better_than_untrained"]
    said = Decision(tuple(rules.values()), "0" * 64, False).to_json()["sentence"]
    assert said.endswith("; there was no accepted model to compare with")


def test_a_figure_that_was_not_measured_breaks_its_rules() -> None:
    nothing = Reading(
        measure=per_patient(np.zeros(NUM_PATIENTS), np.zeros(NUM_PATIENTS)), num_patients=NUM_PATIENTS, chance=None
    )
    found = decision_of(*rules_of(replace(drawn(0, 0.0)[0], candidate=nothing, groups={}), gate_of()).values())
    assert {item["rule"] for item in found["rules"] if not item["passed"]} == {
        "enough_patients",
        "floor",
        "better_than_untrained",
        "not_worse",
    }
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"num_shared_patients": 1}, "patients in both"),
        ({"num_shared_patients": None}, "patients in both"),
        ({"batches_that_may_share_images": ["nih-b000"]}, "batches that may share images"),
        ({"batches_that_may_share_images": None}, "batches that may share images"),
        ({"batches_without_patients": ["nih-b000"]}, "batches with unknown patients"),
        ({"num_patients_with_copies": 2}, "patients with copies"),
    ],
)
def test_what_may_have_leaked_rejects(change: dict[str, Any], name: str) -> None:
    assert decision_of(*leak_rules(INDEPENDENT, is_accepted=True))["accepted"] is True
    found = decision_of(*leak_rules(INDEPENDENT | change, is_accepted=True))
    assert found["accepted"] is False
    assert (found["reason"]["rule"], found["reason"]["figure"]) == ("not_leaked", name)


def test_patients_with_copies_that_were_left_out_of_the_cohort_have_not_leaked() -> None:
    left_out = INDEPENDENT | {"num_patients_with_copies": 2}
    assert decision_of(*leak_rules(left_out, is_accepted=False))["accepted"] is True


@pytest.mark.parametrize(
    ("monitor", "value"),
    [
        ("feature_std", 0.09),
        ("rank_fraction", 0.19),
        ("teacher_entropy", 0.05),
        ("teacher_entropy", 4.5),
        ("feature_std", float("nan")),
        ("rank_fraction", None),
    ],
)
def test_a_collapsed_training_rejects(monitor: str, value: float | None) -> None:
    bounds = collapse_bounds(COLLAPSE, out_dim=128)
    assert decision_of(*collapse_rules(bounds, HEALTHY))["accepted"] is True
    found = decision_of(*collapse_rules(bounds, HEALTHY | {monitor: value}))
    assert found["accepted"] is False
    assert (found["reason"]["rule"], found["reason"]["figure"]) == ("not_collapsed", monitor)
    json.dumps(found, allow_nan=False)


def test_the_hash_of_the_gate_follows_every_bound_and_no_check_of_dagster() -> None:
    collapse = COLLAPSE.model_dump()
    one = hash_of_gate(gate_of(), PARAMS, collapse)
    checks = EvaluateParams.from_params(EVALUATE | {"checks": {}}, "evaluate").checks
    assert hash_of_gate(gate_of(), PARAMS.model_copy(update={"checks": checks}), collapse) == one
    others = [
        hash_of_gate(gate_of(margin=0.06), PARAMS, collapse),
        hash_of_gate(gate_of(floor=0.4), PARAMS, collapse),
        hash_of_gate(gate_of().model_copy(update={"min_patients": 51}), PARAMS, collapse),
        hash_of_gate(gate_of(), PARAMS.model_copy(update={"seed": 4}), collapse),
        hash_of_gate(gate_of(), PARAMS, collapse | {"min_feature_std": 0.0}),
    ]
    assert len({one, *others}) == 6


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"retraining": {"min_new_images": 5}}, "retraining needs a gate"),
        ({"gate": {"frozen": FROZEN, "figures": {}}}, "figures"),
        ({"gate": {"figures": {"score": {"margin": 0.1, "floor": 0.5}}}}, "frozen"),
    ],
)
def test_a_gate_that_would_let_models_drift_or_compare_on_any_images_is_none(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        OperationsParams.from_params(values, "operations")


def test_as_many_patients_as_are_asked_for_are_enough() -> None:
    gate = gate_of().model_copy(update={"min_patients": NUM_PATIENTS})
    assert rules_of(drawn(0, 0.0)[0], gate)["enough_patients", None].passed


def test_the_figures_of_which_less_is_better_are_those_whose_gain_is_taken_the_other_way_round() -> None:
    metrics = json.loads((ROOT / "metrics/properties.json").read_text())
    errors = set()
    for name, gain in metrics["gain"].items():
        trained, untrained = (metrics[encoder][name]["value"] for encoder in ("trained", "untrained"))
        if gain["value"] is not None and abs(gain["value"]) > 1e-3:
            is_error = (gain["value"] > 0) != (trained > untrained)
            errors |= {name} if is_error else set()
    assert errors == ERRORS
