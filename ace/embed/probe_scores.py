"""Score how well frozen features tell labels apart: AUROC of a vote of neighbours and of a linear probe."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

NOT_KNOWN = -1
L2 = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Weights of the linear probe's penalty, one of which is chosen on validation images."""
_QUERIES_AT_ONCE = 256
_MAX_ITERATIONS = 1000


def knn_votes(
    bank: Float[np.ndarray, "images dim"],
    labels: Int[np.ndarray, "images labels"],
    queries: Float[np.ndarray, "queries dim"],
    *,
    k: int,
    temperature: float,
) -> Float[np.ndarray, "queries labels"]:
    """Share of the neighbours' weights that has the label, in [0, 1] (the weighted kNN of DINO, by label).

    Args:
        bank: Directions (norm 1) of the images that vote.
        labels: 1, 0 or `NOT_KNOWN`; an image does not vote on a label it does not know, and the next nearest does. At
            least one image must know each.
        queries: Directions of the images to score.
        k: Neighbours that vote on a label, by cosine; of equals the first in the bank.
        temperature: A neighbour weighs exp(cosine / temperature).
    """
    votes = np.empty((len(queries), labels.shape[1]))
    for start in range(0, len(queries), _QUERIES_AT_ONCE):
        cosines = queries[start : start + _QUERIES_AT_ONCE].astype(np.float64) @ bank.T.astype(np.float64)
        order = np.argsort(-cosines, axis=1, kind="stable")
        cosines = np.take_along_axis(cosines, order, axis=1)
        for label in range(labels.shape[1]):
            answers = labels[order, label]
            is_known = answers != NOT_KNOWN
            # True equally often in every row, so that the selection is rectangular again.
            is_near = is_known & (is_known.cumsum(axis=1) <= k)
            near = cosines[is_near].reshape(len(order), -1)
            weights = np.exp((near - near[:, :1]) / temperature)
            has_label = answers[is_near].reshape(weights.shape)
            votes[start : start + len(order), label] = (weights * has_label).sum(axis=1) / weights.sum(axis=1)
    return votes


def linear_scores(
    bank: Float[np.ndarray, "images dim"],
    labels: Int[np.ndarray, "images labels"],
    queries: Float[np.ndarray, "queries dim"],
    *,
    l2: float,
) -> Float[np.ndarray, "queries labels"]:
    """Logits of one logistic regression a label, fitted on the bank's images that know it.

    Args:
        bank: Features to fit on; they are standardised by their own mean and deviation.
        labels: 1, 0 or `NOT_KNOWN`; both 1 and 0 must occur for each label.
        queries: Features to score.
        l2: λ in mean cross-entropy + λ/2·|w|²; the intercept is free.
    """
    # Here, not above: scikit-learn takes a second to import, and few runs have a probe.
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(bank.astype(np.float64))
    inputs, asked = scaler.transform(bank.astype(np.float64)), scaler.transform(queries.astype(np.float64))
    scores = np.empty((len(queries), labels.shape[1]))
    for label, answers in enumerate(labels.T):
        is_known = answers != NOT_KNOWN
        # scikit-learn sums the cross-entropy over samples, weighs it by C, and adds |w|²/2.
        model = LogisticRegression(C=1 / (l2 * is_known.sum()), max_iter=_MAX_ITERATIONS)
        scores[:, label] = model.fit(inputs[is_known], answers[is_known]).decision_function(asked)
    return scores


def choose_l2(loss: Callable[[float], float]) -> float:
    """Choose the weight of the penalty with the least loss on validation images; of equals, the smallest.

    Args:
        loss: Weight of the penalty → loss of the probe that is fitted with it.
    """
    return L2[int(np.argmin([loss(l2) for l2 in L2]))]


def auroc_by_label(labels: Int[np.ndarray, "images labels"], scores: Float[np.ndarray, "images labels"]) -> list[float]:
    """Chance that an image with a label scores above one without, ties counting half; of the images that know it."""
    from sklearn.metrics import roc_auc_score

    known = labels != NOT_KNOWN
    return [
        float(roc_auc_score(answers[is_known], values[is_known]))
        for answers, values, is_known in zip(labels.T, scores.T, known.T, strict=True)
    ]
