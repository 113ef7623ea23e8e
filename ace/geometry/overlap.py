"""Find the tokens of each crop that lie in the cells that both crops show (method.md §1)."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def overlap_masks(
    coarse: Int[Tensor, "batch 2"], fine: Int[Tensor, "batch 2"], *, t: int, k: int, l: int
) -> tuple[Bool[Tensor, "batch {t}*{t}"], Bool[Tensor, "batch {t}*{t}"]]:
    """Tokens inside the overlap, row-major: `overlap_fine`, then `overlap_coarse`.

    Args:
        coarse: (row, col) origins of the coarse crops, in cells.
        fine: (row, col) origins of the fine crops, in cells; aligned with `coarse` modulo (k, l).
        t: Tokens per crop side.
        k: Cells per coarse token, rows.
        l: Cells per coarse token, columns.
    """
    offset = fine - coarse
    fine_rows, coarse_rows = _axis_masks(offset[:, 0], t=t, factor=k)
    fine_cols, coarse_cols = _axis_masks(offset[:, 1], t=t, factor=l)
    return (
        (fine_rows[:, :, None] & fine_cols[:, None, :]).flatten(1),
        (coarse_rows[:, :, None] & coarse_cols[:, None, :]).flatten(1),
    )


def _axis_masks(
    offset: Int[Tensor, " batch"], *, t: int, factor: int
) -> tuple[Bool[Tensor, "batch {t}"], Bool[Tensor, "batch {t}"]]:
    """Return the masks along one axis, where the fine crop starts `offset` cells after the coarse one."""
    token = torch.arange(t, device=offset.device)
    cell_in_coarse = offset[:, None] + token
    cell_in_fine = factor * token - offset[:, None]
    return (
        (cell_in_coarse >= 0) & (cell_in_coarse < factor * t),
        (cell_in_fine >= 0) & (cell_in_fine < t),
    )
