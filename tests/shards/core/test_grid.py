import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.core.errors import GridError
from shards.core.grid import CropPair, GridSpec, Scale, crop_bank, draw_crop_pair, scale_of_step
from tests.oracles.crops import allowed_pairs, shared_cells
from tests.support.examples import examples
from tests.support.strategies import SCALES, specs, specs_and_pairs

NANO = GridSpec(n=18, cell_px=16, t=8, scales=(Scale(2, 2, 1.0),), min_overlap=0.5, min_jitter_area=0.85)
PAPER = GridSpec(n=32, cell_px=32, t=14, scales=(Scale(2, 2, 1.0),), min_overlap=0.5, min_jitter_area=0.85)


def area(rectangle: tuple[int, int, int, int]) -> int:
    row0, col0, row1, col1 = rectangle
    return (row1 - row0) * (col1 - col0)


@pytest.mark.parametrize(("k", "l"), SCALES)
@pytest.mark.parametrize("min_overlap", [0.0, 0.5, 0.7, 1.0])
def test_pairs_are_uniform_over_exactly_the_allowed_ones(k: int, l: int, min_overlap: float) -> None:
    scale = Scale(k, l, 1.0)
    spec = GridSpec(n=9, cell_px=1, t=4, scales=(scale,), min_overlap=min_overlap, min_jitter_area=0.85)
    allowed = allowed_pairs(9, 4, k, l, min_overlap)
    rng = np.random.default_rng(7)
    num_draws = 10 * len(allowed)
    drawn = Counter((pair.coarse, pair.fine) for pair in (draw_crop_pair(spec, scale, rng) for _ in range(num_draws)))
    assert set(drawn) <= allowed
    chi_square = sum((drawn[pair] - 10) ** 2 / 10 for pair in allowed)
    degrees = len(allowed) - 1
    # Wilson-Hilferty: the cube root of chi-square per degree of freedom is close to normal.
    z = ((chi_square / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / (2 / (9 * degrees)) ** 0.5
    assert abs(z) < 4


class Unranked(np.random.Generator):
    """A generator whose integer draw is a given one, and which notes the bound it was asked for."""

    def __init__(self, rank: int) -> None:
        super().__init__(np.random.PCG64(0))
        self.rank, self.bound = rank, 0

    def integers(self, bound: int) -> int:  # type: ignore[override]
        self.bound = bound
        return self.rank


@examples(0.25)
@given(st.data())
def test_each_integer_below_the_number_of_allowed_pairs_is_another_of_them(data: st.DataObject) -> None:
    """So a uniform integer is an exactly uniform pair, for any grid, scale and minimum overlap."""
    t, (k, l) = data.draw(st.sampled_from([2, 4])), data.draw(st.sampled_from(SCALES))
    n = data.draw(st.integers(max(k, l) * t, 8))
    scale, min_overlap = Scale(k, l, 1.0), data.draw(st.integers(0, 100)) / 100
    spec = GridSpec(n=n, cell_px=1, t=t, scales=(scale,), min_overlap=min_overlap, min_jitter_area=0.85)
    first = Unranked(0)
    draw_crop_pair(spec, scale, first)
    pairs = [draw_crop_pair(spec, scale, Unranked(rank)) for rank in range(first.bound)]
    drawn = [(pair.coarse, pair.fine) for pair in pairs]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) == allowed_pairs(n, t, k, l, min_overlap)


@pytest.mark.parametrize(("spec", "least"), [(NANO, 36), (PAPER, 100)])
def test_every_aligned_two_by_two_pair_shares_what_the_paper_says(spec: GridSpec, least: int) -> None:
    unbound = replace(spec, min_overlap=0.0)
    rng = np.random.default_rng(0)
    shared = [area(draw_crop_pair(unbound, spec.scales[0], rng).overlap_fine(spec.t)) for _ in range(3000)]
    assert min(shared) == least


@given(specs_and_pairs())
def test_crops_are_aligned_on_the_canvas_and_share_the_least_area(drawn: tuple[GridSpec, CropPair]) -> None:
    spec, pair = drawn
    for axis, factor in ((0, pair.k), (1, pair.l)):
        assert 0 <= pair.coarse[axis] <= spec.n - factor * spec.t
        assert 0 <= pair.fine[axis] <= spec.n - spec.t
        assert (pair.fine[axis] - pair.coarse[axis]) % factor == 0
    assert area(pair.overlap_fine(spec.t)) >= spec.min_overlap * spec.t**2 - 1e-9


@given(specs_and_pairs())
def test_both_overlap_rectangles_cover_the_cells_that_the_crops_share(drawn: tuple[GridSpec, CropPair]) -> None:
    spec, pair = drawn
    shared = shared_cells(pair.coarse, pair.fine, spec.t, pair.k, pair.l)
    row0, col0, row1, col1 = pair.overlap_fine(spec.t)
    fine = {(pair.fine[0] + row, pair.fine[1] + col) for row in range(row0, row1) for col in range(col0, col1)}
    row0, col0, row1, col1 = pair.overlap_coarse(spec.t)
    coarse = {
        (pair.coarse[0] + row, pair.coarse[1] + col)
        for row in range(row0 * pair.k, row1 * pair.k)
        for col in range(col0 * pair.l, col1 * pair.l)
    }
    assert fine == shared
    assert coarse == shared


@pytest.mark.parametrize(("coarse", "fine"), [((0, 0), (14, 14)), ((14, 14), (0, 0)), ((0, 14), (10, 0))])
def test_crops_that_share_nothing_have_empty_rectangles_inside_the_crop(
    coarse: tuple[int, int], fine: tuple[int, int]
) -> None:
    pair = CropPair(jitter=(0.0, 0.0, 288.0), coarse=coarse, fine=fine, k=1, l=1)
    for rectangle in (pair.overlap_fine(4), pair.overlap_coarse(4)):
        assert area(rectangle) == 0
        assert all(0 <= edge <= 4 for edge in rectangle)


@given(specs_and_pairs())
def test_the_jitter_square_and_both_windows_lie_on_the_canvas(drawn: tuple[GridSpec, CropPair]) -> None:
    spec, pair = drawn
    row, col, side = pair.jitter
    assert spec.min_jitter_area - 1e-9 <= side**2 / spec.canvas_px**2 <= 1 + 1e-9
    assert 0 <= row <= spec.canvas_px - side + 1e-9
    assert 0 <= col <= spec.canvas_px - side + 1e-9
    for which, (k, l) in (("fine", (1, 1)), ("coarse", (pair.k, pair.l))):
        row0, col0, row1, col1 = pair.window(which, spec)  # type: ignore[arg-type]
        assert 0 <= row0 < row1 <= spec.canvas_px
        assert 0 <= col0 < col1 <= spec.canvas_px
        assert row1 - row0 == pytest.approx(k * spec.t * side / spec.n)
        assert col1 - col0 == pytest.approx(l * spec.t * side / spec.n)


def test_windows_without_jitter_are_the_crops_cells_in_pixels() -> None:
    pair = CropPair(jitter=(0.0, 0.0, 288.0), coarse=(2, 0), fine=(4, 6), k=2, l=2)
    assert pair.window("coarse", NANO) == (32.0, 0.0, 288.0, 256.0)
    assert pair.window("fine", NANO) == (64.0, 96.0, 192.0, 224.0)


@given(specs_and_pairs())
def test_pairs_and_specs_survive_json(drawn: tuple[GridSpec, CropPair]) -> None:
    spec, pair = drawn
    assert CropPair.from_json(json.loads(json.dumps(pair.to_json()))) == pair
    assert GridSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@given(specs(), st.text(max_size=8), st.integers(0, 2**31), st.integers(0, 4))
def test_a_bank_holds_its_number_of_pairs_per_scale_and_repeats(
    spec: GridSpec, key: str, seed: int, num_pairs: int
) -> None:
    bank = crop_bank(spec, key, seed, num_pairs)
    assert Counter((pair.k, pair.l) for pair in bank) == Counter(
        {(scale.k, scale.l): num_pairs for scale in spec.scales if num_pairs}
    )
    assert crop_bank(spec, key, seed, num_pairs) == bank


def test_banks_of_other_keys_and_seeds_differ() -> None:
    banks = [crop_bank(NANO, key, seed, 4) for key in ("a", "b") for seed in (0, 1)]
    assert all(banks[i] != banks[j] for i in range(4) for j in range(i))


def test_scales_are_drawn_by_weight_and_the_same_for_the_same_step() -> None:
    spec = replace(NANO, scales=(Scale(2, 2, 3.0), Scale(1, 1, 0.0), Scale(1, 2, 1.0)))
    steps = [scale_of_step(spec, 5, step) for step in range(2000)]
    assert steps == [scale_of_step(spec, 5, step) for step in range(2000)]
    share = Counter((scale.k, scale.l) for scale in steps)
    assert share[1, 1] == 0
    assert share[2, 2] / 2000 == pytest.approx(0.75, abs=0.04)


@given(st.lists(st.floats(0, 5), min_size=4, max_size=4).filter(lambda weights: sum(weights) > 0.1))
@examples(0.1)
def test_any_mix_of_all_scales_has_the_shares_of_its_weights(weights: list[float]) -> None:
    scales = tuple(Scale(k, l, weight) for (k, l), weight in zip(SCALES, weights, strict=True))
    spec, num_steps = replace(NANO, scales=scales), 3000
    share = Counter((scale.k, scale.l) for scale in (scale_of_step(spec, 1, step) for step in range(num_steps)))
    for scale in scales:
        assert share[scale.k, scale.l] / num_steps == pytest.approx(scale.weight / sum(weights), abs=0.04)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"t": 7}, ["t is 7", "even"]),
        ({"n": 15}, ["coarse crop larger than the canvas", "16 cells", "n = 15"]),
        ({"scales": (Scale(3, 1, 1.0),)}, ["k is 3", "t is 8", "divide"]),
        ({"scales": (Scale(2, 2, 0.0),)}, ["weights", "at least one above"]),
        ({"scales": (Scale(2, 2, 1.0), Scale(2, 2, 1.0))}, ["repeat"]),
        ({"min_overlap": 1.2}, ["min_overlap is 1.2", "fraction"]),
        ({"min_jitter_area": 0.0}, ["min_jitter_area is 0.0"]),
        ({"cell_px": 0}, ["cell_px is 0"]),
    ],
)
def test_a_grid_that_cannot_exist_is_one_message_with_both_numbers(change: dict, words: list[str]) -> None:
    with pytest.raises(GridError) as error:
        replace(NANO, **change)
    assert all(word in str(error.value) for word in words), error.value
