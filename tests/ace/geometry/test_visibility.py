import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ace.geometry.targets import composition_target, decomposition_target
from ace.geometry.visibility import composed_visible, decomposed_visible, taught_matches, visible_matches
from shards.core.grid import GridSpec, Scale, draw_crop_pair
from tests.oracles import targets as oracle
from tests.support.examples import examples

SCALES = [(1, 1), (1, 2), (2, 1), (2, 2)]
T = 4


def pair(k: int, l: int, rng: np.random.Generator) -> tuple[tuple[int, int], tuple[int, int]]:
    drawn = draw_crop_pair(
        GridSpec(n=9, cell_px=4, t=T, scales=(Scale(k, l, 1.0),), min_overlap=0.25, min_jitter_area=0.85),
        Scale(k, l, 1.0),
        rng,
    )
    return drawn.coarse, drawn.fine


@examples(0.4)
@given(st.sampled_from(SCALES), st.integers(0, 2**32), st.floats(0, 1))
def test_targets_with_erased_tokens_agree_with_the_oracle(scale: tuple[int, int], seed: int, share: float) -> None:
    (k, l), rng = scale, np.random.default_rng(seed)
    coarse, fine = pair(k, l, rng)
    origins = torch.tensor([coarse]), torch.tensor([fine])
    for build, cols in ((decomposition_target, k * l * T * T), (composition_target, T * T // (k * l))):
        target = build(*origins, t=T, k=k, l=l)
        rows_erased, cols_erased = rng.random(T * T) < share, rng.random(cols) < share
        visible = torch.from_numpy(~rows_erased)[None], torch.from_numpy(~cols_erased)[None]
        dense = target.dense()[0].double().numpy()
        for (matches, left_out), (left, known) in (
            (visible_matches(target, *visible), oracle.with_erased(dense, rows_erased, cols_erased)),
            (taught_matches(target, visible[1]), oracle.with_columns_erased(dense, cols_erased)),
        ):
            np.testing.assert_array_equal(matches.dense()[0].double().numpy(), left)
            rows, cols_out = (mask[0].numpy() for mask in left_out)
            np.testing.assert_array_equal(~(rows[:, None] & cols_out), known)


@pytest.mark.parametrize(("k", "l"), SCALES)
def test_nothing_erased_leaves_the_targets_as_they_are(k: int, l: int) -> None:
    coarse, fine = pair(k, l, np.random.default_rng(0))
    origins, visible = (torch.tensor([coarse]), torch.tensor([fine])), torch.ones(1, T * T, dtype=torch.bool)
    parts, wholes = decomposed_visible(visible, t=T, k=k, l=l), composed_visible(visible, t=T, k=k, l=l)
    for build, cols in ((decomposition_target, parts), (composition_target, wholes)):
        target = build(*origins, t=T, k=k, l=l)
        for matches, (rows_out, cols_out) in (visible_matches(target, visible, cols), taught_matches(target, cols)):
            assert torch.equal(matches.values, target.values)
            assert not (rows_out[:, :, None] & cols_out[:, None]).any(), "no pair is left out"


@pytest.mark.parametrize(("k", "l"), SCALES)
def test_parts_are_as_visible_as_their_token(k: int, l: int) -> None:
    visible = torch.rand(3, T * T, generator=torch.Generator().manual_seed(0)) < 0.5
    parts = decomposed_visible(visible, t=T, k=k, l=l)
    for row in range(k * T):
        for col in range(l * T):
            assert torch.equal(parts[:, row * l * T + col], visible[:, (row // k) * T + col // l])


@pytest.mark.parametrize(("k", "l"), SCALES)
def test_a_composed_token_is_visible_if_more_than_half_of_its_parts_are(k: int, l: int) -> None:
    visible = torch.rand(20, T * T, generator=torch.Generator().manual_seed(1)) < 0.5
    wholes = composed_visible(visible, t=T, k=k, l=l)
    for row in range(T // k):
        for col in range(T // l):
            parts = [(row * k + i) * T + col * l + j for i in range(k) for j in range(l)]
            assert torch.equal(wholes[:, row * (T // l) + col], visible[:, parts].double().mean(1) > 0.5)
