"""Tokens before and after a region is set to black: what becomes of the erased ones, and of the others."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ace.properties.base import Setting
from ace.properties.decomposition import (
    DecompositionMeasurement,
    DecompositionParams,
    plan_decomposition,
    remove_and_cut,
    remove_regions,
)
from ace.protocol.cohort import Cohort, Subject
from ace.protocol.features import Features
from ace.protocol.fills import plan_fills
from ace.protocol.intervals import estimate, patient_weights, per_patient, quotient
from ace.protocol.regions import Region
from ace.protocol.removal import Removal, change_outside, erased_length, erased_share, shown_region
from tests.ace.properties.constructed import SPEC, collapsed, colour, embedder

PARAMS = DecompositionParams(
    num_draws=20,
    num_candidates=4,
    regions_per_patient=2,
    min_side=0.3,
    max_side=0.8,
    fills=("black",),
    further_candidates=(),
)
NUM = 6
PLAN = plan_decomposition(NUM, PARAMS, np.random.default_rng(0), same_position=False)
KEYS = [str(number) for number in range(NUM)]
FILLS = plan_fills(KEYS, ("black",), num_regions=2, sides=(0.3, 0.8), seed=0, rng=np.random.default_rng(0))
CANVASES = list(np.random.default_rng(1).integers(1, 256, (NUM, SPEC.crop_px, SPEC.crop_px, 3), dtype=np.uint8))
SIZE_PX, T = SPEC.crop_px, SPEC.t


def removal(code: object = colour, images_per_forward: int = 7) -> Removal:
    return remove_regions(embedder(code, images_per_forward=images_per_forward), CANVASES, PLAN, FILLS).tokens


def shared(means: Tensor) -> Tensor:
    """Every token is the mean of all: a change anywhere is a change everywhere."""
    return means.mean((1, 2), keepdim=True).expand_as(means)


@given(st.floats(0.05, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_erased_share_of_a_token_is_counted_in_pixels(side: float, down: float, right: float) -> None:
    region = Region(down * (1 - side), right * (1 - side), side)
    image = np.ones((SIZE_PX, SIZE_PX), np.uint8)
    is_erased = remove_and_cut(image, region)[0] == 0
    counted = is_erased.reshape(T, SPEC.cell_px, T, SPEC.cell_px).mean(axis=(1, 3))
    np.testing.assert_allclose(erased_share(region, SIZE_PX, T), counted)


@pytest.mark.parametrize("images_per_forward", [1, 7, 1000])
def test_lengths_are_those_of_the_tokens_one_by_one(images_per_forward: int) -> None:
    found = removal(images_per_forward=images_per_forward)

    def tokens(image: np.ndarray) -> np.ndarray:
        return image.reshape(T, SPEC.cell_px, T, SPEC.cell_px, 3).mean(axis=(1, 3)) / 255

    for patient, canvas in enumerate(CANVASES):
        whole = tokens(canvas.astype(float))
        np.testing.assert_allclose(found.whole[patient], np.linalg.norm(whole, axis=-1), rtol=1e-5)
        for number, region in enumerate(PLAN.regions[patient]):
            without = tokens(remove_and_cut(canvas, region)[0].astype(float))
            np.testing.assert_allclose(found.without[patient, number], np.linalg.norm(without, axis=-1), atol=1e-5)
            change = np.linalg.norm(whole - without, axis=-1)
            np.testing.assert_allclose(found.change[patient, number], change, atol=1e-5)
            np.testing.assert_allclose(
                found.relative_change[patient, number], change / found.whole[patient].mean(), atol=1e-5
            )


def test_an_additive_encoder_leaves_nothing_inside_and_changes_nothing_outside() -> None:
    assert estimate(erased_length(removal()), NUM) == 0
    assert estimate(change_outside(removal()), NUM) == 0


def test_tokens_that_do_not_tell_black_from_tissue_have_the_full_length() -> None:
    found = removal(collapsed)
    assert estimate(erased_length(found), NUM) == pytest.approx(1)
    assert np.isnan(estimate(change_outside(found), NUM))
    assert (found.relative_change == 0).all()


def test_a_change_that_spreads_falls_outside_by_the_share_of_the_tokens_there() -> None:
    found = removal(shared)
    squares = (found.change.astype(float) ** 2).sum(axis=(2, 3))
    outside = (found.erased == 0).mean(axis=(2, 3))
    assert estimate(change_outside(found), NUM) == pytest.approx((squares * outside).sum() / squares.sum())


def test_an_encoder_without_length_has_no_figures_and_no_division_by_zero() -> None:
    found = removal(torch.zeros_like)
    assert np.isnan(estimate(erased_length(found), NUM))
    assert (found.relative_change == 0).all()


def test_a_quotient_is_taken_within_each_resample() -> None:
    first, second = np.array([1.0, 4.0, 2.0]), np.array([3.0, 0.0, 5.0])
    ones, weights = np.ones(3), patient_weights(3, 20, np.random.default_rng(0))
    found = quotient(per_patient(first, ones), per_patient(second, ones))(weights)
    expected = np.array([w @ first / (w @ second) if w @ second else np.nan for w in weights])
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize(
    ("sides", "chosen"), [([0.8, 0.45, 0.5], 1), ([0.3, 0.75, 0.34], 2), ([0.5, 0.5], 0), ([0.79, 0.3], 1)]
)
def test_a_picture_shows_the_first_region_of_moderate_size_or_the_nearest(sides: list[float], chosen: int) -> None:
    assert shown_region([Region(0, 0, side) for side in sides]) == chosen


def test_the_picture_holds_the_square_and_the_change_beside_the_figures() -> None:
    subjects = [
        Subject(key=key, canvas=canvas, landmarks={}, foreground=np.ones((2, 2), bool))
        for key, canvas in zip(KEYS, CANVASES, strict=True)
    ]
    cohort = Cohort(batch="constructed", split="test", spec=SPEC, subjects=tuple(subjects))
    setting = Setting(cohort=cohort, index=None, dense=None, seed=0, max_patients=NUM, num_examples=3)
    measurement = DecompositionMeasurement(
        setting=setting, params=PARAMS, anywhere=PLAN, same_position=PLAN, further={}, fills=FILLS
    )
    answers = measurement.ask(embedder(colour), Features(Path(), {}))
    found = removal()
    arrays = measurement.pictures({"trained": answers, "imagenet": answers}, {})
    assert arrays["trained_change"].shape == (3, T, T)
    for example, (row, col, side) in enumerate(arrays["removal_place"]):
        square = (slice(row, row + side), slice(col, col + side))
        assert (arrays["removal_without"][example][square] == 0).all()
        is_same = (arrays["removal_without"][example] == arrays["removal_image"][example]).all(axis=-1)
        assert not is_same[square].any()
        assert is_same.sum() == SIZE_PX**2 - side**2
        number = shown_region(PLAN.regions[example])
        np.testing.assert_array_equal(arrays["imagenet_change"][example], found.relative_change[example, number])
    assert arrays["trained_erased_length"] == estimate(erased_length(found), NUM)
    assert arrays["trained_change_outside"].shape == ()
