"""Global consistency of the overlap seen in two crops (method.md §4; paper sec. 3.2).

Sums and counts are returned, not means: with several ranks or micro-batches the caller adds them up first.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def global_consistency(
    student_coarse: Float[Tensor, "batch out"],
    student_fine: Float[Tensor, "batch out"],
    teacher_coarse: Float[Tensor, "batch out"],
    teacher_fine: Float[Tensor, "batch out"],
    valid: Bool[Tensor, " batch"],
    center: Float[Tensor, " out"],
    *,
    student_temperature: float,
    teacher_temperature: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """`L_g = ½[H(P_t(coarse), P_s(fine)) + H(P_t(fine), P_s(coarse))]`, in nats, summed over the valid samples.

    Args:
        student_coarse: Student logits of the coarse crops.
        student_fine: Student logits of the fine crops.
        teacher_coarse: Teacher logits of the coarse crops, not centred.
        teacher_fine: Teacher logits of the fine crops, not centred.
        valid: Samples whose overlap is not empty; the others are left out of sum and gradient.
        center: Running mean of the teacher's logits, subtracted from them.
        student_temperature: Divides the student's logits.
        teacher_temperature: Divides the teacher's centred logits; lower is sharper.

    Returns:
        The sum and the number of samples in it.
    """
    p_coarse = _sharpened(teacher_coarse, center, teacher_temperature)
    p_fine = _sharpened(teacher_fine, center, teacher_temperature)
    log_p_coarse = (student_coarse.float() / student_temperature).log_softmax(-1)
    log_p_fine = (student_fine.float() / student_temperature).log_softmax(-1)
    cross_entropy = -0.5 * ((p_coarse * log_p_fine).sum(-1) + (p_fine * log_p_coarse).sum(-1))
    return cross_entropy.masked_fill(~valid, 0.0).sum(), valid.sum().float()


def center_sum(
    teacher_coarse: Float[Tensor, "batch out"], teacher_fine: Float[Tensor, "batch out"], valid: Bool[Tensor, " batch"]
) -> tuple[Float[Tensor, " out"], Float[Tensor, ""]]:
    """Sum of the teacher's logits over both crops of the valid samples, and how many rows it has."""
    weights = valid.float()
    # Not a matrix product: autocast would compute that in half precision.
    return (weights[:, None] * (teacher_coarse.float() + teacher_fine.float())).sum(0), 2 * weights.sum()


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


def _sharpened(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    return ((logits.float() - center) / temperature).softmax(-1)
