import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ace.geometry.overlap import overlap_masks
from shards.core.grid import CropPair
from tests.oracles import overlap as oracle


@st.composite
def aligned_pairs(draw) -> tuple[tuple[int, int], tuple[int, int], int, int, int]:
    """Aligned origins of any overlap, none included, negative offsets too."""
    k, l = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (4, 2)]))
    t = draw(st.sampled_from([4, 8, 12] if k == 4 else [2, 4, 6, 8, 10, 14]))
    coarse = draw(st.tuples(st.integers(0, 20), st.integers(0, 20)))
    steps = draw(st.tuples(st.integers(-8, 16), st.integers(-8, 16)))
    return coarse, (coarse[0] + k * steps[0], coarse[1] + l * steps[1]), t, k, l


@given(aligned_pairs())
def test_overlap_masks_agree_with_listing_the_cells(pair) -> None:
    coarse, fine, t, k, l = pair
    found = overlap_masks(torch.tensor([coarse]), torch.tensor([fine]), t=t, k=k, l=l)
    for mask, expected in zip(found, oracle.overlap_masks(coarse, fine, t, k, l), strict=True):
        np.testing.assert_array_equal(mask[0].numpy(), expected)


@given(aligned_pairs())
def test_overlap_masks_select_the_same_cells_in_both_crops(pair) -> None:
    coarse, fine, t, k, l = pair
    fine_mask, coarse_mask = overlap_masks(torch.tensor([coarse]), torch.tensor([fine]), t=t, k=k, l=l)
    from_fine = [c for c, inside in zip(oracle.fine_cells(fine, t), fine_mask[0], strict=True) if inside]
    from_coarse = [c for c, inside in zip(oracle.coarse_cells(coarse, t, k, l), coarse_mask[0], strict=True) if inside]
    assert set().union(*from_fine) == set().union(*from_coarse)


@given(aligned_pairs())
def test_masks_agree_with_the_rectangles_that_shards_store(pair) -> None:
    coarse, fine, t, k, l = pair
    stored = CropPair(jitter=(0.0, 0.0, 1.0), coarse=coarse, fine=fine, k=k, l=l)
    masks = overlap_masks(torch.tensor([coarse]), torch.tensor([fine]), t=t, k=k, l=l)
    for mask, (row0, col0, row1, col1) in zip(masks, (stored.overlap_fine(t), stored.overlap_coarse(t)), strict=True):
        expected = np.zeros((t, t), dtype=bool)
        expected[row0:row1, col0:col1] = True
        np.testing.assert_array_equal(mask[0].reshape(t, t).numpy(), expected)


def test_each_sample_of_a_batch_has_its_own_mask() -> None:
    coarse, fine = torch.tensor([[0, 0], [2, 0]]), torch.tensor([[0, 0], [0, 0]])
    fine_mask, coarse_mask = overlap_masks(coarse, fine, t=2, k=1, l=1)
    assert fine_mask.tolist() == [[True] * 4, [False] * 4]
    assert coarse_mask.tolist() == [[True] * 4, [False] * 4]


def test_rows_and_columns_are_not_swapped() -> None:
    # The fine crop starts one row below and no column beside the coarse one.
    fine_mask, coarse_mask = overlap_masks(torch.tensor([[0, 0]]), torch.tensor([[1, 0]]), t=2, k=1, l=1)
    assert fine_mask[0].tolist() == [True, True, False, False]
    assert coarse_mask[0].tolist() == [False, False, True, True]


@pytest.mark.parametrize("t", [14])
def test_the_papers_crops_share_at_least_100_of_196_fine_tokens(t: int) -> None:
    origins = [(c, f) for c in range(5) for f in range(c % 2, 19, 2)]
    coarse = torch.tensor([[c, d] for c, _ in origins for d, _ in origins])
    fine = torch.tensor([[f, g] for _, f in origins for _, g in origins])
    fine_mask, coarse_mask = overlap_masks(coarse, fine, t=t, k=2, l=2)
    assert fine_mask.sum(1).min() == 100
    assert torch.equal(fine_mask.sum(1), 4 * coarse_mask.sum(1))
