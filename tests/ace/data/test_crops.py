import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ace.data.crops import resample
from shards.grid import GridSpec, Scale, draw_crop_pair

N, CELL_PX, T = 10, 8, 4
CANVAS_PX = N * CELL_PX


def smooth_canvas(seed: int) -> np.ndarray:
    """A canvas without detail below a few pixels, so that two interpolations in a row lose little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((CANVAS_PX, CANVAS_PX), Image.Resampling.BICUBIC))


@settings(deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2)]), st.floats(0.5, 1.0))
def test_a_crop_equals_resampling_the_jitter_square_and_then_cropping(
    seed: int, factors: tuple[int, int], area: float
) -> None:
    spec = GridSpec(N, CELL_PX, T, (Scale(*factors, 1.0),), 0.5, area)
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
