"""The stage `evaluate`: what the trained encoder, and those it is compared with, make of composition and labels."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ace.evaluation.cohort import Cohort, Subject, choose_rows, read_cohort
from ace.evaluation.composition import (
    CompositionCosines,
    CompositionPlan,
    composition_auc,
    composition_cosines,
    compositionality,
    plan_composition,
)
from ace.evaluation.correspondence import (
    Features,
    LocationAxis,
    Pair,
    Points,
    affine_oracle,
    canvas_features,
    draw_pairs,
    errors_at_reference,
    find_landmarks,
    location_axis,
    pair_mean,
    points_of,
    random_guess_errors,
)
from ace.evaluation.decomposition import (
    DecompositionEmbeddings,
    DecompositionPlan,
    Removals,
    decomposition_embeddings,
    decompositionality,
    plan_decomposition,
    remove_regions,
)
from ace.evaluation.embedding import Embedder, Encoder
from ace.evaluation.fills import FillPlan, plan_fills
from ace.evaluation.intervals import Measure, difference, estimate, interval, mean, patient_weights
from ace.evaluation.measured import MEASURED, Measured
from ace.evaluation.names import CORRESPONDENCE, PROBE
from ace.evaluation.params import BootstrapParams, EvaluateParams
from ace.evaluation.pictures import (
    composition_arrays,
    correspondence_arrays,
    decomposition_arrays,
    removal_arrays,
    write_arrays,
)
from ace.evaluation.probe import ProbePlan, num_images, plan_probe, probe_labels
from ace.evaluation.removal import change_outside, erased_length
from ace.models.encoder import IMPORTED, WEIGHTS, load_encoder, reference_encoder, untrained_encoder
from ace.models.precision import accelerator_settings
from shards.errors import ConfigError
from shards.format.layout import MANIFESTS, sha256_of
from shards.grid import GridSpec
from shards.params import MeasuredParams
from shards.reading.copies import find_trained_copies
from shards.reading.image_names import check_image_names
from shards.reading.lineage import check_independence, warn_of_unknown_patients
from shards.reading.reader import ShardIndex
from shards.runtime.atomic import atomic_directory, write_text
from shards.store.location import Location, location_of

LABELS = "labels"
"""The section of the metrics with the probe's figures of single labels."""
IMAGENET = "imagenet"
"""Row of the encoder that `evaluate.reference` names."""
GAINS = {"gain": "untrained", f"gain_over_{IMAGENET}": IMAGENET}
"""Section of what training gained → the encoder that it gained it over."""


@dataclass(frozen=True)
class Plan:
    """What is drawn once and asked of every encoder."""

    composition: CompositionPlan
    decomposition: DecompositionPlan
    same_position: DecompositionPlan
    fills: FillPlan
    axis: LocationAxis
    mapped: tuple[Subject, ...]
    pairs: tuple[Pair, ...]
    probe: ProbePlan | str
    """Or why there is none."""


@dataclass(frozen=True)
class Answers:
    """Hold one encoder's answers: cosines, embeddings, dense features of `mapped`, points found, AUROC by label."""

    composition: CompositionCosines
    removals: Removals
    same_position: DecompositionEmbeddings
    features: list[Features]
    found: list[Points]
    probe: Mapping[str, Measure]


@dataclass(frozen=True)
class Reading:
    """One figure before its interval."""

    measure: Measure
    num_patients: int
    chance: float | None
    is_error: bool = False
    """Whether less is better."""
    facts: Mapping[str, int] = field(default_factory=dict)


def evaluate(
    params: EvaluateParams,
    shards_root: Location,
    model_dir: Path,
    metrics_path: Path,
    evidence_dir: Path,
    *,
    project: Path = Path(),
    measured: MeasuredParams | None = None,
) -> None:
    """Measure what method.md §5 names, write the metrics, and keep the arrays that the report draws.

    Args:
        params: The section `evaluate`.
        shards_root: Folder or URL of all shard sets; `params.batch` names the one used.
        model_dir: The trained model.
        metrics_path: JSON of figures, each with n, chance and interval, and under `measured` whose they are.
        evidence_dir: Folder of .npz files, replaced as a whole.
        project: The folder of params.yaml: its manifests are compared with the file names that a published model lists,
            and it says which images of the batch are excluded.
        measured: The batch's own mean and std, for a model that was not trained with it.

    Raises:
        ConfigError: too few patients, a model trained on another grid or frame, a batch that it was not trained with
            and no mean and std, or a reference encoder that cannot be had.
        ContaminationError: the model was trained on some of the patients.
    """
    index = ShardIndex.open(location_of(shards_root, params.batch)).without_excluded(project)
    is_accepted, split = params.accept_shared_images, params.split
    independence = check_independence(model_dir, index, is_accepted=is_accepted, split=split)
    if independence["num_shared_patients"] is None:
        independence |= check_image_names(model_dir, index, project / MANIFESTS, is_accepted=is_accepted, split=split)
    warn_of_unknown_patients(
        independence.get("batches_without_patients", ()), "the figures may be too good, by an unknown amount"
    )
    index, num_copies = _without_trained_copies(model_dir, index, shards_root, params)
    if num_copies is not None:
        independence["num_patients_with_copies"] = num_copies
    cohort = read_cohort(index, params.split, params.max_patients, params.seed)
    plan = draw_plan(cohort, plan_probe(index, params.split, params.max_patients, params.seed), params)
    trained = load_encoder(model_dir, which="teacher")
    if trained.config.get("origin") != IMPORTED:  # of an imported model nothing says how its images were framed
        _check_trim(trained.spec, cohort)
    own = {} if measured is None else {cohort.batch: measured.normalisation(trained.in_channels)}
    encoders: dict[str, Encoder] = {
        "trained": replace(trained, given=own),
        "untrained": replace(untrained_encoder(model_dir, params.seed), given=own),
    }
    encoders["trained"].normalisation(cohort.batch)  # is known or given, or refused here before any work
    if params.reference is not None:
        encoders[IMAGENET] = reference_encoder(params.reference, cohort.spec)
    answers = {}
    for name, encoder in encoders.items():
        _check_grid(encoder, cohort)
        with accelerator_settings(encoder.precision, encoder.device):
            answers[name] = ask(Embedder(encoder, cohort.batch, params.images_per_forward, name), cohort, plan)
    figures = tabulate(cohort, plan, answers, params)
    figures[MEASURED] = _measured(model_dir, cohort, independence).model_dump(mode="json", exclude_defaults=True)
    write_evidence(cohort, plan, answers, params, independence, evidence_dir)
    write_text(metrics_path, json.dumps(figures, indent=2) + "\n")


def _without_trained_copies(
    model_dir: Path, index: ShardIndex, shards_root: Location, params: EvaluateParams
) -> tuple[ShardIndex, int | None]:
    """The set without patients of whom the model saw a picture in another set, and how many of those there are.

    All images of the patients who would be measured are asked for, and then those of the patients who take the places
    of the ones that are left out, so that the time is bounded by their number. Where shared images are accepted all
    stay, and are counted.
    """
    asked: set[str] = set()
    found: set[str] = set()
    while True:
        rows = choose_rows(index, params.split, params.max_patients, params.seed)
        in_split = index.select(params.split)
        is_measured = np.isin(index.rows["patient"][in_split], index.rows["patient"][rows])
        keys = set(index.keys(in_split[is_measured])) - asked
        copies = find_trained_copies(model_dir, index, keys, lambda name: location_of(shards_root, name))
        if copies is None:
            return index, None
        asked |= keys
        patients = {pair.first.patient for pair in copies}
        found |= patients
        if patients:
            pair = copies[0]
            what = "all the same measured" if params.accept_shared_images else "left out"
            print(
                f"warning: {len(patients)} {params.split} patients of {index.name} have pictures that the model was "
                f"trained on under other names, as {pair.first.key}, which is {pair.second.key} of "
                f"{pair.second.report.parent.name} (correlation {pair.correlation:.3f}); they are {what}",
                file=sys.stderr,
            )
        if not patients or params.accept_shared_images:
            return index, len(found)
        index = index.without_patients(patients)


def draw_plan(cohort: Cohort, probed: ProbePlan | str, params: EvaluateParams) -> Plan:
    """Draw regions, draws and pairs; each property has its own generator, so that one leaves the others unchanged."""
    composition, decomposition, same_position, pairs, fills = np.random.default_rng(params.seed).spawn(5)
    keys, split = [subject.key for subject in cohort.subjects], cohort.split
    num_patients, corr = len(cohort.subjects), params.correspondence
    with_landmarks = tuple(subject for subject in cohort.subjects if subject.landmarks)[: corr.num_patients]
    has_landmarks = len(with_landmarks) > 1
    return Plan(
        decomposition=plan_decomposition(
            num_patients, params.decomposition, decomposition, same_position=False, split=split
        ),
        same_position=plan_decomposition(
            num_patients, params.decomposition, same_position, same_position=True, split=split
        ),
        fills=plan_fills(keys, params.decomposition, params.seed, fills),
        composition=plan_composition(num_patients, params.composition, composition),
        axis=location_axis(cohort.spec, corr.locations_per_cell, corr.window_step_cells),
        mapped=with_landmarks if has_landmarks else cohort.subjects[: params.num_examples],
        pairs=tuple(draw_pairs(with_landmarks, corr.keys_per_query, corr.max_landmarks, pairs)),
        probe=probed,
    )


def ask(embedder: Embedder, cohort: Cohort, plan: Plan) -> Answers:
    """Everything that needs the encoder."""
    canvases = [subject.canvas for subject in cohort.subjects]
    features = canvas_features(embedder, plan.mapped, plan.axis)
    return Answers(
        composition=composition_cosines(embedder, canvases, plan.composition),
        removals=remove_regions(embedder, canvases, plan.decomposition, plan.fills),
        same_position=decomposition_embeddings(embedder, canvases, plan.same_position),
        features=features,
        found=find_landmarks(plan.mapped, features, plan.axis, plan.pairs),
        probe=probe_labels(embedder, plan.probe) if isinstance(plan.probe, ProbePlan) else {},
    )


def tabulate(cohort: Cohort, plan: Plan, answers: Mapping[str, Answers], params: EvaluateParams) -> dict[str, Any]:
    """The figures of every encoder, what training gained on each one, and the baselines that need no encoder."""
    readings = {name: _readings(cohort, plan, answer, params) for name, answer in answers.items()}
    table: dict[str, Any] = {
        name: {key: _figure(reading, params) for key, reading in of_encoder.items()}
        for name, of_encoder in readings.items()
    }
    for key, other in GAINS.items():
        if other in readings:
            table[key] = _gains(readings["trained"], readings[other], params)
    if not plan.pairs:
        reason = f"fewer than two {cohort.split} patients of this batch have landmarks"
        table = {name: figures | {CORRESPONDENCE: _not_measured(reason)} for name, figures in table.items()}
    if isinstance(plan.probe, str):
        table = {name: figures | {PROBE: _not_measured(plan.probe)} for name, figures in table.items()}
    else:
        table[LABELS] = _label_figures(plan.probe, answers, params)
    if plan.pairs:
        table["baselines"] = {CORRESPONDENCE: {k: _figure(r, params) for k, r in _baselines(cohort, plan).items()}}
    return table


def write_evidence(
    cohort: Cohort,
    plan: Plan,
    answers: Mapping[str, Answers],
    params: EvaluateParams,
    independence: Mapping[str, Any],
    evidence_dir: Path,
) -> None:
    """Keep what the report draws, in a folder that appears whole."""
    canvases = [subject.canvas for subject in cohort.subjects]
    size_px, num_examples = cohort.spec.crop_px, params.num_examples
    with atomic_directory(evidence_dir) as fresh:
        write_text(fresh / "protocol.json", params.model_dump_json(indent=2, exclude={"checks"}) + "\n")
        write_text(fresh / "independence.json", json.dumps(independence, indent=2) + "\n")
        cosines = {name: answer.composition for name, answer in answers.items()}
        write_arrays(fresh / "composition.npz", composition_arrays(canvases, plan.composition, cosines, size_px))
        embeddings = {name: answer.removals.by_fill["black"] for name, answer in answers.items()}
        arrays = decomposition_arrays(canvases, plan.decomposition, embeddings, size_px, num_examples)
        write_arrays(fresh / "decomposition.npz", arrays)
        tokens = {name: answer.removals.tokens for name, answer in answers.items()}
        arrays = removal_arrays(canvases, plan.decomposition, tokens, size_px, num_examples)
        write_arrays(fresh / "removal.npz", arrays)
        features = {name: answer.features for name, answer in answers.items()}
        found = {name: answer.found for name, answer in answers.items()}
        arrays = correspondence_arrays(plan.mapped, plan.axis, plan.pairs, features, found, num_examples)
        write_arrays(fresh / "correspondence.npz", arrays)


def _measured(model_dir: Path, cohort: Cohort, independence: Mapping[str, Any]) -> Measured:
    return Measured(
        model_sha256=sha256_of(model_dir / WEIGHTS["teacher"]),
        batch=cohort.batch,
        split=cohort.split,
        num_patients=len(cohort.subjects),
        num_shared_patients=independence["num_shared_patients"],
        batches_that_may_share_images=independence["batches_that_may_share_images"],
        batches_without_patients=tuple(independence.get("batches_without_patients", ())),
    )


def _readings(cohort: Cohort, plan: Plan, answers: Answers, params: EvaluateParams) -> dict[str, Reading]:
    num_patients, success_px = len(cohort.subjects), params.correspondence.success_px
    num_regions, num_mismatches = len(plan.composition.regions), len(plan.composition.mismatches)
    regions = {"num_regions": num_regions, "num_mismatches": num_mismatches}
    draws = {"batch": params.decomposition.batch, "num_draws": params.decomposition.num_draws}
    by_cosine, tokens = (plan.composition, answers.composition), answers.removals.tokens
    chance = 1 / params.decomposition.batch

    def found_by(decomposition: DecompositionPlan, embeddings: DecompositionEmbeddings) -> Reading:
        return Reading(decompositionality(decomposition, embeddings), num_patients, chance, facts=draws)

    by_fill = {fill: found_by(plan.decomposition, found) for fill, found in answers.removals.by_fill.items()}
    crops = {"num_regions": tokens.change.shape[0] * tokens.change.shape[1]}
    readings = {
        "compositionality": Reading(compositionality(*by_cosine, num_patients), num_patients, 0.0, facts=regions),
        "compositionality_auc": Reading(composition_auc(*by_cosine, num_patients), num_patients, 0.5, facts=regions),
        "decompositionality": by_fill["black"],
        "decompositionality_same_position": found_by(plan.same_position, answers.same_position),
        **{f"decompositionality_{fill}": reading for fill, reading in by_fill.items() if fill != "black"},
        "removal_erased_length": Reading(erased_length(tokens), num_patients, None, is_error=True, facts=crops),
        "removal_change_outside": Reading(change_outside(tokens), num_patients, None, is_error=True, facts=crops),
    }
    if isinstance(plan.probe, ProbePlan):
        by_label = list(answers.probe.values())
        num_probed, facts = plan.probe.measured.num_patients, {"num_labels": len(by_label)}
        readings[PROBE] = Reading(mean(by_label), num_probed, 0.5, facts=facts)
    if not plan.pairs:
        return readings
    num_mapped = len(plan.mapped)
    canvas_px, cell_px = cohort.spec.canvas_px, cohort.spec.cell_px
    true = [points_of(plan.mapped[pair.key], pair.names) for pair in plan.pairs]
    errors = [errors_at_reference(found, points, canvas_px) for found, points in zip(answers.found, true, strict=True)]
    guesses = [
        random_guess_errors(plan.mapped[pair.key], points, plan.axis, cell_px)
        for pair, points in zip(plan.pairs, true, strict=True)
    ]
    facts = {"num_pairs": len(plan.pairs), "num_landmarks": sum(len(pair.names) for pair in plan.pairs)}
    expected = estimate(pair_mean(plan.pairs, [guess.mean(axis=0) for guess in guesses], num_mapped), num_mapped)
    hits = [(guess <= success_px).mean(axis=0) for guess in guesses]
    readings[CORRESPONDENCE] = Reading(
        pair_mean(plan.pairs, errors, num_mapped), num_mapped, expected, is_error=True, facts=facts
    )
    readings[f"correspondence_within_{success_px:g}px"] = Reading(
        pair_mean(plan.pairs, [(error <= success_px).astype(float) for error in errors], num_mapped),
        num_mapped,
        estimate(pair_mean(plan.pairs, hits, num_mapped), num_mapped),
        facts=facts,
    )
    return readings


def _label_figures(plan: ProbePlan, answers: Mapping[str, Answers], params: EvaluateParams) -> dict[str, Any]:
    """Each label's figures of every encoder, and what training gained."""
    table: dict[str, Any] = {}
    num_patients = plan.measured.num_patients
    for column, label in enumerate(plan.labels):
        facts = num_images(plan.measured, column)
        readings = {
            name: Reading(answer.probe[label], num_patients, 0.5, facts=facts) for name, answer in answers.items()
        }
        gains = {key: _gain(readings["trained"], readings[other]) for key, other in GAINS.items() if other in readings}
        table[label] = {name: _figure(reading, params) for name, reading in (readings | gains).items()}
    return table


def _baselines(cohort: Cohort, plan: Plan) -> dict[str, Reading]:
    same_pixel, affine = [], []
    for pair in plan.pairs:
        source, target = (points_of(plan.mapped[place], pair.names) for place in (pair.query, pair.key))
        same_pixel.append(errors_at_reference(source, target, cohort.spec.canvas_px))
        affine.append(errors_at_reference(affine_oracle(source, target), target, cohort.spec.canvas_px))
    num = len(plan.mapped)
    return {
        "same_pixel": Reading(pair_mean(plan.pairs, same_pixel, num), num, None, is_error=True),
        "affine_oracle": Reading(pair_mean(plan.pairs, affine, num), num, None, is_error=True),
    }


def _gains(
    trained: Mapping[str, Reading], other: Mapping[str, Reading], params: EvaluateParams
) -> dict[str, dict[str, Any]]:
    return {key: _figure(_gain(reading, other[key]), params) for key, reading in trained.items()}


def _gain(trained: Reading, other: Reading) -> Reading:
    """By how much the trained encoder is better, resampled over the same patients; above 0 is better for all."""
    first, second = (other, trained) if trained.is_error else (trained, other)
    return Reading(difference(first.measure, second.measure), trained.num_patients, None, facts=trained.facts)


def _not_measured(reason: str) -> dict[str, Any]:
    return {"value": None, "low": None, "high": None, "n": 0, "reason": reason}


def _figure(reading: Reading, params: EvaluateParams) -> dict[str, Any]:
    bootstrap: BootstrapParams = params.bootstrap
    if np.isnan(estimate(reading.measure, reading.num_patients)):
        return _not_measured("nothing to divide by: tokens without length or change")
    rng = np.random.default_rng([params.seed, reading.num_patients])
    weights = patient_weights(reading.num_patients, bootstrap.num_resamples, rng)
    low, high = interval(reading.measure, weights, bootstrap.level)
    figure: dict[str, Any] = {"value": estimate(reading.measure, reading.num_patients), "low": low, "high": high}
    if reading.chance is not None:
        figure["chance"] = reading.chance
    return {k: round(v, 5) for k, v in figure.items()} | {"n": reading.num_patients} | dict(reading.facts)


def _check_trim(trained: GridSpec, cohort: Cohort) -> None:
    if trained.trim_level != cohort.spec.trim_level:
        ours, found = ("null" if spec.trim_level is None else spec.trim_level for spec in (trained, cohort.spec))
        raise ConfigError(
            f"the model was trained on images with grid.trim_level {ours}, but {cohort.batch} was built with {found}: "
            "its canvases frame the anatomy otherwise; build the batch with the model's trim_level, or train again"
        )


def _check_grid(encoder: Encoder, cohort: Cohort) -> None:
    trained, found = ((spec.n, spec.cell_px, spec.t) for spec in (encoder.spec, cohort.spec))
    if trained != found:
        raise ConfigError(
            f"the model was trained on a grid (n, cell_px, t) = {trained}, but {cohort.batch} has {found}; "
            "evaluate on a batch with the model's grid, or train again"
        )
