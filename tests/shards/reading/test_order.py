from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.core.errors import ConfigError
from shards.reading.order import TarWindow, epoch_order


@st.composite
def epochs(draw: st.DrawFn) -> dict:
    sizes = draw(st.lists(st.integers(0, 40), min_size=1, max_size=3))
    weights = [draw(st.sampled_from([0.0, 0.3, 1.0, 1.7, 3.0])) for _ in sizes]
    world_size, batch_size = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    return {"sizes": sizes, "weights": weights, "world_size": world_size, "batch_size": batch_size}


def num_draws(values: dict) -> int:
    return sum(round(size * weight) for size, weight in zip(values["sizes"], values["weights"], strict=True))


def orders(values: dict, epoch: int = 0, seed: int = 0) -> list[np.ndarray]:
    return [epoch_order(**values, seed=seed, epoch=epoch, rank=rank) for rank in range(values["world_size"])]


@given(epochs().filter(lambda values: num_draws(values) >= values["world_size"] * values["batch_size"]))
def test_ranks_get_the_same_number_of_batches_and_share_no_draw(values: dict) -> None:
    per_rank = orders(values)
    num_batches = num_draws(values) // (values["world_size"] * values["batch_size"])
    assert {order.shape for order in per_rank} == {(num_batches, values["batch_size"], 2)}
    drawn = Counter(map(tuple, np.concatenate(per_rank).reshape(-1, 2).tolist()))
    for (dataset, position), times in drawn.items():
        assert 0 <= position < values["sizes"][dataset]
        assert times <= np.ceil(values["weights"][dataset])


@given(st.integers(1, 60), st.integers(1, 3), st.integers(0, 5), st.integers(0, 3))
def test_ranks_partition_the_samples_when_they_fit(num_each: int, world_size: int, seed: int, epoch: int) -> None:
    values = {"sizes": [num_each * world_size], "weights": [1.0], "world_size": world_size, "batch_size": num_each}
    positions = np.concatenate([order[..., 1].ravel() for order in orders(values, epoch, seed)])
    assert sorted(positions.tolist()) == list(range(num_each * world_size))


def test_at_most_one_round_of_batches_is_left_out_and_another_part_in_each_epoch() -> None:
    values = {"sizes": [50], "weights": [1.0], "world_size": 2, "batch_size": 8}
    left_out = [
        set(range(50)) - set(np.concatenate([o[..., 1].ravel() for o in orders(values, epoch)]).tolist())
        for epoch in range(6)
    ]
    assert {len(positions) for positions in left_out} == {2}
    assert len(set(map(frozenset, left_out))) > 1


def test_a_weight_multiplies_a_data_sets_share() -> None:
    values = {"sizes": [40, 40, 40], "weights": [2.5, 1.0, 0.0], "world_size": 1, "batch_size": 1}
    drawn = Counter(map(tuple, orders(values)[0].reshape(-1, 2).tolist()))
    assert [sum(n for (dataset, _), n in drawn.items() if dataset == which) for which in range(3)] == [100, 40, 0]
    assert sorted(Counter(n for (dataset, _), n in drawn.items() if dataset == 0).items()) == [(2, 20), (3, 20)]


def test_a_fraction_draws_other_samples_in_every_epoch() -> None:
    values = {"sizes": [100], "weights": [0.2], "world_size": 1, "batch_size": 20}
    drawn = [frozenset(orders(values, epoch)[0][..., 1].ravel().tolist()) for epoch in range(4)]
    assert all(len(positions) == 20 for positions in drawn)
    assert len(set(drawn)) == 4


def test_the_order_follows_from_seed_and_epoch() -> None:
    values = {"sizes": [30, 20], "weights": [1.0, 1.3], "world_size": 2, "batch_size": 4}
    first = orders(values, epoch=2, seed=7)
    assert all(map(np.array_equal, first, orders(values, epoch=2, seed=7)))
    assert not np.array_equal(first[0], orders(values, epoch=3, seed=7)[0])
    assert not np.array_equal(first[0], orders(values, epoch=2, seed=8)[0])


@pytest.mark.parametrize("sizes", [[7], [0], [3, 4]])
def test_too_few_samples_for_one_batch_on_every_rank_show_both_numbers(sizes: list[int]) -> None:
    with pytest.raises(ConfigError, match=rf"^{sum(sizes)} training samples.*= 8;"):
        epoch_order(sizes, [1.0] * len(sizes), seed=0, epoch=0, rank=0, world_size=2, batch_size=4)


@st.composite
def windowed_epochs(draw: st.DrawFn) -> dict:
    """Data sets of which some lie in tars of unequal sizes; enough draws for a batch on every rank."""
    values = draw(epochs().filter(lambda values: num_draws(values) >= values["world_size"] * values["batch_size"]))
    tars = [
        np.sort(draw(st.lists(st.integers(0, 5), min_size=size, max_size=size))).astype(np.int64)
        if draw(st.booleans())
        else None
        for size in values["sizes"]
    ]
    return {**values, "window": (tuple(tars), draw(st.integers(1, 4)))}


def in_sequence(per_rank: list[np.ndarray]) -> np.ndarray:
    """All ranks' draws, step by step."""
    return np.stack(per_rank, axis=1).reshape(-1, 2)


@given(windowed_epochs(), st.integers(0, 3))
def test_a_window_shows_each_sample_as_often_as_its_weight_says(values: dict, epoch: int) -> None:
    values = {**values, "window": TarWindow(*values["window"])}
    alone = {**values, "world_size": 1, "batch_size": 1}
    drawn = Counter(map(tuple, in_sequence(orders(alone, epoch)).tolist()))
    without = Counter(map(tuple, in_sequence(orders({**alone, "window": None}, epoch)).tolist()))
    assert drawn == without


@given(windowed_epochs(), st.integers(0, 3))
def test_ranks_are_dealt_equal_parts_of_one_windowed_sequence(values: dict, epoch: int) -> None:
    values = {**values, "window": TarWindow(*values["window"])}
    per_rank = orders(values, epoch)
    whole = in_sequence(orders({**values, "world_size": 1, "batch_size": 1}, epoch))
    assert len({order.shape for order in per_rank}) == 1
    dealt = in_sequence(per_rank)
    assert np.array_equal(dealt, whole[: len(dealt)])
    assert len(whole) - len(dealt) < values["world_size"] * values["batch_size"]


@pytest.mark.parametrize("num_tars", [1, 3, 7])
@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_no_more_tars_than_the_window_holds_are_open_at_a_time(num_tars: int, weight: float) -> None:
    tars = np.repeat(np.arange(10), 8)
    values = {"sizes": [80], "weights": [weight], "window": TarWindow((tars,), num_tars)}
    order = in_sequence(orders({**values, "world_size": 1, "batch_size": 1}))
    size = 8 * num_tars
    windows = [order[first : first + size] for first in range(0, len(order), size)]
    assert all(len(np.unique(tars[window[:, 1]])) <= num_tars for window in windows)
    if num_tars == 3:
        assert any(len(np.unique(tars[window[:, 1]])) == num_tars for window in windows)


def test_repetitions_of_a_sample_come_in_visits_of_their_own() -> None:
    tars = np.repeat(np.arange(12), 5)
    values = {"sizes": [60], "weights": [2.0], "window": TarWindow((tars,), 1), "world_size": 1, "batch_size": 1}
    order = in_sequence(orders(values))[:, 1]
    for visit in order.reshape(24, 5):
        assert len(set(visit.tolist())) == 5
        assert len(np.unique(tars[visit])) == 1


def test_local_samples_are_spread_over_the_whole_of_a_windowed_epoch() -> None:
    tars = np.repeat(np.arange(20), 50)
    values = {"sizes": [1000, 1000], "weights": [1.0, 1.0], "window": TarWindow((tars, None), 2)}
    order = in_sequence(orders({**values, "world_size": 1, "batch_size": 1}))
    shares = (order[:, 0] == 1).reshape(10, -1).mean(axis=1)
    assert np.all(np.abs(shares - 0.5) < 0.12)  # 200 draws each: more than three deviations


def test_a_windowed_order_follows_from_seed_and_epoch() -> None:
    window = TarWindow((np.repeat(np.arange(6), 10), None), 2)
    values = {"sizes": [60, 20], "weights": [1.0, 1.3], "world_size": 2, "batch_size": 4, "window": window}
    first = orders(values, epoch=2, seed=7)
    assert all(map(np.array_equal, first, orders(values, epoch=2, seed=7)))
    assert not np.array_equal(first[0], orders(values, epoch=3, seed=7)[0])
    assert not np.array_equal(first[0], orders(values, epoch=2, seed=8)[0])
