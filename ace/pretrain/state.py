"""Everything a run needs to go on as if it had never stopped."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import AdamW

from ace.engine.optimizer import load_optimizer
from ace.models.networks import Student, Teacher
from shards.core.errors import ConfigError


@dataclass(kw_only=True)
class TrainState:
    """Networks, optimiser, loss scale, centre and the number of finished steps.

    Data position, schedules and random draws follow from the step and the seed, on every rank and in every worker, so
    they are not part of it.
    """

    student: Student
    teacher: Teacher
    optimizer: AdamW
    scaler: GradScaler
    center: Tensor
    step: int

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain values, which `torch.save` writes without code."""
        return {
            "step": self.step,
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "center": self.center,
        }

    def load_dict(self, values: dict[str, Any]) -> None:
        """Take what `to_dict` gave.

        Raises:
            ConfigError: the tensors or the optimiser's groups are those of other code.
        """
        try:
            self.student.load_state_dict(values["student"])
            self.teacher.load_state_dict(values["teacher"])
            load_optimizer(self.optimizer, values["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"the checkpoint was written by code with other networks or parameter groups: {error}; go on with that "
                "code, or begin a new run"
            ) from None
        self.scaler.load_state_dict(values["scaler"])
        with torch.no_grad():
            self.center.copy_(values["center"])
        self.step = int(values["step"])

    def tensors(self) -> dict[str, Tensor]:
        """Everything that has to be equal to the bit in every process, by name."""
        return {
            **{f"student.{name}": value for name, value in self.student.state_dict().items()},
            **{f"teacher.{name}": value for name, value in self.teacher.state_dict().items()},
            "center": self.center,
        }
