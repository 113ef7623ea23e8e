import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ace.protocol.regions import Region, areas, draw_region, draw_tiling, even_tiling, iou_matrix

fractions = st.floats(0.05, 1.0)


@st.composite
def regions(draw: st.DrawFn) -> Region:
    side = draw(fractions)
    row, col = (draw(st.floats(0, 1)) * (1 - side) for _ in range(2))
    return Region(row, col, side)


def covered(region: Region, resolution: int = 400) -> np.ndarray:
    centers = (np.arange(resolution) + 0.5) / resolution
    rows = (centers >= region.row) & (centers < region.row + region.side)
    cols = (centers >= region.col) & (centers < region.col + region.side)
    return rows[:, None] & cols


@given(regions(), regions())
def test_iou_agrees_with_counting_pixels(first: Region, second: Region) -> None:
    a, b = covered(first), covered(second)
    counted = (a & b).sum() / (a | b).sum()
    assert iou_matrix([first], [second])[0, 0] == pytest.approx(counted, abs=0.12)


@given(regions(), regions())
def test_iou_is_symmetric_and_at_most_one(first: Region, second: Region) -> None:
    matrix = iou_matrix([first, second], [first, second])
    np.testing.assert_allclose(matrix, matrix.T)
    np.testing.assert_allclose(np.diagonal(matrix), 1)
    assert (matrix >= 0).all()
    assert (matrix <= 1 + 1e-12).all()


def test_iou_of_a_hand_computed_overlap() -> None:
    # Two half-size squares sharing a quarter of each: 1/16 over 7/16.
    assert iou_matrix([Region(0, 0, 0.5)], [Region(0.25, 0.25, 0.5)])[0, 0] == pytest.approx(1 / 7)


@given(regions())
def test_quadrants_tile_the_region(region: Region) -> None:
    tiles = np.array([covered(part) for part in region.quadrants()])
    np.testing.assert_array_equal(tiles.sum(axis=0)[covered(region)] >= 1, True)
    assert sum(part.side**2 for part in region.quadrants()) == pytest.approx(region.side**2)
    others = iou_matrix(region.quadrants(), region.quadrants())[~np.eye(4, dtype=bool)]
    np.testing.assert_allclose(others, 0, atol=1e-9)


@given(regions(), st.integers(1, 64))
def test_whole_pixels_stay_inside_the_image(region: Region, size_px: int) -> None:
    row, col, side = region.pixels(size_px)
    assert side >= 1
    assert 0 <= row <= row + side <= size_px
    assert 0 <= col <= col + side <= size_px


@given(st.integers(0, 2**32 - 1))
def test_drawn_regions_keep_to_their_sides_and_the_canvas(seed: int) -> None:
    region = draw_region(np.random.default_rng(seed), 0.3, 0.8)
    assert 0.3 <= region.side <= 0.8
    assert region.row >= 0
    assert region.row + region.side <= 1 + 1e-12
    assert region.col >= 0
    assert region.col + region.side <= 1 + 1e-12


def test_drawn_regions_reach_every_corner() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_region(rng, 0.3, 0.8) for _ in range(2000)]
    starts = np.array([(region.row, region.col) for region in drawn])
    ends = np.array([(region.row + region.side, region.col + region.side) for region in drawn])
    assert (starts.min(axis=0) < 0.02).all()
    assert (ends.max(axis=0) > 0.98).all()


@given(regions(), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_tilings_cover_the_unit_square_once(region: Region, num_parts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for tiling in (even_tiling(num_parts), draw_tiling(rng, num_parts, 1 / 3)):
        points = rng.random((50, 2))
        inside = [((points >= part[:2]) & (points < part[2:])).all(axis=1) for part in tiling]
        np.testing.assert_array_equal(np.sum(inside, axis=0), 1)
        assert areas(tiling).sum() == pytest.approx(1)
        windows = [region.part(part, 100) for part in tiling]
        whole = (min(w[0] for w in windows), min(w[1] for w in windows), max(w[2] for w in windows))
        assert whole == pytest.approx(region.window(100)[:3])
    assert len(tiling) == num_parts


def test_random_cuts_take_off_at_least_their_share_and_go_both_ways() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_tiling(rng, 2, 0.25) for _ in range(200)]
    assert min(areas(tiling).min() for tiling in drawn) >= 0.25
    is_across = np.array([tiling[0][3] == 1 for tiling in drawn])
    assert 0.3 < is_across.mean() < 0.7
