"""The grid on the canvas, and the pairs of crops that share cells on it (method.md §1): integers, numpy, no pixels.

Coordinates are (row, col), ranges half open. Origins count grid cells; windows are continuous canvas pixels, whose
edges are integers (pixel r covers [r, r + 1)).
"""

import hashlib
import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import PlainSerializer, PlainValidator

from shards.core.errors import GridError

Rectangle = tuple[int, int, int, int]
"""(row0, col0, row1, col1) in tokens of one crop."""
Window = tuple[float, float, float, float]
"""(row0, col0, row1, col1) in canvas pixels."""


@dataclass(frozen=True)
class Scale:
    """A scale of the coarse crop: one of its tokens covers k × l cells."""

    k: int
    l: int
    weight: float


@dataclass(frozen=True, kw_only=True)
class GridSpec:
    """The grid of one shard set.

    Attributes:
        n: Cells per canvas side.
        cell_px: Canvas pixels per cell side.
        t: Tokens per crop side, even; a fine token is one cell.
        scales: The (k, l) in use, with the weights they are drawn with.
        min_overlap: Least shared area, as a fraction of the fine crop.
        min_jitter_area: Least area of the jitter square, as a fraction of the canvas.
        trim_level: Dark edges of an image, up to this grey level, are cut off before it is placed on the canvas; None
            leaves images whole.

    Raises:
        GridError: the numbers contradict each other; the message shows both.
    """

    n: int
    cell_px: int
    t: int
    scales: tuple[Scale, ...]
    min_overlap: float
    min_jitter_area: float
    trim_level: int | None = None

    def __post_init__(self) -> None:
        for name in ("n", "cell_px", "t"):
            if getattr(self, name) < 1:
                raise GridError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.t % 2:
            raise GridError(f"t is {self.t}; expected an even number of tokens per crop side")
        if not 0 <= self.min_overlap <= 1:
            raise GridError(f"min_overlap is {self.min_overlap}; expected a fraction of the fine crop, 0 to 1")
        if not 0 < self.min_jitter_area <= 1:
            raise GridError(f"min_jitter_area is {self.min_jitter_area}; expected a fraction of the canvas, 0 to 1")
        if self.trim_level is not None and not 0 <= self.trim_level < 255:
            raise GridError(f"trim_level is {self.trim_level}; expected a grey level from 0 to 254, or null")
        pairs = [(scale.k, scale.l) for scale in self.scales]
        if len(set(pairs)) != len(pairs):
            raise GridError(f"scales {pairs} repeat a (k, l); give each one once, with its weight")
        weights = [scale.weight for scale in self.scales]
        if min(weights, default=0) < 0 or not sum(weights) > 0:
            raise GridError(f"scale weights are {weights}; expected none below 0 and at least one above")
        for scale in self.scales:
            for axis, factor in (("k", scale.k), ("l", scale.l)):
                if factor < 1 or self.t % factor:
                    raise GridError(f"{axis} is {factor} and t is {self.t}; {axis} must divide t")
                if factor * self.t > self.n:
                    raise GridError(
                        f"coarse crop larger than the canvas: {axis}·t = {factor}·{self.t} = {factor * self.t} cells, "
                        f"n = {self.n}; raise n or lower t"
                    )

    @property
    def canvas_px(self) -> int:
        """Side of the stored canvas."""
        return self.n * self.cell_px

    @property
    def crop_px(self) -> int:
        """Side of a crop as the model sees it, fine and coarse alike."""
        return self.t * self.cell_px

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` turns them back.

        A None is left out, as in files from before the field existed.
        """
        values = asdict(self) | {"scales": [asdict(scale) for scale in self.scales]}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read the spec that `to_json` wrote."""
        return cls(**{**values, "scales": tuple(Scale(**scale) for scale in values["scales"])})


def _grid_of(value: object) -> GridSpec:
    """Read a grid from its plain values.

    Raises:
        ValueError: they are those of no grid.
    """
    if isinstance(value, GridSpec):
        return value
    try:
        return GridSpec.from_json(value)  # type: ignore[arg-type]
    except (GridError, TypeError, KeyError) as error:
        raise ValueError(str(error)) from None


Grid = Annotated[GridSpec, PlainValidator(_grid_of), PlainSerializer(GridSpec.to_json)]
"""The type of a field that holds a grid, in a file that is validated."""


@dataclass(frozen=True, kw_only=True)
class CropPair:
    """A coarse and a fine crop on one grid.

    Attributes:
        jitter: (row, col, side) in canvas pixels of the square taken as the grid's extent.
        coarse: Origin of the coarse crop in cells; it covers (k·t) × (l·t) of them.
        fine: Origin of the fine crop in cells; it covers t × t.
        k: Cells per coarse token, rows.
        l: Cells per coarse token, columns.
    """

    jitter: tuple[float, float, float]
    coarse: tuple[int, int]
    fine: tuple[int, int]
    k: int
    l: int

    def overlap_fine(self, t: int) -> Rectangle:
        """Return the shared cells in tokens of the fine crop; (0, 0, 0, 0) if nothing is shared."""
        return self._overlap(t, self.fine, 1, 1)

    def overlap_coarse(self, t: int) -> Rectangle:
        """Return the shared cells in tokens of the coarse crop; (0, 0, 0, 0) if nothing is shared."""
        return self._overlap(t, self.coarse, self.k, self.l)

    def _overlap(self, t: int, origin: tuple[int, int], token_rows: int, token_cols: int) -> Rectangle:
        row0, row1 = _shared(self.coarse[0], self.fine[0], self.k, t)
        col0, col1 = _shared(self.coarse[1], self.fine[1], self.l, t)
        if row0 >= row1 or col0 >= col1:
            return 0, 0, 0, 0
        # Exact: alignment puts the edges of the shared cells on token edges of both crops.
        return (
            (row0 - origin[0]) // token_rows,
            (col0 - origin[1]) // token_cols,
            (row1 - origin[0]) // token_rows,
            (col1 - origin[1]) // token_cols,
        )

    def window(self, which: Literal["coarse", "fine"], spec: GridSpec) -> Window:
        """Return the window of a crop's pixels on the stored canvas."""
        top, left, side = self.jitter
        cell = side / spec.n
        (row, col), (k, l) = (self.coarse, (self.k, self.l)) if which == "coarse" else (self.fine, (1, 1))
        # The jitter square may touch the canvas edge; rounding must not push a window past it.
        row1, col1 = top + (row + k * spec.t) * cell, left + (col + l * spec.t) * cell
        return top + row * cell, left + col * cell, min(row1, spec.canvas_px), min(col1, spec.canvas_px)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` turns them back."""
        return {
            "jitter": list(self.jitter),
            "coarse": list(self.coarse),
            "fine": list(self.fine),
            "k": self.k,
            "l": self.l,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read the pair that `to_json` wrote; further keys (stored overlap rectangles) are derived and ignored."""
        row, col, side = values["jitter"]
        return cls(
            jitter=(row, col, side),
            coarse=tuple(values["coarse"]),
            fine=tuple(values["fine"]),
            k=values["k"],
            l=values["l"],
        )


def draw_crop_pair(spec: GridSpec, scale: Scale, rng: np.random.Generator) -> CropPair:
    """Draw a pair uniformly over all aligned origins with at least `min_overlap`, in a uniform jitter square.

    One integer below the number of allowed pairs is drawn and unranked in a table of counts, so the draw is exact
    and takes the same time however few pairs the bound leaves.
    """
    table = _pair_table(spec.n, spec.t, scale.k, scale.l, spec.min_overlap)
    # One by one: the generator's draws of several, or of another range than [0, 1), take several times as long.
    rank, jitter = int(rng.integers(table.num_pairs)), (rng.random(), rng.random(), rng.random())
    return _pair(spec, scale, table, rank, jitter)


def _pair(spec: GridSpec, scale: Scale, table: "_PairTable", rank: int, jitter: Sequence[float]) -> CropPair:
    """Make a crop pair from its rank among the allowed ones and three numbers in [0, 1).

    The numbers give the jitter square's area and position.
    """
    (row_coarse, row_fine), (col_coarse, col_fine) = table.pair(rank)
    area, row, col = jitter
    side = spec.canvas_px * math.sqrt(spec.min_jitter_area + (1.0 - spec.min_jitter_area) * area)
    room = spec.canvas_px - side
    return CropPair(
        jitter=(room * row, room * col, side),
        coarse=(row_coarse, col_coarse),
        fine=(row_fine, col_fine),
        k=scale.k,
        l=scale.l,
    )


def crop_bank(spec: GridSpec, key: str, seed: int, num_pairs: int) -> list[CropPair]:
    """Draw `num_pairs` crop pairs per scale for the sample `key`; the same arguments give the same pairs."""
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "big"))
    bank = []
    for scale in spec.scales:
        table = _pair_table(spec.n, spec.t, scale.k, scale.l, spec.min_overlap)
        ranks, jitters = rng.integers(table.num_pairs, size=num_pairs), rng.random((num_pairs, 3))
        drawn = zip(ranks.tolist(), jitters.tolist(), strict=True)
        bank += [_pair(spec, scale, table, rank, jitter) for rank, jitter in drawn]
    return bank


@lru_cache(maxsize=64)
def scale_of_step(spec: GridSpec, seed: int, step: int) -> Scale:
    """Draw the (k, l) of one training step, equal on all ranks so that shapes batch."""
    weights = np.array([scale.weight for scale in spec.scales])
    draw = np.random.default_rng([seed, step]).random() * weights.sum()
    return spec.scales[int(np.searchsorted(weights.cumsum(), draw, side="right"))]


@dataclass(frozen=True, kw_only=True)
class _PairTable:
    """All allowed origin pairs of one (k, l), grouped by their overlap along each axis.

    `rows[o]` and `cols[o]` hold the (coarse, fine) origins along one axis that share o cells. A group is one allowed
    (overlap in rows, overlap in cols); `bounds[i]` counts the pairs in the groups before group i.
    """

    rows: dict[int, list[tuple[int, int]]]
    cols: dict[int, list[tuple[int, int]]]
    groups: list[tuple[int, int]]
    bounds: list[int]

    @property
    def num_pairs(self) -> int:
        return self.bounds[-1]

    def pair(self, rank: int) -> tuple[tuple[int, int], tuple[int, int]]:
        group = bisect_right(self.bounds, rank) - 1
        rows, cols = self.rows[self.groups[group][0]], self.cols[self.groups[group][1]]
        row, col = divmod(rank - self.bounds[group], len(cols))
        return rows[row], cols[col]


@lru_cache(maxsize=64)
def _pair_table(n: int, t: int, k: int, l: int, min_overlap: float) -> _PairTable:
    rows, cols = _axis_pairs(n, t, k), _axis_pairs(n, t, l)
    least = math.ceil(min_overlap * t * t - 1e-9)
    groups = [(row, col) for row in sorted(rows) for col in sorted(cols) if row * col >= least]
    bounds = [0]
    for row, col in groups:
        bounds.append(bounds[-1] + len(rows[row]) * len(cols[col]))
    return _PairTable(rows=rows, cols=cols, groups=groups, bounds=bounds)


def _axis_pairs(n: int, t: int, factor: int) -> dict[int, list[tuple[int, int]]]:
    """List aligned (coarse, fine) origins along one axis, by the number of cells they share."""
    pairs: dict[int, list[tuple[int, int]]] = {}
    for coarse in range(n - factor * t + 1):
        for fine in range(coarse % factor, n - t + 1, factor):
            start, stop = _shared(coarse, fine, factor, t)
            pairs.setdefault(max(0, stop - start), []).append((coarse, fine))
    return pairs


def _shared(coarse: int, fine: int, factor: int, t: int) -> tuple[int, int]:
    """Return the first and one past the last cell of an axis that both crops cover; swapped if they share no cell."""
    return max(coarse, fine), min(coarse + factor * t, fine + t)
