"""A linear probe: how well a label can be read off E(x) of a whole image by a logistic regression (method.md §5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int

from ace.data.crops import whole_images
from ace.drawing.words import with_interval
from ace.embed.embedder import Embedder, unit
from ace.embed.probe_scores import NOT_KNOWN, choose_l2, linear_scores
from ace.properties.base import (
    Answers,
    Evidence,
    Figure,
    Measurement,
    NotMeasured,
    Property,
    Reading,
    Setting,
    gain_key,
)
from ace.protocol.cohort import choose_rows
from ace.protocol.features import Features
from ace.protocol.intervals import Measure, auroc, mean
from shards.core.config import Section
from shards.core.records import Split
from shards.reading.policies import targets_of
from shards.reading.reader import ShardIndex, ShardReader

PROBE = "probe_auroc"
LEAST_PATIENTS = 5
"""Training patients with a label that a probe needs, and as many without it; of those measured likewise."""
TRAINING_PATIENTS = 4
"""Training patients to fit on, at most, for each patient that may be measured (`evaluate.max_patients`)."""


@dataclass(frozen=True)
class ProbedImages:
    """The labelled images of some patients of one split.

    Attributes:
        rows: Where they stand in the index.
        patients: Which patient each is of, counted from 0.
        labels: 1, 0, or `NOT_KNOWN` for uncertain and unknown, one column a label.
    """

    rows: Int[np.ndarray, " images"]
    patients: Int[np.ndarray, " images"]
    labels: Int[np.ndarray, "images labels"]

    @property
    def num_patients(self) -> int:
        """Patients with at least one of the images."""
        return int(self.patients.max()) + 1


@dataclass(frozen=True, kw_only=True)
class LabelPlan:
    """Name the images that probes are fitted, chosen and scored on, the same for every encoder.

    Attributes:
        index: The shard set.
        labels: Those that can be scored, by name.
        train: Images to fit on.
        val: Images to choose the penalty on.
        measured: Images to score.
    """

    index: ShardIndex
    labels: tuple[str, ...]
    train: ProbedImages
    val: ProbedImages
    measured: ProbedImages


def plan_probe(index: ShardIndex, split: Split, max_patients: int, seed: int) -> LabelPlan | str:
    """Choose images and labels; the reason, if no label can be scored.

    Args:
        index: The shard set.
        split: Whose patients are measured.
        max_patients: Of these, at most; the same ones as in the cohort, with all of their images.
        seed: Decides which patients are taken where there are more.
    """
    if split == "val":
        return "validation patients choose the probe's penalty, so it is scored on test patients alone"
    found = {
        "train": _read(index, "train", TRAINING_PATIENTS * max_patients, seed),
        "val": _read(index, "val", max_patients, seed),
        "measured": _read(index, split, max_patients, seed),
    }
    names = sorted({name for _, labels in found.values() for own in labels for name in own})
    if not names:
        return "the images have no labels"
    images = {part: _images(index, rows, labels, names) for part, (rows, labels) in found.items()}
    is_scored = _has_both(images["train"]) & _has_both(images["measured"])
    if not is_scored.any():
        return (
            f"no label is known to be there in {LEAST_PATIENTS} and not there in {LEAST_PATIENTS} patients, of train "
            f"and of {split}"
        )
    kept = {part: _with_labels(own, is_scored) for part, own in images.items()}
    if not len(kept["val"].rows):
        return "no validation patient has a label, and they choose the probe's penalty"
    scored = tuple(name for name, is_kept in zip(names, is_scored, strict=True) if is_kept)
    return LabelPlan(index=index, labels=scored, train=kept["train"], val=kept["val"], measured=kept["measured"])


def probe_scores(embedder: Embedder, plan: LabelPlan) -> Float[np.ndarray, "images labels"]:
    """Fit one logistic regression a label; the logits of the measured patients' images.

    The penalty is the one of `L2`, for all labels, with the least cross-entropy over the answers of validation
    patients.
    """
    parts = (plan.train, plan.val, plan.measured)
    rows = np.concatenate([part.rows for part in parts])
    pooled = embedder.pooled(whole_images(plan.index, rows), total=len(rows), task="linear probe")
    train, val, measured = np.split(unit(pooled), np.cumsum([len(part.rows) for part in parts[:-1]]))
    answers = plan.train.labels
    l2 = choose_l2(lambda l2: cross_entropy(plan.val.labels, linear_scores(train, answers, val, l2=l2)))
    return linear_scores(train, answers, measured, l2=l2)


def cross_entropy(labels: Int[np.ndarray, "images labels"], logits: Float[np.ndarray, "images labels"]) -> float:
    """Mean cross-entropy over the answers that are known."""
    is_known = labels != NOT_KNOWN
    wrong = np.where(labels == 1, -logits, logits)[is_known]
    return float(np.logaddexp(0, wrong).mean())


def label_auroc(images: ProbedImages, scores: Float[np.ndarray, "images labels"], column: int) -> Measure:
    """Estimate the AUROC of one label over the images that know it.

    Args:
        images: Some images.
        scores: The higher, the more likely the label.
        column: Column of the label in `images.labels`.
    """
    answers = images.labels[:, column]
    is_known = answers != NOT_KNOWN
    return auroc(answers[is_known] == 1, scores[is_known, column], images.patients[is_known])


def num_images(images: ProbedImages, column: int) -> dict[str, int]:
    """Return how many images are with and without a label, as facts beside its figure."""
    answers = images.labels[:, column]
    return {"num_with": int((answers == 1).sum()), "num_without": int((answers == 0).sum())}


def _read(
    index: ShardIndex, split: Split, max_patients: int, seed: int
) -> tuple[Int[np.ndarray, " images"], list[dict[str, int | None]]]:
    """Return all images of the chosen patients, in the order of the shards, and what the shards say of each."""
    patients, rows = index.rows["patient"], index.select(split)
    rows = rows[np.isin(patients[rows], patients[choose_rows(index, split, max_patients, seed)])]
    reader = ShardReader(index)
    return rows, [reader.meta(int(row))["labels"] for row in rows]


def _images(
    index: ShardIndex, rows: Int[np.ndarray, " images"], labels: Sequence[dict[str, int | None]], names: Sequence[str]
) -> ProbedImages:
    said = np.array([[own.get(name) for name in names] for own in labels], dtype=np.float64)
    found = targets_of(said, "U-Ignore", "ignore")
    answers = np.where(found.mask, found.values, NOT_KNOWN).astype(np.int64)
    _, patients = np.unique(index.rows["patient"][rows], return_inverse=True)
    return ProbedImages(rows, patients, answers.reshape(len(rows), len(names)))


def _with_labels(images: ProbedImages, is_kept: Bool[np.ndarray, " labels"]) -> ProbedImages:
    """Return the images that know at least one of the labels kept."""
    labels = images.labels[:, is_kept]
    is_used = (labels != NOT_KNOWN).any(axis=1)
    _, patients = np.unique(images.patients[is_used], return_inverse=True)
    return ProbedImages(images.rows[is_used], patients, labels[is_used])


def _has_both(images: ProbedImages) -> Bool[np.ndarray, " labels"]:
    """Tell which labels enough patients have and enough have not."""
    counts = [[len(np.unique(images.patients[own == answer])) for answer in (1, 0)] for own in images.labels.T]
    is_enough: Bool[np.ndarray, " labels"] = np.array(counts).min(axis=1) >= LEAST_PATIENTS
    return is_enough


class LabelsParams(Section):
    """The linear probe of labels: nothing to set."""


@dataclass(frozen=True)
class LabelsMeasurement(Measurement):
    """The images that probes are fitted, chosen and scored on."""

    plan: LabelPlan

    def ask(self, embedder: Embedder, features: Features) -> Answers:
        """Return the logits of the measured images."""
        return {"scores": probe_scores(embedder, self.plan)}

    def read(self, answers: Answers) -> Mapping[str, Reading]:
        """Average the labels' AUROCs."""
        by_label = [reading.measure for reading in self.details(answers).values()]
        num_patients, facts = self.plan.measured.num_patients, {"num_labels": len(by_label)}
        return {PROBE: Reading(measure=mean(by_label), num_patients=num_patients, chance=0.5, facts=facts)}

    def details(self, answers: Answers) -> Mapping[str, Reading]:
        """Score each label, beside the images with and without it."""
        measured = self.plan.measured
        return {
            label: Reading(
                measure=label_auroc(measured, answers["scores"], column),
                num_patients=measured.num_patients,
                chance=0.5,
                facts=num_images(measured, column),
            )
            for column, label in enumerate(self.plan.labels)
        }

    def pictures(self, answers: Mapping[str, Answers], features: Mapping[str, Features]) -> Answers:
        """Keep the ROC curve of each label and encoder: `<encoder>_roc<column>` has false and true positive rates."""
        from sklearn.metrics import roc_curve

        curves = {}
        for name, own in answers.items():
            for column, said in enumerate(self.plan.measured.labels.T):
                is_known = said != NOT_KNOWN
                false, true, _ = roc_curve(said[is_known] == 1, own["scores"][is_known, column])
                curves[f"{name}_roc{column}"] = np.stack([false, true])
        return {"labels": np.array(self.plan.labels), **curves}


class Labels(Property):
    """Reads labels off embeddings."""

    name = "labels"
    params = LabelsParams
    title = "Labels"
    question = "Can what is labelled be read off the embedding?"
    headline = PROBE
    unit = "mean AUROC of a linear probe"
    figures: ClassVar[Mapping[str, Figure]] = {
        PROBE: Figure(
            title="Labels: AUROC of a linear probe, mean over labels",
            number="{:.3f}",
            group="linear probe",
            summary="AUROC, mean over labels",
        ),
    }
    template = "labels.html"

    def plan(self, setting: Setting, params: LabelsParams) -> LabelsMeasurement | NotMeasured:
        """Choose images and labels."""
        found = plan_probe(setting.index, setting.cohort.split, setting.max_patients, setting.seed)
        return NotMeasured(found) if isinstance(found, str) else LabelsMeasurement(found)

    def shown(self, evidence: Evidence) -> dict[str, Any]:
        """Show each label: every encoder's figure, what was gained, images with and without it, and ROC curves."""
        columns = [*evidence.encoders, *(gain_key(name) for name in evidence.encoders[1:])]
        number, rows = self.figures[PROBE].number, []
        for label, figures in evidence.figures[self.name].items():
            own = figures[evidence.encoders[0]]
            rows.append(
                {
                    "name": label.replace("_", " "),
                    "cells": [with_interval(figures[column], number) for column in columns],
                    "images": f"{own['num_with']} of {own['num_with'] + own['num_without']}",
                }
            )
        from ace.drawing.plots import roc_panels

        curves = {
            str(label).replace("_", " "): {
                name: tuple(evidence.arrays[f"{name}_roc{column}"]) for name in evidence.encoders
            }
            for column, label in enumerate(evidence.arrays["labels"])
        }
        return {"rows": rows, "curves": roc_panels(curves)}
