"""Parameter groups and schedules."""

import math

import pytest
import torch
from torch import nn

from ace.training.optimizer import build_optimizer, parameter_groups, set_schedule
from ace.training.pretrain import build_state
from ace.training.schedules import cosine, linear_warmup, warmup_cosine
from tests.ace.training.conftest import tiny_grid, tiny_params


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    state = build_state(tiny_params(), tiny_grid(), torch.device("cpu"))
    grouped = [id(p) for group in state.optimizer.param_groups for p in group["params"]]
    trainable = [id(p) for p in state.student.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(trainable)
    assert len(set(grouped)) == len(grouped)


def test_learnable_logit_scales_are_trained_and_not_decayed() -> None:
    state = build_state(tiny_params(), tiny_grid(), torch.device("cpu"))
    free = {id(p) for group in state.optimizer.param_groups if not group["is_decayed"] for p in group["params"]}
    logits = state.student.decomposition_logits
    assert logits is not None
    assert {id(logits.log_scale), id(logits.bias)} <= free


def test_only_matrices_are_decayed() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = build_optimizer(module, tiny_params())
    set_schedule(optimizer, lr=0.1, weight_decay=0.5)
    decay = {p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {2: 0.5, 1: 0.0}
    assert all(group["lr"] == 0.1 for group in optimizer.param_groups)


def test_frozen_parameters_are_in_no_group() -> None:
    module = nn.Linear(3, 4)
    module.bias.requires_grad_(False)
    grouped = [p for group in parameter_groups(module) for p in group["params"]]  # type: ignore[attr-defined]
    assert [p.shape for p in grouped] == [module.weight.shape]


@pytest.mark.parametrize("num_steps", [4, 7, 100])
def test_schedules_reach_their_ends(num_steps: int) -> None:
    assert cosine(0.99, 1.0, 0, num_steps) == pytest.approx(0.99)
    assert cosine(0.99, 1.0, num_steps - 1, num_steps) == pytest.approx(1.0)
    assert warmup_cosine(0.3, 1e-6, num_steps - 1, num_steps, num_steps // 2) == pytest.approx(1e-6)
    assert warmup_cosine(0.3, 1e-6, num_steps // 2, num_steps, num_steps // 2) == pytest.approx(0.3)


def test_cosine_is_halfway_in_the_middle_and_warmups_are_linear() -> None:
    assert cosine(0.0, 1.0, 50, 101) == pytest.approx(0.5)
    assert cosine(0.0, 1.0, 25, 101) == pytest.approx(0.5 * (1 - math.cos(math.pi / 4)))
    assert [warmup_cosine(1.0, 0.0, step, 100, 4) for step in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert [linear_warmup(0.07, 0.04, step, 2) for step in (0, 1, 2, 9)] == pytest.approx([0.07, 0.055, 0.04, 0.04])
