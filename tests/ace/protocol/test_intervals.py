import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ace.protocol.intervals import (
    difference,
    estimate,
    interval,
    pair_median,
    patient_weights,
    per_pair,
    per_patient,
)


def test_weight_one_for_each_patient_gives_the_plain_mean() -> None:
    values = [[1.0, 2.0], [4.0], [0.0, 1.0, 5.0]]
    measure = per_patient(np.array([sum(v) for v in values]), np.array([len(v) for v in values], dtype=float))
    assert estimate(measure, 3) == pytest.approx(13 / 6)


@given(st.integers(0, 2**32 - 1))
def test_a_pair_counts_as_often_as_both_its_patients_were_drawn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_patients = 5
    counts = rng.integers(0, 3, (num_patients, num_patients)).astype(float)
    counts[0, 1] += 1
    sums = rng.normal(size=counts.shape) * counts
    weights = patient_weights(num_patients, 3, rng)
    found = per_pair(sums, counts)(weights)
    for weight, value in zip(weights, found, strict=True):
        drawn = np.repeat(np.arange(num_patients), weight)
        total = sum(sums[a, b] for a in drawn for b in drawn)
        number = sum(counts[a, b] for a in drawn for b in drawn)
        assert np.isnan(value) if number == 0 else value == pytest.approx(total / number)


def test_every_resample_draws_as_many_patients_as_there_are() -> None:
    weights = patient_weights(17, 50, np.random.default_rng(0))
    assert (weights.sum(axis=1) == 17).all()
    assert (weights == 0).any()


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    num_patients, covered = 60, []
    for _ in range(300):
        patient_means = rng.normal(0.3, 1, num_patients)
        sums = patient_means * 4 + rng.normal(0, 1, num_patients)
        measure = per_patient(sums, np.full(num_patients, 4.0))
        low, high = interval(measure, patient_weights(num_patients, 150, rng), 0.9)
        covered.append(low <= 0.3 <= high)
    assert 0.84 <= np.mean(covered) <= 0.95


def test_a_difference_is_taken_over_the_same_patients() -> None:
    # Two noisy figures that differ by exactly 1 in every patient: only a paired interval has no width.
    sums = np.random.default_rng(0).normal(size=30)
    first, second = per_patient(sums + 1, np.ones(30)), per_patient(sums, np.ones(30))
    low, high = interval(difference(first, second), patient_weights(30, 200, np.random.default_rng(1)), 0.95)
    assert low == pytest.approx(1)
    assert high == pytest.approx(1)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_a_median_over_pairs_is_that_of_the_values_repeated(seed: int, num_values: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 6, num_values).astype(float)
    first, second = rng.integers(0, 4, (2, num_values))
    weights = patient_weights(4, 5, rng)
    for weight, found in zip(weights, pair_median(values, first, second)(weights), strict=True):
        repeated = np.repeat(values, weight[first] * weight[second])
        assert np.isnan(found) if not len(repeated) else found == np.median(repeated)
    assert estimate(pair_median(values, first, second), 4) == np.median(values)
