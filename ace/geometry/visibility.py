"""What matches what when squares of the crops are erased (`ace.data.erase`).

An erased token shows no anatomy: for every visible token it is as good as outside the overlap. Of two erased tokens
nothing is known: whether they match is left open.
"""

from dataclasses import replace

from jaxtyping import Bool
from torch import Tensor

from ace.geometry.targets import Matches


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


def visible_matches(matches: Matches, rows: Bool[Tensor, "batch rows"], cols: Bool[Tensor, "batch cols"]) -> Matches:
    """The matches without those of erased rows and columns; a row whose own match is erased is 0 as a whole.

    Args:
        matches: Soft correspondence, from `ace.geometry.targets`.
        rows: Which tokens of the rows are visible.
        cols: Which tokens of the columns are visible.
    """
    is_seen = rows[:, :, None] & cols.gather(1, matches.columns.flatten(1)).view_as(matches.columns)
    seen = replace(matches, values=matches.values * is_seen)
    return replace(seen, values=seen.values * seen.own[1][:, :, None])
