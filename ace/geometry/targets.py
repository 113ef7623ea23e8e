"""Correspondence between the tokens of two crops as soft matrices, one axis at a time (method.md §2).

A row of an axis matrix is a token of one crop; inside the overlap it holds the window exp(−d²/2) around the token's
match in the other crop (peak 1), cut only at the matrix edge; outside the overlap it is 0. The window is separable,
so the Kronecker product of the row and the column matrix is the exact 2-D target, both token maps row-major.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

DECOMPOSITION_RADIUS = 2
COMPOSITION_RADIUS = 1


def axis_decomposition(
    coarse: Int[Tensor, " batch"], fine: Int[Tensor, " batch"], *, t: int, k: int
) -> Float[Tensor, "batch {t} {k}*{t}"]:
    """`A_dec` of one axis: fine token against decomposed coarse token (k of them a coarse token), radius 2.

    Args:
        coarse: Origins of the coarse crops along the axis, in cells.
        fine: Origins of the fine crops along the axis, in cells.
        t: Tokens per crop side.
        k: Cells per coarse token along the axis.
    """
    token = torch.arange(t, device=fine.device)
    match = (fine - coarse)[:, None] + token
    return _windows(match, num_columns=k * t, radius=DECOMPOSITION_RADIUS)


def axis_composition(
    coarse: Int[Tensor, " batch"], fine: Int[Tensor, " batch"], *, t: int, k: int
) -> Float[Tensor, "batch {t} {t}//{k}"]:
    """`A_com` of one axis: coarse token against composed fine token (one for k fine tokens), radius 1.

    Args: as for `axis_decomposition`; the origins are aligned modulo k.
    """
    token = torch.arange(t, device=fine.device)
    match = torch.div((coarse - fine)[:, None] + k * token, k, rounding_mode="floor")
    return _windows(match, num_columns=t // k, radius=COMPOSITION_RADIUS)


def decomposition_target(
    coarse: Int[Tensor, "batch 2"], fine: Int[Tensor, "batch 2"], *, t: int, k: int, l: int
) -> Float[Tensor, "batch {t}*{t} {k}*{l}*{t}*{t}"]:
    """Fine tokens against decomposed coarse tokens, values in [0, 1], every row inside the overlap with one 1.

    Args:
        coarse: (row, col) origins of the coarse crops, in cells.
        fine: (row, col) origins of the fine crops, in cells; aligned with `coarse` modulo (k, l).
        t: Tokens per crop side.
        k: Cells per coarse token, rows.
        l: Cells per coarse token, columns.
    """
    rows = axis_decomposition(coarse[:, 0], fine[:, 0], t=t, k=k)
    cols = axis_decomposition(coarse[:, 1], fine[:, 1], t=t, k=l)
    return _batched_kron(rows, cols)


def composition_target(
    coarse: Int[Tensor, "batch 2"], fine: Int[Tensor, "batch 2"], *, t: int, k: int, l: int
) -> Float[Tensor, "batch {t}*{t} {t}*{t}//({k}*{l})"]:
    """Coarse tokens against composed fine tokens, values in [0, 1], every row inside the overlap with one 1.

    Args: as for `decomposition_target`.
    """
    rows = axis_composition(coarse[:, 0], fine[:, 0], t=t, k=k)
    cols = axis_composition(coarse[:, 1], fine[:, 1], t=t, k=l)
    return _batched_kron(rows, cols)


def _windows(
    match: Int[Tensor, "batch rows"], *, num_columns: int, radius: int
) -> Float[Tensor, "batch rows {num_columns}"]:
    """A Gaussian window around each row's match; no window where the match lies outside the matrix."""
    column = torch.arange(num_columns, device=match.device)
    distance = (column - column[:, None]).float()
    windows = torch.exp(-0.5 * distance.square()) * (distance.abs() <= radius)
    # Every window there can be, between two empty rows for matches outside: one gather instead of many exponentials.
    return F.pad(windows, (0, 0, 1, 1))[match.clamp(-1, num_columns) + 1]


def _batched_kron(
    rows: Float[Tensor, "batch r1 c1"], cols: Float[Tensor, "batch r2 c2"]
) -> Float[Tensor, "batch r1*r2 c1*c2"]:
    """`torch.kron` of each pair in the batch."""
    # The smaller factor is spread out first: the large multiplication then reads whole runs of memory.
    spread = rows[..., None].expand(-1, -1, -1, cols.shape[2]).contiguous()
    return (spread[:, :, None] * cols[:, None, :, None, :]).flatten(3).flatten(1, 2)
