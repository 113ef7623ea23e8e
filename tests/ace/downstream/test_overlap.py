import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_dice, compute_iou

from ace.downstream.overlap import (
    dice_of,
    dice_over_set,
    iou_of,
    iou_over_set,
    mean_shapes,
    outline_distances,
    overlap_counts,
)
from ace.protocol.intervals import estimate

SIDE = 48


def square(row: int, col: int, side: int = 20) -> torch.Tensor:
    mask = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool)
    mask[..., row : row + side, col : col + side] = True
    return mask


EMPTY = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool)


@pytest.mark.parametrize("shift", [0, 1, 3, 7])
def test_a_square_shifted_along_a_row_has_the_dice_iou_and_distance_of_its_shift(shift: int) -> None:
    truth, predicted = square(10, 10), square(10, 10 + shift)
    counts = overlap_counts(predicted, truth)
    assert dice_of(counts).item() == pytest.approx(1 - shift / 20)
    assert iou_of(counts).item() == pytest.approx((20 - shift) / (20 + shift))
    assert outline_distances(predicted, truth).item() == pytest.approx(shift)


def test_distances_are_in_the_unit_of_the_spacing_of_rows_and_of_columns() -> None:
    truth = torch.cat([square(10, 10)] * 3)
    predicted = torch.cat([square(13, 10), square(10, 13), square(10, 13)])
    spacing = np.array([[2.0, 0.5], [2.0, 0.5], [np.nan, np.nan]])
    distances = outline_distances(predicted, truth, spacing)[:, 0]
    assert distances[:2] == pytest.approx([6.0, 1.5])
    assert math.isnan(distances[2])


def test_one_stray_pixel_in_a_hundred_does_not_move_the_distance() -> None:
    truth = square(2, 2, side=26)  # 100 pixels of outline
    predicted = truth.clone()
    predicted[..., 47, 47] = True
    assert outline_distances(predicted, truth).item() == 0


def test_both_empty_agree_and_one_empty_does_not_and_neither_has_a_distance() -> None:
    predicted = torch.cat([EMPTY, EMPTY, square(5, 5)])
    truth = torch.cat([EMPTY, square(5, 5), EMPTY])
    counts = overlap_counts(predicted, truth)
    assert dice_of(counts)[:, 0].tolist() == [1, 0, 0]
    assert iou_of(counts)[:, 0].tolist() == [1, 0, 0]
    assert np.isnan(outline_distances(predicted, truth)).all()


@given(arrays(bool, (2, 2, 2, 6, 6)))
def test_dice_and_iou_are_monais_where_the_truth_is_not_empty(masks: np.ndarray) -> None:
    predicted, truth = torch.from_numpy(masks)
    counts = overlap_counts(predicted, truth)
    has_truth = truth.flatten(2).any(2).numpy()
    for found, of_monai in ((dice_of(counts), compute_dice), (iou_of(counts), compute_iou)):
        expected = of_monai(predicted.float(), truth.float(), include_background=True).numpy()
        np.testing.assert_allclose(found[has_truth], expected[has_truth], rtol=1e-6)


def test_the_set_counts_pixels_and_the_cases_count_alike() -> None:
    # A large square that is half found, a small one that is found, and a patient who is drawn twice.
    truth = torch.cat([square(0, 0, 20), square(0, 0, 2)])
    predicted = torch.cat([square(0, 10, 20), square(0, 0, 2)])
    counts = overlap_counts(predicted, truth)[:, 0]
    assert dice_of(counts).mean() == pytest.approx((0.5 + 1) / 2)
    patients = np.array([0, 1])
    assert estimate(dice_over_set(counts, patients), 2) == pytest.approx((2 * 200 + 2 * 4) / (800 + 8))
    assert estimate(iou_over_set(counts, patients), 2) == pytest.approx((200 + 4) / (600 + 4))
    twice = dice_over_set(counts, patients)(np.array([[2, 0], [1, 2]]))
    assert twice.tolist() == pytest.approx([0.5, (400 + 2 * 8) / (800 + 2 * 8)])


@given(st.integers(1, 5))
def test_mean_shapes_are_what_half_of_the_known_cases_have_inside(num_inside: int) -> None:
    truth = np.zeros((7, 1, 2, 2), bool)
    truth[:num_inside, 0, 0, 0] = True
    known = np.ones((7, 1), bool)
    known[5:] = False
    truth[5:] = True  # of cases that do not know it
    cases = (torch.from_numpy(own)[None] for own in truth)
    assert mean_shapes(cases, torch.from_numpy(known))[0, 0].tolist() == [[2 * num_inside >= 5, False], [False, False]]
