"""Parameter groups and schedules."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from ace.engine.optimizer import build_optimizer, parameter_groups, set_schedule
from ace.engine.schedules import cosine, linear_warmup, warmup_cosine
from ace.pretrain.pretrain import build_state
from shards.core.errors import ConfigError
from tests.ace.pretrain.conftest import demo_values, tiny_grid, tiny_params


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


WINDOWS = {"depths": [1, 1, 1], "num_heads": [1, 2, 4], "window_size": 4}
"""Of a small Swin Transformer of either version."""
BLOCK = {"attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"}
"""The matrices of one block of a transformer."""


def in_blocks(*blocks: str) -> set[str]:
    return {f"{block}.{name}" for block in blocks for name in BLOCK}


@pytest.mark.parametrize(
    ("name", "model_args", "cell_px", "decayed"),
    [
        (
            "vit_tiny_patch16_224",
            {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "reg_tokens": 1},
            8,
            {"patch_embed.proj.weight", *in_blocks("blocks.0", "blocks.1")},
        ),
        (
            "swin_tiny_patch4_window7_224",
            {"embed_dim": 6, **WINDOWS},
            16,
            {
                "patch_embed.proj.weight",
                "layers.1.downsample.reduction.weight",
                "layers.2.downsample.reduction.weight",
                *in_blocks("layers.0.blocks.0", "layers.1.blocks.0", "layers.2.blocks.0"),
            },
        ),
        (
            "swinv2_tiny_window8_256",
            {"embed_dim": 8, **WINDOWS},
            16,
            {
                "patch_embed.proj.weight",
                "layers.1.downsample.reduction.weight",
                "layers.2.downsample.reduction.weight",
                *in_blocks("layers.0.blocks.0", "layers.1.blocks.0", "layers.2.blocks.0"),
            },
        ),
        (
            "convnext_atto",
            {"patch_size": 8, "depths": [1, 1, 0, 0], "dims": [8, 8, 8, 8], "output_stride": 16},
            16,
            {
                "stem.0.weight",
                *(f"stages.{s}.downsample.1.weight" for s in (1, 2, 3)),
                *(f"stages.{s}.blocks.0.{part}.weight" for s in (0, 1) for part in ("conv_dw", "mlp.fc1", "mlp.fc2")),
            },
        ),
    ],
)
def test_of_a_backbone_exactly_these_parameters_are_decayed(
    name: str, model_args: dict[str, Any], cell_px: int, decayed: set[str]
) -> None:
    """Neither norms, biases, tokens, position embeddings and tables, nor what SwinV2 makes its logits with."""
    backbone = {**demo_values("pretrain")["backbone"], "name": name, "model_args": model_args}
    params = tiny_params(backbone=backbone, local_head={"form": "linear", "hidden_dim": 8}, composer="mlp")
    state = build_state(params, tiny_grid(n=8, t=4, cell_px=cell_px), torch.device("cpu"))
    ids = {id(p) for group in state.optimizer.param_groups if group["is_decayed"] for p in group["params"]}
    found = {name for name, parameter in state.student.named_parameters() if id(parameter) in ids}
    of_backbone = {name for name in found if name.startswith("backbone.")}
    assert of_backbone == {f"backbone.model.{name}" for name in decayed}
    assert found - of_backbone == {
        *(f"global_head.mlp.{layer}.weight" for layer in (0, 2, 4)),
        "global_head.last_layer.weight",
        "local_head.map.weight",
        "decomposers.2x2.map.weight",
        "composers.2x2.map.0.weight",
        "composers.2x2.map.2.weight",
    }


def test_frozen_parameters_are_in_no_group() -> None:
    module = nn.Linear(3, 4)
    module.bias.requires_grad_(False)
    grouped = [p for group in parameter_groups(module) for p in group["params"]]  # type: ignore[attr-defined]
    assert [p.shape for p in grouped] == [module.weight.shape]


def test_a_checkpoint_of_other_parameter_groups_is_refused_with_what_to_do() -> None:
    """As code wrote it that decayed the position embedding too."""
    state = build_state(tiny_params(), tiny_grid(), torch.device("cpu"))
    values = state.to_dict()
    decay, no_decay = values["optimizer"]["param_groups"]
    decay["params"].append(no_decay["params"].pop())
    with pytest.raises(ConfigError, match=r"by code with other networks or parameter groups: .*begin a new run"):
        state.load_dict(values)


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
