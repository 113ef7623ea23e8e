import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ace.data.erase import Square, draw_square, erase, visible_tokens
from ace.data.params import EraseParams
from shards.errors import ConfigError

SIZE, T = 64, 8


def params(probability: float, min_side: float = 0.2, max_side: float = 0.7) -> EraseParams:
    values = {"probability": probability, "min_side": min_side, "max_side": max_side}
    return EraseParams.from_params(values, "erase")


@given(st.integers(0, 2**32), st.sampled_from([(SIZE, SIZE), (SIZE, SIZE, 3)]))
def test_what_is_erased_is_one_black_square_of_the_sides_asked_for(seed: int, shape: tuple[int, ...]) -> None:
    crop = np.full(shape, 100, dtype=np.uint8)
    square = draw_square(params(1.0), np.random.default_rng(seed), size_px=SIZE)
    assert square is not None
    erased, visible = erase(crop, square), visible_tokens(square, size_px=SIZE, t=T)
    is_black = (erased == 0).reshape(SIZE, SIZE, -1).all(-1)
    rows, cols = np.flatnonzero(is_black.any(1)), np.flatnonzero(is_black.any(0))
    assert len(rows) == len(cols) == rows[-1] - rows[0] + 1 == cols[-1] - cols[0] + 1
    assert is_black.sum() == len(rows) ** 2
    assert 0.2 * SIZE - 0.5 <= len(rows) <= 0.7 * SIZE + 0.5
    assert (erased[~is_black] == 100).all(), "nothing else changes"
    assert (crop == 100).all(), "the crop given is not written to"
    for i in range(T):
        for j in range(T):
            cell = is_black[8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
            assert visible[i, j] == (2 * cell.sum() < cell.size)


@pytest.mark.parametrize("probability", [0.0, 0.4, 1.0])
def test_it_is_drawn_as_often_as_its_probability_says(probability: float) -> None:
    rng = np.random.default_rng(0)
    share = np.mean([draw_square(params(probability), rng, size_px=SIZE) is not None for _ in range(400)])
    assert share == pytest.approx(probability, abs=0.08)


def test_every_token_is_visible_where_nothing_is_erased() -> None:
    assert visible_tokens(None, size_px=SIZE, t=T).all()


def test_squares_lie_anywhere() -> None:
    rng, hits = np.random.default_rng(0), np.zeros((SIZE, SIZE), dtype=int)
    for _ in range(600):
        row, col, side = draw_square(params(1.0, 0.25, 0.25), rng, size_px=SIZE) or Square(0, 0, 0)
        hits[row : row + side, col : col + side] += 1
    for row, col in itertools.product((6, SIZE // 2, SIZE - 7), repeat=2):
        assert hits[row, col] > 0


def test_sides_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"min_side 0\.6 is above max_side 0\.3"):
        params(0.5, 0.6, 0.3)
