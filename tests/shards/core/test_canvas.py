from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shards.core.canvas import (
    Placement,
    bright_box,
    cell_statistics,
    connected_parts,
    halved,
    is_coloured,
    resized_mask,
    with_channels,
)
from shards.core.errors import GridError
from shards.core.grid import GridSpec, Scale
from shards.core.params import ForegroundParams
from tests.oracles import masks as oracle
from tests.shards.decode.files import decoded, encoded
from tests.support.datasets import smooth_image
from tests.support.strategies import grey_images

SPEC = GridSpec(n=6, cell_px=8, t=2, scales=(Scale(2, 2, 1.0),), min_overlap=0.5, min_jitter_area=0.85)
FOREGROUND = ForegroundParams(min_mean=8.0, min_std=4.0)


@given(grey_images())
def test_grey_saved_as_colour_becomes_the_same_grey(pixels: np.ndarray) -> None:
    colour = np.repeat(pixels[..., None], 3, axis=2)
    assert not is_coloured(colour)
    assert np.array_equal(with_channels(colour, 1), pixels)
    assert np.array_equal(with_channels(pixels, 3), colour)


def test_a_hue_is_colour_and_jpeg_noise_is_none() -> None:
    grey = np.repeat(smooth_image(40, 40, 1)[..., None], 3, axis=2)
    assert not is_coloured(decoded(encoded(grey, "JPEG", quality=85)).pixels)
    grey[3, 3] = (200, 40, 40)
    assert is_coloured(grey)


@given(grey_images(), st.integers(4, 60))
def test_the_image_is_centred_with_its_aspect_kept_and_the_rest_is_background(pixels: np.ndarray, side: int) -> None:
    placement = Placement.of(pixels, side, None)
    canvas = placement.place_image(np.full_like(pixels, 200))
    (height, width), (row, col) = placement.size, placement.offset
    assert canvas.shape == (side, side)
    assert max(height, width) == side
    assert (canvas[row : row + height, col : col + width] == 200).all()
    assert np.count_nonzero(canvas) == height * width
    assert abs(height * pixels.shape[1] - width * pixels.shape[0]) <= max(pixels.shape) or 1 in (height, width)


@given(hnp.arrays(np.uint8, (48, 48)))
def test_an_image_of_the_canvas_size_is_not_touched(pixels: np.ndarray) -> None:
    assert np.array_equal(Placement.of(pixels, 48, None).place_image(pixels), pixels)


@pytest.mark.parametrize(("height", "width"), [(96, 60), (30, 48), (17, 90), (48, 48), (100, 99)])
def test_affine_points_and_masks_agree_on_where_a_spot_lies(height: int, width: int) -> None:
    placement = Placement(canvas_px=96, source_height=height, source_width=width, box=(0, 0, height, width))
    mask = np.zeros((height, width), bool)
    mask[height // 3 : height // 3 + 6, width // 2 : width // 2 + 6] = True
    rows, cols = np.nonzero(placement.place_mask(mask))
    centroid = rows.mean() + 0.5, cols.mean() + 0.5
    expected = placement.place_point((height // 3 + 3, width // 2 + 3))
    assert np.abs(np.subtract(centroid, expected)).max() < 0.75
    (row_scale, _, row), (_, col_scale, col) = placement.affine
    assert expected == pytest.approx(((height // 3 + 3) * row_scale + row, (width // 2 + 3) * col_scale + col))


@given(hnp.arrays(bool, st.tuples(*[st.integers(1, 12)] * 2)), st.integers(1, 8), st.integers(1, 8))
def test_a_resized_mask_has_the_pixels_it_covers_most_and_something_of_every_part(
    mask: np.ndarray, height: int, width: int
) -> None:
    resized = resized_mask(mask, (height, width))
    if mask.shape == (height, width):
        assert np.array_equal(resized, mask)
        return
    shares = np.array(oracle.covered(mask, height, width))
    # In the order of what the mask covers of them: as many as it has area, rounded half up, and all like the last.
    area = int(shares.sum() + Fraction(1, 2))
    least = sorted(shares.ravel())[-area] if area else 2
    by_area = shares >= least
    assert (resized >= by_area).all()
    assert (shares[resized] > 0).all()
    parts = oracle.connected(mask)
    places = [
        {((2 * r + 1) * height // (2 * mask.shape[0]), (2 * c + 1) * width // (2 * mask.shape[1])) for r, c in part}
        for part in parts
    ]
    assert all(any(resized[place] for place in found) for found in places)
    needed = sum(not any(by_area[place] for place in found) for found in places)
    assert np.count_nonzero(resized & ~by_area) <= needed


def test_small_lesions_of_a_large_photograph_stay_and_large_ones_keep_their_area() -> None:
    lesions, disc = np.zeros((2848, 4288), bool), np.zeros((2848, 4288), bool)
    rng = np.random.default_rng(0)
    corners = [
        (500 * row + int(rng.integers(400)), 420 * col + int(rng.integers(400)))
        for row in range(5)
        for col in range(10)
    ]
    for row, col in corners:
        lesions[row : row + 2, col : col + 3] = True
    disc[(np.arange(2848)[:, None] - 1400) ** 2 + (np.arange(4288) - 2000) ** 2 < 300**2] = True
    placement = Placement(canvas_px=288, source_height=2848, source_width=4288, box=(0, 0, 2848, 4288))
    assert connected_parts(placement.place_mask(lesions))[0] == len(corners) == placement.place_mask(lesions).sum()
    (down, _, _), (_, right, _) = placement.affine
    assert placement.place_mask(disc).sum() == pytest.approx(disc.sum() * down * right, rel=0.01)


def test_vessels_thinner_than_a_pixel_of_the_canvas_keep_their_area() -> None:
    vessels = np.zeros((1000, 1000), bool)
    for offset in (100, 333, 571, 804):
        cols = (offset + 90 * np.sin(np.arange(1000) / 57 + offset)).astype(int)
        vessels[np.arange(1000), cols] = vessels[np.arange(1000), cols + 1] = True
    placed = Placement(canvas_px=300, source_height=1000, source_width=1000, box=(0, 0, 1000, 1000)).place_mask(vessels)
    assert placed.sum() == pytest.approx(vessels.sum() * 0.09, rel=0.1)


def test_the_corners_of_the_image_map_onto_the_corners_of_its_place() -> None:
    placement = Placement(canvas_px=96, source_height=50, source_width=30, box=(0, 0, 50, 30))
    (height, width), (row, col) = placement.size, placement.offset
    assert placement.place_point((0, 0)) == (row, col)
    assert placement.place_point((50, 30)) == pytest.approx((row + height, col + width))


@given(hnp.arrays(np.uint8, (48, 48)) | hnp.arrays(np.uint8, (48, 48, 3)))
def test_cell_statistics_are_those_of_each_cells_pixels(canvas: np.ndarray) -> None:
    cells = cell_statistics(canvas, SPEC, FOREGROUND)
    values = []
    for row in range(6):
        for col in range(6):
            cell = canvas[8 * row : 8 * row + 8, 8 * col : 8 * col + 8].astype(float)
            assert cells.mean[row, col] == pytest.approx(cell.mean(), abs=0.006)
            assert cells.std[row, col] == pytest.approx(cell.std(), abs=0.006)
            assert cells.foreground[row, col] == (cells.mean[row, col] > 8 or cells.std[row, col] > 4)
            if cells.foreground[row, col]:
                values.append(canvas[8 * row : 8 * row + 8, 8 * col : 8 * col + 8].astype(np.int64))
    assert cells.total == sum(int(cell.sum()) for cell in values)
    assert cells.total_squares == sum(int((cell**2).sum()) for cell in values)
    assert cells.num_values == sum(cell.size for cell in values)


def test_padding_and_flat_dark_cells_are_background_but_a_dark_edge_is_not() -> None:
    canvas = np.zeros((48, 48), np.uint8)
    canvas[:8, :8] = 5  # air: dark and flat
    canvas[8:16, 8:16] = 9  # tissue, however flat
    canvas[16:24, 16:18] = 20  # an edge through a dark cell
    foreground = cell_statistics(canvas, SPEC, FOREGROUND).foreground
    assert sorted(zip(*np.nonzero(foreground), strict=True)) == [(1, 1), (2, 2)]


@given(grey_images(), st.sampled_from([1, 3]))
def test_a_halved_image_has_the_means_of_two_by_two_rounded_half_up(pixels: np.ndarray, channels: int) -> None:
    height, width = (2 * side for side in pixels.shape)
    image = with_channels(np.tile(pixels, (2, 2)), channels)
    sums = image.reshape(height // 2, 2, width // 2, 2, -1).sum(axis=(1, 3), dtype=np.int64)
    assert np.array_equal(halved(image), ((sums + 2) // 4).reshape(halved(image).shape))


def test_the_grid_decides_the_size_of_the_canvas() -> None:
    image = smooth_image(20, 10, 0)
    assert Placement.of(image, replace(SPEC, n=7).canvas_px, None).place_image(image).shape == (56, 56)


@given(grey_images(), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_what_is_cut_off_are_the_dark_edges_and_nothing_else(
    pixels: np.ndarray, top: int, bottom: int, left: int, right: int
) -> None:
    bright = np.maximum(pixels, 26)
    framed = np.pad(bright, ((top, bottom), (left, right)), constant_values=25)
    height, width = pixels.shape
    assume(50 * height > framed.shape[0] and 50 * width > framed.shape[1])  # less is dust
    assert bright_box(framed, 25) == (top, left, top + height, left + width)
    trimmed, alone = Placement.of(framed, 64, 25), Placement.of(bright, 64, None)
    assert np.array_equal(trimmed.place_image(framed), alone.place_image(bright))
    assert np.array_equal(trimmed.place_mask(framed > 90), alone.place_mask(bright > 90))
    assert trimmed.place_point((top + 1.5, left + 0.5)) == pytest.approx(alone.place_point((1.5, 0.5)))
    (down, _, row), (_, across, col) = trimmed.affine
    assert trimmed.place_point((7.0, 3.0)) == pytest.approx((7 * down + row, 3 * across + col))


def test_an_edge_is_bright_in_any_channel_and_not_by_a_few_pixels() -> None:
    image = np.zeros((100, 200, 3), np.uint8)
    image[30:80, 40:150, 2] = 60
    image[5, 10:12] = 255  # dust
    assert bright_box(image, 25) == (30, 40, 80, 150)
    assert bright_box(image, 60) == (0, 0, 100, 200), "dark everywhere: left whole"
    assert bright_box(image[..., 2], 25) == (30, 40, 80, 150)


def test_a_trim_level_that_no_pixel_can_exceed_is_refused_and_none_is_not_written() -> None:
    with pytest.raises(GridError, match=r"trim_level is 255; expected a grey level from 0 to 254, or null"):
        replace(SPEC, trim_level=255)
    assert "trim_level" not in SPEC.to_json()
    for spec in (SPEC, replace(SPEC, trim_level=0)):
        assert GridSpec.from_json(spec.to_json()) == spec
