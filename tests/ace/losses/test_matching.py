import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ace.geometry.targets import Matches, composition_target, decomposition_target
from ace.geometry.visibility import taught_matches, visible_matches
from ace.losses.matching import balanced_bce, matching_accuracy, matching_logits, matching_loss, target_entropy
from tests.oracles import losses as oracle
from tests.support.examples import examples

SCALE, BIAS = torch.tensor(10.0), torch.tensor(-5.0)


def tokens(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1)


def soft_target(*shape: int, seed: int) -> torch.Tensor:
    levels = torch.tensor([0.0, 0.0, 0.0, math.exp(-2.0), math.exp(-0.5), 1.0])
    return levels[torch.randint(len(levels), shape, generator=torch.Generator().manual_seed(seed))]


def everywhere(target: torch.Tensor) -> Matches:
    """Windows as wide as the matrix."""
    return Matches(torch.arange(target.shape[-1]).expand(target.shape), target, target.shape[-1])


def with_gaps(target: torch.Tensor, seed: int) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The target without erased tokens, which tokens are erased, and which pairs are known."""
    generator = torch.Generator().manual_seed(seed)
    rows, cols = (torch.rand(target.shape[0], size, generator=generator) < 0.6 for size in target.shape[1:])
    return target * (rows[:, :, None] & cols[:, None]), (~rows, ~cols), rows[:, :, None] | cols[:, None]


@examples(0.25)
@given(st.integers(0, 2**31), st.floats(0.01, 0.99), st.floats(1.0, 20.0), st.floats(-10.0, 0.0))
def test_matching_loss_agrees_with_the_oracle(seed: int, alpha: float, scale: float, bias: float) -> None:
    teacher, student, target = (
        tokens(2, 6, 4, seed=seed),
        tokens(2, 5, 4, seed=seed + 1),
        soft_target(2, 6, 5, seed=seed),
    )
    left, left_out, known = with_gaps(target, seed)
    logits = {"scale": torch.tensor(scale), "bias": torch.tensor(bias), "alpha": alpha}
    both = teacher.double().numpy(), student.double().numpy()
    for wanted, mask, pairs in ((left, left_out, known), (target, None, torch.ones_like(known))):
        loss = matching_loss(teacher, student, everywhere(wanted), mask, **logits)
        expected = oracle.matching_loss(*both, wanted.numpy(), pairs.numpy(), scale, bias, alpha)
        assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_gradients_of_tokens_scale_and_bias_agree_with_central_differences() -> None:
    teacher, target = tokens(2, 4, 3, seed=0, dtype=torch.float64), soft_target(2, 4, 4, seed=1).double()
    student = tokens(2, 4, 3, seed=2, dtype=torch.float64).requires_grad_()
    scale, bias = (
        torch.tensor(3.0, dtype=torch.float64, requires_grad=True),
        torch.tensor(-1.0).double().requires_grad_(),
    )
    target, left_out, known = with_gaps(target, 3)
    matching_loss(teacher, student, everywhere(target), left_out, scale=scale, bias=bias, alpha=0.9).backward()

    def loss(values: np.ndarray, s: float = 3.0, b: float = -1.0) -> float:
        return oracle.matching_loss(teacher.numpy(), values, target.numpy(), known.numpy(), s, b, 0.9)

    values = student.detach().numpy()
    np.testing.assert_allclose(student.grad.numpy(), oracle.numerical_gradient(loss, values), atol=1e-6)
    for parameter, slope in (
        (scale, oracle.numerical_gradient(lambda s: loss(values, s=float(s)), np.array(3.0))),
        (bias, oracle.numerical_gradient(lambda b: loss(values, b=float(b)), np.array(-1.0))),
    ):
        assert parameter.grad.item() == pytest.approx(float(slope), abs=1e-6)


def test_the_logits_are_the_scaled_cosines_of_every_pair() -> None:
    teacher, student = tokens(3, 4, 5, seed=0), tokens(3, 2, 5, seed=1)
    logits = matching_logits(teacher, student, scale=SCALE, bias=BIAS)
    cosines = F.cosine_similarity(teacher[:, :, None], student[:, None], dim=-1)
    torch.testing.assert_close(logits, 10 * cosines - 5)


@pytest.mark.parametrize("alpha", [0.9, 0.99])
@pytest.mark.parametrize("extreme", [-1e4, -100.0, 100.0, 1e4])
def test_loss_and_gradient_stay_finite_at_extreme_logits(alpha: float, extreme: float) -> None:
    logits = torch.full((1, 2, 3), extreme, requires_grad=True)
    loss = balanced_bce(logits, everywhere(soft_target(1, 2, 3, seed=0)), alpha=alpha)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@given(st.integers(0, 2**31), st.floats(0.05, 0.95))
def test_no_logits_get_below_the_target_entropy_and_the_targets_own_logits_reach_it(seed: int, alpha: float) -> None:
    target = soft_target(2, 3, 4, seed=seed)
    floor = target_entropy(everywhere(target), alpha=alpha)
    best = target.clamp(1e-7, 1 - 1e-7).logit()
    other = best + torch.randn(best.shape, generator=torch.Generator().manual_seed(seed))
    assert balanced_bce(best, everywhere(target), alpha=alpha).item() == pytest.approx(floor.item(), abs=1e-5)
    assert balanced_bce(other, everywhere(target), alpha=alpha) >= floor - 1e-6


def test_an_empty_overlap_gives_a_finite_loss_and_gradient_that_push_every_pair_apart() -> None:
    coarse, far = torch.tensor([[0, 0]]), torch.tensor([[16, 0]])
    for target in (decomposition_target(coarse, far, t=4, k=2, l=2), composition_target(coarse, far, t=4, k=2, l=2)):
        assert target.values.count_nonzero() == 0
        _, rows, cols = target.dense().shape
        teacher = tokens(1, rows, 8, seed=0)
        bias = BIAS.clone().requires_grad_()
        loss = matching_loss(teacher, tokens(1, cols, 8, seed=1), target, scale=SCALE, bias=bias, alpha=0.9)
        loss.backward()
        assert torch.isfinite(loss)
        assert bias.grad > 0
        every = torch.ones(1, cols, dtype=torch.bool)
        assert matching_accuracy(teacher, tokens(1, cols, 8, seed=1), target, every) == 0
        assert target_entropy(target, alpha=0.9) == 0


def test_alpha_weighs_matches_against_non_matches() -> None:
    logits = torch.zeros(1, 1, 2)
    match, none = torch.ones(1, 1, 2), torch.zeros(1, 1, 2)
    assert balanced_bce(logits, everywhere(match), alpha=0.9).item() == pytest.approx(0.9 * math.log(2))
    assert balanced_bce(logits, everywhere(none), alpha=0.9).item() == pytest.approx(0.1 * math.log(2))


def test_accuracy_counts_only_rows_inside_the_overlap() -> None:
    # Four columns at right angles; the rows look like columns 0, 1, 3 and 2, and match 0, 1, 2 and none.
    student = torch.eye(4)[None]
    teacher = torch.eye(4)[None, [0, 1, 3, 2]]
    columns, values = torch.tensor([[[0, 0, 1], [0, 1, 2], [1, 2, 3], [0, 0, 0]]]), torch.zeros(1, 4, 3)
    values[0, :3, 1] = 1.0
    values[0, 0, 2] = math.exp(-0.5)
    matches, every = Matches(columns, values, 4), torch.ones(1, 4, dtype=torch.bool)
    assert matching_accuracy(teacher, student, matches, every).item() == pytest.approx(2 / 3)


def test_accuracy_counts_only_rows_whose_match_is_visible_and_looks_at_visible_columns_alone() -> None:
    # Row 0 matches column 0 and looks like column 1 most, which is erased; row 1 matches that.
    student = torch.eye(3)[None]
    teacher = F.normalize(torch.tensor([[[0.6, 0.7, 0.1], [0.9, 0.2, 0.1]]]), dim=-1)
    values = torch.zeros(1, 2, 3)
    values[0, :, 1] = 1.0
    matches = Matches(torch.tensor([[[0, 0, 1], [0, 1, 2]]]), values, 3)
    cols = torch.tensor([[True, False, True]])
    for left, _ in (taught_matches(matches, cols), visible_matches(matches, torch.ones(1, 2).bool(), cols)):
        assert matching_accuracy(teacher, student, left, cols) == 1
    assert matching_accuracy(teacher, student, matches, torch.ones_like(cols)) == 0


def test_perfectly_matching_tokens_have_accuracy_1() -> None:
    coarse, fine = torch.tensor([[0, 0], [2, 1]]), torch.tensor([[4, 2], [4, 3]])
    target = decomposition_target(coarse, fine, t=4, k=2, l=2)
    parts = tokens(2, 64, 32, seed=0)
    matched, every = parts.gather(1, target.own[0][:, :, None].expand(-1, -1, 32)), torch.ones(2, 64) > 0
    assert matching_accuracy(matched, parts, target, every) == 1
