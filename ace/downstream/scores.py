"""Figures of classification as functions of patient weights; scikit-learn's, for thousands of resamples at once.

A patient's weight counts each of the patient's images so often. scikit-learn's functions take one set of weights a
call; the tests hold these equal to them.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

from ace.protocol.intervals import Measure, Weights, ratio

NUM_BINS = 15
"""Bins of equal width in which confidence is compared with what is true (Guo et al., ICML 2017)."""
_NUMBERS_AT_ONCE = 20_000_000
_Ranks = Float[np.ndarray, "resamples levels"]


def auroc(
    is_true: Bool[np.ndarray, " images"], values: Float[np.ndarray, " images"], patients: Int[np.ndarray, " images"]
) -> Measure:
    """Chance that an image with a label has a higher value than one without it, a tie counting half.

    Args:
        is_true: Whether each image has the label.
        values: The higher, the more likely the label.
        patients: Number of each image's patient.
    """

    def of_ranks(with_it: _Ranks, without: _Ranks) -> Float[np.ndarray, " resamples"]:
        below = without.cumsum(1) - without
        return ratio((with_it * (below + without / 2)).sum(1), with_it.sum(1) * without.sum(1))

    return _of_ranks(of_ranks, is_true, values, patients)


def average_precision(
    is_true: Bool[np.ndarray, " images"], values: Float[np.ndarray, " images"], patients: Int[np.ndarray, " images"]
) -> Measure:
    """Area under precision and recall as scikit-learn's average precision has it; arguments as for `auroc`."""

    def of_ranks(with_it: _Ranks, without: _Ranks) -> Float[np.ndarray, " resamples"]:
        found, wrong = with_it[:, ::-1].cumsum(1), without[:, ::-1].cumsum(1)
        precision = found / np.maximum(found + wrong, 1)
        return ratio((with_it[:, ::-1] * precision).sum(1), with_it.sum(1))

    return _of_ranks(of_ranks, is_true, values, patients)


def calibration_error(
    is_true: Bool[np.ndarray, " images"],
    probabilities: Float[np.ndarray, " images"],
    patients: Int[np.ndarray, " images"],
) -> Measure:
    """Expected calibration error: how far probabilities are from the share that is true, in `NUM_BINS` bins.

    Args:
        is_true: Whether what the probability is of is so.
        probabilities: In [0, 1].
        patients: Number of each image's patient.
    """
    bins = np.minimum((probabilities * NUM_BINS).astype(int), NUM_BINS - 1)

    def measure(weights: Weights) -> Float[np.ndarray, " resamples"]:
        gaps, counts = np.zeros((weights.shape[1], NUM_BINS)), np.zeros(weights.shape[1])
        np.add.at(gaps, (patients, bins), is_true - probabilities)
        np.add.at(counts, patients, 1)
        return ratio(np.abs(weights @ gaps).sum(1), weights @ counts)

    return measure


def accuracy(is_right: Bool[np.ndarray, " images"], patients: Int[np.ndarray, " images"]) -> Measure:
    """Share of the images that are answered rightly."""

    def measure(weights: Weights) -> Float[np.ndarray, " resamples"]:
        right, counts = (np.bincount(patients, values, weights.shape[1]) for values in (is_right, None))
        return ratio(weights @ right, weights @ counts)

    return measure


def quadratic_kappa(
    truth: Int[np.ndarray, " images"], answers: Int[np.ndarray, " images"], patients: Int[np.ndarray, " images"]
) -> Measure:
    """Cohen's kappa of grades, with the square of their distance as weight.

    Args:
        truth: Grades from 0.
        answers: Likewise.
        patients: Number of each image's patient.
    """
    num_grades = int(max(truth.max(), answers.max())) + 1
    distance = np.subtract.outer(np.arange(num_grades), np.arange(num_grades)) ** 2

    def measure(weights: Weights) -> Float[np.ndarray, " resamples"]:
        counts = np.zeros((weights.shape[1], num_grades, num_grades))
        np.add.at(counts, (patients, truth, answers), 1)
        found = np.tensordot(weights, counts, 1)
        expected = found.sum(2)[:, :, None] * found.sum(1)[:, None, :]
        off, by_chance = ((table * distance).sum((1, 2)) for table in (found, expected))
        return 1 - ratio(off * found.sum((1, 2)), by_chance)

    return measure


def _of_ranks(
    figure: Callable[[_Ranks, _Ranks], Float[np.ndarray, " resamples"]],
    is_true: Bool[np.ndarray, " images"],
    values: Float[np.ndarray, " images"],
    patients: Int[np.ndarray, " images"],
) -> Measure:
    """A figure of how often images with and without a label have each value, the values ascending."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
    is_true, patients = is_true[order], patients[order]

    def measure(weights: Weights) -> Float[np.ndarray, " resamples"]:
        found = []
        at_once = max(1, _NUMBERS_AT_ONCE // max(len(order), 1))
        for first in range(0, len(weights), at_once):
            counts = weights[first : first + at_once, patients].astype(float)
            ranks = (np.add.reduceat(counts * answer, starts, axis=1) for answer in (is_true, ~is_true))
            found.append(figure(*ranks))
        return np.concatenate(found)

    return measure
