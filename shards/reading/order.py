"""The order of an epoch: which samples each rank sees, decided by the seed and the epoch's number alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from shards.core.errors import ConfigError
from shards.reading.reader import ShardIndex
from shards.store.location import RemoteStore

Draws = Int64[np.ndarray, "_num_draws 2"]
"""(data set, position in its selected rows)."""


@dataclass(frozen=True)
class TarWindow:
    """The number of tars that an order may spread over at a time, where they do not all fit the cache.

    Attributes:
        tars: The tar of each position, for each data set; None for one whose samples may come at any time.
        num_tars: Number of tars in a window.
    """

    tars: tuple[Int64[np.ndarray, "_num_samples"] | None, ...]
    num_tars: int


def epoch_order(
    sizes: Sequence[int],
    weights: Sequence[float],
    *,
    seed: int,
    epoch: int,
    rank: int,
    world_size: int,
    batch_size: int,
    window: TarWindow | None = None,
) -> Int64[np.ndarray, "num_batches batch_size 2"]:
    """Order the samples that one rank sees in one epoch, as (data set, position in its selected rows).

    A weight multiplies a data set's size: 1 shows each of its samples once, 2.5 shows each twice and a random half a
    third time, 0 none. All draws are shuffled together and dealt to the ranks; what does not fill a batch on every
    rank is left out of this epoch (another part in each). Everything follows from the arguments.

    With a window the tars are shuffled first, and the samples only within `num_tars` consecutive ones of them, so that
    a cache that holds two windows fetches each tar once. All ranks are in the same window at the same time.

    Raises:
        ConfigError: fewer draws than one batch on every rank.
    """
    num_batches = batches_per_epoch(sizes, weights, world_size=world_size, batch_size=batch_size)
    draws = [
        _draw(dataset, size, weight, np.random.default_rng([seed, epoch, 1 + dataset]))
        for dataset, (size, weight) in enumerate(zip(sizes, weights, strict=True))
    ]
    # SeedSequence pads with zeros: without the 1 + above, data set 0 would share this stream.
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(np.concatenate(draws)) if window is None else _windowed(draws, sizes, window, rng)
    dealt = order[: num_batches * world_size * batch_size].reshape(num_batches, world_size, batch_size, 2)
    return dealt[:, rank]


def batches_per_epoch(sizes: Sequence[int], weights: Sequence[float], *, world_size: int, batch_size: int) -> int:
    """Count the batches that each rank gets in every epoch.

    Raises:
        ConfigError: fewer draws than one batch on every rank.
    """
    total = sum(map(num_draws, sizes, weights))
    if total < world_size * batch_size:
        raise ConfigError(
            f"{total} training samples an epoch for {world_size} rank(s) × batch_size {batch_size} = "
            f"{world_size * batch_size}; lower the batch size or the number of ranks, or add data"
        )
    return total // (world_size * batch_size)


def num_draws(size: int, weight: float) -> int:
    """Count the samples of a data set that an epoch shows, repetitions included."""
    return round(weight * size)


def cache_window(
    indexes: Sequence[ShardIndex], rows: Sequence[Int64[np.ndarray, "_num_samples"]], weights: Sequence[float]
) -> TarWindow | None:
    """Return the window that remote sets need; None where the cache holds all their tars, or all lie on local disks.

    Two windows fit the cache beside the rows of all indexes: while one ends, the next begins.

    Args:
        indexes: The data sets.
        rows: Selected of each.
        weights: Weight of each data set.

    Raises:
        ConfigError: the cache does not hold two tars.
    """
    numbers = [
        index.tar_numbers(chosen) if isinstance(index.store, RemoteStore) and weight > 0 else None
        for index, chosen, weight in zip(indexes, rows, weights, strict=True)
    ]
    sizes = [
        index.tars[number].num_bytes
        for index, of_rows in zip(indexes, numbers, strict=True)
        if of_rows is not None
        for number in np.unique(of_rows)
    ]
    bounds = [index.store.cache.max_bytes for index in indexes if isinstance(index.store, RemoteStore)]
    num_row_bytes = sum(index.stored_rows.num_bytes for index in indexes if isinstance(index.store, RemoteStore))
    if not sizes or sum(sizes) + num_row_bytes <= min(bounds):
        return None
    num_tars = (min(bounds) - num_row_bytes) // (2 * max(sizes))
    if num_tars < 1:
        raise ConfigError(
            f"the cache may hold {min(bounds) / 1e9:g} GB; the largest tar has {max(sizes) / 1e9:g} and the indexes "
            f"{num_row_bytes / 1e9:g}. Expected room for two tars at least, and for many if the order is to be random: "
            "raise ACE_SHARD_CACHE_GB"
        )
    return TarWindow(tuple(numbers), num_tars)


def _draw(dataset: int, size: int, weight: float, rng: np.random.Generator) -> Draws:
    repeats, rest = divmod(num_draws(size, weight), max(size, 1))
    positions = np.concatenate([np.tile(np.arange(size), repeats), rng.permutation(size)[:rest]])
    return np.stack([np.full_like(positions, dataset), positions], axis=1)


def _windowed(draws: Sequence[Draws], sizes: Sequence[int], window: TarWindow, rng: np.random.Generator) -> Draws:
    """Draws from tars window by window; those of the other data sets at places of their own among them."""
    bound = np.concatenate([np.zeros((0, 2), np.int64), *_where(draws, window, is_bound=True)])
    free = np.concatenate([np.zeros((0, 2), np.int64), *_where(draws, window, is_bound=False)])
    visits = _visits(draws, sizes, window)
    turn = rng.permutation(int(visits.max(initial=-1)) + 1)[visits]
    sequence = np.lexsort((rng.permutation(len(bound)), turn // window.num_tars))
    order = np.empty((len(bound) + len(free), 2), np.int64)
    is_free = np.zeros(len(order), dtype=bool)
    is_free[rng.permutation(len(order))[: len(free)]] = True
    order[~is_free], order[is_free] = bound[sequence], rng.permutation(free)
    return order


def _where(draws: Sequence[Draws], window: TarWindow, *, is_bound: bool) -> list[Draws]:
    return [drawn for drawn, tars in zip(draws, window.tars, strict=True) if (tars is not None) == is_bound]


def _visits(draws: Sequence[Draws], sizes: Sequence[int], window: TarWindow) -> Int64[np.ndarray, "num_draws"]:
    """Number, from 0, the visits to tars that the bound draws belong to.

    A tar is visited once for each repetition of its samples, so that a sample does not come twice in one window.
    """
    numbers, num_visits = [np.zeros(0, np.int64)], 0
    for drawn, size, tars in zip(draws, sizes, window.tars, strict=True):
        if tars is not None and len(drawn):
            repetition = np.arange(len(drawn)) // size
            _, own = np.unique(repetition * (int(tars.max()) + 1) + tars[drawn[:, 1]], return_inverse=True)
            numbers.append(num_visits + own.astype(np.int64))
            num_visits += int(own.max()) + 1
    return np.concatenate(numbers)
