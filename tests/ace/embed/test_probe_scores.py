"""Votes, logistic regressions and AUROC against slow loops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ace.embed.embedder import unit
from ace.embed.probe_scores import NOT_KNOWN, auroc_by_label, knn_votes, linear_scores
from tests.oracles import probe as oracle
from tests.oracles.losses import numerical_gradient


def draw_labels(rng: np.random.Generator, num_images: int, num_labels: int) -> np.ndarray:
    """Answers with about a third unknown; each label has at least one of both known."""
    labels = rng.integers(-1, 2, (num_images, num_labels))
    labels[0], labels[1] = 1, 0
    return labels


@given(
    seed=st.integers(0, 10_000),
    num_images=st.integers(2, 12),
    k=st.integers(1, 15),
    temperature=st.sampled_from([0.01, 0.07, 1.0]),
)
def test_votes_are_those_of_the_nearest_images_that_know_the_label(
    seed: int, num_images: int, k: int, temperature: float
) -> None:
    rng = np.random.default_rng(seed)
    # Small integers: equal products occur, and are equal to the last bit in both.
    bank, queries = (rng.integers(-1, 2, (size, 3)).astype(np.float32) for size in (num_images, 3))
    labels = draw_labels(rng, num_images, 2)
    found = knn_votes(bank, labels, queries, k=k, temperature=temperature)
    for query in range(len(queries)):
        for label in range(labels.shape[1]):
            expected = oracle.knn_vote(bank, labels[:, label], queries[query], k, temperature)
            assert found[query, label] == pytest.approx(expected, abs=1e-5)


def test_more_queries_than_are_voted_on_at_once_get_the_same_votes() -> None:
    rng = np.random.default_rng(0)
    bank, queries = (unit(rng.normal(size=(size, 4)).astype(np.float32)) for size in (30, 600))
    labels = draw_labels(rng, 30, 2)
    together = knn_votes(bank, labels, queries, k=5, temperature=0.07)
    apart = [knn_votes(bank, labels, query[None], k=5, temperature=0.07)[0] for query in queries[::97]]
    assert np.allclose(together[::97], apart)


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_auroc_counts_pairs_with_ties_as_halves_and_leaves_out_what_is_not_known(seed: int, num_values: int) -> None:
    rng = np.random.default_rng(seed)
    labels = draw_labels(rng, 12, 2)
    scores = rng.integers(0, num_values, labels.shape).astype(np.float64)
    expected = [oracle.auroc(labels[:, label], scores[:, label]) for label in range(2)]
    assert auroc_by_label(labels, scores) == pytest.approx(expected)


@pytest.mark.parametrize("l2", [0.01, 1.0])
def test_the_linear_probe_minimises_the_regularised_cross_entropy_of_the_known_images(l2: float) -> None:
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(2.0, 5.0, (40, 3)), rng.normal(2.0, 5.0, (6, 3))
    labels = draw_labels(rng, 40, 1)
    scores = linear_scores(bank, labels, queries, l2=l2)[:, 0]
    inputs, asked = ((x - bank.mean(axis=0)) / bank.std(axis=0) for x in (bank, queries))
    weights = np.linalg.lstsq(np.column_stack([asked, np.ones(len(asked))]), scores, rcond=None)[0]
    is_known = labels[:, 0] != NOT_KNOWN
    gradient = numerical_gradient(lambda w: oracle.logistic_loss(w, inputs[is_known], labels[is_known, 0], l2), weights)
    assert np.abs(gradient).max() < 1e-4
    assert np.abs(weights).max() > 1e-2


def test_features_that_are_the_same_for_every_image_score_chance() -> None:
    bank, queries = np.ones((8, 4), np.float32) / 2, np.ones((6, 4), np.float32) / 2
    labels = np.array([[1], [0]] * 4)
    answers = np.array([[1], [0]] * 3)
    assert auroc_by_label(answers, knn_votes(bank, labels, queries, k=3, temperature=0.07)) == [0.5]
    assert auroc_by_label(answers, linear_scores(bank, labels, queries, l2=0.01)) == [0.5]
