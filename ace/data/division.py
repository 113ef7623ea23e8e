"""Check before training how samples and tars divide among ranks and loader workers."""

from ace.data.loader import PREFETCHED, CropDataset
from ace.data.shared_memory import check_room
from shards.core.errors import ConfigError
from shards.reading.order import num_draws
from shards.runtime.parallel import default_num_workers
from shards.store.location import RemoteStore


def check_division(
    dataset: CropDataset,
    *,
    batch_size: int,
    world_size: int,
    num_local_ranks: int,
    num_workers: int,
    epochs: int,
) -> list[str]:
    """Look at shards × ranks × workers.

    Args:
        dataset: What is trained on.
        batch_size: Samples of a rank in a step.
        world_size: Number of ranks.
        num_local_ranks: Number of ranks on this machine.
        num_workers: Loader processes of a rank; 0 decodes in the rank itself.
        epochs: Epochs of the run.

    Returns:
        Warnings: what was found, what was expected, what to do, where training works but slowly.

    Raises:
        ConfigError: an epoch has too few samples for a step on every rank.
        NoSpaceError: shared memory has too little room for what the loaders of this machine hand over.
    """
    counts = [num_draws(len(rows), mix.weight) for rows, mix in zip(dataset.rows, dataset.mixes, strict=True)]
    num_samples, num_step = sum(counts), world_size * batch_size
    if num_samples < num_step:
        found = ", ".join(f"{index.name} {count}" for index, count in zip(dataset.indexes, counts, strict=True))
        raise ConfigError(
            f"an epoch has {num_samples} training samples ({found}); a step on {world_size} rank(s) × {batch_size} "
            f"samples needs {num_step}: lower pretrain.batch_size or the number of ranks, raise a batch's mix.weight, "
            "or add data"
        )
    if num_workers:
        # Each rank has one batch in hand and takes the next.
        num_batches = num_local_ranks * (PREFETCHED * num_workers + 2)
        check_room(num_batches, dataset.batch_bytes(batch_size))
    num_steps = epochs * (num_samples // num_step)
    checks = (
        _idle_workers(num_workers, num_steps),
        _crowded_cores(num_local_ranks * num_workers, default_num_workers()),
        _few_tars(dataset, world_size * num_workers),
        _window(dataset),
    )
    return [warning for warning in checks if warning is not None]


def _idle_workers(num_workers: int, num_steps: int) -> str | None:
    if num_workers <= num_steps:
        return None
    return (
        f"{num_workers} loader processes a rank for {num_steps} step(s) in the whole run; expected at most as many as "
        "steps, as each step is one process's work: lower pretrain.num_workers"
    )


def _crowded_cores(num_processes: int, num_cores: int) -> str | None:
    if num_processes <= num_cores:
        return None
    return (
        f"{num_processes} loader processes on this machine for {num_cores} core(s) that may be used; expected at most "
        "one a core: lower pretrain.num_workers"
    )


def _few_tars(dataset: CropDataset, num_readers: int) -> str | None:
    remote = [
        index
        for index, mix in zip(dataset.indexes, dataset.mixes, strict=True)
        if isinstance(index.store, RemoteStore) and mix.weight > 0
    ]
    num_tars = sum(tar.split == "train" for index in remote for tar in index.shards)
    if not remote or num_tars >= num_readers:
        return None
    places = ", ".join(index.store.location for index in remote)
    return (
        f"{num_tars} remote training tar(s) ({places}) for {num_readers} loader processes "
        "(ranks × workers); expected at least one each, as one process fetches a tar while the others wait: lower "
        "pretrain.num_workers, or build with a smaller shard.num_images_per_shard"
    )


def _window(dataset: CropDataset) -> str | None:
    if dataset.window is None:
        return None
    return (
        f"the cache of remote shards is smaller than their training tars; samples are shuffled within windows of "
        f"{dataset.window.num_tars} tar(s), not over all, and every tar is fetched again in each epoch: raise "
        "ACE_SHARD_CACHE_GB (the same on all machines) to hold them all"
    )
