"""Value and gradient of every term of a crop pair, from the tokens on, against loops in float64, for every (k, l).

The oracle goes over cells and tokens one by one; its gradient is by central differences.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ace.geometry.overlap import overlap_masks
from ace.geometry.targets import Matches, composition_target, decomposition_target
from ace.geometry.visibility import LeftOut, composed_visible, decomposed_visible, taught_matches, visible_matches
from ace.losses.consistency import view_consistency
from ace.losses.matching import matching_loss
from ace.models.networks import overlap_mean
from shards.core.grid import GridSpec, Scale, draw_crop_pair
from tests.oracles import losses, overlap, targets

T, DIM = 4, 2
scales = pytest.mark.parametrize(("k", "l"), [(1, 1), (1, 2), (2, 1), (2, 2)])
erasing = pytest.mark.parametrize("share_erased", [0.0, 0.3])
teaching = pytest.mark.parametrize("is_whole", [False, True], ids=["teacher sees erased", "teacher sees whole"])


@dataclass(frozen=True)
class Pairs:
    """Crop pairs that overlap in part, with erased tokens."""

    coarse: list[tuple[int, int]]
    fine: list[tuple[int, int]]
    coarse_erased: np.ndarray
    fine_erased: np.ndarray

    @property
    def origins(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(self.coarse), torch.tensor(self.fine)

    @property
    def visible(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(~self.coarse_erased), torch.from_numpy(~self.fine_erased)


def draw_pairs(k: int, l: int, share_erased: float, rng: np.random.Generator, num_pairs: int = 2) -> Pairs:
    scale = Scale(k, l, 1.0)
    spec = GridSpec(n=10, cell_px=4, t=T, scales=(scale,), min_overlap=0.3, min_jitter_area=0.85)
    pairs = [draw_crop_pair(spec, scale, rng) for _ in range(num_pairs)]
    erased = rng.random((2, num_pairs, T * T)) < share_erased
    return Pairs([pair.coarse for pair in pairs], [pair.fine for pair in pairs], *erased)


def token_maps(rng: np.random.Generator, batch: int, *num_tokens: int) -> list[torch.Tensor]:
    """Float64 tokens of no particular length."""
    return [torch.from_numpy(rng.normal(size=(batch, count, DIM))) for count in num_tokens]


def check(loss: torch.Tensor, leaves: list[torch.Tensor], oracle: Callable[..., float], tolerance: float) -> None:
    """The loss and its gradient with regard to every leaf are those of the oracle, a function of the leaves."""
    loss.backward()
    values = [leaf.detach().numpy() for leaf in leaves]
    assert loss.item() == pytest.approx(oracle(*values), rel=1e-5)
    for number, leaf in enumerate(leaves):

        def alone(changed: np.ndarray, number: int = number) -> float:
            return oracle(*values[:number], changed, *values[number + 1 :])

        expected = losses.numerical_gradient(alone, values[number])
        assert np.abs(expected).max() > 20 * tolerance, "a gradient to tell from none"
        np.testing.assert_allclose(leaf.grad.numpy(), expected, atol=tolerance)


def check_matching(
    matches: Matches,
    left_out: LeftOut,
    expected: list[tuple[np.ndarray, np.ndarray]],
    rng: np.random.Generator,
    alpha: float,
) -> None:
    matrices, known = (np.stack(arrays) for arrays in zip(*expected, strict=True))
    teacher, student = token_maps(rng, *matrices.shape)
    scale, bias = torch.tensor(6.0).double(), torch.tensor(-2.0).double()
    leaves = [leaf.requires_grad_() for leaf in (student, scale, bias)]
    loss = matching_loss(
        F.normalize(teacher, dim=-1),
        F.normalize(student, dim=-1),
        matches,
        left_out,
        scale=scale,
        bias=bias,
        alpha=alpha,
    )
    taught = losses.normalized(teacher.numpy())

    def oracle(tokens: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> float:
        logits = float(scale), float(bias)
        return losses.matching_loss(taught, losses.normalized(tokens), matrices, known, *logits, alpha)

    check(loss, leaves, oracle, tolerance=2e-6)


def without_erased(target: np.ndarray, rows: np.ndarray, cols: np.ndarray, is_whole: bool) -> tuple[np.ndarray, ...]:
    return targets.with_columns_erased(target, cols) if is_whole else targets.with_erased(target, rows, cols)


def matches_of(target: Matches, visible: tuple[torch.Tensor, torch.Tensor], is_whole: bool) -> tuple[Matches, LeftOut]:
    return taught_matches(target, visible[1]) if is_whole else visible_matches(target, *visible)


@scales
@erasing
@teaching
def test_decomposition_agrees_in_value_and_gradient(k: int, l: int, share_erased: float, is_whole: bool) -> None:
    rng = np.random.default_rng(10 * k + l)
    # One pair where the matrices are largest: central differences take their time.
    pairs = draw_pairs(k, l, share_erased, rng, num_pairs=1 if k * l == 4 else 2)
    expected = []
    for coarse, fine, coarse_erased, fine_erased in zip(*vars(pairs).values(), strict=True):
        target = targets.decomposition_target(coarse, fine, T, k, l)
        parts_erased = [coarse_erased[(row // k) * T + col // l] for row in range(k * T) for col in range(l * T)]
        expected.append(without_erased(target, fine_erased, np.array(parts_erased), is_whole))
    coarse_visible, fine_visible = pairs.visible
    visible = fine_visible, decomposed_visible(coarse_visible, t=T, k=k, l=l)
    target = decomposition_target(*pairs.origins, t=T, k=k, l=l)
    check_matching(*matches_of(target, visible, is_whole), expected, rng, alpha=0.99)


@scales
@erasing
@teaching
def test_composition_agrees_in_value_and_gradient(k: int, l: int, share_erased: float, is_whole: bool) -> None:
    rng = np.random.default_rng(10 * k + l)
    pairs = draw_pairs(k, l, share_erased, rng)
    expected = []
    for coarse, fine, coarse_erased, fine_erased in zip(*vars(pairs).values(), strict=True):
        target = targets.composition_target(coarse, fine, T, k, l)
        wholes_erased = []
        for row in range(0, T, k):
            for col in range(0, T, l):
                parts = [fine_erased[(row + i) * T + col + j] for i in range(k) for j in range(l)]
                wholes_erased.append(2 * sum(parts) >= len(parts))
        expected.append(without_erased(target, coarse_erased, np.array(wholes_erased), is_whole))
    coarse_visible, fine_visible = pairs.visible
    visible = coarse_visible, composed_visible(fine_visible, t=T, k=k, l=l)
    target = composition_target(*pairs.origins, t=T, k=k, l=l)
    check_matching(*matches_of(target, visible, is_whole), expected, rng, alpha=0.9)


@scales
@erasing
def test_global_consistency_agrees_in_value_and_gradient_from_the_tokens_on(
    k: int, l: int, share_erased: float
) -> None:
    """A token's channels stand for the logits: pooling over the overlap, then the cross-entropies."""
    rng = np.random.default_rng(10 * k + l)
    pairs = draw_pairs(k, l, share_erased, rng)
    maps = token_maps(rng, 2, *[T * T] * 4)
    students, teachers = [leaf.requires_grad_() for leaf in maps[:2]], maps[2:]
    center = torch.tensor([0.1, -0.2]).double()
    fine_mask, coarse_mask = overlap_masks(*pairs.origins, t=T, k=k, l=l)
    inside = coarse_mask & pairs.visible[0], fine_mask & pairs.visible[1]

    def logits(crops: list[torch.Tensor]) -> torch.Tensor:
        grids = [tokens.unflatten(1, (T, T)) for tokens in crops]
        return torch.stack([overlap_mean(grid, mask) for grid, mask in zip(grids, inside, strict=True)])

    valid = inside[0].any(1) & inside[1].any(1)
    temperatures = {"student_temperature": 0.5, "teacher_temperature": 0.2}
    loss, _ = view_consistency(logits(students), logits(teachers), valid, center, **temperatures)
    masks = [
        overlap.overlap_masks(coarse, fine, T, k, l) for coarse, fine in zip(pairs.coarse, pairs.fine, strict=True)
    ]
    shown = (
        np.stack([coarse for _, coarse in masks]) & ~pairs.coarse_erased,
        np.stack([fine for fine, _ in masks]) & ~pairs.fine_erased,
    )

    def pooled(tokens: np.ndarray, which: int) -> np.ndarray:
        return np.stack([losses.pooled(*crop) for crop in zip(tokens, shown[which], strict=True)])

    taught = [pooled(tokens.numpy(), which) for which, tokens in enumerate(teachers)]
    is_valid = np.array([coarse.any() and fine.any() for coarse, fine in zip(*shown, strict=True)])
    assert is_valid.any()

    def oracle(coarse: np.ndarray, fine: np.ndarray) -> float:
        both = pooled(coarse, 0), pooled(fine, 1)
        return losses.global_consistency(*both, *taught, is_valid, center.numpy(), 0.5, 0.2)[0]

    check(loss, students, oracle, tolerance=2e-5)
