"""Classification: several labels each by itself, one class of several, or one grade in order (docs/finetune.md)."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from ace.downstream.base import Arrays, Score, Target, Task
from ace.downstream.examples import Example
from ace.downstream.localisation import locate, located_examples, located_scores
from ace.downstream.params import Share, TaskParams
from ace.downstream.parts import Part
from ace.downstream.scores import accuracy, average_precision, calibration_error, quadratic_kappa
from ace.downstream.shown import ShownPart
from ace.downstream.views import View, center_view, ten_views
from ace.embed.encoder import Encoder
from ace.embed.probe_scores import NOT_KNOWN, choose_l2, knn_votes, linear_scores
from ace.protocol.intervals import auroc, estimate, mean
from shards.core.canvas import Canvas
from shards.core.config import Section
from shards.core.errors import ConfigError
from shards.reading.policies import BlankPolicy, targets_of
from shards.reading.reader import Sample, ShardReader

Policy = Literal["U-Zeros", "U-Ones", "U-Ignore", "LSR-Ones", "LSR-Zeros"]
HARD = ("U-Zeros", "U-Ones")
"""Policies that make a label of an uncertain one; the others leave it out, or smooth the target of `full`."""
KNN = "knn"


class KnnParams(Section):
    """Sets the vote of neighbours."""

    k: int = Field(ge=1)
    """Neighbours that vote on a label."""
    temperature: float = Field(gt=0)
    """A neighbour's vote weighs exp(cosine / temperature); DINO's is 0.07."""


class ClassificationParams(TaskParams):
    """Describes a task of classification."""

    kind: Literal["classification"]
    """Names this kind of task."""
    labels: tuple[str, ...] = Field(min_length=1)
    """Labels, as the shards name them, in the order of the outputs."""
    answer: Literal["labels", "class", "grade"]
    """`labels`: each label by itself, binary cross-entropy. `class`: exactly one of them, cross-entropy. `grade`: the
    same, in order, so that a grade further off is worse (quadratic kappa)."""
    uncertain: Policy | dict[str, Policy]
    """Policy that turns an uncertain label into a training target: one policy, or one for each label. The LSR
    policies are for `full`, and to the other methods such a label is unknown, as it is where images validate or are
    measured."""
    blank: BlankPolicy
    """`zeros`: a label that is not mentioned is absent, as in CheXpert; `ignore`: it is unknown."""
    methods: tuple[Literal["full", "linear", "knn"], ...] = Field(min_length=1)
    """`full` trains encoder and head; `linear` and `knn` read the frozen encoder's E(x) of whole images."""
    test_views: Literal["ten", "centre"]
    """Crops whose mean probability is the answer at the end: four corners and the middle, and their mirror images; or
    the middle alone. Validation looks at the middle."""
    heat_thresholds: tuple[Share, ...] = Field(min_length=1)
    """Shares of the largest value of Grad-CAM, of the network that `full` trained. The pixels that reach a share are
    compared with boxes or masks of the label, where these are known: a figure for each share."""
    knn: KnnParams
    """Neighbours that the method `knn` asks."""

    @property
    def policies(self) -> list[Policy]:
        """Return the policy of each label."""
        uncertain = self.uncertain
        return [uncertain[label] if isinstance(uncertain, dict) else uncertain for label in self.labels]

    @model_validator(mode="after")
    def _labels_fit(self) -> "ClassificationParams":
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels repeat a name: {', '.join(self.labels)}")
        if isinstance(self.uncertain, dict) and self.uncertain.keys() != set(self.labels):
            raise ValueError(
                f"uncertain has policies for {', '.join(self.uncertain)}, and labels are {', '.join(self.labels)}; "
                "give each of them one"
            )
        if self.answer != "labels" and len(self.labels) < 2:
            raise ValueError(f"answer is {self.answer} and there is one label; name at least two, or set it to labels")
        return self


class Classifier(nn.Module):
    """A linear layer on the mean of an encoder's tokens.

    Attributes:
        backbone: The encoder.
        head: The layer.
    """

    def __init__(self, encoder: Encoder, num_outputs: int) -> None:
        super().__init__()
        self.backbone = encoder.backbone
        self.head = nn.Linear(encoder.backbone.width, num_outputs, device=encoder.device)

    def forward(self, images: Float[Tensor, "batch planes side side"]) -> Float[Tensor, "batch outputs"]:
        """Return the logits."""
        logits: Tensor = self.head(self.backbone(images).mean(dim=(1, 2)))
        return logits


class Classification(Task[ClassificationParams]):
    """Says which labels an image has; `truth` is 1, 0 or `NOT_KNOWN`, `answers` are probabilities."""

    kind = "classification"
    params_type: ClassVar[type[TaskParams]] = ClassificationParams
    code = (
        "ace/downstream/cases.py",
        "ace/downstream/classification.py",
        "ace/downstream/localisation.py",
        "ace/downstream/scores.py",
    )
    libraries = ("scikit-learn",)

    @property
    def headline(self) -> str:
        """Return the mean AUROC, the accuracy, or the kappa."""
        return {"labels": "auroc", "class": "accuracy", "grade": "kappa"}[self.params.answer]

    @property
    def methods(self) -> tuple[str, ...]:
        """Return the methods that the file lists."""
        return self.params.methods

    @property
    def is_exclusive(self) -> bool:
        """Tell whether an image has exactly one of the labels."""
        return self.params.answer != "labels"

    def truth(self, part: Part, *, is_training: bool) -> Arrays:
        """Read the labels; of classes, those of an image that has not exactly one are all unknown.

        Of uncertain labels, those are known in training that their policy takes for present or absent.
        """
        reader = ShardReader(part.index)
        said = [reader.meta(int(row))["labels"] for row in part.rows]
        self._check_names(said, part)
        values = np.array([[own.get(name) for name in self.params.labels] for own in said], dtype=np.float64)
        every = [
            targets_of(of_label, policy if is_training and policy in HARD else "U-Ignore", self.params.blank)
            for of_label, policy in zip(values.T, self.params.policies, strict=True)
        ]
        columns = [np.where(found.mask, found.values, NOT_KNOWN) for found in every]
        labels = np.stack(columns, axis=1).astype(np.int64)
        if self.is_exclusive:
            labels[~((labels == 1).sum(1) == 1) | (labels == NOT_KNOWN).any(1)] = NOT_KNOWN
        return {"labels": labels}

    def classes(self, truth: Arrays) -> Bool[np.ndarray, "images classes"]:
        """Tell which labels each image has; last, of labels, whether it is known to have none."""
        labels = truth["labels"]
        is_there: Bool[np.ndarray, "images classes"] = labels == 1
        if self.is_exclusive:
            return is_there
        has_none = ~is_there.any(1, keepdims=True) & (labels == 0).any(1, keepdims=True)
        return np.concatenate([is_there, has_none], axis=1)

    def target(self, sample: Sample, view: View, rng: np.random.Generator) -> Target:
        """Make targets by the policies; the view does not change what an image shows."""
        said = np.array([sample.meta["labels"].get(name) for name in self.params.labels], dtype=np.float64)
        every = [
            targets_of(said[[column]], policy, self.params.blank, rng)
            for column, policy in enumerate(self.params.policies)
        ]
        values, known = (np.concatenate([getattr(own, name) for own in every]) for name in ("values", "mask"))
        return Target(values.astype(np.float32), known)

    def network(self, encoder: Encoder) -> nn.Module:
        """Put a linear layer on the mean of the tokens."""
        return Classifier(encoder, len(self.params.labels))

    def loss(
        self, outputs: Float[Tensor, "batch labels"], targets: Float[Tensor, "batch labels"], known: Bool[Tensor, "*_"]
    ) -> Float[Tensor, ""]:
        """Compute the mean cross-entropy over the known labels, or over images of one class."""
        if self.is_exclusive:
            is_known = known.all(1)
            return F.cross_entropy(outputs[is_known], targets[is_known], reduction="sum") / is_known.sum().clamp_min(1)
        losses = F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        return (losses * known).sum() / known.sum().clamp_min(1)

    def answer(self, network: nn.Module, shown: ShownPart, *, is_final: bool) -> Arrays:
        """Return the mean probabilities over the crops of `test_views`, or of the middle.

        At the end also return where the network looks, in images in which a box or a mask shows one of the labels.
        """
        side = self.params.shown.crop_side
        views = ten_views(side) if is_final and self.params.test_views == "ten" else (center_view(side),)
        found = []
        for images in shown.images(views):
            logits = network(images.flatten(0, 1)).float()
            probabilities = logits.softmax(1) if self.is_exclusive else logits.sigmoid()
            found.append(probabilities.unflatten(0, images.shape[:2]).mean(1).cpu().numpy())
        answers: Arrays = {"probabilities": np.concatenate(found).astype(np.float64)}
        if not is_final:
            return answers
        backbone = network.get_submodule("backbone")
        located = locate(network, backbone, shown, self.params.labels, self.params.heat_thresholds)
        return {**answers, **located}

    def answer_frozen(
        self, method: str, features: Mapping[str, Float[np.ndarray, "images dim"]], truths: Mapping[str, Arrays]
    ) -> Arrays:
        """Answer by a logistic regression a label, or by a vote of neighbours."""
        train, labels = features["train"], truths["train"]["labels"]
        if method == KNN:
            # What no training image knows, nobody can vote on.
            is_asked = (labels != NOT_KNOWN).any(0)
            votes = np.full((len(features["test"]), labels.shape[1]), 0.5)
            params = self.params.knn
            votes[:, is_asked] = knn_votes(
                train, labels[:, is_asked], features["test"], k=params.k, temperature=params.temperature
            )
            return {"probabilities": votes}

        def loss(l2: float) -> float:
            found = self._linear(train, labels, features["val"], l2)
            return float(np.nanmean(self.losses(truths["val"], {"probabilities": found})))

        return {"probabilities": self._linear(train, labels, features["test"], choose_l2(loss))}

    def validation_score(self, truth: Arrays, answers: Arrays) -> float:
        """Return the headline; of labels, over those that validation images have and have not."""
        part = np.arange(len(truth["labels"]))
        return estimate(self._scores(truth, answers, part)[self.headline].measure, len(part))

    def check(self, truths: Mapping[str, Arrays]) -> None:
        """Check that every label is there and not there in training, and one at least in the other parts.

        Raises:
            ConfigError: naming what is missing where.
        """
        for name, truth in truths.items():
            counts = {answer: (truth["labels"] == answer).sum(0) for answer in (1, 0)}
            has_both = (counts[1] > 0) & (counts[0] > 0)
            if has_both.any() and (name != "train" or has_both.all()):
                continue
            table = "; ".join(
                f"{label}: {with_it} with, {without} without"
                for label, with_it, without in zip(self.params.labels, counts[1], counts[0], strict=True)
            )
            raise ConfigError(
                f"the part '{name}' has {len(truth['labels'])} images ({table}); "
                + (
                    "every label needs training images with and without it: leave it out of labels"
                    if name == "train"
                    else "one label at least needs images with and without it: raise val_share, or give the split more "
                    "patients (shard.splits)"
                )
            )

    def scores(self, truth: Arrays, answers: Arrays, part: Part) -> Mapping[str, Score]:
        """Score every label and their mean, or classes and grades; and where the network looks, if that is known."""
        found = self._scores(truth, answers, part.patients)
        if "cases" not in answers:
            return found
        return found | located_scores(answers, self.params.labels, self.params.heat_thresholds, part)

    def losses(self, truth: Arrays, answers: Arrays) -> Float[np.ndarray, " images"]:
        """Compute the mean cross-entropy of each image over what is known of it."""
        labels, probabilities = truth["labels"], answers["probabilities"].clip(1e-7, 1 - 1e-7)
        with_it, without = -np.log(probabilities) * (labels == 1), -np.log(1 - probabilities) * (labels == 0)
        losses: Float[np.ndarray, " images"]
        if self.is_exclusive:
            losses = with_it.sum(1)
        else:
            losses = (with_it + without).sum(1) / (labels != NOT_KNOWN).sum(1).clip(1)
        return losses

    def shown_answer(self, truth: Arrays, answers: Arrays, image: int, canvas: Canvas) -> dict[str, Any]:
        """Return each label with the truth and its probability."""
        words = {1: "yes", 0: "no", NOT_KNOWN: "not known"}
        rows = zip(self.params.labels, truth["labels"][image], answers["probabilities"][image], strict=True)
        return {"rows": [(label, words[int(own)], f"{found:.2f}") for label, own, found in rows]}

    def further_examples(self, answers: Arrays, part: Part) -> list[Example]:
        """Draw where the network looks: best, middling and worst."""
        if "cases" not in answers:
            return []
        params = self.params
        return located_examples(answers, params.labels, params.heat_thresholds, part, params.num_examples)

    def _scores(self, truth: Arrays, answers: Arrays, patients: Int[np.ndarray, " images"]) -> dict[str, Score]:
        labels, probabilities = truth["labels"], answers["probabilities"]
        if self.is_exclusive:
            return dict(self._scores_of_classes(labels.argmax(1), probabilities, patients))
        by_label = {"auroc": {}, "auprc": {}, "calibration_error": {}}  # type: ignore[var-annotated]
        for label, own, found in zip(self.params.labels, labels.T, probabilities.T, strict=True):
            is_known = own != NOT_KNOWN
            known = own[is_known] == 1, found[is_known], patients[is_known]
            facts = {"num_with": int(known[0].sum()), "num_without": int((~known[0]).sum())}
            if not all(facts.values()):
                continue
            prevalence = facts["num_with"] / len(known[0])
            by_label["auroc"][label] = Score(auroc(*known), 0.5, facts)
            by_label["auprc"][label] = Score(average_precision(*known), prevalence, facts)
            by_label["calibration_error"][label] = Score(calibration_error(*known), None, facts)
        means = {
            name: Score(
                mean([score.measure for score in own.values()]),
                None if name == "calibration_error" else float(np.mean([score.chance for score in own.values()])),
                {"num_labels": len(own)},
            )
            for name, own in by_label.items()
        }
        return means | {f"{name}/{label}": score for name, own in by_label.items() for label, score in own.items()}

    def _scores_of_classes(
        self,
        classes: Int[np.ndarray, " images"],
        probabilities: Float[np.ndarray, "images classes"],
        patients: Int[np.ndarray, " images"],
    ) -> Iterator[tuple[str, Score]]:
        """Score classes or grades by the likeliest one."""
        answers = probabilities.argmax(1)
        counts = np.bincount(classes, minlength=len(self.params.labels))
        facts = {"num_images": len(classes)}
        if self.params.answer == "grade":
            yield "kappa", Score(quadratic_kappa(classes, answers, patients), 0.0, facts)
        yield "accuracy", Score(accuracy(answers == classes, patients), float(counts.max() / counts.sum()), facts)
        yield (
            "calibration_error",
            Score(calibration_error(answers == classes, probabilities.max(1), patients), None, facts),
        )
        by_class = {
            label: Score(
                auroc(classes == column, probabilities[:, column], patients), 0.5, {"num_with": int(counts[column])}
            )
            for column, label in enumerate(self.params.labels)
            if 0 < counts[column] < len(classes)
        }
        yield "auroc", Score(mean([score.measure for score in by_class.values()]), 0.5, {"num_labels": len(by_class)})
        yield from ((f"auroc/{label}", score) for label, score in by_class.items())

    def _linear(
        self,
        train: Float[np.ndarray, "images dim"],
        labels: Int[np.ndarray, "images labels"],
        asked: Float[np.ndarray, "asked dim"],
        l2: float,
    ) -> Float[np.ndarray, "asked labels"]:
        """Return probabilities by logistic regression, of classes so that they sum to 1.

        A label that no training image has, or that all have, is answered by chance; of classes, one that no training
        image is of is never answered.
        """
        is_there = (labels == 1).any(0)
        has_both = is_there & (labels == 0).any(0)
        logits = np.zeros((len(asked), labels.shape[1]))
        if self.is_exclusive:
            logits[:, ~is_there] = -np.inf
        logits[:, has_both] = linear_scores(train, labels[:, has_both], asked, l2=l2)
        found = torch.from_numpy(logits)
        probabilities: Float[np.ndarray, "asked labels"]
        probabilities = (found.softmax(1) if self.is_exclusive else found.sigmoid()).numpy()
        return probabilities

    def _check_names(self, said: list[dict[str, int | None]], part: Part) -> None:
        found = {name for own in said for name in own}
        if absent := [name for name in self.params.labels if name not in found]:
            raise ConfigError(
                f"labels: {part.index.name} has no {', '.join(absent)}; it has {', '.join(sorted(found)) or 'none'}. "
                "The names are those of the dataset (`python -m shards stats`); write them as there"
            )
