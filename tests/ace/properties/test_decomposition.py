import numpy as np
import pytest

from ace.evaluation.measured import MeasuredSplit
from ace.properties.decomposition import (
    DecompositionParams,
    decomposition_embeddings,
    decompositionality,
    plan_decomposition,
    remove_and_cut,
    top1_credit,
)
from ace.protocol.intervals import estimate
from ace.protocol.regions import Region
from shards.errors import ConfigError
from tests.ace.properties.constructed import SPEC, collapsed, colour, embedder, plain_canvases, random_colours

PARAMS = DecompositionParams(
    num_draws=20, num_candidates=8, regions_per_patient=2, min_side=0.3, max_side=0.8, fills=("black",)
)


@pytest.mark.parametrize("same_position", [False, True])
def test_draws_hold_different_patients_and_the_hard_case_one_place(same_position: bool) -> None:
    plan = plan_decomposition(12, PARAMS, np.random.default_rng(0), same_position=same_position)
    assert plan.patients.shape == (20, 8)
    assert all(len(set(draw)) == 8 for draw in plan.patients.tolist())
    for patients, choices in zip(plan.patients, plan.choices, strict=True):
        places = {plan.regions[patient][choice] for patient, choice in zip(patients, choices, strict=True)}
        assert len(places) == (1 if same_position else 8)


@pytest.mark.parametrize("same_position", [False, True])
def test_a_mean_of_pixels_finds_every_removed_region(same_position: bool) -> None:
    plan = plan_decomposition(12, PARAMS, np.random.default_rng(0), same_position=same_position)
    answer = decomposition_embeddings(embedder(colour), plain_canvases(random_colours(12, seed=2)), plan)
    assert estimate(decompositionality(plan, answer), 12) == 1


def test_a_collapsed_encoder_scores_exactly_chance() -> None:
    plan = plan_decomposition(12, PARAMS, np.random.default_rng(0), same_position=False)
    answer = decomposition_embeddings(embedder(collapsed), plain_canvases(random_colours(12, seed=2)), plan)
    assert estimate(decompositionality(plan, answer), 12) == pytest.approx(1 / 8)


def test_the_removed_part_and_the_cut_part_are_the_same_pixels() -> None:
    image = np.random.default_rng(0).integers(1, 256, size=(32, 32), dtype=np.uint8)
    without, region = remove_and_cut(image, Region(0.25, 0.5, 0.5))
    np.testing.assert_array_equal(without == 0, np.pad(np.ones((16, 16), bool), ((8, 8), (16, 0))))
    np.testing.assert_array_equal(without[without > 0], image[without > 0])
    assert region.shape == image.shape
    assert region.mean() == pytest.approx(image[8:24, 16:32].mean(), rel=0.03)


def test_credit_is_shared_among_ties_and_never_given_to_a_loser() -> None:
    similarities = np.array([[0.9, 0.1, 0.9], [0.5, 0.2, 0.1], [0.0, 0.1, 0.3]])
    np.testing.assert_array_equal(top1_credit(similarities), [0.5, 0.0, 1.0])


@pytest.mark.parametrize("split", ["test", "val"])
def test_too_few_patients_name_the_split_and_both_numbers(split: MeasuredSplit) -> None:
    message = rf"7 {split} patients, but a draw needs 8 .* give the {split} split a larger share"
    with pytest.raises(ConfigError, match=message):
        plan_decomposition(7, PARAMS, np.random.default_rng(0), same_position=False, split=split)


def test_the_image_is_resampled_to_crop_size() -> None:
    plan = plan_decomposition(8, PARAMS, np.random.default_rng(0), same_position=False)
    canvases = plain_canvases(random_colours(8, seed=2), size_px=3 * SPEC.canvas_px)
    assert decomposition_embeddings(embedder(colour), canvases, plan).queries.shape == (8, 2, 3)
