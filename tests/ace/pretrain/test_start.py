"""A new run that starts from a finished model: what it takes, what it leaves random, what it refuses."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from ace.models.model_config import TrainedConfig
from ace.pretrain.model_folder import save_model
from ace.pretrain.pretrain import build_state
from ace.pretrain.start import check_start, start_files, start_from
from ace.pretrain.state import TrainState
from shards.core.errors import ConfigError
from tests.ace.journal.test_card import config_of
from tests.ace.pretrain.conftest import tiny_grid, tiny_params


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
    save_model(folder, state.student, state.teacher, TrainedConfig.model_validate(config_of()))
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


def test_a_stage_needs_the_digest_of_the_model_it_starts_from_and_notices_another(
    finished: tuple[TrainState, Path],
) -> None:
    _, folder = finished
    names = ("teacher_backbone.safetensors", "student_backbone.safetensors", "heads.safetensors")
    printed = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, check=True).stdout
    digest = hashlib.sha256(printed).hexdigest()
    alone, pinned = tiny_params(start_from=str(folder)), tiny_params(start_from=str(folder), start_from_sha256=digest)
    for is_required in (False, True):
        check_start(pinned, is_required=is_required)
        check_start(tiny_params(), is_required=is_required)
    check_start(alone, is_required=False)
    with pytest.raises(ConfigError, match=rf"the sha256 {digest}, but pretrain\.start_from_sha256 is not set"):
        check_start(alone, is_required=True)
    other = state_of(5)
    save_model(folder, other.student, other.teacher, TrainedConfig.model_validate(config_of()))
    with pytest.raises(
        ConfigError, match=rf"but pretrain\.start_from_sha256 is {digest}; get the model that was meant"
    ):
        check_start(pinned, is_required=False)


def test_a_digest_without_a_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="start_from is null; set both of them or neither"):
        tiny_params(start_from_sha256="0" * 64)
