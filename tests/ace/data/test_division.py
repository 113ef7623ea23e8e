"""What is said about shards × ranks × workers before anything is trained."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ace.data import division
from ace.data.division import check_division
from ace.data.loader import CropDataset
from shards.core.errors import ConfigError, NoSpaceError
from shards.core.params import MixParams
from shards.reading.reader import ShardIndex
from shards.store.cache import ShardCache
from shards.store.location import RemoteStore
from shards.store.remote import Remote
from tests.ace.data.painted import VIEWS, BuildShards, grid_params

GRID = grid_params((2, 2), t=4, n=9, cell_px=8)


@pytest.fixture(scope="module")
def index(build_painted: BuildShards) -> ShardIndex:
    """Nine images in three tars."""
    rng, size = np.random.default_rng(0), GRID.spec.canvas_px
    return build_painted({f"{i}.png": rng.integers(0, 256, (size, size), dtype=np.uint8) for i in range(9)}, GRID)


@pytest.fixture(autouse=True)
def _many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(division, "default_num_workers", lambda: 16)


def remote(index: ShardIndex, tmp_path: Path, max_bytes: int = 10**9) -> ShardIndex:
    """As if it had been opened on a server, which is never asked."""
    return replace(index, store=RemoteStore(Remote("s3://hospital/set"), ShardCache(tmp_path, max_bytes)))


def check(*members: tuple[ShardIndex, float], **changes: int) -> list[str]:
    mixes = [(index, MixParams(weight=weight, mean=0.5, std=0.25)) for index, weight in members]
    values = {"objective": "ace", "views": VIEWS, "crops": "fresh", "augment": None, "in_channels": 1, "seed": 3}
    dataset = CropDataset(mixes, GRID.spec, **values)
    numbers = {"batch_size": 2, "world_size": 1, "num_local_ranks": 1, "num_workers": 2, "epochs": 2, **changes}
    return check_division(dataset, **numbers)


def test_nothing_is_said_where_all_is_well(index: ShardIndex, tmp_path: Path) -> None:
    assert check((index, 1.0)) == []
    assert check((index, 1.0), num_workers=0) == []
    assert check((remote(index, tmp_path), 1.0), num_workers=3) == []


def test_too_few_samples_for_a_step_show_what_each_set_gives_and_what_is_needed(index: ShardIndex) -> None:
    message = rf"an epoch has 14 training samples \({index.name} 9, {index.name} 5\)"
    with pytest.raises(ConfigError, match=rf"{message}.*2 rank\(s\) × 8 samples needs 16: lower pretrain.batch_size"):
        check((index, 1.0), (index, 0.6), batch_size=8, world_size=2)
    assert check((index, 1.0), (index, 0.8), batch_size=8, world_size=2) == []  # 9 + 7


def test_shared_memory_that_cannot_hold_what_is_handed_over_is_refused_with_the_numbers(index: ShardIndex) -> None:
    batch_bytes = 2 * 2 * 32 * 32 + 2 * 4096
    needed = 10**9 * (2 * 3 + 2) * batch_bytes / 1e6
    with pytest.raises(NoSpaceError, match=r"/dev/shm: .* MB free") as error:
        check((index, 1.0), num_local_ranks=10**9, num_workers=3)
    assert f"up to 8000000000 batch(es) of {batch_bytes / 1e6:.3g} MB there, {needed:.3g} MB in all" in str(error.value)
    assert "docker run --shm-size" in str(error.value)
    check((index, 1.0), num_local_ranks=10**9, num_workers=0)


def test_workers_that_would_never_have_a_step_are_told(index: ShardIndex) -> None:
    assert check((index, 1.0), num_workers=8) == []  # 4 steps an epoch, 2 epochs
    (warning,) = check((index, 1.0), num_workers=9)
    assert warning.startswith("9 loader processes a rank for 8 step(s) in the whole run; expected at most")


def test_more_workers_than_cores_are_told_with_all_ranks_of_the_machine(index: ShardIndex) -> None:
    assert check((index, 1.0), num_local_ranks=2, num_workers=8) == []
    (warning,) = check((index, 1.0), num_local_ranks=3, num_workers=6)
    assert warning.startswith("18 loader processes on this machine for 16 core(s)")


def test_fewer_remote_tars_than_loader_processes_are_told_but_local_ones_are_not(
    index: ShardIndex, tmp_path: Path
) -> None:
    assert check((index, 1.0), num_workers=4) == []
    (warning,) = check((remote(index, tmp_path), 1.0), num_workers=4)
    assert warning.startswith("3 remote training tar(s) (s3://hospital/set) for 4 loader processes (ranks × workers)")
    (warning,) = check((remote(index, tmp_path), 1.0), num_workers=2, world_size=2)
    assert "for 4 loader processes" in warning


def test_a_cache_that_does_not_hold_the_tars_is_told_with_the_window(index: ShardIndex, tmp_path: Path) -> None:
    bound = sum(tar.num_bytes for tar in index.tars) - 1
    (warning,) = check((remote(index, tmp_path, bound), 1.0))
    assert "within windows of 1 tar(s)" in warning
    assert "raise ACE_SHARD_CACHE_GB" in warning
