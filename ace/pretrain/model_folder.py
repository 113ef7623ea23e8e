"""The finished model as a folder: safetensors, the resolved configuration, the shards it saw, a model card."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from torch import Tensor

from ace.journal.card import model_card
from ace.models.folder import CARD, CONFIG, HEADS, WEIGHTS, WHITENING, Which
from ace.models.model_config import TrainedConfig
from ace.models.networks import Student, Teacher
from ace.models.tensors import write_tensors
from shards.runtime.atomic import write_text


@dataclass(frozen=True, kw_only=True)
class BestTeacher:
    """The teacher at the step at which the probe scored it highest.

    Attributes:
        step: Finished steps.
        score: The probe's figure.
        metric: Its name in the log.
        state: Its tensors, as `Teacher.state_dict` names them.
    """

    step: int
    score: float
    metric: str
    state: Mapping[str, Tensor]


def save_model(
    folder: Path,
    student: Student,
    teacher: Teacher,
    config: TrainedConfig,
    best: BestTeacher | None = None,
    whitening: Mapping[Which, Tensor] = MappingProxyType({}),
) -> None:
    """Write the model's files into an existing, empty folder.

    Args:
        folder: Where.
        student: Its backbone and heads.
        teacher: Its backbone and heads.
        config: The content of config.json.
        best: Its backbone is written too; None for none.
        whitening: The map of a network's tokens, for those that have one.
    """
    states: dict[Which, Mapping[str, Tensor]] = {"student": student.state_dict(), "teacher": teacher.state_dict()}
    heads = {f"{name}.{key}": value for name, s in states.items() for key, value in s.items() if not _is_backbone(key)}
    if best is not None:
        states["best"] = best.state
    for name, state in states.items():
        backbone = {key.removeprefix("backbone."): value for key, value in state.items() if _is_backbone(key)}
        if name in whitening:
            backbone[WHITENING] = whitening[name]
        write_tensors(backbone, folder / WEIGHTS[name])
    write_tensors(heads, folder / HEADS)
    write_text(folder / CONFIG, config.to_text())
    write_text(folder / CARD, model_card(config))


def _is_backbone(key: str) -> bool:
    return key.startswith("backbone.")
