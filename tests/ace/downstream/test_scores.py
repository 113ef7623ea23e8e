"""Figures of classification against scikit-learn, with patients counted as often as resamples count them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, cohen_kappa_score, roc_auc_score

from ace.downstream.scores import accuracy, average_precision, calibration_error, quadratic_kappa
from ace.protocol import intervals
from ace.protocol.intervals import auroc, estimate, patient_weights

SEEDS = st.integers(0, 10_000)


def drawn(seed: int, num_images: int = 40, num_patients: int = 12, num_resamples: int = 2) -> tuple[np.ndarray, ...]:
    """Answers with ties, and patients of whom each has an image at least."""
    rng = np.random.default_rng(seed)
    is_true = rng.integers(2, size=num_images) == 1
    is_true[:2] = True, False
    values = rng.integers(6, size=num_images) / 6
    patients = np.concatenate([np.arange(num_patients), rng.integers(num_patients, size=num_images - num_patients)])
    return is_true, values, patients, patient_weights(num_patients, num_resamples, rng)


@given(SEEDS)
def test_ranked_figures_are_those_of_scikit_learn_with_the_patients_weights(seed: int) -> None:
    is_true, values, patients, weights = drawn(seed)
    found = {own.__name__: own(is_true, values, patients)(weights) for own in (auroc, average_precision)}
    for number, own in enumerate(weights):
        counts = own[patients]
        if counts[is_true].sum() == 0 or counts[~is_true].sum() == 0:
            assert np.isnan(found["auroc"][number])
            continue
        assert found["auroc"][number] == pytest.approx(roc_auc_score(is_true, values, sample_weight=counts))
        expected = average_precision_score(is_true, values, sample_weight=counts)
        assert found["average_precision"][number] == pytest.approx(expected)


@given(SEEDS)
def test_kappa_is_that_of_scikit_learn_and_accuracy_the_weighted_mean(seed: int) -> None:
    rng = np.random.default_rng(seed)
    _, _, patients, weights = drawn(seed)
    truth, answers = rng.integers(5, size=(2, 40))
    kappas, shares = quadratic_kappa(truth, answers, patients)(weights), accuracy(truth == answers, patients)(weights)
    for own, kappa, share in zip(weights, kappas, shares, strict=True):
        counts = own[patients]
        expected = cohen_kappa_score(truth, answers, weights="quadratic", sample_weight=counts)
        assert kappa == pytest.approx(expected)
        assert share == pytest.approx(np.average(truth == answers, weights=counts))


def test_figures_of_cases_computed_by_hand() -> None:
    one_each = np.arange(4)
    is_true, values = np.array([True, False, True, False]), np.array([0.9, 0.8, 0.7, 0.1])
    assert estimate(auroc(is_true, values, one_each), 4) == 0.75
    # Found first (precision 1), then third (2 of 3).
    assert estimate(average_precision(is_true, values, one_each), 4) == pytest.approx((1 + 2 / 3) / 2)
    # Two images at 0.9, of which one is so: 0.4 off; two at 0.1, none is: 0.1 off.
    probabilities, is_so = np.array([0.9, 0.9, 0.1, 0.1]), np.array([True, False, False, False])
    assert estimate(calibration_error(is_so, probabilities, one_each), 4) == pytest.approx((0.4 + 0.1) / 2)
    # Grades 0 1 2 2 answered 0 1 2 0: one is two grades off, 4 of them; by chance (1·(0+1+4) + ... ) / 4.
    truth, answers = np.array([0, 1, 2, 2]), np.array([0, 1, 2, 0])
    by_chance = sum((a - b) ** 2 for a in truth for b in answers) / 4
    assert estimate(quadratic_kappa(truth, answers, one_each), 4) == pytest.approx(1 - 4 / by_chance)


def test_many_resamples_in_parts_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    is_true, values, patients, weights = drawn(3, num_resamples=5)
    whole = auroc(is_true, values, patients)(weights)
    monkeypatch.setattr(intervals, "_NUMBERS_AT_ONCE", 80)
    assert np.array_equal(auroc(is_true, values, patients)(weights), whole)
