import pytest
import torch
import torch.nn.functional as F

from ace.models.prototypes import prototype_logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradients_are_those_of_the_normalised_weight(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, direction = (torch.randn(shape, generator=generator, dtype=dtype) for shape in ((3, 5), (7, 5), (3, 7)))
    results = []
    for function in (prototype_logits, lambda x, w: F.linear(x, F.normalize(w, dim=-1))):
        leaves = x.clone().requires_grad_(), (weight * 0.02).requires_grad_()
        logits = function(*leaves)
        results.append([logits, *torch.autograd.grad((logits * direction).sum(), leaves)])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain)


def test_gradients_hold_against_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in ((2, 3), (4, 3))
    )
    assert torch.autograd.gradcheck(prototype_logits, (x, weight))


def test_a_weight_without_gradient_gets_none() -> None:
    x, weight = torch.ones(2, 3, requires_grad=True), torch.ones(4, 3)
    prototype_logits(x, weight).sum().backward()
    assert weight.grad is None
    assert x.grad is not None


def test_a_row_of_zeros_gives_a_logit_of_zero_and_finite_gradients() -> None:
    x, weight = torch.ones(1, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    logits = prototype_logits(x, weight)
    logits.sum().backward()
    assert logits.tolist() == [[0.0, 0.0]]
    assert torch.isfinite(weight.grad).all()


def test_half_precision_of_the_networks_leaves_logits_and_gradients_in_full() -> None:
    x, weight = torch.randn(2, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = prototype_logits(x, weight)
    logits.sum().backward()
    assert weight.grad.dtype == x.grad.dtype == torch.float32
    torch.testing.assert_close(logits, F.linear(x, F.normalize(weight, dim=-1)))
