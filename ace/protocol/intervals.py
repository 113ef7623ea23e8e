"""Confidence intervals by resampling patients.

Every figure is a function of patient weights: weight 1 for each gives the figure itself, the multiplicities of a
resample give one bootstrap replicate. Figures that share one set of weights can be subtracted, replicate by replicate.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Real
from pydantic import Field

from shards.core.config import Section

Weights = Int[np.ndarray, "resamples patients"]
Measure = Callable[[Weights], Float[np.ndarray, " resamples"]]
"""A figure of the patients, each counted as often as its weight says; nan where a resample leaves nothing to count."""
Ranks = Float[np.ndarray, "resamples levels"]
"""Counts of the images that have each value, one column a value, the values ascending."""
_NUMBERS_AT_ONCE = 20_000_000


class BootstrapParams(Section):
    """Confidence intervals from resampled patients."""

    num_resamples: int = Field(ge=100)
    """Resamples of the patients."""
    level: float = Field(gt=0.5, lt=1)
    """Share of the resampled figures between `low` and `high`."""


def patient_weights(num_patients: int, num_resamples: int, rng: np.random.Generator) -> Weights:
    """Count how often each patient occurs in each resample of `num_patients` patients drawn with replacement."""
    return rng.multinomial(num_patients, np.full(num_patients, 1 / num_patients), size=num_resamples)


def per_patient(sums: Real[np.ndarray, " patients"], counts: Real[np.ndarray, " patients"]) -> Measure:
    """Return the mean of observations that belong to one patient each, given their sums and counts by patient."""

    def measure(weights: Weights) -> Float[np.ndarray, " resamples"]:
        return ratio(weights @ sums, weights @ counts)

    return measure


def per_pair(sums: Real[np.ndarray, "patients patients"], counts: Real[np.ndarray, "patients patients"]) -> Measure:
    """Return the mean of observations of pairs of patients; a pair counts as often as both its patients do."""

    def measure(weights: Weights) -> Float[np.ndarray, " resamples"]:
        return ratio(((weights @ sums) * weights).sum(1), ((weights @ counts) * weights).sum(1))

    return measure


def pair_median(
    values: Float[np.ndarray, " observations"],
    first: Int[np.ndarray, " observations"],
    second: Int[np.ndarray, " observations"],
) -> Measure:
    """The median of observations that belong to a pair of patients; each counts as often as both its patients do.

    Args:
        values: What was observed.
        first: One patient of each observation.
        second: The other one.
    """
    order = np.argsort(values, kind="stable")
    ordered, first, second = values[order], first[order], second[order]

    def measure(weights: Weights) -> Float[np.ndarray, " resamples"]:
        return np.array([_median(ordered, own[first] * own[second]) for own in weights])

    return measure


def auroc(
    is_true: Bool[np.ndarray, " images"], values: Float[np.ndarray, " images"], patients: Int[np.ndarray, " images"]
) -> Measure:
    """Estimate the chance that an image with a label has a higher value than one without it, a tie counting half.

    Args:
        is_true: Whether each image has the label.
        values: The higher, the more likely the label.
        patients: Number of each image's patient.
    """

    def figure(with_it: Ranks, without: Ranks) -> Float[np.ndarray, " resamples"]:
        below = without.cumsum(1) - without
        return ratio((with_it * (below + without / 2)).sum(1), with_it.sum(1) * without.sum(1))

    return of_ranks(figure, is_true, values, patients)


def of_ranks(
    figure: Callable[[Ranks, Ranks], Float[np.ndarray, " resamples"]],
    is_true: Bool[np.ndarray, " images"],
    values: Float[np.ndarray, " images"],
    patients: Int[np.ndarray, " images"],
) -> Measure:
    """Compute a figure of how often images with and without a label have each value, the values ascending.

    Args:
        figure: Of these counts, one row a resample and one column a value.
        is_true: Whether each image has the label.
        values: The higher, the more likely the label.
        patients: Number of each image's patient.
    """
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


def difference(first: Measure, second: Measure) -> Measure:
    """`first − second`, both over the same resampled patients."""
    return lambda weights: first(weights) - second(weights)


def mean(measures: Sequence[Measure]) -> Measure:
    """Return the mean of several figures, all over the same resampled patients; nan where one of them is."""
    return lambda weights: np.mean([measure(weights) for measure in measures], axis=0)


def quotient(first: Measure, second: Measure) -> Measure:
    """`first / second`, both over the same resampled patients; nan where `second` is 0."""
    return lambda weights: ratio(first(weights), second(weights))


def estimate(measure: Measure, num_patients: int) -> float:
    """Return the figure over all patients, each once."""
    return float(measure(np.ones((1, num_patients), dtype=np.int64))[0])


def interval(measure: Measure, weights: Weights, level: float) -> tuple[float, float]:
    """Return the percentile bootstrap interval that holds the share `level` of the replicates."""
    tail = (1 - level) / 2
    low, high = np.nanquantile(measure(weights), [tail, 1 - tail])
    return float(low), float(high)


def _median(ordered: Float[np.ndarray, " n"], times: Int[np.ndarray, " n"]) -> float:
    """The median of values in ascending order, each taken some times; nan where none is taken."""
    if not times.any():
        return np.nan
    counted = np.cumsum(times)
    middle = [np.searchsorted(counted, counted[-1] / 2, side=side) for side in ("left", "right")]
    return float(ordered[middle].mean())


def ratio(sums: Real[np.ndarray, " n"], counts: Real[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Divide number by number; nan where there is nothing to divide by."""
    divided = np.full(len(counts), np.nan)
    np.divide(sums, counts, out=divided, where=counts > 0)
    return divided
