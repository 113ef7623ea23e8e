"""Local consistency: matrices of cosines between two token maps against soft correspondence (method.md §4; sec. 3.3).

The same functions serve both directions:

- decomposition: teacher *fine* tokens × student *decomposed coarse* tokens, α = .99;
- composition: teacher *coarse* tokens × student *composed fine* tokens, α = .9.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from ace.geometry.targets import Matches
from ace.geometry.visibility import LeftOut


def matching_loss(
    teacher_tokens: Float[Tensor, "batch rows dim"],
    student_tokens: Float[Tensor, "batch cols dim"],
    matches: Matches,
    left_out: LeftOut | None = None,
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
        matches: Soft correspondence in [0, 1], from `ace.geometry.targets`, of visible tokens only.
        left_out: Pairs that are left open, from `ace.geometry.visibility`; None for none.
        scale: Multiplies the cosines.
        bias: Added to the scaled cosines.
        alpha: Weight of a full match; 1 − alpha is that of none.
    """
    logits = matching_logits(teacher_tokens, student_tokens, scale=scale, bias=bias)
    return balanced_bce(logits, matches, left_out, alpha=alpha)


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
    logits: Float[Tensor, "batch rows cols"], matches: Matches, left_out: LeftOut | None = None, *, alpha: float
) -> Float[Tensor, ""]:
    """`(α·y + (1−α)(1−y)) · BCE(σ(x), y)`, mean over all entries; the authors call a focal loss with γ = 0.

    Args:
        logits: x, any real numbers.
        matches: y in [0, 1]; 0 for pairs that are left out.
        left_out: Rows and columns whose common pairs weigh 0, while the mean stays over all. None for none.
        alpha: Weight of y = 1; 1 − alpha is that of y = 0.
    """
    x, y = logits.float(), matches.values
    # BCE(σ(x), y) = softplus(x) − x·y: no sigmoid, so no logarithm of 0. Where y is 0, most of the matrix, the first
    # summand alone is left; what is more in the windows is added there.
    no_match = F.softplus(x)
    total = no_match.sum()
    if left_out is not None:
        rows, cols = (mask.float() for mask in left_out)
        total = total - ((no_match * cols[:, None]).sum(-1) * rows).sum()
    near = x.gather(-1, matches.columns)
    more = (2.0 * alpha - 1.0) * y * F.softplus(near) - _weight(y, alpha) * y * near
    loss: Tensor = ((1.0 - alpha) * total + more.sum()) / x.numel()
    return loss


def target_entropy(matches: Matches, *, alpha: float) -> Float[Tensor, ""]:
    """Compute the least `balanced_bce` that any logits reach against this soft target: its weighted binary entropy."""
    y = matches.values
    entropy = torch.special.entr(y) + torch.special.entr(1.0 - y)
    batch, rows, _ = y.shape
    floor: Tensor = (_weight(y, alpha) * entropy).sum() / (batch * rows * matches.num_columns)
    return floor


def matching_accuracy(
    teacher_tokens: Float[Tensor, "batch rows dim"],
    student_tokens: Float[Tensor, "batch cols dim"],
    matches: Matches,
    visible: Bool[Tensor, "batch cols"],
) -> Float[Tensor, ""]:
    """Share of the rows inside the overlap whose most similar visible column is the true match; chance is 1/cols.

    Rows outside the overlap, or whose match is erased, have no match and do not count; without any the accuracy is 0.
    """
    similarity = (teacher_tokens @ student_tokens.detach().mT).masked_fill(~visible[:, None], -torch.inf)
    match, peak = matches.own
    is_inside = peak > 0
    is_hit = (similarity.argmax(-1) == match) & is_inside
    return is_hit.sum() / is_inside.sum().clamp_min(1)


def _weight(target: Tensor, alpha: float) -> Tensor:
    return (1.0 - alpha) + (2.0 * alpha - 1.0) * target
