"""Global consistency: what two crops share, or views of one canvas (method.md §4; paper sec. 3.2).

Sums and counts are returned, not means: with several ranks or micro-batches the caller adds them up first.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def view_consistency(
    student: Float[Tensor, "views batch out"],
    teacher: Float[Tensor, "teacher_views batch out"],
    valid: Bool[Tensor, " batch"],
    center: Float[Tensor, " out"],
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean of `H(P_t(a), P_s(b))` over all pairs of different views, in nats, summed over the valid samples.

    Of the two crops of a pair it is `L_g = ½[H(P_t(coarse), P_s(fine)) + H(P_t(fine), P_s(coarse))]`; of further
    views DINO's multi-crop loss.

    Args:
        student: Student logits of all views, at least two.
        teacher: Teacher logits of the first of them, not centred.
        valid: Samples whose views all show something to pool; the others are left out of sum and gradient.
        center: Running mean of the teacher's logits, subtracted from them.
        student_temperature: Divides the student's logits.
        teacher_temperature: Divides the teacher's centred logits; lower is sharper.

    Returns:
        The sum and the number of samples in it.
    """
    p = ((teacher.float() - center) / teacher_temperature).softmax(-1)
    log_p = (student.float() / student_temperature).log_softmax(-1)
    pairs = [(p[a] * log_p[b]).sum(-1) for a in range(len(teacher)) for b in range(len(student)) if a != b]
    cross_entropy = -torch.stack(pairs).mean(0)
    return cross_entropy.masked_fill(~valid, 0.0).sum(), valid.sum().float()


def center_sum(
    teacher: Float[Tensor, "teacher_views batch out"], valid: Bool[Tensor, " batch"]
) -> tuple[Float[Tensor, " out"], Float[Tensor, ""]]:
    """Sum of the teacher's logits over all views (both crops) of the valid samples, and how many rows it has."""
    weights = valid.float()
    # Not a matrix product: autocast would compute that in half precision.
    return (weights[:, None] * teacher.float().sum(0)).sum(0), len(teacher) * weights.sum()


def update_center(
    center: Float[Tensor, " out"], logit_sum: Float[Tensor, " out"], count: Float[Tensor, ""], *, momentum: float
) -> Float[Tensor, " out"]:
    """Exponential moving average of the teacher's mean logits; once per optimiser step, after the loss.

    Args:
        center: The current centre.
        logit_sum: `center_sum`, added up over ranks and micro-batches.
        count: Rows in that sum; the centre stays where it is if there are none.
        momentum: 1 keeps the centre.
    """
    mean = logit_sum / count.clamp_min(1.0)
    return torch.where(count > 0, center.lerp(mean, 1.0 - momentum), center)
