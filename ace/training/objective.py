"""The total loss of one batch as a sum of named terms (method.md §4).

Of crop pairs: `L = w_g·L_g + w_d·L_dec + w_c·L_com`. Of views: `L = w_g·L_views`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ace.data.batches import PairBatch, ViewBatch
from ace.geometry.overlap import overlap_masks
from ace.losses.consistency import center_sum, view_consistency
from ace.models.networks import Branches, Student, StudentOutputs, Teacher, TeacherOutputs
from ace.training.objective_local import local_terms
from ace.training.params import PretrainParams


@dataclass(frozen=True)
class StepResult:
    """Loss of one micro-batch with its parts.

    Attributes:
        loss: This micro-batch's part of what is minimised.
        terms: Named parts and accuracies, detached; those of a step's micro-batches add up, ranks are averaged.
        teacher: The teacher's outputs, for the collapse monitors.
        center_sum: Sum of the teacher's global logits and how many rows it has; None without the global branch.
    """

    loss: Float[Tensor, ""]
    terms: dict[str, Float[Tensor, ""]]
    teacher: TeacherOutputs
    center_sum: tuple[Tensor, Tensor] | None


def branches_of(params: PretrainParams) -> Branches:
    """The branches with a weight above 0; `dino`, which has no pairs, has the global one alone."""
    if params.objective == "dino":
        return Branches(True, False, False)
    weights = params.loss_weights
    return Branches(weights.global_ > 0, weights.decomposition > 0, weights.composition > 0)


def count_valid(batch: PairBatch | ViewBatch, t: int) -> Float[Tensor, ""]:
    """How many samples the global term has: those with a token to pool in both crops, or in every view."""
    return _is_valid(_pooled(batch, t)).sum().float()


def compute_loss(
    student: nn.Module,
    teacher: Teacher,
    batch: PairBatch | ViewBatch,
    center: Float[Tensor, " out"],
    params: PretrainParams,
    *,
    t: int,
    teacher_temperature: float,
    logit_scales: Student,
    num_valid: Float[Tensor, ""],
    share: float = 1.0,
    is_measured: bool = True,
) -> StepResult:
    """Both networks on one micro-batch, and every term that is switched on.

    The losses of a rank's micro-batches, added up and averaged over the ranks, are the loss of the whole batch.

    Args:
        student: The student, or its DDP wrapper.
        teacher: The teacher.
        batch: Crop pairs or views on the networks' device.
        center: Running mean of the teacher's global logits.
        params: Section `pretrain`.
        t: Tokens per crop side.
        teacher_temperature: Of this step.
        logit_scales: The plain student, whose matching scales and biases the losses use.
        num_valid: `count_valid` of the whole batch, over all micro-batches and ranks, divided by the number of ranks.
        share: This micro-batch's part of the rank's samples.
        is_measured: Whether to measure accuracies and excesses, which only the log wants.
    """
    pooled = _pooled(batch, t)
    if isinstance(batch, ViewBatch):
        name, crops, scale, num_taught = "loss_views", batch.normalised_views(), None, batch.num_teacher_views
    else:
        name, crops, scale = "loss_global", [batch.normalised_coarse(), batch.normalised_fine()], (batch.k, batch.l)
        num_taught = len(crops)
    student_out: StudentOutputs = student(crops, pooled, scale)
    teacher_out: TeacherOutputs = teacher(crops[:num_taught], pooled[:num_taught], is_pair=scale is not None)
    terms: dict[str, Tensor] = {}
    parts: list[Tensor] = []
    sums = None
    if student_out.logits is not None and teacher_out.logits is not None:
        valid = _is_valid(pooled)
        total, _ = view_consistency(
            student_out.logits,
            teacher_out.logits,
            valid,
            center,
            student_temperature=params.global_loss.student_temperature,
            teacher_temperature=teacher_temperature,
        )
        terms[name] = total / num_valid.clamp_min(1)
        parts.append(params.loss_weights.global_ * terms[name])
        sums = center_sum(teacher_out.logits, valid)
    if isinstance(batch, PairBatch):
        weighted, named = local_terms(
            batch, student_out, teacher_out, logit_scales, params, t=t, share=share, is_measured=is_measured
        )
        parts, terms = parts + weighted, terms | named
    loss = torch.stack(parts).sum()
    detached = {name: value.detach() for name, value in terms.items()}
    return StepResult(loss, {"loss": loss.detach(), **detached}, teacher_out, sums)


def _pooled(batch: PairBatch | ViewBatch, t: int) -> Sequence[Bool[Tensor, "batch tokens"]]:
    """Tokens whose mean the global head takes, none of them erased: of a pair those in the overlap, of a view all."""
    if isinstance(batch, ViewBatch):
        return batch.visible.unbind(1)
    fine, coarse = overlap_masks(batch.coarse_origin, batch.fine_origin, t=t, k=batch.k, l=batch.l)
    return coarse & batch.coarse_visible, fine & batch.fine_visible


def _is_valid(pooled: Sequence[Bool[Tensor, "batch tokens"]]) -> Bool[Tensor, " batch"]:
    return torch.stack([mask.any(1) for mask in pooled]).all(0)
