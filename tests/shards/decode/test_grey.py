"""The window of deep grey values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shards.decode.grey import choose_window, histogram, spread

IMAGES = hnp.arrays(
    np.uint16, st.tuples(st.integers(1, 60), st.integers(1, 60)), elements=st.integers(0, 65535), fill=st.integers(0, 9)
)


def slow_window(values: np.ndarray) -> tuple[float, float]:
    """Percentiles of the sorted pixels themselves, after all but a thousandth of each value were taken away."""
    most = max(1, values.size // 1000)
    kept: list[int] = []
    for value in sorted(set(values.ravel().tolist())):
        kept += [value] * min(most, int((values == value).sum()))
    low, high = np.percentile(kept, [0.5, 99.5])
    return (low, high) if low < high else (values.min(), values.max())


@given(IMAGES)
def test_the_window_is_that_of_the_sorted_pixels(values: np.ndarray) -> None:
    _, window = spread(values)
    assert (window.low, window.high) == pytest.approx(slow_window(values), abs=1e-6)


@given(IMAGES, st.integers(-70000, 70000), st.sampled_from([np.int32, np.int64]))
def test_integers_of_any_kind_and_offset_are_shown_alike(values: np.ndarray, offset: int, dtype: type) -> None:
    assert np.array_equal(spread(values.astype(dtype) + dtype(offset))[0], spread(values)[0])


@given(IMAGES)
def test_an_inverted_picture_has_the_inverted_window(values: np.ndarray) -> None:
    shown, inverted = spread(values)[0], spread(np.uint16(65535) - values)[0]
    if np.ptp(values):
        assert np.abs(shown.astype(int) - (255 - inverted.astype(int))).max() <= 1
    else:
        assert not shown.any()
        assert not inverted.any()


@given(IMAGES)
def test_order_is_kept_and_different_extremes_stay_black_and_white(values: np.ndarray) -> None:
    shown = spread(values)[0]
    assert (np.diff(shown.ravel()[np.argsort(values.ravel(), kind="stable")].astype(int)) >= 0).all()
    assert shown.min() == 0
    assert shown.max() == (255 if np.ptp(values) else 0)


@given(hnp.arrays(np.uint8, (9, 11)) | hnp.arrays(np.uint16, (9, 11)))
def test_the_histogram_counts(cells: np.ndarray) -> None:
    expected = np.bincount(cells.ravel(), minlength=256**cells.itemsize)
    assert np.array_equal(histogram(cells), expected)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.75])
def test_one_value_however_common_does_not_move_the_window(share: float) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(300, 3000, 200_000).astype(np.int64)
    plain = choose_window(*np.unique(values, return_counts=True))
    for extreme in (0, 60_000):
        marked = values.copy()
        marked[: int(share * len(values))] = extreme
        window = choose_window(*np.unique(marked, return_counts=True))
        assert (window.low, window.high) == pytest.approx((plain.low, plain.high), abs=20)


def test_a_few_odd_pixels_do_not_move_the_window() -> None:
    values = np.tile(np.arange(1000, 2000), 100)
    values[:200] = np.arange(200) + 65_000
    window = choose_window(*np.unique(values, return_counts=True))
    assert window.low == pytest.approx(1005, abs=2)
    assert window.high == pytest.approx(1996, abs=2)


def test_without_pixels_there_is_no_window() -> None:
    window = choose_window(np.arange(4), np.zeros(4, int))
    assert (window.low, window.high, window.rule) == (0, 0, "minimum to maximum")
