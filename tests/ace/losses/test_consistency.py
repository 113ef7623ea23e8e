import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ace.losses.consistency import center_sum, global_consistency, update_center
from tests.oracles import losses as oracle

TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.04}


def logits(seed: int, batch: int = 3, out: int = 5) -> list[torch.Tensor]:
    """Student coarse and fine, teacher coarse and fine, in float64 and of a cosine's size."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, out, generator=generator, dtype=torch.float64).tanh() for _ in range(4)]


@settings(deadline=None)
@given(st.integers(0, 2**31), st.lists(st.booleans(), min_size=3, max_size=3))
def test_global_consistency_agrees_with_the_oracle(seed: int, mask: list[bool]) -> None:
    inputs, valid = logits(seed), torch.tensor(mask)
    center = torch.linspace(-0.2, 0.2, 5, dtype=torch.float64)
    total, count = global_consistency(*inputs, valid, center, **TEMPERATURES)
    expected = oracle.global_consistency(*(x.numpy() for x in inputs), valid.numpy(), center.numpy(), 0.1, 0.04)
    assert (total.item(), count.item()) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_its_gradient_agrees_with_central_differences() -> None:
    inputs, valid, center = logits(0), torch.tensor([True, False, True]), torch.zeros(5, dtype=torch.float64)
    student = inputs[0].requires_grad_()
    global_consistency(*inputs, valid, center, **TEMPERATURES)[0].backward()

    def loss(values: np.ndarray) -> float:
        rest = [x.numpy() for x in inputs[1:]]
        return oracle.global_consistency(values, *rest, valid.numpy(), center.numpy(), 0.1, 0.04)[0]

    expected = oracle.numerical_gradient(loss, student.detach().numpy())
    np.testing.assert_allclose(student.grad.numpy(), expected, atol=1e-4)
    assert student.grad[1].count_nonzero() == 0


def test_a_batch_without_any_overlap_gives_0_and_no_gradient_even_if_its_logits_are_not_numbers() -> None:
    inputs = [torch.full((2, 4), torch.nan, requires_grad=True) for _ in range(2)]
    inputs += [torch.full((2, 4), torch.nan) for _ in range(2)]
    total, count = global_consistency(*inputs, torch.zeros(2, dtype=torch.bool), torch.zeros(4), **TEMPERATURES)
    assert (total, count) == (0, 0)
    sums, rows = center_sum(*[torch.ones(2, 4)] * 2, torch.zeros(2, dtype=torch.bool))
    assert torch.equal(update_center(torch.ones(4), sums, rows, momentum=0.9), torch.ones(4))


def test_sums_and_counts_of_two_ranks_add_up_to_those_of_the_whole_batch() -> None:
    inputs, center = logits(3, batch=6), torch.zeros(5, dtype=torch.float64)
    valid = torch.tensor([True, True, False, True, False, False])
    whole = (*global_consistency(*inputs, valid, center, **TEMPERATURES), *center_sum(*inputs[2:], valid))
    ranks = []
    for part in (slice(0, 4), slice(4, 6)):
        mine = [x[part] for x in inputs]
        loss = global_consistency(*mine, valid[part], center, **TEMPERATURES)
        ranks.append((*loss, *center_sum(*mine[2:], valid[part])))
    for total, first, second in zip(whole, *ranks, strict=True):
        torch.testing.assert_close(total, first + second)


def test_the_loss_is_least_where_student_and_teacher_agree() -> None:
    teacher = logits(5)[2].float()
    # Temperatures equal, centre 0: the student that repeats the teacher has the teacher's entropy, the least possible.
    temperatures = {"student_temperature": 0.1, "teacher_temperature": 0.1}
    valid, center = torch.ones(3, dtype=torch.bool), torch.zeros(5)
    same, _ = global_consistency(teacher, teacher, teacher, teacher, valid, center, **temperatures)
    other, _ = global_consistency(teacher.flip(1), teacher, teacher, teacher, valid, center, **temperatures)
    p = (teacher / 0.1).softmax(-1)
    assert same.item() == pytest.approx(-(p * p.log()).sum().item(), rel=1e-5)
    assert other > same


def test_each_student_crop_learns_from_the_teachers_other_crop() -> None:
    inputs, valid, center = logits(7), torch.ones(3, dtype=torch.bool), torch.zeros(5, dtype=torch.float64)
    student_coarse = inputs[0].requires_grad_()
    global_consistency(*inputs, valid, center, **TEMPERATURES)[0].backward()
    p_fine = (inputs[3] / 0.04).softmax(-1)
    expected = 0.5 * ((student_coarse.detach() / 0.1).softmax(-1) - p_fine) / 0.1
    torch.testing.assert_close(student_coarse.grad, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("momentum", "expected"), [(1.0, 1.0), (0.0, 4.0), (0.9, 1.3)])
def test_the_center_moves_to_the_mean_teacher_logit_of_both_crops(momentum: float, expected: float) -> None:
    coarse, fine = torch.tensor([[2.0], [100.0]]), torch.tensor([[6.0], [100.0]])
    sums, rows = center_sum(coarse, fine, torch.tensor([True, False]))
    assert rows == 2
    assert update_center(torch.ones(1), sums, rows, momentum=momentum).item() == pytest.approx(expected)


def test_the_sum_for_the_center_stays_in_full_precision_under_autocast() -> None:
    teacher = torch.tensor([[1.001], [1.003]]), torch.tensor([[0.0], [0.0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = center_sum(*teacher, torch.tensor([True, True]))
    torch.testing.assert_close(total, torch.tensor([2.004]))
