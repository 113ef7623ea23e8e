"""Overlap masks by listing cells: which cells each token covers, and which of them the other crop covers too."""

import numpy as np


def fine_cells(origin: tuple[int, int], t: int) -> list[set[tuple[int, int]]]:
    """Cells of every fine token, row-major."""
    return [{(origin[0] + i, origin[1] + j)} for i in range(t) for j in range(t)]


def coarse_cells(origin: tuple[int, int], t: int, k: int, l: int) -> list[set[tuple[int, int]]]:
    """Cells of every coarse token, row-major."""
    return [
        {(origin[0] + k * i + a, origin[1] + l * j + b) for a in range(k) for b in range(l)}
        for i in range(t)
        for j in range(t)
    ]


def overlap_masks(
    coarse: tuple[int, int], fine: tuple[int, int], t: int, k: int, l: int
) -> tuple[np.ndarray, np.ndarray]:
    """(fine, coarse): a token is inside if the other crop covers all of its cells."""
    in_fine = set().union(*fine_cells(fine, t))
    in_coarse = set().union(*coarse_cells(coarse, t, k, l))
    return (
        np.array([cells <= in_coarse for cells in fine_cells(fine, t)]),
        np.array([cells <= in_fine for cells in coarse_cells(coarse, t, k, l)]),
    )
