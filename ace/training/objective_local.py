"""The matching terms of crop pairs: decomposition and composition (method.md §4; paper sec. 3.3)."""

from torch import Tensor

from ace.data.batches import PairBatch
from ace.geometry.targets import Matches, composition_target, decomposition_target
from ace.geometry.visibility import composed_visible, decomposed_visible, taught_matches, visible_matches
from ace.losses.matching import matching_accuracy, matching_loss, target_entropy
from ace.models.heads import LogitScale
from ace.models.networks import Student, StudentOutputs, TeacherOutputs
from ace.training.params import PretrainParams


def local_terms(
    batch: PairBatch,
    student: StudentOutputs,
    teacher: TeacherOutputs,
    logit_scales: Student,
    params: PretrainParams,
    *,
    t: int,
    share: float,
    is_measured: bool,
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The matching terms whose weight is above 0.

    Args:
        batch: Crop pairs.
        student: The student's outputs on them.
        teacher: The teacher's outputs on them.
        logit_scales: The plain student, whose matching scales and biases the losses use.
        params: Section `pretrain`.
        t: Tokens per crop side.
        share: Multiplies every term: this micro-batch's part of the rank's samples.
        is_measured: Whether to measure more than the losses.

    Returns:
        The weighted losses, and by name each loss and, if measured, its excess over the soft targets' entropy and its
        accuracy.
    """
    origins, k, l = (batch.coarse_origin, batch.fine_origin), batch.k, batch.l
    weights, matching = params.loss_weights, params.matching_loss
    is_whole = weights.removal > 0
    weighted: list[Tensor] = []
    terms: dict[str, Tensor] = {}
    if weights.decomposition > 0:
        target = decomposition_target(*origins, t=t, k=k, l=l)
        visible = batch.fine_visible, decomposed_visible(batch.coarse_visible, t=t, k=k, l=l)
        tokens, logits = (teacher.fine_tokens, student.decomposed), logit_scales.decomposition_logits
        alpha = matching.alpha_decomposition
        named = _matching("decomposition", tokens, target, visible, logits, alpha, is_whole, is_measured)
        terms |= {key: share * value for key, value in named.items()}
        weighted.append(weights.decomposition * terms["loss_decomposition"])
    if weights.composition > 0:
        target = composition_target(*origins, t=t, k=k, l=l)
        visible = batch.coarse_visible, composed_visible(batch.fine_visible, t=t, k=k, l=l)
        tokens, logits = (teacher.coarse_tokens, student.composed), logit_scales.composition_logits
        alpha = matching.alpha_composition
        named = _matching("composition", tokens, target, visible, logits, alpha, is_whole, is_measured)
        terms |= {key: share * value for key, value in named.items()}
        weighted.append(weights.composition * terms["loss_composition"])
    return weighted, terms


def _matching(
    name: str,
    tokens: tuple[Tensor | None, Tensor | None],
    target: Matches,
    visible: tuple[Tensor, Tensor],
    logits: LogitScale | None,
    alpha: float,
    is_whole: bool,
    is_measured: bool,
) -> dict[str, Tensor]:
    """One matching term and, if measured, its excess and its accuracy, over visible matches.

    `is_whole` says that the teacher saw whole crops, so that all its tokens count.
    """
    teacher_tokens, student_tokens = tokens
    # Built and computed whenever the branch's weight is above 0.
    assert teacher_tokens is not None
    assert student_tokens is not None
    assert logits is not None
    scale, bias = logits()
    matches, left_out = taught_matches(target, visible[1]) if is_whole else visible_matches(target, *visible)
    loss = matching_loss(teacher_tokens, student_tokens, matches, left_out, scale=scale, bias=bias, alpha=alpha)
    terms = {f"loss_{name}": loss}
    if is_measured:
        terms[f"loss_{name}_excess"] = loss - target_entropy(matches, alpha=alpha)
        terms[f"accuracy_{name}"] = matching_accuracy(teacher_tokens, student_tokens, matches, visible[1])
    return terms
