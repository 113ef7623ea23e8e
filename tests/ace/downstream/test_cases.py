import numpy as np
import pytest

from ace.downstream.cases import mean_of_cases, pixel_mm
from ace.protocol.intervals import estimate
from shards.core.canvas import Placement


def test_a_mean_counts_patients_as_often_as_they_are_drawn_and_leaves_out_what_is_not_known() -> None:
    mean = mean_of_cases(np.array([1.0, 2.0, np.nan, 6.0]), np.array([0, 0, 1, 2]))
    assert estimate(mean, 4) == pytest.approx(3)
    found = mean(np.array([[2, 0, 1, 1], [0, 3, 0, 1]]))
    assert found[0] == pytest.approx((2 * 3 + 6) / 5)
    assert np.isnan(found[1])


def test_a_pixel_of_a_resized_canvas_has_the_millimetres_of_the_source_pixels_that_it_covers() -> None:
    # JSRT: 2048 pixels of .175 mm, 358.4 mm, on 288 and then on 128 pixels.
    placement = Placement(canvas_px=288, source_height=2048, source_width=2048, box=(0, 0, 2048, 2048))
    meta = {"original": {"spacing_mm": [0.175, 0.175]}, "grid": {"affine": placement.affine}}
    assert pixel_mm(meta, shown_px=288, side=128) == pytest.approx((2.8, 2.8))
    meta["original"]["spacing_mm"] = None
    assert np.isnan(pixel_mm(meta, shown_px=288, side=128)).all()


def test_rows_and_columns_of_a_pixel_may_differ() -> None:
    meta = {"original": {"spacing_mm": [0.2, 0.1]}, "grid": {"affine": [[0.5, 0.0, 3.0], [0.0, 0.25, 5.0]]}}
    assert pixel_mm(meta, shown_px=200, side=100) == pytest.approx((0.2 / 0.5 * 2, 0.1 / 0.25 * 2))
    meta["grid"]["affine"] = [[0.5, 0.0, 3.0], [0.0, 0.5, 5.0]]
    assert pixel_mm(meta, shown_px=100, side=100) == pytest.approx((0.4, 0.2))
