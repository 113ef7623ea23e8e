"""Heads on backbone tokens: global, local, Composer, Decomposer, and the scale of matching logits (method.md §3)."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ace.models.params import GlobalHeadParams, LocalForm, LocalHeadParams, LogitParams, PartForm, WholeForm
from ace.models.prototypes import prototype_logits


class GlobalHead(nn.Module):
    """Pooled tokens to prototype logits: 3-layer MLP, L2-norm, last layer with rows of norm 1 (g fixed at 1)."""

    def __init__(self, width: int, params: GlobalHeadParams) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, params.hidden_dim),
            nn.GELU(),
            nn.Linear(params.hidden_dim, params.hidden_dim),
            nn.GELU(),
            nn.Linear(params.hidden_dim, params.bottleneck_dim),
        )
        self.last_layer = nn.Linear(params.bottleneck_dim, params.out_dim, bias=False)
        _initialise(self.mlp)

    def forward(self, pooled: Float[Tensor, "batch width"]) -> Float[Tensor, "batch out"]:
        """Cosines, in [−1, 1], with each prototype."""
        return prototype_logits(normalized(self.mlp(pooled)), self.last_layer.weight)


class LocalHead(nn.Module):
    """Each token by itself to an L2-normalised token of the same width."""

    def __init__(self, width: int, params: LocalHeadParams) -> None:
        super().__init__()
        self.map = _token_map(params.form, width, params.hidden_dim, width)

    def forward(self, tokens: Float[Tensor, "batch rows cols dim"]) -> Float[Tensor, "batch rows cols dim"]:
        """Tokens of norm 1."""
        return normalized(self.map(tokens))


class Composer(nn.Module):
    """k×l tokens of the fine crop to one; they are concatenated in (row, col, channel) order."""

    def __init__(self, width: int, k: int, l: int, form: WholeForm, hidden_dim: int) -> None:
        super().__init__()
        self.k, self.l = k, l
        self.map = None if form == "mean" else _token_map(form, k * l * width, hidden_dim, width)

    def forward(
        self, tokens: Float[Tensor, "batch rows cols dim"]
    ) -> Float[Tensor, "batch rows//{self.k} cols//{self.l} dim"]:
        """Composed tokens, not normalised."""
        batch, rows, cols, dim = tokens.shape
        parts = tokens.reshape(batch, rows // self.k, self.k, cols // self.l, self.l, dim).transpose(2, 3)
        wholes: Tensor = parts.mean((3, 4)) if self.map is None else self.map(parts.flatten(3))
        return wholes


class Decomposer(nn.Module):
    """One token of the coarse crop to k×l, laid out in (row, col, channel) order (depth to space)."""

    def __init__(self, width: int, k: int, l: int, form: PartForm, hidden_dim: int) -> None:
        super().__init__()
        self.k, self.l = k, l
        self.map = _token_map(form, width, hidden_dim, k * l * width)

    def forward(
        self, tokens: Float[Tensor, "batch rows cols dim"]
    ) -> Float[Tensor, "batch rows*{self.k} cols*{self.l} dim"]:
        """Decomposed tokens, not normalised."""
        batch, rows, cols, dim = tokens.shape
        parts: Tensor = self.map(tokens).reshape(batch, rows, cols, self.k, self.l, dim)
        return parts.transpose(2, 3).reshape(batch, rows * self.k, cols * self.l, dim)


class LogitScale(nn.Module):
    """Scale and bias that turn cosines into logits; trained if the parameters say so, constants otherwise."""

    def __init__(self, params: LogitParams) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(params.scale)), requires_grad=params.learnable)
        self.bias = nn.Parameter(torch.tensor(params.bias), requires_grad=params.learnable)

    def forward(self) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the scale, above 0, and the bias."""
        return self.log_scale.exp(), self.bias


def normalized(tokens: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    """Divide each vector by its length, in fp32 or better: in fp16 the least length allowed, 1e-12, would be 0."""
    return F.normalize(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), dim=-1)


def _token_map(form: LocalForm | PartForm, in_dim: int, hidden_dim: int, out_dim: int) -> nn.Module:
    match form:
        case "identity":
            return nn.Identity()
        case "linear":
            layers: nn.Module = nn.Linear(in_dim, out_dim)
        case "mlp":
            layers = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, out_dim))
    _initialise(layers)
    return layers


def _initialise(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
