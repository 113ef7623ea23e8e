"""Every allowed pair of crop origins, found by looking at every cell: slow, and independent of shards/core/grid.py."""

from itertools import product

Origin = tuple[int, int]


def cells(origin: Origin, height: int, width: int) -> set[tuple[int, int]]:
    return {(origin[0] + row, origin[1] + col) for row in range(height) for col in range(width)}


def allowed_pairs(n: int, t: int, k: int, l: int, min_overlap: float) -> set[tuple[Origin, Origin]]:
    """All (coarse, fine) origins with both crops on the canvas, tokens aligned, and enough cells shared."""
    canvas = cells((0, 0), n, n)
    pairs = set()
    for coarse in product(range(n), repeat=2):
        coarse_cells = cells(coarse, k * t, l * t)
        if not coarse_cells <= canvas:
            continue
        for fine in product(range(n), repeat=2):
            fine_cells = cells(fine, t, t)
            is_aligned = (fine[0] - coarse[0]) % k == 0 and (fine[1] - coarse[1]) % l == 0
            if fine_cells <= canvas and is_aligned and len(fine_cells & coarse_cells) >= min_overlap * t * t:
                pairs.add((coarse, fine))
    return pairs


def shared_cells(coarse: Origin, fine: Origin, t: int, k: int, l: int) -> set[tuple[int, int]]:
    return cells(coarse, k * t, l * t) & cells(fine, t, t)
