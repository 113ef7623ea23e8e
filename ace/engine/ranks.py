"""The processes of one training: which of them this one is, and what they add up and agree on."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ace.engine.notices import NoticeBoard, describe, open_board
from ace.engine.stop import StoppedAloneError, StoppedError
from ace.models.device import choose_device
from shards.core.errors import ConfigError, OutOfReachError, UserError

Value = TypeVar("Value")

# The first rank alone probes, saves and publishes: the others wait for it in their next sum.
TIMEOUT = timedelta(hours=1)
WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers by their size in bytes."""


@dataclass(frozen=True)
class Ranks:
    """This process among all of a training's.

    Attributes:
        rank: Its number, 0 for the one that logs and saves.
        world_size: How many there are.
        device: Where its networks and batches lie.
    """

    rank: int
    world_size: int
    device: torch.device

    @property
    def num_local(self) -> int:
        """Ranks on this machine, as torchrun says; 1 where nobody does."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    @property
    def is_first(self) -> bool:
        """Tell whether this rank logs and saves."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add up the tensor over the ranks, in place and the same on each; every rank has to call it."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def is_true_of_any(self, flag: bool) -> bool:
        """Tell whether any rank's flag is set; every rank has to call it, and waits until all did."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def differing(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Name the tensors that differ in any bit between some rank and the first; every rank has to call it.

        Args:
            tensors: The same names on every rank.
        """
        if self.world_size == 1:
            return []
        own = torch.stack([checksum(tensor) for tensor in tensors.values()])
        every = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(every, own)
        is_equal = (torch.stack(every) == every[0]).all(0).tolist()
        return [name for name, flag in zip(tensors, is_equal, strict=True) if not flag]

    def together(self, function: Callable[[], Value]) -> Value:
        """Return the result of `function` on this rank once it has returned on all ranks.

        The function may not wait for other ranks itself.

        Raises:
            Exception: this rank's own, whatever it is.
            ConfigError: another rank has failed for a reason that a user can mend; nobody waits for it.
            SystemExit: another rank has failed otherwise; its own output has the traceback.
        """
        if self.world_size == 1:
            return function()
        error: Exception | None = None
        try:
            value = function()
        except Exception as own:
            error = own
        failures: list[tuple[str, bool] | None] = [None] * self.world_size
        is_mistake = isinstance(error, UserError) and not isinstance(error, OutOfReachError)
        dist.all_gather_object(
            failures, None if error is None else (describe(self.rank, self.world_size, error), is_mistake)
        )
        if error is not None:
            raise error
        for failure in failures:
            if failure is not None:
                message, is_mistake = failure
                raise ConfigError(message) if is_mistake else SystemExit(f"error: {message}")
        return value

    def from_first(self, function: Callable[[], Value]) -> Value:
        """Return the first rank's result of `function`, which it alone calls; errors are as in `together`."""
        answer: list[Any] = [self.together(lambda: function() if self.is_first else None)]
        if self.world_size > 1:
            dist.broadcast_object_list(answer, device=self.device)
        value: Value = answer[0]
        return value

    def averaging(self, module: nn.Module) -> nn.Module:
        """Wrap the module for training, so that its gradients become the mean over the ranks.

        Buffers are made equal once, here: a training refuses networks whose buffers a step changes.
        """
        if self.world_size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        learner = DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)
        # Set, not passed: the argument of this name would leave them unequal at the start, and is going out of use.
        learner.broadcast_buffers = False
        return learner


ALONE = Ranks(0, 1, torch.device("cpu"))
"""One process on the CPU."""


@contextmanager
def open_ranks(device: str = "auto") -> Iterator[Ranks]:
    """This process's rank, from the variables that `torchrun` sets; without them it is alone.

    NCCL joins processes that have an accelerator each, gloo those on CPUs.

    Args:
        device: As for `choose_device`; of several processes each takes the accelerator of its `LOCAL_RANK`.

    Raises:
        ConfigError: there is no such device, the variables are incomplete, there are more processes on this machine
            than accelerators, or some processes have accelerators and others none.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Ranks(0, 1, choose_device(device))
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {world_size}, but {', '.join(missing)} not set; start with torchrun, or set all of them "
            "(docs/training.md has recipes for Slurm and Kubernetes)"
        )
    rank = int(os.environ["RANK"])
    board, store = open_board(rank, world_size)
    with board.shared_end():
        own = _agreed_device(device, board)
        if own.type == "cuda":
            torch.cuda.set_device(own)
        backend = "nccl" if own.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)
        try:
            yield Ranks(rank, world_size, own)
        except StoppedAloneError:
            raise
        except StoppedError:
            dist.destroy_process_group()
            raise
        # After a failure, and alone, it would wait for what others never send; the process ends anyway.
        dist.destroy_process_group()


def _agreed_device(name: str, board: NoticeBoard) -> torch.device:
    """This process's device, once all have found theirs and they are of one kind: each kind has its own backend."""
    error: ConfigError | None = None
    try:
        own = _local_device(name)
    except ConfigError as found:
        error = found
    notices = board.exchange(own.type if error is None else f"error: {error}")
    if error is not None:
        raise error
    for rank, notice in enumerate(notices):
        if notice.startswith("error: "):
            raise ConfigError(f"process {rank} of {len(notices)}: {notice.removeprefix('error: ')}")
    if len(set(notices)) > 1:
        found_by = "; ".join(
            f"{kind}: {', '.join(str(rank) for rank, notice in enumerate(notices) if notice == kind)}"
            for kind in sorted(set(notices))
        )
        raise ConfigError(
            f"the processes found different devices ({found_by}); expected one kind. Mend the machines without an "
            "accelerator (driver, torch built for it), or train all of them with --device cpu"
        )
    return own


def _local_device(name: str) -> torch.device:
    """Return the device of this process among those of its machine."""
    device, local_rank = choose_device(name), int(os.environ["LOCAL_RANK"])
    if device.type != "cuda":
        return device
    if name not in ("auto", "cuda"):
        raise ConfigError(f"device '{name}': several processes take one accelerator each; use auto or cuda")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"LOCAL_RANK is {local_rank} and this machine shows {torch.cuda.device_count()} accelerator(s); "
            "start as many processes a machine as it has"
        )
    return torch.device("cuda", local_rank)


def checksum(tensor: Tensor) -> Tensor:
    """Add up a tensor's values read as whole numbers, wrapping round: every single bit changes the sum."""
    return tensor.detach().flatten().view(WHOLE[tensor.element_size()]).sum(dtype=torch.int64)
