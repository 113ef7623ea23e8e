"""Correspondence targets entry by entry, in two dimensions at once: no axes, no Kronecker product."""

import math

import numpy as np


def decomposition_target(coarse: tuple[int, int], fine: tuple[int, int], t: int, k: int, l: int) -> np.ndarray:
    """Fine token (row) against decomposed coarse token (column); both crops in cells, so a match is one cell."""
    target = np.zeros((t, t, k * t, l * t))
    for i in range(t):
        for j in range(t):
            row, col = fine[0] + i - coarse[0], fine[1] + j - coarse[1]
            if 0 <= row < k * t and 0 <= col < l * t:
                for m in range(k * t):
                    for n in range(l * t):
                        target[i, j, m, n] = _window(m - row, n - col, radius=2)
    return target.reshape(t * t, k * l * t * t)


def composition_target(coarse: tuple[int, int], fine: tuple[int, int], t: int, k: int, l: int) -> np.ndarray:
    """Coarse token (row) against composed fine token (column); both count blocks of k×l cells."""
    target = np.zeros((t, t, t // k, t // l))
    for i in range(t):
        for j in range(t):
            row, rest_row = divmod(coarse[0] + k * i - fine[0], k)
            col, rest_col = divmod(coarse[1] + l * j - fine[1], l)
            assert rest_row == rest_col == 0, "the crops are not aligned"
            if 0 <= row < t // k and 0 <= col < t // l:
                for m in range(t // k):
                    for n in range(t // l):
                        target[i, j, m, n] = _window(m - row, n - col, radius=1)
    return target.reshape(t * t, t * t // (k * l))


def with_erased(
    target: np.ndarray, is_row_erased: np.ndarray, is_col_erased: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Entry by entry: the target, and which entries are known.

    Erased tokens match nothing, nor does a token whose own match is erased; of two erased ones nothing is known.
    """
    left, known = target.copy(), np.ones(target.shape, dtype=bool)
    for row in range(target.shape[0]):
        own = [col for col in range(target.shape[1]) if target[row, col] == 1]
        is_match_erased = any(is_col_erased[col] for col in own)
        for col in range(target.shape[1]):
            if is_row_erased[row] and is_col_erased[col]:
                known[row, col] = False
            if is_row_erased[row] or is_col_erased[col] or is_match_erased:
                left[row, col] = 0.0
    return left, known


def with_columns_erased(target: np.ndarray, is_col_erased: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Entry by entry: the target, and which entries are known, where the rows' crop is whole.

    Of an erased column nothing is known; all other entries are as if nothing were erased.
    """
    left, known = target.copy(), np.ones(target.shape, dtype=bool)
    for row in range(target.shape[0]):
        for col in range(target.shape[1]):
            if is_col_erased[col]:
                left[row, col], known[row, col] = 0.0, False
    return left, known


def _window(rows: int, cols: int, radius: int) -> float:
    is_near = abs(rows) <= radius and abs(cols) <= radius
    return math.exp(-(rows**2 + cols**2) / 2) if is_near else 0.0
