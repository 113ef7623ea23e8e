"""The probe's scores one query and one pair at a time, straight from their formulas."""

import math

import numpy as np


def knn_vote(bank: np.ndarray, answers: np.ndarray, query: np.ndarray, k: int, temperature: float) -> float:
    """One query's weighted share of the neighbours that have one label; -1 does not vote."""
    cosines = [(sum(float(a) * float(b) for a, b in zip(row, query, strict=True)), i) for i, row in enumerate(bank)]
    voters = [(cosine, i) for cosine, i in cosines if answers[i] >= 0]
    nearest = sorted(voters, key=lambda voter: (-voter[0], voter[1]))[:k]
    weights = [math.exp(cosine / temperature) for cosine, _ in nearest]
    return sum(w for w, (_, i) in zip(weights, nearest, strict=True) if answers[i] == 1) / sum(weights)


def auroc(answers: np.ndarray, scores: np.ndarray) -> float:
    """Share of the (with, without) pairs in which the one with scores higher; a tie is half a pair."""
    pairs = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high, is_with in zip(scores, answers, strict=True)
        if is_with == 1
        for low, answer in zip(scores, answers, strict=True)
        if answer == 0
    ]
    return sum(pairs) / len(pairs)


def logistic_loss(weights: np.ndarray, inputs: np.ndarray, answers: np.ndarray, l2: float) -> float:
    """Mean cross-entropy + λ/2·|w|²; the last weight is the intercept, which is free."""
    losses = []
    for row, answer in zip(inputs, answers, strict=True):
        logit = float(row @ weights[:-1] + weights[-1])
        losses.append(math.log1p(math.exp(-logit if answer == 1 else logit)))
    return sum(losses) / len(losses) + 0.5 * l2 * float(weights[:-1] @ weights[:-1])
