"""Training batches from a shard set on a server, with a cache that holds it and with one that does not."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from ace.data.batches import PairBatch
from ace.data.loader import CropDataset, StepSampler, build_loader
from shards.core.errors import ConfigError
from shards.core.params import MixParams
from shards.reading.reader import ShardIndex
from shards.store.cache import ShardCache
from shards.store.location import open_store
from shards.store.remote import Retry
from tests.ace.data.painted import VIEWS, BuildShards, grid_params
from tests.support.servers import FlakyServer

GRID = grid_params((2, 2), t=4, n=9, cell_px=8)
NUM_IMAGES, PER_TAR = 18, 3
MIX = MixParams(weight=1.0, mean=0.5, std=0.25)
QUICK = Retry(attempts=4, first_delay_s=0.01, max_delay_s=0.05, timeout_s=5.0)


@pytest.fixture(scope="module")
def local(build_painted: BuildShards) -> ShardIndex:
    rng, size = np.random.default_rng(0), GRID.spec.canvas_px
    images = {f"{i}.png": rng.integers(0, 256, (size, size), dtype=np.uint8) for i in range(NUM_IMAGES)}
    return build_painted(images, GRID)


@pytest.fixture
def server(local: ShardIndex) -> Iterator[FlakyServer]:
    server = FlakyServer(local.root)
    yield server
    server.close()


@pytest.fixture
def remote(server: FlakyServer, tmp_path: Path) -> ShardIndex:
    return ShardIndex.open(open_store(server.url, cache=ShardCache(tmp_path / "cache", 10**9), retry=QUICK))


@pytest.fixture
def cramped(server: FlakyServer, local: ShardIndex, tmp_path: Path) -> ShardIndex:
    """Its cache holds the rows of the index and four of six tars, so the window is two tars."""
    rows = local.description.samples.bytes
    bound = rows + 4 * max(tar.num_bytes for tar in local.tars)
    return ShardIndex.open(open_store(server.url, cache=ShardCache(tmp_path / "cramped", bound), retry=QUICK))


def dataset_of(*indexes: ShardIndex) -> CropDataset:
    values = {"objective": "ace", "views": VIEWS, "crops": "fresh", "augment": None, "in_channels": 1, "seed": 3}
    return CropDataset([(index, MIX) for index in indexes], GRID.spec, **values)


def load(dataset: CropDataset, *, num_workers: int = 0, **changes) -> list[PairBatch]:
    values = {"batch_size": 3, "rank": 0, "world_size": 1, "first_step": 0, "epochs": 2, **changes}
    return list(build_loader(StepSampler(dataset, **values), num_workers=num_workers, is_pinned=False))


def assert_same(first: list[PairBatch], second: list[PairBatch]) -> None:
    assert [batch.keys for batch in first] == [batch.keys for batch in second]
    assert all(torch.equal(one.fine, other.fine) for one, other in zip(first, second, strict=True))


def test_a_remote_set_that_fits_the_cache_gives_the_batches_of_the_local_one(
    remote: ShardIndex, local: ShardIndex, server: FlakyServer
) -> None:
    assert dataset_of(remote).window is None
    assert_same(load(dataset_of(remote)), load(dataset_of(local)))
    assert Counter(name for name, _ in server.requests if name.endswith(".tar")) == {tar.name: 1 for tar in local.tars}


def test_a_cramped_cache_fetches_each_tar_once_an_epoch_and_shows_each_sample_once(
    cramped: ShardIndex, local: ShardIndex, server: FlakyServer
) -> None:
    dataset = dataset_of(cramped)
    assert dataset.window is not None
    assert dataset.window.num_tars == 2
    batches = load(dataset, epochs=1)
    everything = local.keys(np.arange(NUM_IMAGES))
    assert sorted(key for batch in batches for key in batch.keys) == sorted(everything)
    assert Counter(name for name, _ in server.requests if name.endswith(".tar")) == {tar.name: 1 for tar in local.tars}
    cache = cramped.store.cache
    assert sum(path.stat().st_size for path in cache.root.iterdir()) <= cache.max_bytes


@pytest.mark.slow
def test_batches_of_a_cramped_cache_do_not_depend_on_the_number_of_workers(cramped: ShardIndex) -> None:
    assert_same(load(dataset_of(cramped), num_workers=2), load(dataset_of(cramped)))


@pytest.mark.parametrize("first_step", [5, 6, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 11))])
def test_a_resumed_run_sees_the_rest_of_the_same_windows(first_step: int, cramped: ShardIndex) -> None:
    whole = load(dataset_of(cramped))
    assert_same(load(dataset_of(cramped), first_step=first_step), whole[first_step:])


def test_ranks_share_a_window_and_no_sample(cramped: ShardIndex) -> None:
    ranks = [load(dataset_of(cramped), rank=rank, world_size=3, batch_size=2, epochs=1) for rank in range(3)]
    assert {len(batches) for batches in ranks} == {3}
    shown = [key for batches in ranks for batch in batches for key in batch.keys]
    assert len(set(shown)) == NUM_IMAGES
    number_of = dict(zip(cramped.keys(np.arange(NUM_IMAGES)), np.arange(NUM_IMAGES) // PER_TAR, strict=True))
    for step in zip(*ranks, strict=True):
        assert len({number_of[key] for batch in step for key in batch.keys}) == 2


def test_local_sets_are_not_bound_by_the_window_of_remote_ones(cramped: ShardIndex, local: ShardIndex) -> None:
    dataset = dataset_of(local, cramped)
    assert dataset.window is not None
    assert dataset.window.tars[0] is None
    assert sorted(Counter(key for batch in load(dataset, epochs=1) for key in batch.keys).values()) == [2] * NUM_IMAGES


def test_a_cache_without_room_for_two_tars_is_refused_before_training(
    server: FlakyServer, local: ShardIndex, tmp_path: Path
) -> None:
    bound = local.stored_rows.num_bytes + 2 * max(tar.num_bytes for tar in local.tars) - 1
    index = ShardIndex.open(open_store(server.url, cache=ShardCache(tmp_path / "tiny", bound), retry=QUICK))
    with pytest.raises(ConfigError, match=r"Expected room for two tars at least.*raise ACE_SHARD_CACHE_GB"):
        dataset_of(index)


def test_a_cache_that_holds_the_tars_but_not_the_rows_beside_them_has_a_window(
    server: FlakyServer, local: ShardIndex, tmp_path: Path
) -> None:
    everything = local.stored_rows.num_bytes + sum(tar.num_bytes for tar in local.tars)
    for bound, num_tars in ((everything, None), (everything - 1, NUM_IMAGES // PER_TAR // 2 - 1)):
        cache = ShardCache(tmp_path / str(bound), bound)
        window = dataset_of(ShardIndex.open(open_store(server.url, cache=cache, retry=QUICK))).window
        assert (None if window is None else window.num_tars) == num_tars


def test_a_set_with_weight_0_needs_no_window(cramped: ShardIndex, local: ShardIndex) -> None:
    members = [(local, MIX), (cramped, MixParams(weight=0.0, mean=0.5, std=0.25))]
    values = {"objective": "ace", "views": VIEWS, "crops": "fresh", "augment": None, "in_channels": 1, "seed": 3}
    assert CropDataset(members, GRID.spec, **values).window is None
