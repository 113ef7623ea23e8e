import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ace.data.crops import _cover, resample, resample_all, resample_region
from shards.core.grid import GridSpec, Scale, Window, draw_crop_pair
from shards.format.jpeg import DecodedRegion
from shards.phantom.anatomy import load_anatomy
from shards.phantom.radiograph import take_radiograph
from shards.phantom.study import draw_study
from shards.reading.reader import Sample, ShardIndex, ShardReader
from tests.ace.data.painted import BuildShards, grid_params
from tests.shards.phantom.settings import phantom_params
from tests.support.examples import examples

N, CELL_PX, T = 10, 8, 4
CANVAS_PX = N * CELL_PX


def smooth_canvas(seed: int) -> np.ndarray:
    """A canvas without detail below a few pixels, so that two interpolations in a row lose little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((CANVAS_PX, CANVAS_PX), Image.Resampling.BICUBIC))


@given(st.integers(0, 2**31), st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2)]), st.floats(0.5, 1.0))
def test_a_crop_equals_resampling_the_jitter_square_and_then_cropping(
    seed: int, factors: tuple[int, int], area: float
) -> None:
    spec = GridSpec(n=N, cell_px=CELL_PX, t=T, scales=(Scale(*factors, 1.0),), min_overlap=0.5, min_jitter_area=area)
    pair = draw_crop_pair(spec, spec.scales[0], np.random.default_rng(seed))
    canvas = smooth_canvas(seed)
    row, col, side = pair.jitter
    jittered = Image.fromarray(canvas).resize(
        (CANVAS_PX, CANVAS_PX), Image.Resampling.BILINEAR, box=(col, row, col + side, row + side)
    )
    for which, origin, (k, l) in (("coarse", pair.coarse, factors), ("fine", pair.fine, (1, 1))):
        row0, col0 = origin[0] * CELL_PX, origin[1] * CELL_PX
        cropped = jittered.crop((col0, row0, col0 + l * spec.crop_px, row0 + k * spec.crop_px))
        expected = np.asarray(cropped.resize((spec.crop_px, spec.crop_px), Image.Resampling.BILINEAR)).astype(int)
        found = resample(canvas, pair.window(which, spec), spec.crop_px).astype(int)
        # At the crop's border the one sees the pixels beyond it and the other does not.
        difference = np.abs(found - expected)
        assert difference[1:-1, 1:-1].max() <= (1 if (k, l) == (1, 1) else 8)
        assert difference.mean() <= 2


def test_a_window_of_whole_pixels_is_cut_out_unchanged() -> None:
    canvas = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resample(canvas, (3.0, 5.0, 11.0, 13.0), 8), canvas[3:11, 5:13])


def test_a_shrunk_window_is_averaged_and_not_subsampled() -> None:
    checkers = (255 * (np.indices((16, 16)).sum(0) % 2)).astype(np.uint8)
    shrunk = resample(checkers, (0.0, 0.0, 16.0, 16.0), 8)
    assert abs(shrunk.astype(int) - 127).max() <= 4


def test_a_window_that_rounding_put_outside_is_taken_as_the_whole_canvas() -> None:
    canvas = smooth_canvas(0)
    found = resample(canvas, (-1e-12, 0.0, CANVAS_PX + 1e-12, float(CANVAS_PX)), CANVAS_PX)
    np.testing.assert_array_equal(found, canvas)


def bilinear(values: np.ndarray, rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
    """Values at (row, col) where whole numbers are pixel centres, the edge repeated beyond it: one pixel at a time."""
    found = np.zeros((len(rows), len(cols)))
    for (i, row), (j, col) in itertools.product(enumerate(rows), enumerate(cols)):
        for near_row, near_col in itertools.product(
            (np.floor(row), np.floor(row) + 1), (np.floor(col), np.floor(col) + 1)
        ):
            weight = (1 - abs(row - near_row)) * (1 - abs(col - near_col))
            y, x = (int(np.clip(at, 0, n - 1)) for at, n in zip((near_row, near_col), values.shape, strict=True))
            found[i, j] += weight * values[y, x]
    return found


@st.composite
def windows(draw: st.DrawFn, ratio: float, size_px: int, canvas_px: int) -> Window:
    row, col = (draw(st.floats(0, canvas_px - ratio * size_px)) for _ in range(2))
    return row, col, row + ratio * size_px, col + ratio * size_px


@examples(0.6)
@given(st.data(), st.sampled_from([1, 2, 3, 4]), st.floats(0.91, 1.0), st.integers(0, 2**31))
def test_blocks_are_averaged_and_then_interpolated_between_their_centres(
    data: st.DataObject, factor: int, remainder: float, seed: int
) -> None:
    canvas = np.random.default_rng(seed).integers(0, 256, (48, 48), dtype=np.uint8)
    size_px = 11
    window = data.draw(windows(factor * remainder, size_px, 48))
    blocks = canvas.reshape(48 // factor, factor, 48 // factor, factor).mean(axis=(1, 3))
    centers = [
        (low + (np.arange(size_px) + 0.5) * (high - low) / size_px) / factor - 0.5
        for low, high in ((window[0], window[2]), (window[1], window[3]))
    ]
    expected = bilinear(blocks, *centers)
    found = resample_region(DecodedRegion(canvas, 0, 0), window, size_px)
    assert np.abs(found - expected).max() <= 1.1  # rounded twice


@examples(0.6)
@given(st.data(), st.floats(0.3, 4.0), st.booleans(), st.integers(0, 2**31))
def test_a_crop_does_not_depend_on_how_much_of_the_canvas_is_at_hand(
    data: st.DataObject, ratio: float, is_coloured: bool, seed: int
) -> None:
    canvas = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    canvas = canvas if is_coloured else canvas[:, :, 0].copy()
    size_px = 12
    window = data.draw(windows(ratio, size_px, 48))
    # At least what `resample_all` asks for.
    covered = _cover([window], size_px)
    row0, col0 = (data.draw(st.integers(0, max(0, first))) for first in covered[:2])
    row1, col1 = (data.draw(st.integers(min(stop, 48), 48)) for stop in covered[2:])
    region = DecodedRegion(canvas[row0:row1, col0:col1], row0, col0)
    whole = resample_region(DecodedRegion(canvas, 0, 0), window, size_px)
    assert np.abs(resample_region(region, window, size_px).astype(int) - whole).max() <= 1


@examples(0.6)
@given(st.data(), st.floats(0.3, 1.0), st.integers(0, 2**31))
def test_where_nothing_shrinks_a_region_gives_the_same_crop_as_the_canvas(
    data: st.DataObject, ratio: float, seed: int
) -> None:
    canvas = np.random.default_rng(seed).integers(0, 256, (40, 40), dtype=np.uint8)
    window = data.draw(windows(ratio, 40, 40))
    found = resample_region(DecodedRegion(canvas, 0, 0), window, 40)
    assert np.abs(found.astype(int) - resample(canvas, window, 40)).max() <= 1


@pytest.mark.parametrize("ratio", [1.05, 1.5, 1.79, 2.3])
def test_a_window_that_averages_would_blur_is_resampled_as_ever(ratio: float) -> None:
    canvas = np.random.default_rng(0).integers(0, 256, (80, 80), dtype=np.uint8)
    window = (3.3, 5.2, 3.3 + 30 * ratio, 5.2 + 30 * ratio)
    np.testing.assert_array_equal(
        resample_region(DecodedRegion(canvas, 0, 0), window, 30), resample(canvas, window, 30)
    )


ANATOMY_GRID = grid_params((2, 2), (1, 2), t=6, n=16, cell_px=16)


@pytest.fixture(scope="module")
def radiograph() -> np.ndarray:
    """Real anatomy at the canvas's size, as the phantom renders it."""
    params = phantom_params(size_px=256, num_ray_rows=128, num_ray_cols=96, num_depth_planes=64)
    anatomy = load_anatomy()
    study = draw_study(params, anatomy, 0)
    return take_radiograph(anatomy, study, study.exposures[0], params).image


@pytest.fixture(scope="module", params=["grey", "colour"])
def samples(
    request: pytest.FixtureRequest, radiograph: np.ndarray, build_painted: BuildShards
) -> tuple[Sample, Sample]:
    """The radiograph as a PNG and as a JPEG; in colour each channel is turned another way."""
    image = radiograph
    if request.param == "colour":
        image = np.stack([radiograph, radiograph[::-1], radiograph.T], axis=2)
    indexes: list[ShardIndex] = [
        build_painted({"a.png": image}, ANATOMY_GRID, image_format=image_format) for image_format in ("png", "jpg")
    ]
    png, jpeg = (ShardReader(index).read(0) for index in indexes)
    return png, jpeg


def shift_px(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """By how much `found` is displaced, (row, col) in pixels: least squares on the gradients (Lucas and Kanade)."""
    found, expected = (crop.reshape(*crop.shape[:2], -1).mean(axis=2) for crop in (found, expected))
    gradients = np.stack([gradient.ravel() for gradient in np.gradient((found + expected) / 2)], axis=1)
    return np.linalg.lstsq(gradients, (expected - found).ravel())[0]


def test_the_shift_is_measured_in_pixels_and_has_a_sign(radiograph: np.ndarray) -> None:
    window = np.array([20.0, 30.0, 220.0, 230.0])
    moved = resample(radiograph, tuple(window - [0.3, -0.2, 0.3, -0.2]), 200)
    np.testing.assert_allclose(shift_px(moved, resample(radiograph, tuple(window), 200)), [0.3, -0.2], atol=0.03)


@pytest.mark.parametrize("scale", ANATOMY_GRID.spec.scales, ids=str)
def test_of_real_anatomy_the_crops_of_a_jpeg_are_those_of_the_png_without_a_shift(
    samples: tuple[Sample, Sample], scale: Scale
) -> None:
    png, jpeg = samples
    spec, rng = ANATOMY_GRID.spec, np.random.default_rng(0)
    for _ in range(12):
        pair = draw_crop_pair(spec, scale, rng)
        pair_windows = [pair.window("coarse", spec), pair.window("fine", spec)]
        exact = resample_all(png, pair_windows, spec.crop_px)
        for found, expected in zip(resample_all(jpeg, pair_windows, spec.crop_px), exact, strict=True):
            difference = found.astype(float) - expected
            assert np.abs(shift_px(found, expected)).max() < 0.05
            assert np.abs(difference).mean() < 2
            assert 10 * np.log10(255**2 / np.square(difference).mean()) > 38


def test_a_png_is_resampled_as_ever(samples: tuple[Sample, Sample]) -> None:
    png, _ = samples
    given_windows = [(3.3, 5.1, 190.2, 192.0), (10.0, 20.0, 100.0, 110.0)]
    for found, window in zip(resample_all(png, given_windows, 96), given_windows, strict=True):
        np.testing.assert_array_equal(found, resample(png.image, window, 96))


def test_of_a_jpeg_no_canvas_is_decoded_whole(samples: tuple[Sample, Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    _, jpeg = samples
    decoded, region = [], Sample.region
    monkeypatch.setattr(Sample, "region", lambda *arguments: decoded.append(region(*arguments)) or decoded[-1])
    resample_all(jpeg, [(30.0, 30.0, 220.0, 220.0), (100.0, 60.0, 190.0, 150.0)], 96)
    sizes = sorted(part.pixels.shape[:2] for part in decoded)
    assert len(sizes) == 2  # some 90 rows of the canvas, and its copy at half the size
    assert sizes[0][0] <= 112
    assert sizes[1] == (128, 128)
