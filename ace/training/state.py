"""Everything a run needs to go on as if it had never stopped, in one file without pickle code."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from ace.models.networks import Student, Teacher
from shards.atomic import atomic_path


@dataclass
class TrainState:
    """Networks, optimiser and the number of finished steps; the data position follows from the step."""

    student: Student
    teacher: Teacher
    optimizer: AdamW
    center: Tensor
    step: int

    def save(self, path: Path) -> None:
        """Write the state atomically, the generators of this process included."""
        state: dict[str, Any] = {
            "step": self.step,
            "student": self.student.state_dict(),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "center": self.center,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.empty(0),
        }
        with atomic_path(path) as temporary:
            torch.save(state, temporary)

    def load(self, path: Path) -> None:
        """Take the state that `save` wrote."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.center.copy_(state["center"])
        self.step = int(state["step"])
        torch.set_rng_state(state["rng"])
        if torch.cuda.is_available() and state["cuda_rng"].numel():
            torch.cuda.set_rng_state(state["cuda_rng"])
