"""Correspondence between the tokens of two crops as soft matrices, one axis at a time (method.md §2).

A row of an axis matrix is a token of one crop; inside the overlap it holds the window exp(−d²/2) around the token's
match in the other crop (peak 1), cut only at the matrix edge; outside the overlap it is 0. The window is separable,
so the Kronecker product of the row and the column matrix is the exact 2-D target, both token maps row-major.

All but a few entries of a row are 0 (25 of 784 are not, on the paper's grid), so a matrix is kept as its windows.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

DECOMPOSITION_RADIUS = 2
COMPOSITION_RADIUS = 1


@dataclass(frozen=True)
class Matches:
    """A matrix of soft correspondence by its rows' windows; all other entries are 0.

    Attributes:
        columns: Column of each entry; the middle one is that of the row's own match.
        values: The entries, in [0, 1], the middle one 1; 0 in rows without a match and beyond the matrix edge.
        num_columns: Of the matrix.
    """

    columns: Int[Tensor, "batch rows window"]
    values: Float[Tensor, "batch rows window"]
    num_columns: int

    @property
    def own(self) -> tuple[Int[Tensor, "batch rows"], Float[Tensor, "batch rows"]]:
        """Column and value of each row's own match; the value is 1, or 0 where there is none."""
        middle = self.columns.shape[-1] // 2
        return self.columns[..., middle], self.values[..., middle]

    def dense(self) -> Float[Tensor, "batch rows cols"]:
        """Return the whole matrix."""
        shape = (*self.columns.shape[:2], self.num_columns)
        return self.values.new_zeros(shape).scatter_add_(-1, self.columns, self.values)


def axis_decomposition(coarse: Int[Tensor, " batch"], fine: Int[Tensor, " batch"], *, t: int, k: int) -> Matches:
    """`A_dec` [t, k·t] of one axis: fine token against decomposed coarse token (k of them a coarse token), radius 2.

    Args:
        coarse: Origins of the coarse crops along the axis, in cells.
        fine: Origins of the fine crops along the axis, in cells.
        t: Tokens per crop side.
        k: Cells per coarse token along the axis.
    """
    token = torch.arange(t, device=fine.device)
    match = (fine - coarse)[:, None] + token
    return _windows(match, num_columns=k * t, radius=DECOMPOSITION_RADIUS)


def axis_composition(coarse: Int[Tensor, " batch"], fine: Int[Tensor, " batch"], *, t: int, k: int) -> Matches:
    """`A_com` [t, t/k] of one axis: coarse token against composed fine token (one for k fine tokens), radius 1.

    Args: as for `axis_decomposition`; the origins are aligned modulo k.
    """
    token = torch.arange(t, device=fine.device)
    match = torch.div((coarse - fine)[:, None] + k * token, k, rounding_mode="floor")
    return _windows(match, num_columns=t // k, radius=COMPOSITION_RADIUS)


def decomposition_target(
    coarse: Int[Tensor, "batch 2"], fine: Int[Tensor, "batch 2"], *, t: int, k: int, l: int
) -> Matches:
    """Fine tokens against decomposed coarse tokens [t², k·l·t²], every row inside the overlap with one 1.

    Args:
        coarse: (row, col) origins of the coarse crops, in cells.
        fine: (row, col) origins of the fine crops, in cells; aligned with `coarse` modulo (k, l).
        t: Tokens per crop side.
        k: Cells per coarse token, rows.
        l: Cells per coarse token, columns.
    """
    rows = axis_decomposition(coarse[:, 0], fine[:, 0], t=t, k=k)
    cols = axis_decomposition(coarse[:, 1], fine[:, 1], t=t, k=l)
    return kronecker(rows, cols)


def composition_target(
    coarse: Int[Tensor, "batch 2"], fine: Int[Tensor, "batch 2"], *, t: int, k: int, l: int
) -> Matches:
    """Coarse tokens against composed fine tokens [t², t²/(k·l)], every row inside the overlap with one 1.

    Args: as for `decomposition_target`.
    """
    rows = axis_composition(coarse[:, 0], fine[:, 0], t=t, k=k)
    cols = axis_composition(coarse[:, 1], fine[:, 1], t=t, k=l)
    return kronecker(rows, cols)


def kronecker(rows: Matches, cols: Matches) -> Matches:
    """`torch.kron` of each pair of matrices in the batch, of which only the windows' products are formed."""
    # Each axis's few entries are spread over the window first: the large operations then read whole runs of memory.
    height, width = rows.columns.shape[-1], cols.columns.shape[-1]
    first = (rows.columns * cols.num_columns).repeat_interleave(width, dim=-1)
    columns = first[:, :, None] + cols.columns.repeat(1, 1, height)[:, None]
    values = rows.values.repeat_interleave(width, dim=-1)[:, :, None] * cols.values.repeat(1, 1, height)[:, None]
    return Matches(columns.flatten(1, 2), values.flatten(1, 2), rows.num_columns * cols.num_columns)


def _windows(match: Int[Tensor, "batch rows"], *, num_columns: int, radius: int) -> Matches:
    """Return a Gaussian window around each row's match; no window where the match lies outside the matrix."""
    offset = torch.arange(-radius, radius + 1, device=match.device)
    columns = match[:, :, None] + offset
    is_inside = (columns >= 0) & (columns < num_columns) & ((match >= 0) & (match < num_columns))[:, :, None]
    values = torch.exp(-0.5 * offset.float().square()) * is_inside
    return Matches(columns.clamp(0, num_columns - 1), values, num_columns)
