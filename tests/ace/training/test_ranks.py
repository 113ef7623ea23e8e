"""Several processes train one network: what would pull them apart is refused, and noticed where it happens."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ace.models.backbone import build_backbone
from ace.training.pretrain import check_statistics
from ace.training.ranks import checksum
from shards.errors import ConfigError
from tests.ace.training.conftest import tiny_grid, tiny_params
from tests.ace.training.runs import finish, saved_steps, start_run

RESNET = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16], "output_stride": 8}
"""Of a small ResNet with tokens of 8 px."""
BENT = """
import os
import torch
from ace.training import loop
take = loop.train_step
def train_step(state, *arguments, **options):
    outcome = take(state, *arguments, **options)
    if os.environ["RANK"] == "1" and state.step == 4:
        {change}
    return outcome
loop.train_step = train_step
"""
"""Python that changes something in one of two processes, after the fourth step."""


def backbone_of(name: str, model_args: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_params().backbone.model_dump(), "name": name, "model_args": model_args, "drop_path": 0.0}


@pytest.mark.parametrize(
    ("world_size", "changes"),
    [(2, {}), (1, {"num_micro_batches": 2}), (1, {"checkpoint_activations": True})],
    ids=["processes", "micro-batches", "activations computed again"],
)
def test_batch_statistics_are_refused_wherever_a_step_is_taken_in_parts(
    world_size: int, changes: dict[str, Any]
) -> None:
    params = tiny_params(backbone=backbone_of("resnet18", RESNET), **changes)
    backbone = build_backbone(params.backbone, tiny_grid().spec)
    with pytest.raises(ConfigError, match=r"resnet18 has 12 layers with statistics of the batch, as model\.bn1"):
        check_statistics(backbone, params, world_size)
    check_statistics(backbone, tiny_params(backbone=params.backbone.model_dump()), 1)
    vit = tiny_params(**changes)
    check_statistics(build_backbone(vit.backbone, tiny_grid().spec), vit, world_size)


def test_two_processes_refuse_a_backbone_with_batch_norm(noise_shards: Path, tmp_path: Path) -> None:
    processes = start_run(noise_shards, tmp_path, num_ranks=2, backbone=backbone_of("resnet18", RESNET))
    for said in finish(processes, 2):
        assert "resnet18 has 12 layers with statistics of the batch" in said
        assert "Traceback" not in said


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("state.student.backbone.model.norm.bias.data[3] += 1e-6", "student.backbone.model.norm.bias"),
        pytest.param(
            "state.teacher.backbone.model.pos_embed.data[0, 0, 0] *= -1",
            "teacher.backbone.model.pos_embed",
            marks=pytest.mark.slow,
        ),
        pytest.param("state.center[0] += 1e-6", "center", marks=pytest.mark.slow),
    ],
    ids=["student", "teacher", "center"],
)
def test_processes_whose_networks_differ_in_one_number_all_end_with_its_name(
    change: str, named: str, noise_shards: Path, tmp_path: Path
) -> None:
    options = {"log_every_steps": 4, "checkpoint_every_s": 3600}
    prelude = BENT.format(change=change)
    for said in finish(start_run(noise_shards, tmp_path, num_ranks=2, prelude=prelude, **options), 2):
        assert "error: step 4: " in said
        assert "tensors differ between the processes" in said
        assert f"as {named}; expected" in said
        assert "Traceback" not in said
    assert saved_steps(tmp_path) == []


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_achecksum_changes_with_every_single_value_of_every_type(dtype: torch.dtype) -> None:
    values = torch.arange(24).remainder(2).view(2, 3, 4).to(dtype)
    for place in range(24):
        other = values.clone()
        other.view(-1)[place] = 1 - other.view(-1)[place].int()
        assert checksum(other) != checksum(values)
    assert checksum(values.transpose(0, 1).contiguous().transpose(0, 1)) == checksum(values)
    assert checksum(values[0, 0, 0]).dtype == torch.int64
