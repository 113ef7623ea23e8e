"""The linear probe of labels: whom it is fitted and scored on, and its AUROC against a loop over pairs."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ace.drawing import plots
from ace.drawing.words import Words
from ace.embed.probe_scores import NOT_KNOWN
from ace.properties.base import Evidence, gain_key
from ace.properties.labels import (
    LEAST_PATIENTS,
    LabelPlan,
    Labels,
    LabelsMeasurement,
    ProbedImages,
    cross_entropy,
    label_auroc,
    num_images,
    plan_probe,
)
from ace.protocol.cohort import read_cohort
from ace.protocol.features import Features
from ace.protocol.intervals import estimate, mean, patient_weights
from shards.build.stage import build_shards
from shards.core.params import GridParams
from shards.reading.reader import ShardIndex
from tests.ace.properties.constructed import SPEC, embedder, place
from tests.oracles import probe as oracle
from tests.support.datasets import NO_CHECKS, Here, folder_params, shard_params, smooth_image, write_csv

NUM_PATIENTS = 90
LABELS = ("bright", "coin", "rare")
GRID = GridParams.from_params(
    {"n": SPEC.n, "cell_px": SPEC.cell_px, "t": SPEC.t, "min_overlap": 0.25, "min_jitter_area": 0.85}
    | {"scales": [{"k": 1, "l": 1, "weight": 1.0}]},
    "grid",
)


def build(folder: Path, labels: tuple[str, ...] = LABELS, *, has_val: bool = True) -> ShardIndex:
    """Patients with one or two images: half of them have a bright one, a coin decides on another label."""
    rng, rows = np.random.default_rng(0), []
    (folder / "images").mkdir(parents=True)
    for patient in range(NUM_PATIENTS):
        for number in range(1 + patient % 2):
            is_bright, name = patient % 4 < 2, f"{patient:02}-{number}.png"
            pixels = smooth_image(48, 48, 2 * patient + number) // 2 + (90 if is_bright else 10)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / name)
            answers = {"bright": int(is_bright), "coin": int(rng.integers(2)), "rare": int(patient < 3)}
            answers["bright"] = "" if patient % 10 == 0 else answers["bright"]
            split = "test" if patient % 3 == 0 else "val" if has_val and patient % 3 == 1 and patient < 30 else "train"
            rows.append((name, patient, split, *(answers[label] for label in labels)))
    write_csv(folder / "labels.csv", ("path", "patient", "split", *labels), rows)
    source = folder_params(folder / "images", folder / "manifest.jsonl", folder / "labels.csv")
    splits = {"train": 0.6, "val": 0.4 if has_val else 0.0, "test": 0.0 if has_val else 0.4}
    params = shard_params(quality=NO_CHECKS, splits=splits)
    build_shards("probed-b000", source, GRID, params, folder / "out", execution=Here())
    return ShardIndex.open(folder / "out")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    folder = tmp_path_factory.mktemp("probed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(folder / "scratch"))
        patch.delenv("ACE_ID_KEY_FILE", raising=False)
        return build(folder)


@pytest.fixture(scope="module")
def plan(index: ShardIndex) -> LabelPlan:
    plan = plan_probe(index, "test", NUM_PATIENTS, seed=0)
    assert isinstance(plan, LabelPlan), plan
    return plan


def test_a_label_that_shows_is_found_and_one_that_a_coin_decided_is_not(plan: LabelPlan) -> None:
    assert plan.labels == ("bright", "coin"), "too few patients have the rare one"
    measurement = LabelsMeasurement(plan)
    features = Features(Path(), {})
    found = measurement.details(measurement.ask(embedder(place, plan.index.spec), features))
    values = {label: estimate(reading.measure, reading.num_patients) for label, reading in found.items()}
    assert values["bright"] == 1
    assert 0.3 < values["coin"] < 0.7


def test_the_area_below_the_curve_that_is_drawn_is_the_figure(plan: LabelPlan) -> None:
    measurement, features = LabelsMeasurement(plan), Features(Path(), {})
    answers = measurement.ask(embedder(place, plan.index.spec), features)
    inverted = {"scores": -answers["scores"]}
    drawn = measurement.pictures({"e": answers, "inverted": inverted}, {"e": features, "inverted": features})
    assert drawn["labels"].tolist() == list(plan.labels)
    for name, own in (("e", answers), ("inverted", inverted)):
        for column, reading in enumerate(measurement.details(own).values()):
            false, true = drawn[f"{name}_roc{column}"]
            assert np.trapezoid(true, false) == pytest.approx(estimate(reading.measure, reading.num_patients))


def test_every_label_and_encoder_has_its_own_curve_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    curve = {
        f"{name}_roc{column}": np.full((2, 2), value)
        for value, (name, column) in enumerate(itertools.product(("one", "other"), (0, 1)))
    }
    number = {"value": 0.7, "low": 0.6, "high": 0.8, "num_with": 5, "num_without": 6}
    figures = dict.fromkeys(("one", "other", gain_key("other")), number)
    drawn: list[Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]]] = []
    monkeypatch.setattr(plots, "roc_panels", lambda curves: drawn.append(curves) or "")
    Labels().shown(
        Evidence(
            encoders=["one", "other"],
            figures={"labels": {"No_Finding": figures, "Edema": figures}},
            params={},
            arrays={"labels": np.array(["No_Finding", "Edema"]), **curve},
            words=Words(one="patient"),
        )
    )
    found = {label: {name: rates[0][0] for name, rates in own.items()} for label, own in drawn[0].items()}
    assert found == {"No Finding": {"one": 0, "other": 2}, "Edema": {"one": 1, "other": 3}}


def test_each_part_has_all_labelled_images_of_patients_of_its_own_split(index: ShardIndex, plan: LabelPlan) -> None:
    for part, split in ((plan.train, "train"), (plan.val, "val"), (plan.measured, "test")):
        assert np.array_equal(part.rows, index.select(split)), "a coin was thrown for every image"
        of_patient: dict[int, set[bytes]] = {}
        for row, patient in zip(part.rows, part.patients, strict=True):
            of_patient.setdefault(int(patient), set()).add(bytes(index.rows["patient"][row]))
        assert all(len(ids) == 1 for ids in of_patient.values())
        assert len(of_patient) == part.num_patients == len(set.union(*of_patient.values()))
        assert (part.labels[:, 0] == NOT_KNOWN).any()


def test_measured_patients_are_those_of_the_other_figures(index: ShardIndex) -> None:
    few = plan_probe(index, "test", 20, seed=3)
    assert isinstance(few, LabelPlan)
    cohort = read_cohort(index, "test", 20, seed=3)
    keys = set(index.keys(few.measured.rows))
    assert few.measured.num_patients == 20
    assert {subject.key for subject in cohort.subjects} <= keys


def test_why_no_label_can_be_scored_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACE_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("ACE_ID_KEY_FILE", raising=False)
    bare, rare = build(tmp_path / "bare", ()), build(tmp_path / "rare", ("rare",))
    assert plan_probe(bare, "test", NUM_PATIENTS, seed=0) == "the images have no labels"
    assert f"in {LEAST_PATIENTS} and not there in" in str(plan_probe(rare, "test", NUM_PATIENTS, seed=0))
    alone = build(tmp_path / "alone", ("bright",), has_val=False)
    assert "no validation patient has a label" in str(plan_probe(alone, "test", NUM_PATIENTS, seed=0))


def draw_images(rng: np.random.Generator) -> ProbedImages:
    """Images of three patients with two labels, of which each has both answers."""
    labels = rng.integers(-1, 2, (8, 2))
    labels[0], labels[1] = 1, 0
    patients = np.concatenate([np.arange(3), rng.integers(3, size=5)])
    return ProbedImages(np.arange(8), patients, labels)


@given(st.integers(0, 10_000))
def test_auroc_counts_pairs_of_images_as_often_as_their_patients_are_drawn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, scores = draw_images(rng), rng.integers(0, 3, (8, 2)).astype(float)
    weights = patient_weights(3, 4, rng)
    measures = [label_auroc(images, scores, column) for column in (0, 1)]
    for column, measure in enumerate(measures):
        assert estimate(measure, 3) == pytest.approx(oracle.auroc(images.labels[:, column], scores[:, column]))
        for weight, value in zip(weights, measure(weights), strict=True):
            drawn = np.repeat(np.arange(8), weight[images.patients])
            answers = images.labels[drawn, column]
            if {0, 1} <= set(answers.tolist()):
                assert value == pytest.approx(oracle.auroc(answers, scores[drawn, column]))
            else:
                assert np.isnan(value)
    both = mean(measures)(weights)
    assert np.array_equal(both, (measures[0](weights) + measures[1](weights)) / 2, equal_nan=True)


@given(st.integers(0, 10_000))
def test_cross_entropy_is_the_logistic_loss_over_the_answers_that_are_known(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images, logits = draw_images(rng), rng.normal(size=(8, 2))
    is_known = images.labels != NOT_KNOWN
    inputs, answers = logits[is_known][:, None], images.labels[is_known]
    expected = oracle.logistic_loss(np.array([1.0, 0.0]), inputs, answers, l2=0.0)
    assert cross_entropy(images.labels, logits) == pytest.approx(expected)
    assert num_images(images, 0) == {
        "num_with": sum(images.labels[:, 0] == 1),
        "num_without": sum(images.labels[:, 0] == 0),
    }
