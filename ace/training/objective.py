"""The total loss of one batch as a sum of named terms: `L = w_g·L_g + w_d·L_dec + w_c·L_com` (method.md §4)."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ace.data.batches import PairBatch
from ace.geometry.overlap import overlap_masks
from ace.geometry.targets import composition_target, decomposition_target
from ace.geometry.visibility import composed_visible, decomposed_visible, known_pairs, visible_matches
from ace.losses.consistency import center_sum, global_consistency
from ace.losses.matching import matching_accuracy, matching_loss, target_entropy
from ace.models.heads import LogitScale
from ace.models.networks import Branches, Student, StudentOutputs, Teacher, TeacherOutputs
from ace.training.params import LossWeights, MatchingLossParams, PretrainParams


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


def branches_of(weights: LossWeights) -> Branches:
    """The branches with a weight above 0."""
    return Branches(weights.global_ > 0, weights.decomposition > 0, weights.composition > 0)


def count_valid(batch: PairBatch, t: int) -> Float[Tensor, ""]:
    """How many samples the global term has: those whose overlap shows a visible token in both crops."""
    fine, coarse = _visible_overlaps(batch, t)
    return (fine.any(1) & coarse.any(1)).sum().float()


def compute_loss(
    student: nn.Module,
    teacher: Teacher,
    batch: PairBatch,
    center: Float[Tensor, " out"],
    params: PretrainParams,
    *,
    t: int,
    teacher_temperature: float,
    logit_scales: Student,
    num_valid: Float[Tensor, ""],
    share: float = 1.0,
) -> StepResult:
    """Both networks on one micro-batch, and every term that is switched on.

    The losses of a rank's micro-batches, added up and averaged over the ranks, are the loss of the whole batch.

    Args:
        student: The student, or its DDP wrapper.
        teacher: The teacher.
        batch: Crop pairs on the networks' device.
        center: Running mean of the teacher's global logits.
        params: Section `pretrain`.
        t: Tokens per crop side.
        teacher_temperature: Of this step.
        logit_scales: The plain student, whose matching scales and biases the losses use.
        num_valid: `count_valid` of the whole batch, over all micro-batches and ranks, divided by the number of ranks.
        share: This micro-batch's part of the rank's samples.
    """
    k, l = batch.k, batch.l
    overlap_fine, overlap_coarse = _visible_overlaps(batch, t)
    coarse, fine = batch.normalised_coarse(), batch.normalised_fine()
    student_out: StudentOutputs = student(coarse, fine, overlap_coarse, overlap_fine, k=k, l=l)
    teacher_out: TeacherOutputs = teacher(coarse, fine, overlap_coarse, overlap_fine)
    weights, matching = params.loss_weights, params.matching_loss
    terms: dict[str, Tensor] = {}
    parts: list[Tensor] = []
    sums = None
    if weights.global_ > 0:
        student_logits = _present(student_out.coarse_logits, student_out.fine_logits)
        teacher_logits = _present(teacher_out.coarse_logits, teacher_out.fine_logits)
        valid = overlap_fine.any(1) & overlap_coarse.any(1)
        total, _ = global_consistency(
            *student_logits,
            *teacher_logits,
            valid,
            center,
            student_temperature=params.global_loss.student_temperature,
            teacher_temperature=teacher_temperature,
        )
        terms["loss_global"] = total / num_valid.clamp_min(1)
        parts.append(weights.global_ * terms["loss_global"])
        sums = center_sum(*teacher_logits, valid)
    if weights.decomposition > 0:
        target = decomposition_target(batch.coarse_origin, batch.fine_origin, t=t, k=k, l=l)
        visible = batch.fine_visible, decomposed_visible(batch.coarse_visible, t=t, k=k, l=l)
        tokens = teacher_out.fine_tokens, student_out.decomposed
        loss = _matching(
            "decomposition", tokens, target, visible, logit_scales.decomposition_logits, matching, share, terms
        )
        parts.append(weights.decomposition * loss)
    if weights.composition > 0:
        target = composition_target(batch.coarse_origin, batch.fine_origin, t=t, k=k, l=l)
        visible = batch.coarse_visible, composed_visible(batch.fine_visible, t=t, k=k, l=l)
        tokens = teacher_out.coarse_tokens, student_out.composed
        loss = _matching(
            "composition", tokens, target, visible, logit_scales.composition_logits, matching, share, terms
        )
        parts.append(weights.composition * loss)
    loss = torch.stack(parts).sum()
    detached = {name: value.detach() for name, value in terms.items()}
    return StepResult(loss, {"loss": loss.detach(), **detached}, teacher_out, sums)


def _visible_overlaps(batch: PairBatch, t: int) -> tuple[Bool[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
    """Tokens of the fine and of the coarse crops that lie in the overlap and are not erased."""
    fine, coarse = overlap_masks(batch.coarse_origin, batch.fine_origin, t=t, k=batch.k, l=batch.l)
    return fine & batch.fine_visible, coarse & batch.coarse_visible


def _matching(
    name: str,
    tokens: tuple[Tensor | None, Tensor | None],
    target: Tensor,
    visible: tuple[Tensor, Tensor],
    logits: LogitScale | None,
    params: MatchingLossParams,
    share: float,
    terms: dict[str, Tensor],
) -> Tensor:
    """One matching term, with its excess over the soft targets' entropy and its accuracy over visible matches."""
    teacher_tokens, student_tokens = _present(*tokens)
    assert logits is not None
    scale, bias = logits()
    alpha = params.alpha_decomposition if name == "decomposition" else params.alpha_composition
    matches = visible_matches(target, *visible)
    known = known_pairs(*visible)
    loss = share * matching_loss(teacher_tokens, student_tokens, matches, known, scale=scale, bias=bias, alpha=alpha)
    terms[f"loss_{name}"] = loss
    terms[f"loss_{name}_excess"] = loss - share * target_entropy(matches, alpha=alpha)
    terms[f"accuracy_{name}"] = share * matching_accuracy(teacher_tokens, student_tokens, matches)
    return loss


def _present(first: Tensor | None, second: Tensor | None) -> tuple[Tensor, Tensor]:
    """Outputs of a branch that is on: the networks compute them whenever its weight is above 0."""
    assert first is not None
    assert second is not None
    return first, second
