from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.shuffle import displacement_ratio, same_tar_ratio
from shards.reading.order import TarWindow, epoch_order

NUM_TARS, PER_TAR, BATCH_SIZE = 40, 50, 20
TARS = np.repeat(np.arange(NUM_TARS), PER_TAR)


def order_of(window: TarWindow | None) -> np.ndarray:
    values = {"seed": 0, "epoch": 0, "rank": 0, "world_size": 1, "batch_size": BATCH_SIZE}
    return epoch_order([len(TARS)], [1.0], **values, window=window)[..., 1]


def test_storage_order_is_not_shuffled_at_all() -> None:
    order = np.arange(len(TARS))
    assert displacement_ratio(order) == 0
    # Two tars hold five batches of 20: four lie in one tar, the third in both with 10 samples each.
    assert same_tar_ratio(TARS.reshape(-1, BATCH_SIZE)) == pytest.approx(
        (2 * 190 + 2 * 190 + 2 * 45) / (5 * 190) / ((PER_TAR - 1) / (len(TARS) - 1))
    )


def test_the_reversed_order_is_displaced_by_half_and_a_rotation_by_hand() -> None:
    assert displacement_ratio(np.arange(10)[::-1]) == pytest.approx(5 / (99 / 30))
    assert displacement_ratio(np.array([1, 2, 0])) == pytest.approx((4 / 3) / (8 / 9))


@given(st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=2, max_size=6))
def test_the_share_of_pairs_is_that_of_counting_them(batches: list[list[int]]) -> None:
    pairs = [a == b for batch in batches for a, b in combinations(batch, 2)]
    everything = [a == b for a, b in combinations([tar for batch in batches for tar in batch], 2)]
    if any(everything):
        expected = np.mean(pairs) / np.mean(everything)
        assert same_tar_ratio(np.array(batches, dtype=np.int64)) == pytest.approx(expected)


def test_the_full_permutation_is_as_good_as_uniform() -> None:
    order = order_of(None)
    assert displacement_ratio(order.ravel()) == pytest.approx(1, abs=0.05)
    assert same_tar_ratio(TARS[order]) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("num_tars", [4, 10, 20])
def test_a_window_costs_what_its_share_of_the_tars_says(num_tars: int) -> None:
    order = order_of(TarWindow((TARS,), num_tars))
    assert displacement_ratio(order.ravel()) == pytest.approx(1, abs=0.25)  # whole tars are shuffled: few units
    assert same_tar_ratio(TARS[order]) == pytest.approx(NUM_TARS / num_tars, rel=0.1)
