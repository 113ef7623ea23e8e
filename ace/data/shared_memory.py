"""Shared memory holds the batches that loader processes hand over; here its room is checked."""

import shutil
from pathlib import Path

from shards.core.errors import NoSpaceError

FOLDER = Path("/dev/shm")
"""Files of memory on Linux, through which torch's processes share tensors; elsewhere there is no such folder."""
REMEDY = (
    f"give {FOLDER} more (docker run --shm-size; in Kubernetes an emptyDir of medium Memory mounted there), or lower "
    "pretrain.num_workers (with 0 nothing is handed over) or pretrain.batch_size"
)


def free_bytes() -> int | None:
    """Bytes of shared memory that are free; None where the system does not tell."""
    return shutil.disk_usage(FOLDER).free if FOLDER.is_dir() else None


def check_room(num_batches: int, batch_bytes: int) -> None:
    """Check that shared memory has room for all batches that may lie in it at once.

    Args:
        num_batches: Of all training processes of this machine.
        batch_bytes: Bytes of one batch.

    Raises:
        NoSpaceError: there is too little; a loader would lose batches, and training wait for them.
    """
    free, needed = free_bytes(), num_batches * batch_bytes
    if free is not None and free < needed:
        raise NoSpaceError(
            f"{FOLDER}: {_in_mb(free)} free, and the loader's processes hand over up to {num_batches} batch(es) of "
            f"{_in_mb(batch_bytes)} there, {_in_mb(needed)} in all; {REMEDY}"
        )


def no_room(batch_bytes: int, error: Exception) -> NoSpaceError:
    """Return the error for a batch that could not be handed over."""
    free = free_bytes()
    found = "" if free is None else f"{_in_mb(free)} free, "
    return NoSpaceError(
        f"{FOLDER}: {found}and a batch of {_in_mb(batch_bytes)} could not be handed over ({error}); {REMEDY}. The same "
        "command goes on at the last checkpoint"
    )


def _in_mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.3g} MB"
