"""Student and teacher: the same backbone and heads, of which only the student learns (method.md §3)."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ace.models.backbone import Backbone
from ace.models.heads import Composer, Decomposer, GlobalHead, LocalHead, LogitScale
from ace.models.params import GlobalHeadParams, LocalHeadParams, LogitParams, PartForm, WholeForm


@dataclass(frozen=True)
class Branches:
    """Which losses are on; networks build and compute only what these need."""

    global_: bool
    decomposition: bool
    composition: bool


@dataclass(frozen=True)
class StudentOutputs:
    """What the losses compare with the teacher; None where no loss needs it. Token maps are row-major.

    Attributes:
        decomposed: The coarse crop's tokens in parts of one cell, norm 1.
        composed: The fine crop's tokens in wholes of k×l cells, norm 1.
        coarse_logits: Global head on the coarse crop's overlap.
        fine_logits: Global head on the fine crop's overlap.
    """

    decomposed: Float[Tensor, "batch parts dim"] | None
    composed: Float[Tensor, "batch wholes dim"] | None
    coarse_logits: Float[Tensor, "batch out"] | None
    fine_logits: Float[Tensor, "batch out"] | None


@dataclass(frozen=True)
class TeacherOutputs:
    """What the losses learn from; None where no loss needs it. Token maps are row-major, nothing carries gradient.

    Attributes:
        fine_tokens: Local tokens of the fine crop, norm 1.
        coarse_tokens: Local tokens of the coarse crop, norm 1.
        coarse_logits: Global head on the coarse crop's overlap, not centred.
        fine_logits: Global head on the fine crop's overlap, not centred.
        features: Mean backbone token of every crop seen, for the collapse monitors.
    """

    fine_tokens: Float[Tensor, "batch tokens dim"] | None
    coarse_tokens: Float[Tensor, "batch tokens dim"] | None
    coarse_logits: Float[Tensor, "batch out"] | None
    fine_logits: Float[Tensor, "batch out"] | None
    features: Float[Tensor, "crops width"]


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
        coarse: Float[Tensor, "batch channels height width"],
        fine: Float[Tensor, "batch channels height width"],
        overlap_coarse: Bool[Tensor, "batch tokens"],
        overlap_fine: Bool[Tensor, "batch tokens"],
        *,
        k: int,
        l: int,
    ) -> StudentOutputs:
        """Tokens and logits of normalised crops.

        Args:
            coarse: Coarse crops.
            fine: Fine crops.
            overlap_coarse: Tokens of the coarse crops inside the overlap.
            overlap_fine: Tokens of the fine crops inside the overlap.
            k: Cells per coarse token of this step, rows.
            l: Cells per coarse token of this step, columns.
        """
        branches = self.branches
        coarse_tokens, fine_tokens = _encode(
            self.backbone,
            coarse if branches.global_ or branches.decomposition else None,
            fine if branches.global_ or branches.composition else None,
        )
        decomposed = composed = None
        if self.local_head is not None and branches.decomposition:
            decomposed = _at_scale(self.decomposers, self.local_head(coarse_tokens), k, l)
        if self.local_head is not None and branches.composition:
            composed = _at_scale(self.composers, self.local_head(fine_tokens), k, l)
        return StudentOutputs(
            decomposed,
            composed,
            *_global_logits(self.global_head, coarse_tokens, fine_tokens, overlap_coarse, overlap_fine),
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
        coarse: Float[Tensor, "batch channels height width"],
        fine: Float[Tensor, "batch channels height width"],
        overlap_coarse: Bool[Tensor, "batch tokens"],
        overlap_fine: Bool[Tensor, "batch tokens"],
    ) -> TeacherOutputs:
        """Tokens and logits of normalised crops; arguments as for the student."""
        branches = self.branches
        coarse_tokens, fine_tokens = _encode(
            self.backbone,
            coarse if branches.global_ or branches.composition else None,
            fine if branches.global_ or branches.decomposition else None,
        )
        local_fine = local_coarse = None
        if self.local_head is not None and branches.decomposition:
            local_fine = self.local_head(fine_tokens).flatten(1, 2)
        if self.local_head is not None and branches.composition:
            local_coarse = self.local_head(coarse_tokens).flatten(1, 2)
        seen = [tokens for tokens in (coarse_tokens, fine_tokens) if tokens is not None]
        return TeacherOutputs(
            local_fine,
            local_coarse,
            *_global_logits(self.global_head, coarse_tokens, fine_tokens, overlap_coarse, overlap_fine),
            features=torch.cat(seen).mean((1, 2)),
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


def _encode(backbone: Backbone, coarse: Tensor | None, fine: Tensor | None) -> tuple[Any, Any]:
    """Tokens of the crops that are there, both in one pass."""
    if coarse is None or fine is None:
        return (None if coarse is None else backbone(coarse)), (None if fine is None else backbone(fine))
    coarse_tokens, fine_tokens = backbone(torch.cat([coarse, fine])).chunk(2)
    return coarse_tokens, fine_tokens


def _global_logits(
    head: GlobalHead | None,
    coarse_tokens: Tensor | None,
    fine_tokens: Tensor | None,
    overlap_coarse: Tensor,
    overlap_fine: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    if head is None or coarse_tokens is None or fine_tokens is None:
        return None, None
    pooled = [overlap_mean(coarse_tokens, overlap_coarse), overlap_mean(fine_tokens, overlap_fine)]
    coarse_logits, fine_logits = head(torch.cat(pooled)).chunk(2)
    return coarse_logits, fine_logits


def overlap_mean(
    tokens: Float[Tensor, "batch rows cols dim"], overlap: Bool[Tensor, "batch rows*cols"]
) -> Float[Tensor, "batch dim"]:
    """Mean token over the overlap; 0 where the overlap is empty.

    Deviation: the authors take a ViT's class token here, which sees more than the overlap.
    """
    weights = overlap.to(tokens.dtype) / overlap.sum(1, keepdim=True).clamp_min(1)
    return torch.einsum("bnd,bn->bd", tokens.flatten(1, 2), weights)


def _at_scale(modules: nn.ModuleDict, tokens: Tensor, k: int, l: int) -> Tensor:
    """Tokens through the module of (k, l), flattened row-major and of norm 1; (1, 1) needs no module.

    The modules of other scales enter with weight 0: DDP waits for a gradient of every parameter.
    """
    name = _scale_name(k, l)
    mapped = tokens if (k, l) == (1, 1) else modules[name](tokens)
    unused = [p.sum() for other, module in modules.items() if other != name for p in module.parameters()]
    if unused:
        mapped = mapped + 0.0 * torch.stack(unused).sum()
    return F.normalize(mapped.flatten(1, 2).float(), dim=-1)


def _scale_name(k: int, l: int) -> str:
    return f"{k}x{l}"
