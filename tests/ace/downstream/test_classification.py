"""Labels become targets by their policies, and answers become figures."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ace.downstream.base import Target
from ace.downstream.classification import Classification
from ace.downstream.parts import divide
from ace.downstream.registry import task_of
from ace.downstream.views import center_view
from ace.embed.probe_scores import NOT_KNOWN, linear_scores
from shards.core.errors import ConfigError
from shards.reading.reader import Sample, ShardIndex
from tests.ace.downstream.labelled import task, values_of


def target(said: dict[str, int | None], **changes: Any) -> Target:
    sample = object.__new__(Sample)
    sample.__dict__["meta"] = {"labels": said}
    return task(labels=list(said), **changes).target(sample, center_view(1.0), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("policy", "value", "is_known"),
    [
        ("U-Zeros", 0, True),
        ("U-Ones", 1, True),
        ("U-Ignore", 0, False),
        ("LSR-Ones", 0.7, True),
        ("LSR-Zeros", 0.15, True),
    ],
)
def test_an_uncertain_label_is_what_its_policy_says(policy: str, value: float, is_known: bool) -> None:
    found = target({"a": 1, "b": -1, "c": 0}, uncertain=policy)
    assert found.values == pytest.approx([1, value, 0], abs=0.151 if policy.startswith("LSR") else 0)
    assert found.known.tolist() == [True, is_known, True]


def test_each_label_may_have_a_policy_of_its_own() -> None:
    found = target({"a": -1, "b": -1, "c": -1}, uncertain={"a": "U-Ones", "b": "U-Zeros", "c": "U-Ignore"})
    assert found.values.tolist() == [1, 0, 0]
    assert found.known.tolist() == [True, True, False]


def test_a_blank_label_is_absent_or_unknown() -> None:
    assert target({"a": 1, "b": None}, blank="zeros").known.tolist() == [True, True]
    assert target({"a": 1, "b": None}, blank="ignore").known.tolist() == [True, False]


def test_uncertain_labels_are_unknown_where_images_are_measured_whatever_training_takes_them_for(
    index: ShardIndex,
) -> None:
    own = task(labels=["bright", "doubted"], uncertain="U-Ones")
    labels = own.truth(divide(index, own.params).test, is_training=False)["labels"]
    assert set(labels[:, 1].tolist()) == {0, NOT_KNOWN}


@pytest.mark.parametrize(
    ("policy", "taken_for"), [("U-Ones", 1), ("U-Zeros", 0), ("U-Ignore", NOT_KNOWN), ("LSR-Ones", NOT_KNOWN)]
)
def test_a_frozen_encoder_is_read_off_with_what_the_policy_takes_for_known(
    index: ShardIndex, policy: str, taken_for: int
) -> None:
    own, plain = (task(labels=["bright", "doubted"], uncertain=name) for name in (policy, "U-Ignore"))
    part = divide(index, own.params).train
    is_uncertain = plain.truth(part, is_training=True)["labels"][:, 1] == NOT_KNOWN
    found = own.truth(part, is_training=True)["labels"][:, 1]
    assert is_uncertain.any()
    assert set(found[is_uncertain].tolist()) == {taken_for}
    assert set(found[~is_uncertain].tolist()) == {0}


def test_the_loss_is_the_mean_over_known_labels_and_zero_without_any() -> None:
    own = task(labels=["a", "b"])
    outputs, targets = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    known = torch.tensor([[True, False], [True, True]])
    terms = [F.softplus(torch.tensor(value)) for value in (-1.0, 0.5, -3.0)]
    assert own.loss(outputs, targets, known) == pytest.approx(float(sum(terms) / 3))
    assert own.loss(outputs, targets, torch.zeros_like(known)) == 0
    classes = task(labels=["a", "b"], answer="class")
    assert classes.loss(outputs, targets, known) == pytest.approx(float(F.softplus(torch.tensor(-2.5))))


def test_an_image_that_has_not_exactly_one_class_is_not_used(index: ShardIndex) -> None:
    own = task(labels=["g0", "g2"], answer="grade")
    part = divide(index, own.params).train
    truth = own.truth(part, is_training=False)
    is_used = own.classes(truth).any(1)
    assert 0 < is_used.sum() < len(part)
    assert (truth["labels"][~is_used] == NOT_KNOWN).all()


def test_grades_are_scored_by_kappa_and_perfect_and_constant_answers_have_known_figures(index: ShardIndex) -> None:
    own = task(labels=["g0", "g1", "g2"], answer="grade")
    part = divide(index, own.params).test
    truth = own.truth(part, is_training=False)
    perfect = {"probabilities": (truth["labels"] == 1).astype(float)}
    constant = {"probabilities": np.tile([0.9, 0.1, 0.0], (len(part), 1))}
    one = np.ones((1, part.num_patients), int)
    found = {name: float(score.measure(one)[0]) for name, score in own.scores(truth, perfect, part).items()}
    assert (found["kappa"], found["accuracy"], found["auroc"], found["calibration_error"]) == (1, 1, 1, 0)
    scores = own.scores(truth, constant, part)
    assert float(scores["kappa"].measure(one)[0]) == pytest.approx(0)
    assert float(scores["auroc"].measure(one)[0]) == 0.5
    share = (truth["labels"].argmax(1) == 0).mean()
    assert float(scores["accuracy"].measure(one)[0]) == pytest.approx(share)
    assert own.losses(truth, perfect).max() < own.losses(truth, constant).max()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": ["bright", "bright"]}, "labels repeat a name"),
        ({"answer": "class"}, "answer is class and there is one label"),
        ({"uncertain": {"other": "U-Ones"}}, "uncertain has policies for other"),
        ({"uncertain": "U-MultiClass"}, "uncertain"),
        ({"fractions": [], "shots": []}, "fractions and shots are both empty"),
        ({"kind": "regression"}, "kind is 'regression'; expected one of classification"),
        ({"epoch": 3}, "unknown key"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task_of({**values_of(), **changes}, "configs/tasks/test.yaml")


def test_labels_that_the_set_has_not_are_named_beside_those_that_it_has(index: ShardIndex) -> None:
    own = task(labels=["Bright"])
    with pytest.raises(ConfigError, match=r"has no Bright; it has bright, doubted, g0, g1, g2"):
        own.truth(divide(index, own.params).train, is_training=True)


def test_a_label_that_cannot_be_learned_is_refused_before_any_work(index: ShardIndex) -> None:
    own = task(labels=["bright", "doubted"])
    truths = {name: own.truth(part, is_training=False) for name, part in divide(index, own.params)}
    with pytest.raises(ConfigError, match=r"the part 'train' .*doubted: 0 with, .*every label needs training images"):
        own.check(truths)


def test_a_class_that_no_training_image_is_of_is_never_the_answer() -> None:
    own = task(labels=["a", "b", "never"], answer="class")
    assert isinstance(own, Classification)
    rng = np.random.default_rng(0)
    features, classes = rng.normal(size=(60, 4)), np.arange(60) % 2
    features[np.arange(60), classes] += 1.0  # hard to tell apart, so that many an image is unlikely to be of either
    labels = np.eye(3, dtype=np.int64)[classes]
    found = own.answer_frozen(
        "linear",
        {"train": features, "val": features, "test": rng.normal(size=(200, 4))},
        {"train": {"labels": labels}, "val": {"labels": labels}},
    )["probabilities"]
    assert set(found.argmax(1).tolist()) == {0, 1}
    assert (found[:, 2] == 0).all()
    np.testing.assert_allclose(found.sum(1), 1)
    one = {"labels": np.eye(3, dtype=np.int64)[np.zeros(60, int)]}
    alone = own.answer_frozen("linear", dict.fromkeys(("train", "val", "test"), features), {"train": one, "val": one})
    assert alone["probabilities"].tolist() == [[1, 0, 0]] * 60


def test_an_image_of_one_class_that_may_be_of_another_is_of_none(index: ShardIndex) -> None:
    own, doubt = task(labels=["bright", "doubted"], answer="class"), task(labels=["bright", "doubted"])
    part = divide(index, own.params).train
    said = doubt.truth(part, is_training=False)["labels"]
    is_doubted = (said[:, 0] == 1) & (said[:, 1] == NOT_KNOWN)
    labels = own.truth(part, is_training=False)["labels"]
    assert is_doubted.any()
    assert (labels[is_doubted] == NOT_KNOWN).all()
    assert labels[(said[:, 0] == 1) & ~is_doubted].tolist() == [[1, 0]] * int(((said[:, 0] == 1) & ~is_doubted).sum())


def test_an_image_of_which_nothing_is_known_is_no_image_without_labels() -> None:
    labels = np.array([[1, 0], [0, NOT_KNOWN], [NOT_KNOWN, NOT_KNOWN]])
    classes = task(labels=["a", "b"]).classes({"labels": labels})
    assert classes.tolist() == [[True, False, False], [False, False, True], [False, False, False]]


@pytest.mark.parametrize(("noise", "best"), [(0.0, 1e-3), (1e3, 100.0)])
def test_the_penalty_of_the_linear_probe_is_the_one_with_the_least_loss_on_validation_images(
    noise: float, best: float
) -> None:
    own, rng = task(labels=["a"]), np.random.default_rng(0)

    def drawn(num: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(0, 2, (num, 1))
        features = rng.normal(size=(num, 20)) * (noise + 0.01)
        features[:, 0] += 2.0 * labels[:, 0] - 1.0
        return features / np.linalg.norm(features, axis=1, keepdims=True), labels

    sets = {name: drawn(40) for name in ("train", "val", "test")}
    features = {name: own_features for name, (own_features, _) in sets.items()}
    truths = {name: {"labels": labels} for name, (_, labels) in sets.items() if name != "test"}
    found = own.answer_frozen("linear", features, truths)["probabilities"]
    logits = linear_scores(features["train"], truths["train"]["labels"], features["test"], l2=best)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), rtol=1e-6)


def test_nobody_votes_on_a_label_that_no_training_image_knows() -> None:
    labels = np.array([[1, NOT_KNOWN], [1, NOT_KNOWN], [1, NOT_KNOWN]])
    features = {name: np.eye(3) for name in ("train", "val", "test")}
    found = task(labels=["a", "b"]).answer_frozen("knn", features, {"train": {"labels": labels}})["probabilities"]
    assert found.tolist() == [[1, 0.5]] * 3


def test_chance_is_the_share_with_a_label_and_the_share_of_the_largest_class(index: ShardIndex) -> None:
    part = divide(index, task().params).test
    labels = np.zeros((len(part), 1), int)
    labels[: len(part) // 4] = 1
    own = task(labels=["a"]).scores({"labels": labels}, {"probabilities": np.full(labels.shape, 0.5)}, part)
    assert own["auroc/a"].chance == 0.5
    assert own["auprc/a"].chance == own["auprc"].chance == pytest.approx(labels.mean())
    classes = np.eye(3, dtype=int)[np.minimum(np.arange(len(part)), 2)]
    scores = task(labels=["a", "b", "c"], answer="class").scores(
        {"labels": classes}, {"probabilities": np.full(classes.shape, 1 / 3)}, part
    )
    assert scores["accuracy"].chance == pytest.approx((len(part) - 2) / len(part))
