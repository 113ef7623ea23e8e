"""What matches what when squares of the crops are erased (`ace.data.erase`).

An erased token shows no anatomy: for every visible token it is as good as outside the overlap. Of two erased tokens
nothing is known: whether they match is left open.
"""

from jaxtyping import Bool, Float
from torch import Tensor


def decomposed_visible(
    coarse: Bool[Tensor, "batch {t}*{t}"], *, t: int, k: int, l: int
) -> Bool[Tensor, "batch {k}*{l}*{t}*{t}"]:
    """Of the decomposed coarse tokens: each is as visible as the coarse token it is a part of."""
    parts: Tensor = coarse.reshape(-1, t, t).repeat_interleave(k, dim=1).repeat_interleave(l, dim=2).flatten(1)
    return parts


def composed_visible(
    fine: Bool[Tensor, "batch {t}*{t}"], *, t: int, k: int, l: int
) -> Bool[Tensor, "batch {t}*{t}//({k}*{l})"]:
    """Of the composed fine tokens: those of whose k×l fine tokens more than half are visible."""
    parts: Tensor = fine.reshape(-1, t // k, k, t // l, l).sum((2, 4))
    return (2 * parts > k * l).flatten(1)


def visible_matches(
    target: Float[Tensor, "batch rows cols"],
    rows: Bool[Tensor, "batch rows"],
    cols: Bool[Tensor, "batch cols"],
) -> Float[Tensor, "batch rows cols"]:
    """The target without its erased rows and columns; a row whose own match is erased is 0 as a whole.

    Args:
        target: Soft correspondence, from `ace.geometry.targets`: rows inside the overlap have one 1, others are 0.
        rows: Which tokens of the rows are visible.
        cols: Which tokens of the columns are visible.
    """
    seen = target * (rows[:, :, None] & cols[:, None, :])
    return seen * (seen.amax(-1, keepdim=True) == 1)


def known_pairs(rows: Bool[Tensor, "batch rows"], cols: Bool[Tensor, "batch cols"]) -> Bool[Tensor, "batch rows cols"]:
    """Pairs of tokens of which it is known whether they match: all but two erased ones."""
    return rows[:, :, None] | cols[:, None, :]
