import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ace.protocol.dense import LocationAxis, dense_features, interpolate, location_axis
from shards.core.errors import ConfigError
from shards.core.grid import GridSpec, Scale
from tests.ace.properties.constructed import SPEC, colour, embedder


@st.composite
def axes(draw: st.DrawFn) -> tuple[GridSpec, int, LocationAxis]:
    t = 2 * draw(st.integers(1, 7))
    n = t + draw(st.integers(1, 20))
    spec = GridSpec(
        n=n,
        cell_px=draw(st.sampled_from([8, 16, 32])),
        t=t,
        scales=(Scale(1, 1, 1.0),),
        min_overlap=0.0,
        min_jitter_area=1.0,
    )
    per_cell = draw(st.integers(2, 4))
    return spec, per_cell, location_axis(spec, per_cell, draw(st.integers(1, t)))


@given(axes())
def test_every_location_is_the_centre_of_its_token(drawn: tuple[GridSpec, int, LocationAxis]) -> None:
    spec, per_cell, axis = drawn
    centers = axis.origins_px[axis.window] + (axis.token + 0.5) * spec.cell_px
    np.testing.assert_allclose(centers, axis.positions_px)
    np.testing.assert_allclose(np.diff(axis.positions_px), spec.cell_px / per_cell)
    assert axis.positions_px[0] == spec.cell_px / 2
    assert axis.positions_px[-1] == spec.canvas_px - spec.cell_px / 2
    assert axis.origins_px.min() >= 0
    assert axis.origins_px.max() <= spec.canvas_px - spec.crop_px


@given(axes())
def test_no_other_window_has_the_location_more_central(drawn: tuple[GridSpec, int, LocationAxis]) -> None:
    spec, _, axis = drawn
    for position, chosen in zip(axis.positions_px, axis.window, strict=True):
        tokens = (position - axis.origins_px) / spec.cell_px - 0.5
        is_readable = (np.abs(tokens - np.rint(tokens)) < 1e-9) & (tokens > -0.5) & (tokens < spec.t - 0.5)
        distance = np.abs(position - axis.origins_px - spec.crop_px / 2)
        assert is_readable[chosen]
        assert distance[chosen] == pytest.approx(distance[is_readable].min())


def test_the_demo_grid_reads_35_locations_a_side_from_8_windows() -> None:
    spec = GridSpec(n=18, cell_px=16, t=8, scales=(Scale(2, 2, 1.0),), min_overlap=0.5, min_jitter_area=0.85)
    axis = location_axis(spec, 2, 4)
    assert len(axis.positions_px) == 35
    np.testing.assert_array_equal(axis.origins_px / 16, [0, 0.5, 4, 4.5, 8, 8.5, 9.5, 10])


def test_windows_that_cannot_be_shifted_are_an_error() -> None:
    with pytest.raises(ConfigError, match="t 4 equals n 4"):
        location_axis(
            GridSpec(n=4, cell_px=8, t=4, scales=(Scale(1, 1, 1.0),), min_overlap=0.5, min_jitter_area=1.0), 2, 1
        )


def test_windows_that_would_leave_gaps_are_an_error() -> None:
    with pytest.raises(ConfigError, match="window_step_cells 5 exceeds t 4"):
        location_axis(SPEC, 2, 5)


@pytest.mark.parametrize("window_step_cells", [1, 2, 3])
def test_dense_features_show_the_canvas_at_their_own_locations(window_step_cells: int) -> None:
    """Read by content: the canvas is painted with its own coordinates, and each feature tells its place."""
    size_px = SPEC.canvas_px
    rows, cols = np.mgrid[:size_px, :size_px]
    canvas = np.stack([rows * 2, cols * 2, np.full_like(rows, 100)], axis=-1).astype(np.uint8)
    axis = location_axis(SPEC, 2, window_step_cells)
    features = dense_features(embedder(colour), canvas, axis)
    read = features[..., :2] / features[..., 2:] * 100 / 2 + 0.5
    expected = np.stack(np.meshgrid(axis.positions_px, axis.positions_px, indexing="ij"), axis=-1)
    np.testing.assert_allclose(read, expected, atol=1e-3)


def test_interpolated_features_follow_the_point_between_locations() -> None:
    axis = location_axis(SPEC, 2, 1)
    grid = np.stack(np.meshgrid(axis.positions_px, axis.positions_px, indexing="ij"), axis=-1)
    features = np.concatenate([grid, np.full((*grid.shape[:2], 1), 30.0)], axis=-1)
    points = np.array([[11.3, 20.9], [8.0, 4.0], [0.0, 48.0]])
    found = interpolate(features, axis, points)
    inside = np.clip(points, axis.positions_px[0], axis.positions_px[-1])
    np.testing.assert_allclose(found[:, :2] / found[:, 2:] * 30, inside, atol=1e-9)
