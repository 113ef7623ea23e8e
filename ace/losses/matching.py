"""Local consistency: matrices of cosines between two token maps against soft correspondence (method.md §4; sec. 3.3).

The same functions serve both directions:

- decomposition: teacher *fine* tokens × student *decomposed coarse* tokens, α = .99;
- composition: teacher *coarse* tokens × student *composed fine* tokens, α = .9.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def matching_loss(
    teacher_tokens: Float[Tensor, "batch rows dim"],
    student_tokens: Float[Tensor, "batch cols dim"],
    target: Float[Tensor, "batch rows cols"],
    known: Bool[Tensor, "batch rows cols"] | None = None,
    *,
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    alpha: float,
) -> Float[Tensor, ""]:
    """Balanced binary cross-entropy of the matching matrix, mean over batch, rows and columns.

    Deviation: the authors' logits are not cosines on both sides; here all tokens have norm 1.

    Args:
        teacher_tokens: Tokens of norm 1, no gradient.
        student_tokens: Tokens of norm 1.
        target: Soft correspondence in [0, 1], from `ace.geometry.targets`.
        known: Pairs that count; None for all.
        scale: Multiplies the cosines.
        bias: Added to the scaled cosines.
        alpha: Weight of a full match; 1 − alpha is that of none.
    """
    logits = matching_logits(teacher_tokens, student_tokens, scale=scale, bias=bias)
    return balanced_bce(logits, target, known, alpha=alpha)


def matching_logits(
    teacher_tokens: Float[Tensor, "batch rows dim"],
    student_tokens: Float[Tensor, "batch cols dim"],
    *,
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
) -> Float[Tensor, "batch rows cols"]:
    """`scale · ⟨teacher, student⟩ + bias` for every pair of tokens, in one multiplication."""
    return torch.baddbmm(bias, teacher_tokens, (student_tokens * scale).mT)


def balanced_bce(
    logits: Float[Tensor, "batch rows cols"],
    target: Float[Tensor, "batch rows cols"],
    known: Bool[Tensor, "batch rows cols"] | None = None,
    *,
    alpha: float,
) -> Float[Tensor, ""]:
    """`(α·y + (1−α)(1−y)) · BCE(σ(x), y)`, mean over all entries; the authors call a focal loss with γ = 0.

    Args:
        logits: x, any real numbers.
        target: y in [0, 1].
        known: Entries that count; the others weigh 0, and the mean stays over all. None for all.
        alpha: Weight of y = 1; 1 − alpha is that of y = 0.
    """
    weight = _weight(target, alpha) if known is None else _weight(target, alpha) * known
    # BCE(σ(x), y) = softplus(x) − x·y: no sigmoid, so no logarithm of 0, and two passes over the matrix.
    return torch.mean(weight * F.softplus(logits.float())) - torch.mean(weight * target * logits.float())


def target_entropy(target: Float[Tensor, "batch rows cols"], *, alpha: float) -> Float[Tensor, ""]:
    """The least `balanced_bce` that any logits reach against this soft target: its weighted binary entropy."""
    entropy = torch.special.entr(target) + torch.special.entr(1.0 - target)
    return torch.mean(_weight(target, alpha) * entropy)


def matching_accuracy(
    teacher_tokens: Float[Tensor, "batch rows dim"],
    student_tokens: Float[Tensor, "batch cols dim"],
    target: Float[Tensor, "batch rows cols"],
) -> Float[Tensor, ""]:
    """Share of the rows inside the overlap whose most similar column is the true match; chance is 1/cols.

    Rows outside the overlap have no match and do not count; with no row inside, the accuracy is 0.
    """
    similarity = teacher_tokens @ student_tokens.detach().mT
    peak, match = target.max(-1)
    is_inside = peak > 0
    is_hit = (similarity.argmax(-1) == match) & is_inside
    return is_hit.sum() / is_inside.sum().clamp_min(1)


def _weight(target: Tensor, alpha: float) -> Tensor:
    return (1.0 - alpha) + (2.0 * alpha - 1.0) * target
