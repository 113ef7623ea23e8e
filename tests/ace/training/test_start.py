"""A new run that starts from a finished model: what it takes, what it leaves random, what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ace.training.model_folder import save_model
from ace.training.pretrain import build_state
from ace.training.start import start_files, start_from
from ace.training.state import TrainState
from shards.errors import ConfigError
from tests.ace.training.conftest import tiny_grid, tiny_params
from tests.ace.training.test_card import config_of


def state_of(seed: int, **changes: Any) -> TrainState:
    """Networks whose teacher is not the student."""
    torch.manual_seed(seed)
    state = build_state(tiny_params(**changes), tiny_grid(), torch.device("cpu"))
    with torch.no_grad():
        for parameter in state.teacher.parameters():
            parameter.add_(torch.randn_like(parameter))
    return state


@pytest.fixture
def finished(tmp_path: Path) -> tuple[TrainState, Path]:
    state, folder = state_of(0), tmp_path / "model"
    folder.mkdir()
    save_model(folder, state.student, state.teacher, config_of())
    return state, folder


def test_student_and_teacher_each_take_their_own_backbone_and_heads(finished: tuple[TrainState, Path]) -> None:
    old, folder = finished
    new = state_of(1)
    account = start_from(new, folder)
    for name in ("student", "teacher"):
        theirs = getattr(old, name).state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in getattr(new, name).state_dict().items())
    assert new.step == 0
    assert new.optimizer.state_dict()["state"] == {}
    assert "not resuming" in account
    assert "unused" not in account


def test_heads_of_another_size_stay_random_and_are_named(finished: tuple[TrainState, Path]) -> None:
    old, folder = finished
    new = state_of(1, global_head={"hidden_dim": 16, "bottleneck_dim": 8, "out_dim": 48})
    before = new.student.global_head.last_layer.weight.clone()
    account = start_from(new, folder)
    assert torch.equal(new.student.global_head.last_layer.weight, before)
    assert torch.equal(new.student.global_head.mlp[0].weight, old.student.global_head.mlp[0].weight)
    assert account.count("left random: global_head.last_layer.weight") == 2
    assert account.count("unused: global_head.last_layer.weight") == 2


def test_another_backbone_and_a_folder_without_a_model_are_refused(
    finished: tuple[TrainState, Path], tmp_path: Path
) -> None:
    backbone = tiny_params().backbone.model_dump()
    backbone["model_args"] = {**backbone["model_args"], "depth": 1}
    with pytest.raises(ConfigError, match=r"the student's backbone has other tensors .*blocks\.1"):
        start_from(state_of(1, backbone=backbone), finished[1])
    with pytest.raises(ConfigError, match=r"no teacher_backbone\.safetensors, .*heads\.safetensors; expected a model"):
        start_files(tmp_path)
