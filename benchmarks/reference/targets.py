"""Dense correspondence targets of one sample on the host, as a plain reading of the paper builds them.

`looped_*` visit the tokens in two nested Python loops and lay a numpy Gaussian window around each one's match;
`vectorised_*` do the same for all tokens of a sample in one broadcast numpy expression. Arguments are one sample's
(row, col) origins in cells; the matrices are those of `ace.geometry.targets`.
"""

import numpy as np

Origin = tuple[int, int]


def looped_decomposition(coarse: Origin, fine: Origin, t: int, k: int, l: int) -> np.ndarray:
    target = np.zeros((t * t, k * t, l * t), dtype=np.float32)
    for row in range(t):
        for col in range(t):
            match = fine[0] + row - coarse[0], fine[1] + col - coarse[1]
            _lay_window(target[row * t + col], match, radius=2)
    return target.reshape(t * t, -1)


def looped_composition(coarse: Origin, fine: Origin, t: int, k: int, l: int) -> np.ndarray:
    target = np.zeros((t * t, t // k, t // l), dtype=np.float32)
    for row in range(t):
        for col in range(t):
            match = (coarse[0] + k * row - fine[0]) // k, (coarse[1] + l * col - fine[1]) // l
            _lay_window(target[row * t + col], match, radius=1)
    return target.reshape(t * t, -1)


def _lay_window(plane: np.ndarray, match: Origin, radius: int) -> None:
    """Write the window around `match` into one token's row, seen as a plane; nothing if the match is outside it."""
    rows, cols = plane.shape
    if not (0 <= match[0] < rows and 0 <= match[1] < cols):
        return
    near_rows = np.arange(max(match[0] - radius, 0), min(match[0] + radius + 1, rows))
    near_cols = np.arange(max(match[1] - radius, 0), min(match[1] + radius + 1, cols))
    squares = (near_rows[:, None] - match[0]) ** 2 + (near_cols[None, :] - match[1]) ** 2
    plane[near_rows[0] : near_rows[-1] + 1, near_cols[0] : near_cols[-1] + 1] = np.exp(-0.5 * squares)


def vectorised_decomposition(coarse: Origin, fine: Origin, t: int, k: int, l: int) -> np.ndarray:
    token = np.arange(t)
    matches = fine[0] - coarse[0] + token, fine[1] - coarse[1] + token
    return _all_windows(matches, (k * t, l * t), radius=2)


def vectorised_composition(coarse: Origin, fine: Origin, t: int, k: int, l: int) -> np.ndarray:
    token = np.arange(t)
    matches = (coarse[0] - fine[0] + k * token) // k, (coarse[1] - fine[1] + l * token) // l
    return _all_windows(matches, (t // k, t // l), radius=1)


def _all_windows(matches: tuple[np.ndarray, np.ndarray], shape: tuple[int, int], radius: int) -> np.ndarray:
    """Every token's window over the whole plane, from the squared distance of each entry to the token's match."""
    rows, cols = (
        np.arange(size)[None, :] - match[:, None] for match, size in zip(matches, shape, strict=True)
    )  # [tokens of the axis, entries of the axis]
    is_inside = [(match >= 0) & (match < size) for match, size in zip(matches, shape, strict=True)]
    squares = rows[:, None, :, None] ** 2 + cols[None, :, None, :] ** 2
    is_near = (abs(rows) <= radius)[:, None, :, None] & (abs(cols) <= radius)[None, :, None, :]
    is_near &= (is_inside[0][:, None] & is_inside[1][None, :])[:, :, None, None]
    windows = np.where(is_near, np.exp(-0.5 * squares.astype(np.float32)), np.float32(0))
    return windows.reshape(len(matches[0]) * len(matches[1]), -1)
