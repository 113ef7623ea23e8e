"""The gate: rules by which a candidate takes the place of the incumbent, or does not.

Every rule compares one number with one bound, and a number that is not known breaks its rule. All encoders are measured
on the same patients in one run, and every interval is that of the paired bootstrap over these patients.
"""

import hashlib
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool

from ace.evaluation.evaluate import compared, figure
from ace.evaluation.params import EvaluateParams
from ace.gate.params import FigureParams, GateParams
from ace.pretrain.monitors import CollapseBound
from ace.properties.base import Reading, gain_key
from ace.protocol.intervals import Weights

INCUMBENT, UNTRAINED = "incumbent", "untrained"
"""Names of the encoders that a candidate is compared with."""
Comparison = Literal[">=", "<=", ">"]
_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt}
_TEXTS = {
    "not_leaked": "{value} {figure} of the frozen set and the candidate's training; 0 are accepted",
    "not_collapsed": "the training ended with {figure} {value}, and {must_be} {bound} is expected",
    "enough_patients": "{figure} is of {value} patients, and at least {bound} are expected",
    "floor": "{figure} is {value}, and at least {bound} is expected",
    "ceiling": "{figure} is {value}, and at most {bound} is expected",
    "better_than_untrained": "{figure} may be no better than that of an untrained network (low end {value})",
    "not_worse": "{figure} may be worse than the incumbent's by more than the margin (low end {value}, bound {bound})",
    "not_worse_in_subgroup": (
        "{figure} of {subgroup} ({patients} patients) may be worse than the incumbent's by more than the margin (low "
        "end {value}, bound {bound})"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule of the gate, and whether the candidate keeps it.

    Attributes:
        rule: Name of the rule, as `not_worse`.
        figure: The figure that it is about.
        value: Number that was found; None if it is not known, which breaks the rule.
        must_be: How it has to compare with the bound.
        bound: The bound.
        subgroup: Patients that it is about, as `sex F`; None for all.
        patients: Number of patients that the value is of; None where it is of none.
    """

    rule: str
    figure: str
    value: float | None
    must_be: Comparison
    bound: float
    subgroup: str | None = None
    patients: int | None = None

    @property
    def passed(self) -> bool:
        """Tell whether the candidate keeps the rule."""
        return self.value is not None and bool(_COMPARE[self.must_be](self.value, self.bound))

    @property
    def text(self) -> str:
        """Say for people what is wrong if the rule is broken."""
        facts = {**asdict(self), "value": "not known" if self.value is None else f"{self.value:g}"}
        return _TEXTS[self.rule].format(**{**facts, "bound": f"{self.bound:g}"})

    def to_json(self) -> dict[str, Any]:
        """Return the rule as metrics/gate.json has it."""
        return {key: value for key, value in asdict(self).items() if value is not None or key == "value"} | {
            "passed": self.passed
        }


@dataclass(frozen=True, kw_only=True)
class Readings:
    """One figure of the encoders that are compared, all over the same patients.

    Attributes:
        candidate: The figure of the model that is decided about.
        untrained: The figure of random weights.
        incumbent: The figure of the accepted model; None before the first one.
        groups: Name of a subgroup → which of the patients are in it; empty where that is not known.
    """

    candidate: Reading
    untrained: Reading
    incumbent: Reading | None
    groups: Mapping[str, Bool[np.ndarray, " patients"]]


@dataclass(frozen=True)
class Decision:
    """A Decision says whether the candidate keeps every rule of the gate.

    Attributes:
        rules: All rules, in the order in which the first broken one is the reason.
        gate_sha256: Hash of the bounds.
        has_incumbent: Whether there was an accepted model to compare with.
    """

    rules: tuple[Rule, ...]
    gate_sha256: str
    has_incumbent: bool

    @property
    def broken(self) -> Rule | None:
        """Return the first rule that is broken; None if the candidate is accepted."""
        return next((rule for rule in self.rules if not rule.passed), None)

    def to_json(self) -> dict[str, Any]:
        """Return the decision as metrics/gate.json has it, with one reason for machines and one sentence for people."""
        broken = self.broken
        number = sum(not rule.passed for rule in self.rules)
        more = f", and {number - 1} more rules are broken" if number > 1 else ""
        sentence = f"all {len(self.rules)} rules are kept" if broken is None else f"{broken.text}{more}"
        return {
            "accepted": broken is None,
            "reason": {"rule": "all_kept"} if broken is None else broken.to_json(),
            "sentence": sentence if self.has_incumbent else f"{sentence}; there was no accepted model to compare with",
            "rules": [rule.to_json() for rule in self.rules],
            "gate_sha256": self.gate_sha256,
        }


def figure_rules(name: str, readings: Readings, gate: GateParams, params: EvaluateParams) -> Iterator[Rule]:
    """Hold one figure to its bounds.

    Args:
        name: Name of the figure.
        readings: The figure of every encoder.
        gate: The bounds.
        params: Seed and bootstrap.
    """
    bounds, candidate = gate.figures[name], figure(readings.candidate, params)
    yield Rule(rule="enough_patients", figure=name, value=candidate["n"], must_be=">=", bound=gate.min_patients)
    limits: tuple[tuple[str, float | None, Comparison], ...] = (
        ("floor", bounds.floor, ">="),
        ("ceiling", bounds.ceiling, "<="),
    )
    for rule, bound, must_be in limits:
        if bound is not None:
            yield Rule(
                rule=rule, figure=name, value=candidate["value"], must_be=must_be, bound=bound, patients=candidate["n"]
            )
    better = _gain(readings.candidate, UNTRAINED, readings.untrained, params)
    yield Rule(
        rule="better_than_untrained", figure=name, value=better["low"], must_be=">", bound=0, patients=better["n"]
    )
    if readings.incumbent is not None:
        yield from _incumbent_rules(name, readings, readings.incumbent, bounds, gate, params)


def _incumbent_rules(
    name: str,
    readings: Readings,
    incumbent: Reading,
    bounds: FigureParams,
    gate: GateParams,
    params: EvaluateParams,
) -> Iterator[Rule]:
    gain = _gain(readings.candidate, INCUMBENT, incumbent, params)
    yield Rule(rule="not_worse", figure=name, value=gain["low"], must_be=">=", bound=-bounds.margin, patients=gain["n"])
    margin = bounds.margin if bounds.subgroup_margin is None else bounds.subgroup_margin
    for group, is_member in readings.groups.items():
        if is_member.sum() >= gate.min_subgroup_patients:
            own = [_within(reading, is_member) for reading in (readings.candidate, incumbent)]
            gain = _gain(own[0], INCUMBENT, own[1], params)
            yield Rule(
                rule="not_worse_in_subgroup",
                figure=name,
                subgroup=group,
                value=gain["low"],
                must_be=">=",
                bound=-margin,
                patients=int(is_member.sum()),
            )


def leak_rules(independence: Mapping[str, Any], *, is_accepted: bool) -> Iterator[Rule]:
    """Refuse a candidate that was trained on what it is measured on, or may have been.

    Args:
        independence: What the stage `cohort` found about the candidate (data/independence.json).
        is_accepted: Whether patients with copies of trained images were left in (`evaluate.accept_shared_images`).
    """
    counts = {
        "patients in both": independence["num_shared_patients"],
        "batches that may share images": _number(independence["batches_that_may_share_images"]),
        "batches with unknown patients": _number(independence.get("batches_without_patients", ())),
        "patients with copies": independence.get("num_patients_with_copies", 0) if is_accepted else 0,
    }
    for name, count in counts.items():
        yield Rule(rule="not_leaked", figure=name, value=count, must_be="<=", bound=0)


def collapse_rules(bounds: Sequence[CollapseBound], last: Mapping[str, Any]) -> Iterator[Rule]:
    """Refuse a candidate whose training ended outside the bounds of `pretrain.collapse`.

    Args:
        bounds: The bounds.
        last: The last row that the training logged (metrics/pretrain/metrics.json).
    """
    for bound in bounds:
        value = last.get(bound.monitor)
        yield Rule(
            rule="not_collapsed",
            figure=bound.monitor,
            value=value if value is not None and np.isfinite(value) else None,
            must_be=">=" if bound.is_minimum else "<=",
            bound=bound.threshold,
        )


def hash_of_gate(gate: GateParams, params: EvaluateParams, collapse: Mapping[str, Any]) -> str:
    """Return the sha256 of all that decides, but for the models: bounds, and how and on whom figures are measured.

    Args:
        gate: Section `operations.gate`.
        params: Section `evaluate`, of which `checks` decides nothing here.
        collapse: Section `pretrain.collapse`.
    """
    content = [gate.model_dump(mode="json"), params.model_dump(mode="json", exclude={"checks"}), dict(collapse)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _gain(candidate: Reading, name: str, other: Reading, params: EvaluateParams) -> dict[str, Any]:
    """Compute what the candidate gains over another encoder, above 0 is better; as the stage `evaluate` does."""
    return figure(compared({"candidate": candidate, name: other})[gain_key(name)], params)


def _within(reading: Reading, is_member: Bool[np.ndarray, " patients"]) -> Reading:
    """Return a figure of some of its patients, which alone are resampled."""

    def measure(weights: Weights) -> Any:
        everybody = np.zeros((len(weights), len(is_member)), dtype=weights.dtype)
        everybody[:, is_member] = weights
        return reading.measure(everybody)

    return Reading(measure=measure, num_patients=int(is_member.sum()), chance=reading.chance, is_error=reading.is_error)


def _number(names: Sequence[str] | None) -> int | None:
    return None if names is None else len(names)
