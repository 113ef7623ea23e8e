"""Student and teacher: the same backbone and heads, of which only the student learns (method.md §3)."""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ace.models.backbone import Backbone, mean_token
from ace.models.heads import Composer, Decomposer, GlobalHead, LocalHead, LogitScale, normalized
from ace.models.params import GlobalHeadParams, LocalHeadParams, LogitParams, PartForm, WholeForm
from ace.models.precision import full_precision


@dataclass(frozen=True, kw_only=True)
class Branches:
    """Branches say which losses are on; networks build and compute only what these need."""

    global_: bool
    decomposition: bool
    composition: bool
    removal: bool = False


@dataclass(frozen=True, kw_only=True)
class StudentOutputs:
    """Student outputs are what the losses compare with the teacher; None where no loss needs it.

    Token maps are row- major.

    Attributes:
        decomposed: The coarse crop's tokens in parts of one cell, norm 1.
        composed: The fine crop's tokens in wholes of k×l cells, norm 1.
        logits: Global head on the pooled tokens of each crop (coarse, then fine) or view.
        tokens: The backbone's tokens of each crop or view, for the removal term.
    """

    decomposed: Float[Tensor, "batch parts dim"] | None
    composed: Float[Tensor, "batch wholes dim"] | None
    logits: Float[Tensor, "crops batch out"] | None
    tokens: Float[Tensor, "crops batch tokens width"] | None


@dataclass(frozen=True, kw_only=True)
class TeacherOutputs:
    """Teacher outputs are what the losses learn from; None where no loss needs it.

    Token maps are row-major, nothing carries gradient.

    Attributes:
        fine_tokens: Local tokens of the fine crop, norm 1.
        coarse_tokens: Local tokens of the coarse crop, norm 1.
        logits: Global head on the pooled tokens of each crop (coarse, then fine) or view, not centred.
        features: Mean backbone token of every crop seen, for the collapse monitors.
        tokens: The backbone's tokens of each crop or view, for the removal term.
    """

    fine_tokens: Float[Tensor, "batch tokens dim"] | None
    coarse_tokens: Float[Tensor, "batch tokens dim"] | None
    logits: Float[Tensor, "crops batch out"] | None
    features: Float[Tensor, "samples width"]
    tokens: Float[Tensor, "crops batch tokens width"] | None

    @property
    def fine_logits(self) -> Float[Tensor, "batch out"] | None:
        """Logits of the last crop: the fine one of a pair, or the teacher's smallest view."""
        return None if self.logits is None else self.logits[-1]


class Student(nn.Module):
    """Backbone, heads, one Composer and Decomposer per (k, l) ≠ (1, 1), and the scales of the matching logits."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        branches: Branches,
        scales: Iterable[tuple[int, int]],
        global_head: GlobalHeadParams,
        local_head: LocalHeadParams,
        composer: WholeForm,
        decomposer: PartForm,
        logits: LogitParams,
    ) -> None:
        super().__init__()
        width, hidden_dim = backbone.width, local_head.hidden_dim
        is_local = branches.decomposition or branches.composition
        uneven = [(k, l) for k, l in scales if (k, l) != (1, 1)]
        self.branches = branches
        self.backbone = backbone
        self.global_head = GlobalHead(width, global_head) if branches.global_ else None
        self.local_head = LocalHead(width, local_head) if is_local else None
        self.decomposers = nn.ModuleDict()
        self.composers = nn.ModuleDict()
        for k, l in uneven:
            if branches.decomposition:
                self.decomposers[_scale_name(k, l)] = Decomposer(width, k, l, decomposer, hidden_dim)
            if branches.composition:
                self.composers[_scale_name(k, l)] = Composer(width, k, l, composer, hidden_dim)
        self.decomposition_logits = LogitScale(logits) if branches.decomposition else None
        self.composition_logits = LogitScale(logits) if branches.composition else None

    def forward(
        self,
        crops: Sequence[Float[Tensor, "batch channels height width"]],
        pooled: Sequence[Bool[Tensor, "batch tokens"]],
        scale: tuple[int, int] | None,
    ) -> StudentOutputs:
        """Tokens and logits of normalised crops; the one entry for every objective, as DDP needs.

        What a step does not use enters with weight 0, so that every parameter gets a gradient in every step.

        Args:
            crops: The coarse and the fine crop of a pair, or any number of views.
            pooled: Tokens of each that the global head takes the mean of: those inside the overlap, or a view's.
            scale: (k, l) of this step's pairs; None for views.
        """
        branches = self.branches
        needed = [True] * len(crops)
        if scale is not None:
            every = branches.global_ or branches.removal
            needed = [every or branches.decomposition, every or branches.composition]
        tokens = _encode(self.backbone, crops, needed)
        logits = _global_logits(self.global_head, tokens, pooled)
        if scale is None:
            assert logits is not None, "views have the global term alone"
            in_use = (self.backbone, self.global_head)
            logits = _with_idle(logits, [m for m in self.children() if m not in in_use])
            return StudentOutputs(decomposed=None, composed=None, logits=logits, tokens=_stacked(tokens, branches))
        decomposed = composed = None
        if self.local_head is not None and branches.decomposition:
            decomposed = _at_scale(self.decomposers, self.local_head(tokens[0]), *scale)
        if self.local_head is not None and branches.composition:
            composed = _at_scale(self.composers, self.local_head(tokens[1]), *scale)
        return StudentOutputs(
            decomposed=decomposed, composed=composed, logits=logits, tokens=_stacked(tokens, branches)
        )


class Teacher(nn.Module):
    """Exponential moving average of the student's backbone and heads.

    It is always in evaluation mode: the student's stochastic depth is off in it.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.branches = student.branches
        self.backbone = copy.deepcopy(student.backbone)
        self.global_head = copy.deepcopy(student.global_head)
        self.local_head = copy.deepcopy(student.local_head)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in evaluation mode, whatever the training loop switches on."""
        del mode
        return super().train(False)

    @torch.no_grad()
    def forward(
        self,
        crops: Sequence[Float[Tensor, "batch channels height width"]],
        pooled: Sequence[Bool[Tensor, "batch tokens"]],
        *,
        is_pair: bool,
    ) -> TeacherOutputs:
        """Tokens and logits of normalised crops.

        Args:
            crops: The coarse and the fine crop of a pair, or the views that the teacher sees.
            pooled: As for the student.
            is_pair: Whether they are a pair.
        """
        branches = self.branches
        needed = [True] * len(crops)
        if is_pair:
            every = branches.global_ or branches.removal
            needed = [every or branches.composition, every or branches.decomposition]
        tokens = _encode(self.backbone, crops, needed)
        local_fine = local_coarse = None
        if is_pair and self.local_head is not None and branches.decomposition:
            local_fine = self.local_head(tokens[1]).flatten(1, 2)
        if is_pair and self.local_head is not None and branches.composition:
            local_coarse = self.local_head(tokens[0]).flatten(1, 2)
        features = mean_token(torch.cat([seen for seen in tokens if seen is not None]))
        logits = _global_logits(self.global_head, tokens, pooled)
        return TeacherOutputs(
            fine_tokens=local_fine,
            coarse_tokens=local_coarse,
            logits=logits,
            features=features,
            tokens=_stacked(tokens, branches),
        )

    @torch.no_grad()
    def update(self, student: Student, momentum: float) -> None:
        """Move every parameter to `momentum · teacher + (1 − momentum) · student`; copy the buffers.

        Args:
            student: The plain student, not its DDP wrapper.
            momentum: 1 keeps the teacher, 0 copies the student.
        """
        theirs = dict(student.named_parameters())
        names, ours = zip(*self.named_parameters(), strict=True)
        torch._foreach_lerp_(ours, [theirs[name] for name in names], 1.0 - momentum)
        buffers = dict(student.named_buffers())
        for name, buffer in self.named_buffers():
            buffer.copy_(buffers[name])


def _encode(backbone: Backbone, crops: Sequence[Tensor], is_needed: Sequence[bool]) -> list[Any]:
    """Tokens of the crops that are needed, all in one pass; None in the place of the others."""
    needed = [crop for crop, flag in zip(crops, is_needed, strict=True) if flag]
    encoded = iter(backbone(torch.cat(needed)).chunk(len(needed)))
    return [next(encoded) if flag else None for flag in is_needed]


def _stacked(tokens: Sequence[Any], branches: Branches) -> Float[Tensor, "crops batch tokens width"] | None:
    return torch.stack(list(tokens)).flatten(2, 3) if branches.removal else None


def _global_logits(
    head: GlobalHead | None, tokens: Sequence[Any], pooled: Sequence[Tensor]
) -> Float[Tensor, "crops batch out"] | None:
    if head is None:
        return None
    means = [overlap_mean(seen, mask) for seen, mask in zip(tokens, pooled, strict=True)]
    logits: Tensor = head(torch.cat(means)).unflatten(0, (len(means), -1))
    return logits


def overlap_mean(
    tokens: Float[Tensor, "batch rows cols dim"], overlap: Bool[Tensor, "batch rows*cols"]
) -> Float[Tensor, "batch dim"]:
    """Mean token over the overlap, in the tokens' own precision; 0 where the overlap is empty.

    Deviation: the authors take a ViT's class token here, which sees more than the overlap.
    """
    weights = overlap.to(tokens.dtype) / overlap.sum(1, keepdim=True).clamp_min(1)
    # It is a matrix product, which autocast would compute in half precision.
    with full_precision(tokens.device):
        return torch.einsum("bnd,bn->bd", tokens.flatten(1, 2), weights)


def _at_scale(modules: nn.ModuleDict, tokens: Tensor, k: int, l: int) -> Tensor:
    """Tokens through the module of (k, l), flattened row-major and of norm 1; (1, 1) needs no module."""
    name = _scale_name(k, l)
    mapped = tokens if (k, l) == (1, 1) else modules[name](tokens)
    mapped = _with_idle(mapped, [module for other, module in modules.items() if other != name])
    return normalized(mapped.flatten(1, 2))


def _with_idle(value: Tensor, modules: Iterable[nn.Module]) -> Tensor:
    """Add the modules' parameters to the value with weight 0, since DDP waits for a gradient of every one."""
    idle = [parameter.sum() for module in modules for parameter in module.parameters()]
    return value + 0.0 * torch.stack(idle).sum() if idle else value


def _scale_name(k: int, l: int) -> str:
    return f"{k}x{l}"
