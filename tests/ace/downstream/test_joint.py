"""Masks and landmarks move with the pixels that they are drawn on."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ace.downstream.joint import map_of, shown_masks, shown_points
from ace.downstream.views import View, show
from shards.reading.reader import Sample, ShardReader
from tests.ace.downstream.drawn import build

SIDE = 96
views = st.builds(
    View,
    row=st.floats(0, 0.2),
    col=st.floats(0, 0.2),
    side=st.floats(0.6, 0.8),
    angle_deg=st.floats(-30, 30),
    is_mirrored=st.booleans(),
)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    folder = tmp_path_factory.mktemp("joint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(folder / "scratch"))
        return ShardReader(build(folder, num_patients=5)).read(0)


def shown(sample: Sample, pixels: np.ndarray, view: View, size_px: int) -> np.ndarray:
    """What is shown of a sample that has another canvas."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return show(replace(sample, encoded=data.getvalue()), [view], size_px, 1, len(pixels))[0]


def centres(size_px: int) -> np.ndarray:
    return np.stack(np.mgrid[:size_px, :size_px], axis=-1) + 0.5


@given(view=views, size_px=st.sampled_from([48, 96, 144]))
def test_painted_coordinates_are_shown_where_points_are_moved_to(sample: Sample, view: View, size_px: int) -> None:
    levels = np.stack(np.mgrid[:SIDE, :SIDE]).astype(np.uint8) * 2
    found = np.stack([shown(sample, own, view, size_px) for own in levels], axis=-1) / 2 + 0.5
    # Away from the edges, where turning brings in black and resampling has no neighbours.
    middle = slice(size_px * 3 // 10, size_px * 7 // 10)
    found, expected = (own[middle, middle].reshape(-1, 2) for own in (found, centres(size_px)))
    moved = shown_points(found, view, SIDE, size_px)
    # To a grey level, which is half a pixel of the canvas.
    assert np.abs(moved - expected).max() * view.side * SIDE / size_px < 0.7


@given(view=views)
def test_a_mask_is_where_its_pixels_are_shown(sample: Sample, view: View) -> None:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[30:60, 20:70] = True
    pixels = shown(sample, mask.astype(np.uint8) * 200, view, 48)
    (found,) = shown_masks(mask[None], view, 48)
    assert (found != (pixels > 100)).mean() < 0.02
    assert found[pixels > 190].all()
    assert not found[pixels < 10].any()


@given(view=views)
def test_points_lie_in_the_masks_that_they_lie_in(view: View) -> None:
    rng = np.random.default_rng(0)
    mask = np.zeros((1, SIDE, SIDE), bool)
    mask[0, 30:60, 20:70] = True
    points = rng.uniform(0, SIDE, (300, 2))
    moved = shown_points(points, view, SIDE, 480)
    is_shown = ~np.isnan(moved).any(1)
    row, col = np.minimum(moved[is_shown].astype(int), 479).T
    is_inside = (points >= (30, 20)).all(1) & (points < (60, 70)).all(1)
    # But for points within a fifth of a pixel of the outline.
    assert (shown_masks(mask, view, 480)[0, row, col] != is_inside[is_shown]).mean() < 0.02
    assert is_shown.any()


def test_the_whole_canvas_keeps_masks_to_the_bit_and_points_where_they_are() -> None:
    masks = np.random.default_rng(0).random((2, SIDE, SIDE)) > 0.5
    points = np.array([[10.0, 20.0], [math.nan, math.nan], [0.0, 96.0]])
    whole = View(row=0, col=0, side=1)
    assert np.array_equal(shown_masks(masks, whole, SIDE), masks)
    np.testing.assert_array_equal(shown_points(points, whole, SIDE, SIDE), points)
    mirrored = replace(whole, is_mirrored=True)
    assert np.array_equal(shown_masks(masks, mirrored, SIDE), masks[:, :, ::-1])
    np.testing.assert_allclose(shown_points(points, mirrored, SIDE, 1.0)[0], [10 / 96, 1 - 20 / 96])
    turned = replace(whole, angle_deg=90.0)
    assert np.array_equal(shown_masks(masks, turned, SIDE), np.rot90(masks, axes=(1, 2)))
    np.testing.assert_allclose(map_of(turned, SIDE, SIDE) @ [0, 48, 1], [48, 0], atol=1e-9)


def test_what_is_cut_off_or_turned_in_as_black_is_not_there() -> None:
    masks = np.ones((1, SIDE, SIDE), bool)
    turned = View(row=0.25, col=0.25, side=0.5, angle_deg=45.0)
    (found,) = shown_masks(masks, turned, 48)
    assert found[24, 24]
    assert not found[0, 0]
    assert found.mean() == pytest.approx(2 * math.sqrt(2) - 2, abs=0.02)  # a square and itself, turned by 45°
    points = np.array([[48.0, 48.0], [23.0, 48.0], [25.0, 25.0]])
    moved = shown_points(points, turned, SIDE, 48)
    np.testing.assert_allclose(moved[0], [24, 24])
    assert np.isnan(moved[1:]).all()
