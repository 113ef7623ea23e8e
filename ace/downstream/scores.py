"""Figures of classification as functions of patient weights; scikit-learn's, for thousands of resamples at once.

A patient's weight counts each of the patient's images so often. scikit-learn's functions take one set of weights a
call; the tests hold these equal to them.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from ace.protocol.intervals import Measure, Ranks, Weights, of_ranks, ratio

NUM_BINS = 15
"""Bins of equal width in which confidence is compared with what is true (Guo et al., ICML 2017)."""


def average_precision(
    is_true: Bool[np.ndarray, " images"], values: Float[np.ndarray, " images"], patients: Int[np.ndarray, " images"]
) -> Measure:
    """Area under precision and recall as scikit-learn's average precision has it; arguments as for `auroc`."""

    def figure(with_it: Ranks, without: Ranks) -> Float[np.ndarray, " resamples"]:
        found, wrong = with_it[:, ::-1].cumsum(1), without[:, ::-1].cumsum(1)
        precision = found / np.maximum(found + wrong, 1)
        return ratio((with_it[:, ::-1] * precision).sum(1), with_it.sum(1))

    return of_ranks(figure, is_true, values, patients)


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
