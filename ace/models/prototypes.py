"""Cosines with a large matrix of prototypes without ever writing the normalised matrix (method.md §3).

`linear(x, normalize(weight))` reads and writes some ten copies of the weight in a step: 67 MB each at the paper's
65,536 × 256. Here the norms divide the few logits instead, and the gradient is written once and corrected in place.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from ace.models.precision import full_precision

LEAST_NORM = 1e-12
"""Norm that shorter vectors are divided by, as in `torch.nn.functional.normalize`."""


def prototype_logits(x: Float[Tensor, "batch dim"], weight: Float[Tensor, "out dim"]) -> Float[Tensor, "batch out"]:
    """`⟨x, w/‖w‖⟩` for every row w of the weight; value and gradient of `linear(x, normalize(weight))`."""
    # In full precision: half would round cosines to some 0.004, and the temperature divides them by some 0.04.
    with full_precision(x.device):
        logits: Tensor = _PrototypeLogits.apply(x, weight)
    return logits


class _PrototypeLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        inverse_norm = torch.linalg.vector_norm(weight, dim=-1).clamp_min(LEAST_NORM).reciprocal()
        logits: Tensor = (x @ weight.mT) * inverse_norm
        ctx.save_for_backward(x, weight, inverse_norm, logits)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight, inverse_norm, logits = ctx.saved_tensors
        scaled = grad * inverse_norm
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = (scaled @ weight).to(x.dtype)
        if ctx.needs_input_grad[1]:
            # d⟨x, w/‖w‖⟩/dw = (x − logit · w/‖w‖)/‖w‖
            along = (scaled * logits).sum(0) * inverse_norm
            grad_weight = (scaled.mT @ x.to(scaled.dtype)).addcmul_(weight, along[:, None], value=-1)
        return grad_x, grad_weight
