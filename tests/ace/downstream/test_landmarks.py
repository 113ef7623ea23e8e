import math

import numpy as np
import pytest

from ace.downstream.landmarks import mean_positions, radial_errors, share_within
from ace.protocol.intervals import estimate


def test_errors_shares_and_the_mean_position_of_hand_made_points() -> None:
    truth = np.array([[[0.0, 0.0], [10.0, 10.0]], [[4.0, 0.0], [np.nan, np.nan]]])
    predicted = np.array([[[3.0, 4.0], [10.0, 10.0]], [[4.0, 2.0], [1.0, 1.0]]])
    errors = radial_errors(predicted, truth, np.ones((2, 2)))
    np.testing.assert_allclose(errors, [[5, 0], [2, np.nan]])
    sides = np.array([[1.0, 0.5], [np.nan, np.nan]])
    np.testing.assert_allclose(radial_errors(predicted, truth, sides), [[math.sqrt(9 + 4), 0], [np.nan, np.nan]])
    patients = np.array([0, 1])
    assert estimate(share_within(errors[:, 0], 2.0, patients), 2) == pytest.approx(1 / 2)
    assert estimate(share_within(errors[:, 1], 2.0, patients), 2) == 1
    np.testing.assert_allclose(mean_positions(truth), [[2, 0], [10, 10]])
    assert np.isnan(mean_positions(truth[1:])[1]).all()
