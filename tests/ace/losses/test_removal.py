"""The removal term and its monitors against the oracle, one token at a time, and what has no influence on them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ace.losses.removal import RemovalSums, has_erased, removal_error, removal_sums, teacher_energy
from tests.oracles import losses as oracle
from tests.support.examples import examples

TOKENS, DIM = 6, 3
seeds = st.integers(0, 2**31)


def drawn(seed: int, num_crops: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 tokens of student and teacher, and shares; the first crop has tokens covered in part, the last is whole.

    The sums are of float32: tokens are rounded to it, so that the oracle starts from the same numbers.
    """
    rng = np.random.default_rng(seed)
    student, teacher = (torch.from_numpy(rng.normal(size=(num_crops, TOKENS, DIM))).float().double() for _ in range(2))
    shown = rng.choice([0.0, 0.25, 0.5, 0.75, 1.0], (num_crops, TOKENS))
    shown[0, :4] = [0.0, 0.375, 0.75, 1.0]
    shown[-1] = 1.0
    return student, teacher, torch.from_numpy(shown)


def term(student: Tensor, teacher: Tensor, shown: Tensor) -> Tensor:
    return removal_error(student, teacher, shown) / teacher_energy(teacher, shown)


@pytest.mark.parametrize("is_filled", [False, True], ids=["emptied", "filled with tissue"])
@given(seed=seeds)
def test_value_and_gradient_agree_with_the_oracle(is_filled: bool, seed: int) -> None:
    student, teacher, shown = drawn(seed, num_crops=2)
    inserted = drawn(seed + 1, num_crops=2)[1] if is_filled else None
    student.requires_grad_()
    value = removal_error(student, teacher, shown, inserted) / teacher_energy(teacher, shown)
    value.backward()

    def expected(tokens: np.ndarray) -> float:
        new = None if inserted is None else inserted.numpy()
        error, energy = oracle.removal(tokens, teacher.numpy(), shown.numpy(), new)
        return error / energy

    values = student.detach().numpy()
    assert value.item() == pytest.approx(expected(values), rel=1e-5)
    gradient = oracle.numerical_gradient(expected, values)
    assert np.abs(gradient).max() > 1e-3, "a gradient to tell from none"
    np.testing.assert_allclose(student.grad.numpy(), gradient, atol=2e-6)


def test_a_small_case_is_that_of_a_calculation_by_hand() -> None:
    teacher = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]])
    student = torch.tensor([[[0.0, 1.0], [0.5, 1.0], [0.0, 2.0]]])
    shown = torch.tensor([[0.0, 0.5, 1.0]])
    # Erased in full: 0² + 1²; half covered: (.5 - .5)² + 1²; as it was: 0. The teacher's: 25 + 1 + 4.
    assert removal_error(student, teacher, shown) == 2
    assert teacher_energy(teacher, shown) == 30
    # Erased are the first two, of length 1 and √1.25; the third, of length 2, stays and is unchanged.
    ratios = removal_sums(student, teacher, shown).ratios
    assert ratios["removal_erased_length"].item() == pytest.approx((1 + math.sqrt(1.25)) / 2 / 2)
    assert ratios["removal_change_outside"] == 0
    # The third changes by 1; the first by 3² + 3², the second by .5² + 1².
    ratios = removal_sums(student + torch.tensor([[[0.0], [0.0], [1.0]]]) * torch.tensor([1.0, 0.0]), teacher, shown)
    assert ratios.ratios["removal_change_outside"].item() == pytest.approx(1 / (18 + 1.25 + 1))


@given(seeds)
def test_the_monitors_agree_with_the_oracle_and_add_up_over_parts(seed: int) -> None:
    tokens = drawn(seed)
    student, teacher, shown = tokens
    expected = oracle.removal_monitors(student.numpy(), teacher.numpy(), shown.numpy())
    whole = removal_sums(*tokens)
    parts = [removal_sums(*part) for part in zip(*(tensor.split(2) for tensor in tokens), strict=True)]
    added = RemovalSums.of(torch.stack([part.stacked() for part in parts]).sum(0))
    for sums in (whole, added):
        assert list(sums.ratios) == ["removal_erased_length", "removal_change_outside"]
        assert [value.item() for value in sums.ratios.values()] == pytest.approx(expected, rel=1e-5)


def test_the_monitors_of_nothing_erased_are_not_a_number() -> None:
    student, teacher, shown = drawn(0)
    sums = removal_sums(student, teacher, torch.ones_like(shown))
    assert sums.stacked().count_nonzero() == 0
    assert all(value.isnan() for value in sums.ratios.values())


@given(seeds)
def test_where_nothing_is_erased_value_and_gradient_are_0(seed: int) -> None:
    student, teacher, shown = drawn(seed)
    student.requires_grad_()
    error = removal_error(student, teacher, torch.ones_like(shown))
    error.backward()
    assert error == teacher_energy(teacher, torch.ones_like(shown)) == 0
    assert student.grad.count_nonzero() == 0


@given(seeds)
def test_tokens_that_lost_exactly_their_erased_share_cost_nothing(seed: int) -> None:
    _, teacher, shown = drawn(seed)
    assert removal_error(shown[..., None] * teacher, teacher, shown).item() < 1e-12


@given(seeds, st.floats(1e-3, 1e3))
def test_a_common_scale_of_all_tokens_changes_nothing(seed: int, scale: float) -> None:
    student, teacher, shown = drawn(seed)
    assert term(scale * student, scale * teacher, shown).item() == pytest.approx(
        term(student, teacher, shown).item(), rel=1e-5
    )


@pytest.mark.parametrize("level", [7.0, math.inf, math.nan])
@examples(0.2)
@given(seeds)
def test_crops_with_nothing_erased_have_no_influence_whatever_their_tokens(level: float, seed: int) -> None:
    student, teacher, shown = drawn(seed)
    is_whole = ~has_erased(shown)
    assert is_whole.tolist() == [False, *[bool((row == 1).all()) for row in shown[1:]]]
    results = []
    for value in (0.0, level):
        leaf, taught = student.clone(), teacher.clone()
        leaf[is_whole], taught[is_whole] = value, -value
        leaf.requires_grad_()
        loss = term(leaf, taught, shown)
        loss.backward()
        results.append((loss.detach(), leaf.grad, removal_sums(leaf, taught, shown).stacked()))
    for first, second in zip(*results, strict=True):
        assert torch.isfinite(second).all()
        assert torch.equal(first, second)
    assert results[0][1][is_whole].count_nonzero() == 0


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher, shown = drawn(0)
    student.requires_grad_()
    teacher.requires_grad_()
    removal_error(student, teacher, shown).backward()
    assert student.grad.count_nonzero() > 0
    assert teacher.grad is None


@given(seeds, st.sampled_from([torch.bfloat16, torch.float16]))
def test_sums_of_low_precision_tokens_are_of_float32(seed: int, dtype: torch.dtype) -> None:
    student, teacher, shown = drawn(seed)
    low = student.to(dtype), teacher.to(dtype), shown.float()
    error, energy = removal_error(*low), teacher_energy(*low[1:])
    assert error.dtype == energy.dtype == removal_sums(*low).change.dtype == torch.float32
    expected = oracle.removal(low[0].double().numpy(), low[1].double().numpy(), shown.numpy())
    assert (error.item(), energy.item()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("cell_px", [4, 8])
@examples(0.2)
@given(seeds)
def test_a_linear_encoder_without_context_subtracts_what_goes_black(cell_px: int, seed: int) -> None:
    """Each token is a linear map of its own pixels: whole tokens that go black leave 0, and nothing else changes.

    Of a token covered in part the share is subtracted exactly where its pixels are equal.
    """
    rng, t = np.random.default_rng(seed), 3
    weights = torch.from_numpy(rng.normal(size=(cell_px**2, DIM))).float()
    noise = torch.from_numpy(rng.random((2, t, t, cell_px**2))).float()
    flat = noise[..., :1].expand_as(noise)
    kept = torch.from_numpy(rng.integers(0, cell_px + 1, (2, t, t)))
    kept[0, 0, 0], kept[1] = 0, cell_px

    def shown_pixels(num_rows: Tensor) -> Tensor:
        return (torch.arange(cell_px)[:, None] < num_rows[..., None, None]).expand(2, t, t, cell_px, cell_px).flatten(3)

    for crops, num_rows in ((noise, cell_px * (2 * kept > cell_px)), (flat, kept)):
        is_shown = shown_pixels(num_rows)
        shown = is_shown.float().mean(-1).flatten(1)
        # The mean of equal pixels is what a map of them reads.
        reading = weights if crops is noise else weights.mean(0).expand_as(weights)
        whole, seen = (pixels.flatten(1, 2) @ reading for pixels in (crops, crops * is_shown))
        assert term(seen, whole, shown).item() < 1e-10
        assert removal_sums(seen, whole, shown).ratios["removal_change_outside"].item() < 1e-10
