import math

import pytest
import torch

from ace.downstream.segmentation import segmentation_loss

SIDE = 48


def test_the_loss_is_cross_entropy_plus_dice_loss() -> None:
    truth = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.bool)
    truth[..., :12, 20:32] = True
    share = 144 / SIDE**2
    loss = segmentation_loss(torch.zeros(1, 1, SIDE, SIDE), truth, torch.ones(1, 1, dtype=torch.bool))
    assert loss.item() == pytest.approx(math.log(2) + 1 - 2 * 0.5 * share / (0.5 + share), abs=1e-5)
    right = segmentation_loss(40.0 * truth - 20, truth, torch.ones(1, 1, dtype=torch.bool))
    assert right.item() == pytest.approx(0, abs=1e-4)


def test_structures_that_are_not_known_teach_nothing() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 8, 8, requires_grad=True)
    truth = torch.rand(2, 2, 8, 8) > 0.5
    known = torch.tensor([[True, False], [True, True]])
    loss = segmentation_loss(logits, truth, known)
    loss.backward()
    other = truth.clone()
    other[0, 1] = ~other[0, 1]
    assert segmentation_loss(logits, other, known).item() == loss.item()
    assert logits.grad is not None
    assert not logits.grad[0, 1].any()
    assert all(logits.grad[case].any() for case in ((0, 0), (1, 0), (1, 1)))
    assert segmentation_loss(logits, truth, torch.zeros_like(known)).item() == 0
