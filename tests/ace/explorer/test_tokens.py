"""Reduced tokens keep what the search needs, and say how much."""

import numpy as np
import pytest

from ace.embed.embedder import unit
from ace.explorer.tokens import compare, reduce_tokens


def canvases(num: int = 5, size: int = 15, rank: int = 9, dim: int = 40, seed: int = 0) -> list[np.ndarray]:
    """Maps of tokens that tell how near each of a few places is, somewhat elsewhere in each patient."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(dim, rank)))[0].T
    grid = np.stack(np.meshgrid(*2 * [np.linspace(0, 1, size)], indexing="ij"), axis=-1)
    centres = np.stack(np.meshgrid(*2 * [np.linspace(0, 1, 3)], indexing="ij"), axis=-1).reshape(9, 2)[:rank]
    maps = []
    for _ in range(num):
        places = centres + rng.normal(0, 0.04, centres.shape)
        nearness = np.exp(-np.square(grid[:, :, None] - places).sum(axis=-1) / (2 * 0.2**2))
        maps.append(unit((nearness * np.linspace(2, 1, rank) @ axes).astype(np.float32)))
    return maps


def test_all_components_keep_every_cosine_within_the_rounding() -> None:
    maps = canvases()
    reduced = reduce_tokens(maps, 9)
    assert reduced.codes.dtype == np.int8
    assert np.abs(reduced.codes.astype(int)).max() == 127
    assert reduced.kept == pytest.approx(1, abs=1e-6)
    whole, less = np.stack(maps).reshape(-1, 40), reduced.directions.reshape(-1, 9)
    assert np.abs(whole @ whole.T - less @ less.T).max() < 0.02


def test_the_search_ends_where_it_did_or_a_step_beside_it_in_99_of_100() -> None:
    maps = canvases(num=12)
    found = compare(maps, reduce_tokens(maps, 9))
    assert found.num_searches == 12 * 11 * len(range(38, 225, 77))
    assert found.near >= 0.99
    assert found.same >= 0.95


def test_too_few_components_are_told() -> None:
    maps = canvases()
    reduced = reduce_tokens(maps, 3)
    assert reduced.kept < 0.9
    assert compare(maps, reduced).same < 0.8


def test_a_token_without_length_stays_without() -> None:
    maps = canvases()
    maps[0][2, 3] = 0
    reduced = reduce_tokens(maps, 9)
    assert not reduced.codes[0, 2, 3].any()
    assert not reduced.directions[0, 2, 3].any()


def test_components_are_in_the_order_of_their_variance_and_have_a_fixed_sign() -> None:
    maps = canvases()
    reduced = reduce_tokens(maps, 5)
    energy = np.square(reduced.codes * reduced.scales).sum(axis=(0, 1, 2))
    assert (energy[1:] <= 1.2 * energy[:-1]).all(), "but for axes that are fitted to a sample"
    turned = np.linalg.qr(np.random.default_rng(1).normal(size=(40, 40)))[0].astype(np.float32)
    again = reduce_tokens([tokens @ turned for tokens in maps], 5)
    np.testing.assert_allclose(again.scales, reduced.scales, rtol=1e-3)


def test_more_components_than_a_token_has_are_all_it_has() -> None:
    assert reduce_tokens(canvases(dim=10), 48).codes.shape[-1] == 10
