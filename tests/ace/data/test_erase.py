"""What is erased of a crop: where rectangles lie, what they are filled with, and how much of each token stays."""

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ace.data.erase import (
    FILLS,
    NUM_RECTANGLES,
    Erasure,
    Rectangle,
    draw_erasure,
    partners,
    shown_share,
    with_erased,
)
from ace.data.params import EraseParams
from shards.core.errors import ConfigError

SIZE, T = 64, 8
EQUALLY = dict.fromkeys(FILLS, 1.0)
seeds = st.integers(0, 2**32)


def params(probability: float = 1.0, min_side: float = 0.2, max_side: float = 0.7, **changes: Any) -> EraseParams:
    values = {"probability": probability, "min_side": min_side, "max_side": max_side, "fills": EQUALLY}
    return EraseParams.from_params({**values, "max_rectangles": 1, "max_aspect": 1.0, **changes}, "erase")


def drawn(seed: int, **changes: Any) -> Erasure:
    erasure = draw_erasure(params(**changes), np.random.default_rng(seed), size_px=SIZE)
    assert erasure is not None
    return erasure


def pixels_of(erasure: Erasure) -> np.ndarray:
    """Which pixels lie in a rectangle, one pixel at a time."""
    is_erased = np.zeros((SIZE, SIZE), dtype=bool)
    for row, col in itertools.product(range(SIZE), repeat=2):
        is_erased[row, col] = any(
            r.row <= row < r.row + r.height and r.col <= col < r.col + r.width for r in erasure.rectangles
        )
    return is_erased


def textured(num_crops: int, num_channels: int, seed: int = 0) -> torch.Tensor:
    """Crops without black pixels, each and each channel of another mean."""
    rng = np.random.default_rng(seed)
    low = rng.integers(1, 200, (num_crops, num_channels, 1, 1))
    return torch.from_numpy((low + rng.integers(0, 50, (num_crops, num_channels, SIZE, SIZE))).astype(np.uint8))


@given(seeds)
def test_a_square_has_a_side_within_its_range_and_lies_in_the_crop(seed: int) -> None:
    ((row, col, height, width),) = drawn(seed).rectangles
    assert height == width
    assert 0.2 * SIZE - 0.5 <= height <= 0.7 * SIZE + 0.5
    assert min(row, col) >= 0
    assert max(row + height, col + width) <= SIZE


@given(seeds, st.integers(1, NUM_RECTANGLES), st.floats(1.0, 4.0))
def test_rectangles_have_the_area_of_a_square_and_at_most_the_aspect_asked_for(
    seed: int, max_rectangles: int, max_aspect: float
) -> None:
    """Sides are rounded to pixels, so bounds are given half a pixel; none here is too long for the crop."""
    erasure = drawn(seed, max_side=0.45, max_rectangles=max_rectangles, max_aspect=max_aspect)
    assert 1 <= len(erasure.rectangles) <= max_rectangles
    for row, col, height, width in erasure.rectangles:
        assert min(row, col) >= 0
        assert max(row + height, col + width) <= SIZE
        for long, short in ((height, width), (width, height)):
            assert (long - 0.5) / (short + 0.5) <= max_aspect
        assert (height + 0.5) * (width + 0.5) >= (0.2 * SIZE) ** 2
        assert (height - 0.5) * (width - 0.5) <= (0.45 * SIZE) ** 2


def test_a_side_too_long_for_the_crop_is_as_long_as_the_crop() -> None:
    sides = [drawn(seed, min_side=0.9, max_side=0.9, max_aspect=4.0).rectangles[0][2:] for seed in range(100)]
    assert max(max(both) for both in sides) == SIZE


def test_numbers_and_aspects_are_spread_over_their_ranges() -> None:
    erasures = [drawn(seed, max_rectangles=3, max_aspect=4.0, max_side=0.45) for seed in range(900)]
    numbers = Counter(len(erasure.rectangles) for erasure in erasures)
    assert [numbers[number] / 900 for number in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.06)
    aspects = np.log([r.height / r.width for erasure in erasures for r in erasure.rectangles]) / np.log(4.0)
    share, _ = np.histogram(aspects, bins=[-1.2, -0.5, 0, 0.5, 1.2])
    np.testing.assert_allclose(share / len(aspects), 0.25, atol=0.06)


@pytest.mark.parametrize("probability", [0.0, 0.4, 1.0])
def test_it_is_drawn_as_often_as_its_probability_says(probability: float) -> None:
    rng = np.random.default_rng(0)
    share = np.mean([draw_erasure(params(probability), rng, size_px=SIZE) is not None for _ in range(400)])
    assert share == pytest.approx(probability, abs=0.08)


def test_fills_are_drawn_as_often_as_their_weights_say() -> None:
    weights = {"black": 2.0, "mean": 0.0, "grey": 1.0, "noise": 0.5, "tissue": 0.5}
    erasures = [drawn(seed, fills=weights) for seed in range(600)]
    counts = Counter(erasure.fill for erasure in erasures)
    assert [counts[fill] / 600 for fill in FILLS] == pytest.approx([0.5, 0.0, 0.25, 0.125, 0.125], abs=0.06)
    assert len({erasure.seed for erasure in erasures}) == 600
    assert all(0 <= erasure.seed < 2**31 for erasure in erasures)


def test_squares_lie_anywhere() -> None:
    rng, hits = np.random.default_rng(0), np.zeros((SIZE, SIZE), dtype=int)
    for _ in range(600):
        erasure = draw_erasure(params(1.0, 0.25, 0.25), rng, size_px=SIZE)
        assert erasure is not None
        for row, col, height, width in erasure.rectangles:
            hits[row : row + height, col : col + width] += 1
    for row, col in itertools.product((6, SIZE // 2, SIZE - 7), repeat=2):
        assert hits[row, col] > 0


@given(seeds, st.integers(1, NUM_RECTANGLES))
def test_the_share_of_a_token_is_that_of_its_pixels(seed: int, max_rectangles: int) -> None:
    erasure = drawn(seed, max_rectangles=max_rectangles, max_aspect=3.0)
    is_erased, shown = pixels_of(erasure), shown_share(erasure, size_px=SIZE, t=T)
    assert shown.dtype == np.float32
    cell = SIZE // T
    for i, j in itertools.product(range(T), repeat=2):
        erased = is_erased[cell * i : cell * (i + 1), cell * j : cell * (j + 1)]
        assert shown[i, j] == 1 - erased.sum() / cell**2


@pytest.mark.parametrize("t", [3, 7, 8])
def test_every_token_is_shown_in_full_where_nothing_is_erased(t: int) -> None:
    """To the last bit, also where a token's pixels are no power of 2: all that is below 1 counts as erased."""
    assert (shown_share(None, size_px=6 * t, t=t) == 1).all()
    corner = shown_share(Erasure((Rectangle(0, 0, 6, 6),)), size_px=6 * t, t=t)
    assert corner[0, 0] == 0
    assert (corner.ravel()[1:] == 1).all()


@given(seeds, st.sampled_from([1, 3]), st.sampled_from(FILLS))
def test_erased_pixels_hold_the_fill_and_no_other_changes(seed: int, num_channels: int, fill: str) -> None:
    crops, donors = textured(1, num_channels, seed), textured(1, num_channels, seed + 1)
    original, erasure = crops.clone(), replace(drawn(seed, max_rectangles=3, max_aspect=2.0), fill=fill)
    filled = with_erased(crops, [erasure], donors)
    assert torch.equal(crops, original), "the crops given are not written to"
    assert filled.dtype == torch.uint8
    is_erased = torch.from_numpy(pixels_of(erasure))
    assert torch.equal(filled[..., ~is_erased], crops[..., ~is_erased])
    levels = filled[0][:, is_erased]
    if fill == "tissue":
        assert torch.equal(levels, donors[0][:, is_erased]), "the same place of the donor"
    elif fill == "noise":
        assert len(levels.unique()) > 40
        assert num_channels == 1 or not torch.equal(levels[0], levels[1])
    else:
        assert torch.equal(levels, levels[:, :1].expand_as(levels)), "one level in each channel"
    if fill == "black":
        assert levels.count_nonzero() == 0
    if fill == "mean":
        for channel, level in zip(crops[0], levels, strict=True):
            assert level[0].item() == int(channel.double().mean().item() + 0.5)


def test_grey_and_noise_are_uniform_over_all_levels_and_over_channels_and_pixels_independent() -> None:
    whole, crops = Rectangle(0, 0, SIZE, SIZE), torch.zeros(600, 3, SIZE, SIZE, dtype=torch.uint8)
    grey = with_erased(crops, [Erasure((whole,), "grey", seed) for seed in range(600)])[..., 0, 0].double()
    noise = with_erased(crops[:4], [Erasure((whole,), "noise", seed) for seed in range(4)]).double()
    for levels in (grey.flatten(), noise.flatten()):
        share = torch.histc(levels, bins=8, min=0, max=256) / len(levels)
        np.testing.assert_allclose(share, 1 / 8, atol=0.025)
    assert (torch.bincount(noise.flatten().int(), minlength=256) > 0).all()
    for rows in (grey.T, noise.transpose(0, 1).flatten(1), noise.flatten(1)):
        apart = np.corrcoef(rows.numpy()) - np.eye(len(rows))
        assert np.abs(apart).max() < 0.15
    neighbours = [noise[..., 1:].flatten().numpy(), noise[..., :-1].flatten().numpy()]
    assert abs(np.corrcoef(neighbours)[0, 1]) < 0.03


@given(seeds)
def test_what_becomes_of_a_crop_follows_from_its_own_record_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    crops, donors = textured(6, 3, seed), textured(6, 3, seed + 1)
    erasures = [draw_erasure(params(0.7, max_rectangles=2), rng, size_px=SIZE) for _ in crops]
    together = with_erased(crops, erasures, donors)
    order = rng.permutation(6)
    shuffled = with_erased(crops[order], [erasures[number] for number in order], donors[order])
    assert torch.equal(shuffled, together[order])
    for crop, erasure, donor, found in zip(crops.split(1), erasures, donors.split(1), together.split(1), strict=True):
        assert torch.equal(with_erased(crop, [erasure], donor), found)
        assert torch.equal(with_erased(crop, [erasure], donor), found), "the same a second time"


@given(st.integers(1, 12), st.integers(1, 6))
def test_partners_are_another_sample_and_those_of_a_part_of_even_size_those_of_the_whole(half: int, parts: int) -> None:
    size = 2 * half
    whole = partners(parts * size)
    assert sorted(whole) == list(range(parts * size)), "each gives once"
    assert all(whole[other] == number != other for number, other in enumerate(whole))
    assert whole == [part * size + other for part in range(parts) for other in partners(size)]
    odd = partners(size + 1)
    assert all(other != number and 0 <= other <= size for number, other in enumerate(odd))
    assert partners(1) == [0]


def test_tissue_without_donors_is_refused() -> None:
    with pytest.raises(ValueError, match="no donors are given"):
        with_erased(textured(1, 1), [Erasure((Rectangle(0, 0, 4, 4),), "tissue")])


@pytest.mark.parametrize("fill", ["grey", "noise"])
def test_another_seed_gives_other_levels(fill: str) -> None:
    crop, whole = textured(1, 3), Rectangle(0, 0, SIZE, SIZE)
    first, second = (with_erased(crop, [Erasure((whole,), fill, seed)]) for seed in (0, 2**31 - 1))  # type: ignore[arg-type]
    assert not torch.equal(first, second)


def test_a_batch_of_which_nothing_is_erased_is_given_back_as_it_is() -> None:
    crops = textured(2, 1)
    assert with_erased(crops, [None, None]) is crops


@pytest.mark.gpu
def test_a_gpu_gives_the_levels_of_the_cpu_and_never_waits() -> None:
    crops = textured(32, 3)
    erasures = [draw_erasure(params(0.8, max_rectangles=4), np.random.default_rng(n), size_px=SIZE) for n in range(32)]
    there, donors = crops.cuda(), crops.flip(0).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = with_erased(there, erasures, donors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), with_erased(crops, erasures, crops.flip(0)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"min_side": 0.6, "max_side": 0.3}, r"min_side 0\.6 is above max_side 0\.3"),
        ({"fills": dict.fromkeys(FILLS, 0.0)}, "all fills have weight 0"),
        ({"max_rectangles": NUM_RECTANGLES + 1}, "max_rectangles"),
        ({"max_rectangles": 0}, "max_rectangles"),
        ({"max_aspect": 0.5}, "max_aspect"),
        ({"fills": {**EQUALLY, "black": -1.0}}, "black"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        params(**changes)


def test_as_many_rectangles_as_the_parameters_allow_can_be_erased() -> None:
    rectangles = tuple(Rectangle(8 * number, 0, 8, 8) for number in range(NUM_RECTANGLES))
    assert params(max_rectangles=NUM_RECTANGLES).max_rectangles == NUM_RECTANGLES
    filled = with_erased(textured(1, 1), [Erasure(rectangles)])
    assert (filled == 0).sum() == 64 * NUM_RECTANGLES
