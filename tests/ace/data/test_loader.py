"""The loader's processes hand batches over, or the trainer hears why not."""

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ace.data import loader
from ace.data.loader import NoBatchError, build_loader
from shards.reading.reader import ShardIndex
from tests.ace.data import stalled
from tests.ace.data.painted import BuildShards
from tests.ace.data.test_batches import GRID, HOST, dataset_of, sampler_of
from tests.support.forked import Forked


@pytest.fixture(scope="module")
def index(build_painted: BuildShards) -> ShardIndex:
    rng, size = np.random.default_rng(0), GRID.spec.canvas_px
    return build_painted({f"{i}.png": rng.integers(0, 256, (size, size), dtype=np.uint8) for i in range(12)}, GRID)


@pytest.mark.parametrize("changes", [{}, {"augment": HOST}, {"augment": None}, {"in_channels": 3}])
@pytest.mark.parametrize("objective", ["ace", "dino", "ace_v2"])
def test_a_batch_takes_the_shared_memory_that_is_reckoned_with(
    objective: str, changes: dict[str, Any], index: ShardIndex
) -> None:
    dataset = dataset_of([index], objective=objective, **changes)
    batches = build_loader(sampler_of(dataset), num_workers=0, is_pinned=False)
    found = max(shared_bytes(batch.share_memory()) for batch in batches)
    assert found == dataset.batch_bytes(2) - 2 * 4096  # pages that nothing fills


def shared_bytes(batch: Any) -> int:
    """Of all its tensors, wherever they stand in it, that lie in shared memory."""
    sizes: list[int] = []

    def measured(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.nbytes if tensor.is_shared() else 0)
        return tensor

    batch._mapped(measured)
    return sum(sizes)


@pytest.mark.slow
def test_a_process_that_gives_nothing_ends_the_wait_with_what_it_is_doing(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(build_loader(sampler_of(dataset_of([index])), num_workers=0, is_pinned=False))
    monkeypatch.setattr(loader, "_collate", stalled.collate)
    monkeypatch.setattr(loader, "POLL_S", 0.1)
    monkeypatch.setattr(loader, "GRACE_S", 0.3)
    batches = build_loader(sampler_of(dataset_of([index])), num_workers=1, is_pinned=False)
    waiting = iter(batches)
    given = [next(waiting) for _ in range(stalled.NUM_BATCHES)]
    batches.timeout_s = 1
    (process,) = multiprocessing.active_children()
    with pytest.raises(NoBatchError, match=rf"no batch has come for 1 s .* 1 process\(es\) \({process.pid} sleeps\)"):
        next(waiting)
    assert multiprocessing.active_children() == []
    assert [batch.keys for batch in given] == [batch.keys for batch in expected[: len(given)]]


def test_what_is_raised_while_no_batch_comes_ends_the_wait(index: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise InterruptedError

    monkeypatch.setattr(loader, "_collate", stalled.never)
    monkeypatch.setattr(loader, "POLL_S", 0.1)
    monkeypatch.setattr(loader, "GRACE_S", 0.3)
    batches = build_loader(sampler_of(dataset_of([index])), num_workers=1, is_pinned=False, while_waiting=interrupt)
    with pytest.raises(InterruptedError):
        list(batches)
    assert multiprocessing.active_children() == []


LITTLE_ROOM = """
import resource, sys
from pathlib import Path
from ace.data.loader import build_loader
from shards.reading.reader import ShardIndex
from tests.ace.data.test_batches import dataset_of, sampler_of
loader = build_loader(sampler_of(dataset_of([ShardIndex.open(Path(sys.argv[1]))])), num_workers=1, is_pinned=False)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))
list(loader)
"""
"""A loader whose processes may not make files, nor shared memory, of more than 1024 bytes."""


@pytest.mark.slow
def test_a_batch_that_cannot_be_handed_over_is_an_error_that_says_why(index: ShardIndex, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    process = Forked(LITTLE_ROOM, [str(index.store.location)], env=environment, cwd=tmp_path)
    said = process.communicate()[1].strip().splitlines()[-1]
    assert said.startswith("shards.core.errors.NoSpaceError: /dev/shm: ")
    assert "could not be handed over (" in said
    assert "docker run --shm-size" in said
