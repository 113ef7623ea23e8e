"""AdamW over two groups: matrices with weight decay; biases, norms and scalars without."""

from torch import nn
from torch.optim import AdamW

from ace.training.params import OptimizerParams


def parameter_groups(module: nn.Module) -> list[dict[str, object]]:
    """Every trainable parameter in exactly one of two groups: `decay` (matrices and kernels) and `no_decay`."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"name": "decay", "params": [p for p in trainable if p.ndim > 1], "is_decayed": True},
        {"name": "no_decay", "params": [p for p in trainable if p.ndim <= 1], "is_decayed": False},
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
