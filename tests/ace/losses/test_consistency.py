import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ace.losses.consistency import center_sum, update_center, view_consistency
from tests.oracles import losses as oracle
from tests.support.examples import examples

TEMPERATURES = {"student_temperature": 0.1, "teacher_temperature": 0.04}


def logits(seed: int, batch: int = 3, out: int = 5) -> list[torch.Tensor]:
    """Student coarse and fine, teacher coarse and fine, in float64 and of a cosine's size."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, out, generator=generator, dtype=torch.float64).tanh() for _ in range(4)]


def global_consistency(*args, **temperatures):
    """The two-view case, as the global term of a crop pair has it."""
    student_coarse, student_fine, teacher_coarse, teacher_fine, valid, center = args
    student, teacher = torch.stack([student_coarse, student_fine]), torch.stack([teacher_coarse, teacher_fine])
    return view_consistency(student, teacher, valid, center, **temperatures)


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
    sums, rows = center_sum(torch.ones(2, 2, 4), torch.zeros(2, dtype=torch.bool))
    assert torch.equal(update_center(torch.ones(4), sums, rows, momentum=0.9), torch.ones(4))


def test_sums_and_counts_of_two_ranks_add_up_to_those_of_the_whole_batch() -> None:
    inputs, center = logits(3, batch=6), torch.zeros(5, dtype=torch.float64)
    valid = torch.tensor([True, True, False, True, False, False])
    whole = (*global_consistency(*inputs, valid, center, **TEMPERATURES), *center_sum(torch.stack(inputs[2:]), valid))
    ranks = []
    for part in (slice(0, 4), slice(4, 6)):
        mine = [x[part] for x in inputs]
        loss = global_consistency(*mine, valid[part], center, **TEMPERATURES)
        ranks.append((*loss, *center_sum(torch.stack(mine[2:]), valid[part])))
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
    sums, rows = center_sum(torch.stack([coarse, fine]), torch.tensor([True, False]))
    assert rows == 2
    assert update_center(torch.ones(1), sums, rows, momentum=momentum).item() == pytest.approx(expected)


def view_logits(seed: int, views: int, teacher_views: int, batch: int = 3, out: int = 4) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (views, batch, out), (teacher_views, batch, out)
    student, teacher = (torch.randn(shape, generator=generator, dtype=torch.float64).tanh() for shape in shapes)
    return student, teacher, 0.2 * torch.randn(out, generator=generator, dtype=torch.float64)


@examples(0.4)
@given(
    st.integers(0, 2**31),
    st.integers(2, 5),
    st.integers(1, 5),
    st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_view_consistency_agrees_with_the_oracle(seed: int, views: int, teacher_views: int, mask: list[bool]) -> None:
    student, teacher, center = view_logits(seed, views, min(teacher_views, views))
    valid = torch.tensor(mask)
    total, count = view_consistency(student, teacher, valid, center, **TEMPERATURES)
    arrays = (x.numpy() for x in (student, teacher, valid, center))
    assert total.item() == pytest.approx(oracle.view_consistency(*arrays, 0.1, 0.04), rel=1e-4, abs=1e-6)
    assert count == sum(mask)


@pytest.mark.parametrize(("views", "teacher_views"), [(2, 2), (3, 1), (4, 2)])
def test_the_gradient_of_every_view_agrees_with_central_differences(views: int, teacher_views: int) -> None:
    student, teacher, center = view_logits(1, views, teacher_views)
    valid = torch.tensor([True, False, True])
    student.requires_grad_()
    view_consistency(student, teacher, valid, center, **TEMPERATURES)[0].backward()

    def loss(values: np.ndarray) -> float:
        return oracle.view_consistency(values, teacher.numpy(), valid.numpy(), center.numpy(), 0.1, 0.04)

    expected = oracle.numerical_gradient(loss, student.detach().numpy())
    np.testing.assert_allclose(student.grad.numpy(), expected, atol=1e-4)
    assert student.grad[:, 1].count_nonzero() == 0


def test_a_view_does_not_learn_from_itself() -> None:
    student, teacher, center = view_logits(2, views=3, teacher_views=1)
    student.requires_grad_()
    valid = torch.ones(3, dtype=torch.bool)
    view_consistency(student, teacher, valid, center, **TEMPERATURES)[0].backward()
    assert student.grad[0].count_nonzero() == 0
    assert student.grad[1:].count_nonzero() == student.grad[1:].numel()


def test_the_center_after_several_steps_agrees_with_a_loop_over_rows() -> None:
    """Steps of two micro-batches, of pairs and of more views, one step without a valid sample."""
    rng = np.random.default_rng(0)
    center, expected = torch.zeros(6), np.zeros(6)
    for step, views in enumerate((2, 2, 4, 2, 3, 2)):
        batches = [(rng.normal(size=(views, 5, 6)), rng.random(5) < 0.6 * (step != 3)) for _ in range(2)]
        sums = [center_sum(torch.from_numpy(logits).float(), torch.from_numpy(valid)) for logits, valid in batches]
        logit_sum, count = (sum(values[1:], values[0]) for values in zip(*sums, strict=True))
        center = update_center(center, logit_sum, count, momentum=0.9)
        expected = oracle.moved_center(expected, batches, momentum=0.9)
        np.testing.assert_allclose(center.numpy(), expected, atol=1e-6)
    assert np.abs(expected).min() > 1e-3


def test_the_sum_for_the_center_stays_in_full_precision_under_autocast() -> None:
    teacher = torch.tensor([[[1.001], [1.003]], [[0.0], [0.0]]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = center_sum(teacher, torch.tensor([True, True]))
    torch.testing.assert_close(total, torch.tensor([2.004]))
