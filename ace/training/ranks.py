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

from ace.models.encoder import default_device
from shards.errors import ConfigError, ShardError

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
        """Whether this one logs and saves."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The tensor added up over the ranks, in place and the same on each; every rank has to call it."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def is_true_of_any(self, flag: bool) -> bool:
        """Whether any rank's flag is set; every rank has to call it, and waits until all did."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def differing(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Names of the tensors that some rank has otherwise than the first, to the bit; every rank has to call it.

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
        """What `function` returns on this rank, once it has returned on all; it may not wait for other ranks itself.

        Raises:
            ShardError: this rank's own, or as ConfigError that of another: nobody waits for a rank that gave up.
        """
        if self.world_size == 1:
            return function()
        error: ShardError | None = None
        try:
            value = function()
        except ShardError as own:
            error = own
        messages: list[str | None] = [None] * self.world_size
        dist.all_gather_object(messages, None if error is None else str(error))
        if error is not None:
            raise error
        for rank, message in enumerate(messages):
            if message is not None:
                raise ConfigError(f"process {rank} of {self.world_size}: {message}")
        return value

    def from_first(self, function: Callable[[], Value]) -> Value:
        """What `function` returns on the first rank, which alone calls it; errors are as in `together`."""
        answer: list[Any] = [self.together(lambda: function() if self.is_first else None)]
        if self.world_size > 1:
            dist.broadcast_object_list(answer, device=self.device)
        value: Value = answer[0]
        return value

    def averaging(self, module: nn.Module) -> nn.Module:
        """The module as it is called in training: its gradients become the mean over the ranks."""
        if self.world_size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True)


ALONE = Ranks(0, 1, torch.device("cpu"))
"""One process on the CPU."""


@contextmanager
def open_ranks() -> Iterator[Ranks]:
    """This process's rank, from the variables that `torchrun` sets; without them it is alone.

    NCCL joins processes that have an accelerator each, gloo those on CPUs.

    Raises:
        ConfigError: the variables are incomplete, or there are more processes on this machine than accelerators.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Ranks(0, 1, default_device())
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {world_size} and {', '.join(missing)} not set; start with torchrun, or set them all "
            "(docs/training.md has recipes for Slurm and Kubernetes)"
        )
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    device = default_device()
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"LOCAL_RANK is {local_rank} and this machine shows {torch.cuda.device_count()} accelerator(s); "
                "start as many processes a machine as it has"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield Ranks(rank, world_size, device)
    finally:
        dist.destroy_process_group()


def checksum(tensor: Tensor) -> Tensor:
    """Add up a tensor's values read as whole numbers, wrapping round: every single bit changes the sum."""
    return tensor.detach().flatten().view(WHOLE[tensor.element_size()]).sum(dtype=torch.int64)
