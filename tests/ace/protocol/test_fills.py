"""The same regions and draws with something else than black in the region's place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ace.embed.embedder import Embedder, unit
from ace.properties.decomposition import (
    DecompositionParams,
    DecompositionPlan,
    Fill,
    decomposition_embeddings,
    decompositionality,
    plan_decomposition,
    remove_and_cut,
    remove_regions,
)
from ace.protocol.fills import FillPlan, plan_fills
from ace.protocol.intervals import estimate
from ace.protocol.regions import Region
from shards.core.errors import ConfigError
from tests.ace.properties.constructed import (
    SPEC,
    ConstructedEncoder,
    collapsed,
    colour,
    embedder,
    plain_canvases,
    random_colours,
)

FILLS: tuple[Fill, ...] = ("black", "mean", "white", "noise", "tissue")
VALUES = {
    "num_draws": 20,
    "num_candidates": 8,
    "regions_per_patient": 2,
    "min_side": 0.3,
    "max_side": 0.8,
    "fills": FILLS,
    "further_candidates": (),
}
PARAMS = DecompositionParams.from_params(VALUES, "decomposition")
NUM = 12
KEYS = [f"image-{number}" for number in range(NUM)]


def fills_of(keys: list[str] = KEYS, seed: int = 0) -> FillPlan:
    return planned(keys, FILLS, seed)


def planned(keys: list[str], fills: tuple[Fill, ...], seed: int) -> FillPlan:
    return plan_fills(keys, fills, num_regions=2, sides=(0.3, 0.8), seed=seed, rng=np.random.default_rng(seed))


def plan() -> DecompositionPlan:
    return plan_decomposition(NUM, PARAMS, np.random.default_rng(0), same_position=False)


def noise_canvases(num: int = NUM, size_px: int = SPEC.canvas_px) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(1, 255, (num, size_px, size_px, 3), dtype=np.uint8))


def fill(image: np.ndarray, region: Region, name: Fill, canvases: list[np.ndarray], *, patient: int = 0) -> np.ndarray:
    return fills_of().filled(image, region, name, canvases=canvases, patient=patient, number=0)


@pytest.mark.parametrize("channels", [(), (3,)])
@pytest.mark.parametrize("name", FILLS)
def test_a_fill_is_what_its_definition_says_and_leaves_the_rest_alone(name: Fill, channels: tuple[int, ...]) -> None:
    canvases = list(np.random.default_rng(0).integers(0, 200, (NUM, 64, 64, *channels), dtype=np.uint8))
    image, region = canvases[0][:32, :32].copy(), Region(0.25, 0.5, 0.5)
    before = image.copy()
    found = fill(image, region, name, canvases)
    np.testing.assert_array_equal(image, before)
    inside = np.zeros((32, 32), bool)
    inside[8:24, 16:32] = True
    np.testing.assert_array_equal(found[~inside], image[~inside])
    square = found[8:24, 16:32].astype(int)
    match name:
        case "black":
            np.testing.assert_array_equal(found, remove_and_cut(image, region)[0])
        case "white":
            assert (square == 255).all()
        case "mean":
            expected = np.floor(image.mean(axis=(0, 1)) + 0.5)
            np.testing.assert_array_equal(square, np.broadcast_to(expected, square.shape))
        case "noise":
            assert len(np.unique(square)) > 100
            assert square.mean() == pytest.approx(127.5, abs=15)
            if channels:
                assert not (square[..., 0] == square[..., 1]).all()
        case "tissue":
            donor, source = fills_of().donors[0, 0], fills_of().sources[0][0]
            row, col, side = source.pixels(64)
            of_donor = canvases[donor][row : row + side, col : col + side]
            assert square.mean() == pytest.approx(of_donor.mean(), rel=0.08)


def test_noise_depends_on_seed_image_and_region_and_on_no_other_image() -> None:
    image, region = noise_canvases()[0], Region(0.1, 0.2, 0.5)

    def noise(plan: FillPlan, patient: int, number: int) -> bytes:
        return plan.filled(image, region, "noise", canvases=[], patient=patient, number=number).tobytes()

    drawn = {noise(fills_of(), patient, number) for patient in range(NUM) for number in range(2)}
    assert len(drawn) == 2 * NUM
    assert noise(fills_of(seed=1), 0, 0) not in drawn
    assert noise(fills_of(KEYS[::-1]), NUM - 1, 1) == noise(fills_of(), 0, 1)


@given(st.integers(2, 40), st.integers(0, 2**31))
def test_tissue_is_of_another_patient_and_of_a_place_and_size_of_its_own(num_patients: int, seed: int) -> None:
    found = planned([str(number) for number in range(num_patients)], FILLS, seed)
    assert found.donors.shape == (num_patients, 2)
    assert (found.donors != np.arange(num_patients)[:, None]).all()
    assert ((found.donors >= 0) & (found.donors < num_patients)).all()
    sources = [region for own in found.sources for region in own]
    assert all(0.3 <= region.side <= 0.8 for region in sources)
    assert len(set(sources)) == len(sources)


def test_every_other_patient_can_be_a_donor() -> None:
    drawn = np.concatenate([fills_of(seed=seed).donors[0] for seed in range(100)])
    assert set(drawn.tolist()) == set(range(1, NUM))


class Additive(nn.Module):
    """A token is the mean over its cell, where pixels of one colour count as nothing."""

    def __init__(self, nothing: int) -> None:
        super().__init__()
        self.nothing = nothing

    def forward(self, images: Tensor) -> Tensor:
        is_something = ((255 * images).round() != self.nothing).any(1, keepdim=True)
        return nn.functional.avg_pool2d(images * is_something, SPEC.cell_px).movedim(1, -1)


@pytest.mark.parametrize(("name", "nothing"), [("black", 0), ("white", 255), ("mean", 128)])
def test_an_additive_encoder_to_which_the_fill_is_nothing_finds_every_region(name: Fill, nothing: int) -> None:
    canvases = plain_canvases(random_colours(NUM, seed=2), size_px=SPEC.crop_px)
    if name == "mean":
        for canvas in canvases:  # one half the complement of the other: the mean of every image is 128
            canvas[:, SPEC.crop_px // 2 :] = 256 - canvas[:, : SPEC.crop_px // 2].astype(int)
    additive = Embedder(
        encoder=ConstructedEncoder(Additive(nothing)), batch="constructed", images_per_forward=7, name="additive"
    )
    found = remove_regions(additive, canvases, plan(), fills_of()).by_fill[name]
    assert estimate(decompositionality(plan(), found), NUM) == 1


def test_what_an_additive_encoder_loses_is_the_region_less_what_fills_it() -> None:
    colours = random_colours(NUM, seed=2).astype(float)
    found = remove_regions(embedder(colour), plain_canvases(colours.astype(np.uint8)), plan(), fills_of()).by_fill
    levels = {"black": np.zeros((NUM, 2, 3)), "white": np.full((NUM, 2, 3), 255), "tissue": colours[fills_of().donors]}
    for name, level in levels.items():
        np.testing.assert_allclose(found[name].queries, unit(colours[:, None] - level), atol=2e-3)


def test_a_collapsed_encoder_scores_chance_with_every_fill() -> None:
    found = remove_regions(embedder(collapsed), noise_canvases(), plan(), fills_of())
    assert list(found.by_fill) == list(FILLS)
    for answer in found.by_fill.values():
        assert estimate(decompositionality(plan(), answer), NUM) == pytest.approx(1 / 8)


@pytest.mark.parametrize("fills", [FILLS, ("black",)])
def test_black_and_the_candidates_are_the_same_whatever_else_is_measured(fills: tuple[Fill, ...]) -> None:
    several = planned(KEYS, fills, 0)
    expected = decomposition_embeddings(embedder(colour), noise_canvases(), plan())
    found = remove_regions(embedder(colour), noise_canvases(), plan(), several).by_fill
    assert tuple(found) == fills
    np.testing.assert_array_equal(found["black"].queries, expected.queries)
    for answer in found.values():
        np.testing.assert_array_equal(answer.candidates, expected.candidates)


def test_images_and_regions_are_embedded_once() -> None:
    seen: list[int] = []

    def counting(means: Tensor) -> Tensor:
        seen.append(len(means))
        return means

    remove_regions(embedder(counting), noise_canvases(), plan(), fills_of())
    assert sum(seen) == NUM * (1 + 2 + 2 * len(FILLS))


@pytest.mark.parametrize(
    ("fills", "message"),
    [
        (["mean", "black"], "the first has to be black"),
        ([], "the first has to be black"),
        (["black", "mean", "mean"], "name each once"),
        (["black", "grey"], "Input should be 'black', 'mean', 'white', 'noise' or 'tissue'"),
    ],
)
def test_fills_that_cannot_be_measured_are_refused(fills: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DecompositionParams.from_params({**VALUES, "fills": fills}, "decomposition")
