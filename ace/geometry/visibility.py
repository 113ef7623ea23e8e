"""Tell which tokens still match when rectangles of the crops are erased (`ace.data.erase`).

Where the teacher sees the erased crops too, an erased token shows no anatomy: for every visible token it is as good as
outside the overlap. Of two erased tokens nothing is known: whether they match is left open (`visible_matches`).

Where the teacher sees whole crops, all its tokens show anatomy; what is compared with an erased token of the student's
is left open (`taught_matches`).
"""

from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from ace.geometry.targets import Matches

VISIBLE_ABOVE = 0.5
"""Share of a token's pixels above which it counts as visible; at or below it the token is erased."""
LeftOut = tuple[Bool[Tensor, "batch rows"], Bool[Tensor, "batch cols"]]
"""Pairs of a row and a column that are both marked are left open."""


def decomposed_visible(
    coarse: Bool[Tensor, "batch {t}*{t}"], *, t: int, k: int, l: int
) -> Bool[Tensor, "batch {k}*{l}*{t}*{t}"]:
    """Give each decomposed coarse token the visibility of the coarse token that it is a part of."""
    parts: Tensor = coarse.reshape(-1, t, t).repeat_interleave(k, dim=1).repeat_interleave(l, dim=2).flatten(1)
    return parts


def composed_visible(
    fine: Bool[Tensor, "batch {t}*{t}"], *, t: int, k: int, l: int
) -> Bool[Tensor, "batch {t}*{t}//({k}*{l})"]:
    """Count a composed fine token as visible if more than half of its k×l fine tokens are."""
    parts: Tensor = fine.reshape(-1, t // k, k, t // l, l).sum((2, 4))
    return (2 * parts > k * l).flatten(1)


def visible_matches(
    matches: Matches, rows: Bool[Tensor, "batch rows"], cols: Bool[Tensor, "batch cols"]
) -> tuple[Matches, LeftOut]:
    """Drop the matches of erased rows and columns; a row whose own match is erased is 0 as a whole.

    Args:
        matches: Soft correspondence, from `ace.geometry.targets`.
        rows: Which tokens of the rows are visible.
        cols: Which tokens of the columns are visible.

    Returns:
        The matches, and the pairs that are left open: those of two erased tokens.
    """
    is_seen = rows[:, :, None] & _at_columns(cols, matches)
    seen = replace(matches, values=matches.values * is_seen)
    return replace(seen, values=seen.values * seen.own[1][:, :, None]), (~rows, ~cols)


def taught_matches(matches: Matches, cols: Bool[Tensor, "batch cols"]) -> tuple[Matches, LeftOut]:
    """Drop the matches with erased columns; all rows, the teacher's tokens, are whole.

    Args:
        matches: Soft correspondence, from `ace.geometry.targets`.
        cols: Which of the student's tokens are visible.

    Returns:
        The matches, and the pairs that are left open: those with an erased column.
    """
    every_row = torch.ones(matches.values.shape[:2], dtype=torch.bool, device=cols.device)
    return replace(matches, values=matches.values * _at_columns(cols, matches)), (every_row, ~cols)


def _at_columns(cols: Bool[Tensor, "batch cols"], matches: Matches) -> Bool[Tensor, "batch rows window"]:
    return cols.gather(1, matches.columns.flatten(1)).view_as(matches.columns)
