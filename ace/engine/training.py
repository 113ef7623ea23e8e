"""A stage gives the engine these objects to train: a state, a step, its batches, and what watches them."""

import hashlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from ace.engine.nonfinite import Dumped


class State(Protocol):
    """Everything a run needs to go on as if it had never stopped; data and schedules follow from its step."""

    step: int
    """Finished steps."""

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain values, `step` among them, which `torch.save` writes without code."""
        ...

    def load_dict(self, values: dict[str, Any]) -> None:
        """Take what `to_dict` gave.

        Raises:
            ConfigError: it is of other code.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that have to be equal to the bit in every process, by name."""
        ...


class Minibatch(Dumped, Protocol):
    """Holds the samples of one process in a step."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Self:
        """Move the samples."""
        ...


Samples = TypeVar("Samples", bound=Minibatch)
_Taken = TypeVar("_Taken", bound=Minibatch, contravariant=True)


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """An outcome tells what one step did.

    Attributes:
        values: What to log, over all ranks: `loss`, `grad_norm`, and whatever else the stage measures.
        local_loss: This rank's loss.
        is_finite: Whether loss and gradient were; if not, nothing was changed but the step's number.
        is_overflow: Whether they were not because the loss scale of fp16 was too large; it has been lowered.
        is_stop_wanted: Whether any rank asked for the end.
    """

    values: dict[str, Any]
    local_loss: Tensor
    is_finite: bool
    is_overflow: bool
    is_stop_wanted: bool


class Step(Protocol[_Taken]):
    """Takes one optimiser step, on every rank with its own batch, and counts it in the state."""

    def __call__(self, batch: _Taken, *, is_logged: bool, is_stop_wanted: bool) -> StepOutcome:
        """Change the state.

        Args:
            batch: This rank's samples, on its device.
            is_logged: Whether to measure what only the log wants.
            is_stop_wanted: Whether this rank asks for the end after this step.
        """
        ...


class Hooks:
    """Hooks let a stage add to the loop; each method does nothing unless a stage overrides it."""

    score: str | None = None
    """Name of the measured figure that the best checkpoint has the highest of; None where there is none."""

    def is_measured_after(self, num_steps: int) -> bool:
        """Tell whether the networks are measured after so many finished steps; equal on every rank."""
        del num_steps
        return False

    def measure(self) -> dict[str, float]:
        """Measure the networks, on the first rank; the others return nothing and wait in their next sum."""
        return {}

    def is_over(self) -> bool:
        """Tell whether training may end before its last step, which is asked after each; equal on every rank."""
        return False

    def warnings(self, row: Mapping[str, float]) -> list[str]:
        """Take one logged row and return what there is to warn of; rows of an earlier process are shown again."""
        del row
        return []


@dataclass(frozen=True, kw_only=True)
class Training(Generic[Samples]):
    """A training as the engine sees it.

    Attributes:
        state: Changed by the step alone.
        step: Takes one step.
        batches: Opens the samples of the steps after `state.step`; it is given what to call while it waits for them.
        augment: Changes a batch on the device, before its step.
        num_steps: Steps of the whole run.
        steps_per_epoch: Steps of an epoch.
        hooks: What watches.
    """

    state: State
    step: Step[Samples]
    batches: Callable[[Callable[[], None]], Generator[Samples, None, None]]
    num_steps: int
    steps_per_epoch: int
    augment: Callable[[Samples], Samples] = lambda batch: batch
    hooks: Hooks = Hooks()  # noqa: RUF009


def seed_of(seed: int, step: int, rank: int) -> int:
    """Seed of a step's random draws (stochastic depth) on one rank."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:8], "big") >> 1
