"""AdamW over two groups: matrices and kernels with weight decay; biases, norms and what timm exempts without."""

from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim import AdamW

from ace.engine.params import OptimizerParams


def parameter_groups(module: nn.Module) -> list[dict[str, object]]:
    """Put every trainable parameter in exactly one of two groups: `decay` (matrices and kernels) and `no_decay`.

    The rule is timm's: biases, whatever has one dimension or none, and what an architecture names in its
    `no_weight_decay` are not decayed, such as position embeddings, class tokens and SwinV2's scales of attention.
    """
    exempt = [
        f"{path}.{name}" if path else name
        for path, part in module.named_modules()
        if hasattr(part, "no_weight_decay")
        for name in part.no_weight_decay()
    ]
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for group in param_groups_weight_decay(module, weight_decay=1.0, no_weight_decay_list=exempt):
        (decayed if group["weight_decay"] else free).extend(group["params"])
    return [
        {"name": "decay", "params": decayed, "is_decayed": True},
        {"name": "no_decay", "params": free, "is_decayed": False},
    ]


def build_optimizer(module: nn.Module, params: OptimizerParams) -> AdamW:
    """AdamW whose learning rate and weight decay are set at every step by `set_schedule`."""
    groups = parameter_groups(module)
    return AdamW(groups, lr=0.0, weight_decay=0.0, betas=(params.beta1, params.beta2), fused=True)


def set_schedule(optimizer: AdamW, *, lr: float, weight_decay: float) -> None:
    """Set this step's learning rate for all parameters and its weight decay for the decayed group."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        group["weight_decay"] = weight_decay if group["is_decayed"] else 0.0


def load_optimizer(optimizer: AdamW, values: dict[str, Any]) -> None:
    """Take the optimiser's state of a checkpoint.

    A device may lay kernels out otherwise than the one that saved; the fused optimiser takes its averages to lie as the
    weights do.

    Raises:
        ValueError: it has other groups of parameters.
    """
    optimizer.load_state_dict(values)
    for weight, kept in optimizer.state.items():
        for name, value in kept.items():
            if value.shape == weight.shape and value.stride() != weight.stride():
                kept[name] = torch.empty_like(weight, requires_grad=False).copy_(value)
