import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ace.downstream.heat_maps import decode, gaussian_targets, landmark_loss

SIZE_PX, CELLS = 64, 16
inner = st.floats(4.125, 59.75, width=32)  # a cell off the edge


def planted(points: torch.Tensor, sigma_px: float) -> torch.Tensor:
    """Logits of a network that has learned the targets: their logarithm, and any constant."""
    centres = (torch.arange(CELLS) + 0.5) * SIZE_PX / CELLS
    rows, cols = points[..., 0, None, None], points[..., 1, None, None]
    squares = (centres[:, None] - rows) ** 2 + (centres - cols) ** 2
    return 3.0 - squares / (2 * sigma_px**2)


@given(st.lists(st.tuples(inner, inner), min_size=1, max_size=4), st.floats(2.0, 9.0))
def test_a_planted_landmark_is_read_exactly(points: list[tuple[float, float]], sigma_px: float) -> None:
    truth = torch.tensor([points])
    torch.testing.assert_close(decode(planted(truth, sigma_px), SIZE_PX), truth, atol=2e-3, rtol=0)


def test_rows_and_columns_of_a_map_that_is_not_square_are_told_apart() -> None:
    logits = torch.zeros(1, 1, 8, 16)
    logits[0, 0, 0, 15] = 1.0
    assert decode(logits, 64).tolist() == [[[4.0, 62.0]]]


def test_the_loss_is_least_at_the_planted_maps_where_it_is_the_entropy_of_the_targets() -> None:
    points = torch.tensor([[[30.3, 35.7], [33.0, 28.2]]])
    logits = planted(points, 5.0).requires_grad_()
    loss = landmark_loss(logits, points, side=SIZE_PX, sigma=5.0)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6
    # A Gaussian of σ cells in two dimensions has the entropy ln(2πe σ²).
    assert loss.item() == pytest.approx(math.log(2 * math.pi * math.e * (5.0 / 4) ** 2), abs=1e-3)
    assert landmark_loss(logits + torch.randn_like(logits), points, side=SIZE_PX, sigma=5.0) > loss


def test_landmarks_unknown_or_outside_the_image_teach_nothing() -> None:
    points = torch.tensor([[[20.0, 20.0], [math.nan, math.nan], [-1.0, 30.0], [30.0, 64.5]]])
    logits = torch.randn(1, 4, CELLS, CELLS, requires_grad=True)
    _, is_inside = gaussian_targets(points, (CELLS, CELLS), side=SIZE_PX, sigma=5.0)
    assert is_inside.tolist() == [[True, False, False, False]]
    loss = landmark_loss(logits, points, side=SIZE_PX, sigma=5.0)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad[0, 0].any()
    assert not logits.grad[0, 1:].any()
