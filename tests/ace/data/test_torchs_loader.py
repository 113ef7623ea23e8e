"""What ace/data/loader.py takes of torch's loader beyond its public interface, which an upgrade may change."""

from collections.abc import Callable
from inspect import signature

import pytest
import torch
from torch.utils.data import DataLoader, _utils, dataloader


def names_in(function: Callable[..., object]) -> set[str]:
    """The attributes that a function looks up."""
    return set(function.__code__.co_names)


def parameters(function: Callable[..., object]) -> list[str]:
    return list(signature(function).parameters)


PARTS: dict[str, Callable[[], bool]] = {
    "DataLoader.__iter__ takes its iterator from _get_iterator()": lambda: (
        "_get_iterator" in names_in(DataLoader.__iter__) and parameters(DataLoader._get_iterator) == ["self"]
    ),
    "both iterators are _BaseDataLoaderIter": lambda: all(
        issubclass(kind, dataloader._BaseDataLoaderIter)
        for kind in (dataloader._SingleProcessDataLoaderIter, dataloader._MultiProcessingDataLoaderIter)
    ),
    "_MultiProcessingDataLoaderIter(loader) takes every batch from _get_data()": lambda: (
        parameters(dataloader._MultiProcessingDataLoaderIter) == ["loader"]
        and "_get_data" in names_in(dataloader._MultiProcessingDataLoaderIter._next_data)
        and parameters(dataloader._MultiProcessingDataLoaderIter._get_data) == ["self"]
    ),
    "_get_data() answers what _try_get_data(timeout) found": lambda: (
        "_try_get_data" in names_in(dataloader._MultiProcessingDataLoaderIter._get_data)
        and parameters(dataloader._MultiProcessingDataLoaderIter._try_get_data) == ["self", "timeout"]
    ),
    "_shutdown_workers() ends _workers, and forgets them where _worker_pids_set says that they are watched": lambda: (
        parameters(dataloader._MultiProcessingDataLoaderIter._shutdown_workers) == ["self"]
        and names_in(dataloader._MultiProcessingDataLoaderIter._shutdown_workers)
        >= {"_workers", "_worker_pids_set", "signal_handling", "_remove_worker_pids"}
    ),
    "signal_handling._remove_worker_pids is there": lambda: callable(_utils.signal_handling._remove_worker_pids),
}


def advice(part: str) -> str:
    return (
        f"torch {torch.__version__}: no longer so: {part}. ace/data/loader.py builds on it to look around while no "
        "batch comes (_Waiting) and to end processes that do not answer (_end): read torch/utils/data/dataloader.py, "
        "mend both, and let test_loader.py and tests/ace/pretrain/test_waiting.py say whether they wait and end"
    )


@pytest.mark.parametrize("part", PARTS)
def test_torchs_loader_still_has_the_parts_that_ours_is_built_on(part: str) -> None:
    try:
        is_so = PARTS[part]()
    except AttributeError:
        is_so = False
    assert is_so, advice(part)


def test_a_running_iterator_of_torch_gives_batches_and_holds_its_processes_as_ours_expects() -> None:
    batches = DataLoader([1, 2], num_workers=1, multiprocessing_context="spawn")._get_iterator()
    try:
        is_there, (number, data) = batches._try_get_data(60.0)
        assert (is_there, number, data.tolist()) == (True, 0, [1]), advice("_try_get_data gives (whether, what)")
        (process,) = batches._workers
        assert process.pid, advice("_workers are processes")
        assert batches._worker_pids_set is True, advice("_worker_pids_set says that processes are watched")
    finally:
        batches._shutdown_workers()
    assert batches._worker_pids_set is False, advice("_shutdown_workers() forgets the processes")
    assert not process.is_alive(), advice("_shutdown_workers() ends the processes")
