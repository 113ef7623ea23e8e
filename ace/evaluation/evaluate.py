"""The stage `evaluate`: figures of all encoders from their answers, without any network, and what the report draws."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ace.embed.opening import EncoderParams
from ace.evaluation.measure import ANSWERS, fingerprint, plan_all, read_arrays, write_arrays
from ace.evaluation.measured import MEASURED, Measured
from ace.evaluation.params import EvaluateParams
from ace.evaluation.setting import StagePaths, read_setting
from ace.properties.base import Answers, Measurement, NotMeasured, Property, Reading, Setting, gain_key
from ace.protocol.features import Features
from ace.protocol.intervals import difference, estimate, interval, patient_weights
from shards.core.errors import ConfigError
from shards.runtime.atomic import atomic_directory, write_text

BASELINES = "baselines"
"""The section of the metrics with figures that need no encoder."""
TOLD = ("model", "network", "imported")
"""Facts on each encoder that the report is told."""
Figures = dict[str, Any]


def evaluate(params: EvaluateParams, encoders: Mapping[str, EncoderParams], paths: StagePaths) -> None:
    """Compare all encoders: write the metrics, and keep the arrays that the report draws.

    Args:
        params: The section `evaluate`.
        encoders: The section `encoders`; gains are those of the first one over each of the others.
        paths: Where the stages read and write.

    Raises:
        ConfigError: an encoder has not been measured, or was measured on other patients or with other params.
    """
    setting = read_setting(params, paths)
    plans = plan_all(params, setting)
    told = {name: read_told(name, encoder, params, paths) for name, encoder in encoders.items()}
    independence = json.loads(paths.independence.read_text(encoding="utf-8"))
    features = {
        name: Features.open(paths.answers / name / "features" / own["features"])
        for name, own in told.items()
        if own["features"] is not None
    }
    columns = compared_names(encoders)
    table: dict[str, Any] = {name: {} for name in columns}
    with atomic_directory(paths.evidence) as fresh:
        for item, _ in params.properties.chosen():
            plan = plans[item.name]
            if isinstance(plan, NotMeasured):
                for name in columns:  # a property before it may have added sections of its own
                    table[name][item.headline or item.name] = _not_measured(plan.reason)
                continue
            answers = {name: read_arrays(paths.answers / name / f"{item.name}.npz") for name in encoders}
            tabulate(table, item, plan, answers, params)
            write_arrays(fresh / f"{item.name}.npz", plan.pictures(answers, features))
        table[MEASURED] = _measured(told, independence, setting).model_dump(mode="json", exclude_defaults=True)
        protocol = params.model_dump(mode="json", exclude={"checks"})
        protocol["encoders"] = {name: {key: own[key] for key in TOLD} for name, own in told.items()}
        write_text(fresh / "protocol.json", json.dumps(protocol, indent=2) + "\n")
        write_text(fresh / "independence.json", json.dumps(independence, indent=2) + "\n")
    sections = [name for name in table if name not in (BASELINES, MEASURED)]
    ordered = {name: table[name] for name in (*sections, BASELINES, MEASURED) if name in table}
    write_text(paths.metrics, json.dumps(ordered, indent=2) + "\n")


def tabulate(
    table: Figures, item: Property, plan: Measurement, answers: Mapping[str, Answers], params: EvaluateParams
) -> None:
    """Put one property's figures into the metrics: of every encoder, what the first one gains, and baselines.

    Args:
        table: The metrics: a section for each encoder and each gain; others are added.
        item: The property.
        plan: It, planned for the cohort.
        answers: Of every encoder, the first one first.
        params: Seed and bootstrap.
    """
    readings = {name: plan.read(own) for name, own in answers.items()}
    for key in next(iter(readings.values())):
        for name, reading in compared({name: own[key] for name, own in readings.items()}).items():
            table[name][key] = figure(reading, params)
    for key, left_out in plan.left_out().items():
        for name in compared_names(readings):
            table[name][key] = _not_measured(left_out.reason)
    details = {name: plan.details(own) for name, own in answers.items()}
    for key in next(iter(details.values())):
        compare = compared({name: own[key] for name, own in details.items()})
        table.setdefault(item.name, {})[key] = {name: figure(reading, params) for name, reading in compare.items()}
    for key, baselines in plan.baselines().items():
        own = {name: figure(reading, params) for name, reading in baselines.items()}
        table.setdefault(BASELINES, {})[key] = own


def compared_names(encoders: Iterable[str]) -> list[str]:
    """Name the sections of the metrics that hold every figure: the encoders, and the gains of the first one."""
    first, *others = encoders
    return [first, *others, *(gain_key(name) for name in others)]


def compared(readings: Mapping[str, Reading]) -> dict[str, Reading]:
    """Add what the first encoder gains over each other one, resampled over the same patients; above 0 is better."""
    first, *others = readings
    gains = {gain_key(name): _gain(readings[first], readings[name]) for name in others}
    return {**readings, **gains}


def figure(reading: Reading, params: EvaluateParams) -> Figures:
    """Compute a figure and its bootstrap interval, rounded, beside its chance level, n and facts."""
    value = estimate(reading.measure, reading.num_patients)
    if np.isnan(value):
        return _not_measured("nothing to divide by: nothing was found, or tokens have no length or change")
    rng = np.random.default_rng([params.seed, reading.num_patients])
    weights = patient_weights(reading.num_patients, params.bootstrap.num_resamples, rng)
    low, high = interval(reading.measure, weights, params.bootstrap.level)
    numbers = {"value": value, "low": low, "high": high}
    if reading.chance is not None:
        numbers["chance"] = reading.chance
    return {key: round(number, 5) for key, number in numbers.items()} | {"n": reading.num_patients, **reading.facts}


def _gain(first: Reading, other: Reading) -> Reading:
    better, worse = (other, first) if first.is_error else (first, other)
    return Reading(
        measure=difference(better.measure, worse.measure),
        num_patients=first.num_patients,
        chance=None,
        facts=first.facts,
    )


def _not_measured(reason: str) -> Figures:
    return {"value": None, "low": None, "high": None, "n": 0, "reason": reason}


def read_told(name: str, encoder: EncoderParams, params: EvaluateParams, paths: StagePaths) -> dict[str, Any]:
    """Read what `measure` told of an encoder.

    Raises:
        ConfigError: it was not measured, or on other patients or with other params.
    """
    path = paths.answers / name / ANSWERS
    advice = f"`dvc repro measure@{name}` measures it"
    if not path.is_file():
        raise ConfigError(f"{path}: not found; {advice}")
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    expected = {"model": encoder.model, "network": encoder.network, "asked": fingerprint(params, paths)}
    differs = [key for key, value in expected.items() if told[key] != value]
    if differs:
        found = ", ".join(f"{key} {told[key]}" for key in differs)
        wanted = ", ".join(expected[key] for key in differs)
        raise ConfigError(f"{path}: has {found}, expected {wanted}; {advice} again")
    return told


def _measured(told: Mapping[str, Mapping[str, Any]], independence: Mapping[str, Any], setting: Setting) -> Measured:
    first = next(iter(told))
    own = independence[first]
    return Measured(
        model_sha256=told[first]["weights_sha256"],
        batch=setting.cohort.batch,
        split=setting.cohort.split,
        num_patients=len(setting.cohort.subjects),
        num_shared_patients=own["num_shared_patients"],
        batches_that_may_share_images=own["batches_that_may_share_images"],
        batches_without_patients=tuple(own.get("batches_without_patients", ())),
    )
