import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ace.geometry.overlap import overlap_masks
from ace.geometry.targets import axis_composition, axis_decomposition, composition_target, decomposition_target
from shards.core.grid import GridSpec, Scale, draw_crop_pair
from tests.oracles import targets as oracle
from tests.support.examples import examples

SCALES = [(1, 1), (1, 2), (2, 1), (2, 2), (4, 2), (3, 3)]


@st.composite
def batches(draw) -> tuple[torch.Tensor, torch.Tensor, int, int, int]:
    """Three pairs of one (k, l) as training draws them, from any overlap up to all of it."""
    k, l = draw(st.sampled_from(SCALES))
    # Every even t that k and l divide.
    t = draw(st.sampled_from([6, 12] if 3 in (k, l) else [4, 8] if 4 in (k, l) else [2, 4, 6, 8, 10]))
    n = draw(st.integers(max(k, l) * t, max(k, l) * t + 5))
    spec = GridSpec(
        n=n, cell_px=4, t=t, scales=(Scale(k, l, 1.0),), min_overlap=draw(st.floats(0, 1)), min_jitter_area=0.85
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pairs = [draw_crop_pair(spec, spec.scales[0], rng) for _ in range(3)]
    coarse, fine = torch.tensor([p.coarse for p in pairs]), torch.tensor([p.fine for p in pairs])
    return coarse, fine, t, k, l


@examples(0.4)
@given(batches())
def test_decomposition_target_agrees_with_the_oracle(batch) -> None:
    coarse, fine, t, k, l = batch
    target = decomposition_target(coarse, fine, t=t, k=k, l=l).dense()
    expected = [oracle.decomposition_target(c, f, t, k, l) for c, f in zip(coarse.tolist(), fine.tolist(), strict=True)]
    np.testing.assert_allclose(target.numpy(), np.stack(expected), atol=1e-6)


@examples(0.4)
@given(batches())
def test_composition_target_agrees_with_the_oracle(batch) -> None:
    coarse, fine, t, k, l = batch
    target = composition_target(coarse, fine, t=t, k=k, l=l).dense()
    expected = [oracle.composition_target(c, f, t, k, l) for c, f in zip(coarse.tolist(), fine.tolist(), strict=True)]
    np.testing.assert_allclose(target.numpy(), np.stack(expected), atol=1e-6)


@given(batches())
def test_rows_inside_the_overlap_have_one_peak_of_1_and_rows_outside_are_0(batch) -> None:
    coarse, fine, t, k, l = batch
    fine_mask, coarse_mask = overlap_masks(coarse, fine, t=t, k=k, l=l)
    for build, mask in ((decomposition_target, fine_mask), (composition_target, coarse_mask)):
        target = build(coarse, fine, t=t, k=k, l=l).dense()
        assert torch.equal((target == 1.0).sum(-1), mask.int())
        assert target[~mask].count_nonzero() == 0
        assert target.min() >= 0


@given(batches())
def test_decomposition_of_the_matched_part_leads_back_to_the_composing_whole(batch) -> None:
    coarse, fine, t, k, l = batch
    decomposition = decomposition_target(coarse, fine, t=t, k=k, l=l).dense()
    composition = composition_target(coarse, fine, t=t, k=k, l=l).dense()
    for sample, fine_token in (decomposition.amax(-1) == 1).nonzero().tolist():
        part_row, part_col = divmod(int(decomposition[sample, fine_token].argmax()), l * t)
        coarse_token = (part_row // k) * t + part_col // l
        whole_row, whole_col = divmod(int(composition[sample, coarse_token].argmax()), t // l)
        row, col = divmod(fine_token, t)
        assert (whole_row, whole_col) == (row // k, col // l)


@pytest.mark.parametrize(("k", "l"), SCALES)
def test_targets_are_torchs_kronecker_product_of_the_axis_matrices(k: int, l: int) -> None:
    t = 12
    coarse, fine = torch.tensor([[3, 1]]), torch.tensor([[3 + 2 * k, 1 + 3 * l]])
    rows = axis_decomposition(coarse[:, 0], fine[:, 0], t=t, k=k).dense()[0]
    cols = axis_decomposition(coarse[:, 1], fine[:, 1], t=t, k=l).dense()[0]
    assert torch.equal(decomposition_target(coarse, fine, t=t, k=k, l=l).dense()[0], torch.kron(rows, cols))
    rows = axis_composition(coarse[:, 0], fine[:, 0], t=t, k=k).dense()[0]
    cols = axis_composition(coarse[:, 1], fine[:, 1], t=t, k=l).dense()[0]
    assert torch.equal(composition_target(coarse, fine, t=t, k=k, l=l).dense()[0], torch.kron(rows, cols))


@given(batches())
def test_the_middle_of_a_window_is_the_rows_own_match(batch) -> None:
    coarse, fine, t, k, l = batch
    for build in (decomposition_target, composition_target):
        matches = build(coarse, fine, t=t, k=k, l=l)
        column, value = matches.own
        peak, where = matches.dense().max(-1)
        assert torch.equal(value, peak)
        assert torch.equal(column[value > 0], where[value > 0])


def test_axis_decomposition_by_hand() -> None:
    # Fine cells 4..7 over coarse cells 0..7: fine token 0 lies in decomposed token 4.
    near, far = np.exp(-0.5), np.exp(-2.0)
    expected = [
        [0, 0, far, near, 1, near, far, 0],
        [0, 0, 0, far, near, 1, near, far],
        [0, 0, 0, 0, far, near, 1, near],
        [0, 0, 0, 0, 0, far, near, 1],
    ]
    found = axis_decomposition(torch.tensor([0]), torch.tensor([4]), t=4, k=2).dense()[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-7)


def test_a_window_is_cut_at_the_matrix_edge_only_and_not_at_the_overlap() -> None:
    # Fine cells 6..9 over coarse cells 0..7: two fine tokens are inside, and their windows reach columns before cell 6.
    found = axis_decomposition(torch.tensor([0]), torch.tensor([6]), t=4, k=2).dense()[0]
    near, far = np.exp(-0.5), np.exp(-2.0)
    np.testing.assert_allclose(found[0].numpy(), [0, 0, 0, 0, far, near, 1, near], atol=1e-7)
    np.testing.assert_allclose(found[1].numpy(), [0, 0, 0, 0, 0, far, near, 1], atol=1e-7)
    assert found[2:].count_nonzero() == 0


def test_axis_composition_by_hand() -> None:
    # Coarse tokens cover cells 0-1, 2-3, 4-5, 6-7; the fine crop's cells 4..7 compose to 4-5 and 6-7.
    near = np.exp(-0.5)
    found = axis_composition(torch.tensor([0]), torch.tensor([4]), t=4, k=2).dense()[0]
    np.testing.assert_allclose(found.numpy(), [[0, 0], [0, 0], [1, near], [near, 1]], atol=1e-7)


def test_the_papers_targets_have_the_papers_shapes() -> None:
    origin = torch.zeros(2, 2, dtype=torch.long)
    assert decomposition_target(origin, origin, t=14, k=2, l=2).dense().shape == (2, 196, 784)
    assert composition_target(origin, origin, t=14, k=2, l=2).dense().shape == (2, 196, 49)
