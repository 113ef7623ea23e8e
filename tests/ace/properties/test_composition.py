import numpy as np
import pytest
import torch

from ace.embed.embedder import unit
from ace.properties.composition import (
    CompositionCosines,
    CompositionParams,
    CompositionPlan,
    composition_auc,
    composition_cosines,
    compositionality,
    plan_composition,
)
from ace.protocol.intervals import estimate
from ace.protocol.regions import iou_matrix
from shards.errors import ConfigError
from tests.ace.properties.constructed import collapsed, colour, embedder, plain_canvases, random_colours

PARAMS = CompositionParams(
    regions_per_patient=3, mismatches_per_region=2, min_side=0.4, max_side=0.7, max_mismatch_iou=0.2
)
NUM_PATIENTS = 12


@pytest.fixture
def plan() -> CompositionPlan:
    return plan_composition(NUM_PATIENTS, PARAMS, np.random.default_rng(0))


def test_mismatches_are_of_other_patients_and_overlap_little(plan: CompositionPlan) -> None:
    whole, parts = plan.mismatches.T
    assert (plan.patient[whole] != plan.patient[parts]).all()
    overlaps = iou_matrix(plan.regions, plan.regions)[whole, parts]
    assert overlaps.max() <= 0.2
    assert overlaps.max() > 0
    assert np.bincount(whole).max() == 2


def test_a_mean_of_pixels_is_composed_of_its_parts_exactly(plan: CompositionPlan) -> None:
    colours = random_colours(NUM_PATIENTS, seed=1)
    cosines = composition_cosines(embedder(colour), plain_canvases(colours), plan)
    np.testing.assert_allclose(cosines.true, 1, atol=1e-6)
    directions = unit(colours.astype(float))
    whole, parts = plan.patient[plan.mismatches].T
    expected = (directions[whole] * directions[parts]).sum(axis=1)
    np.testing.assert_allclose(cosines.mismatched, expected, atol=1e-4)
    gap = estimate(compositionality(plan, cosines, NUM_PATIENTS), NUM_PATIENTS)
    assert gap == pytest.approx(1 - expected.mean(), abs=1e-4)
    assert estimate(composition_auc(plan, cosines, NUM_PATIENTS), NUM_PATIENTS) == pytest.approx(1)


def test_the_parts_are_the_quadrants_in_their_places(plan: CompositionPlan) -> None:
    """A canvas that is black but for one quadrant's place: only that part differs from zero."""
    seen: list[torch.Tensor] = []

    def record(means: torch.Tensor) -> torch.Tensor:
        seen.append(means)
        return means

    region = plan.regions[0]
    size_px = 48
    canvas = np.zeros((size_px, size_px, 3), np.uint8)
    row0, col0, row1, col1 = (round(edge) for edge in region.quadrants()[1].window(size_px))
    canvas[row0:row1, col0:col1] = 255
    one_region = CompositionPlan(plan.regions[:1], plan.patient[:1], np.array([[0, 0]]))
    composition_cosines(embedder(record, images_per_forward=5), [canvas], one_region)
    brightness = seen[0].mean(dim=(1, 2, 3)).numpy()
    np.testing.assert_allclose(brightness[1:], [0, 1, 0, 0], atol=0.15)
    assert brightness[0] == pytest.approx(0.25, abs=0.06)


def test_a_collapsed_encoder_scores_chance(plan: CompositionPlan) -> None:
    cosines = composition_cosines(embedder(collapsed), plain_canvases(random_colours(NUM_PATIENTS, seed=1)), plan)
    assert estimate(compositionality(plan, cosines, NUM_PATIENTS), NUM_PATIENTS) == pytest.approx(0)
    # Equal up to rounding, so ties are decided by the last bit: compare on a coarser scale.
    rounded = CompositionCosines(cosines.true.round(4), cosines.mismatched.round(4))
    assert estimate(composition_auc(plan, rounded, NUM_PATIENTS), NUM_PATIENTS) == pytest.approx(0.5)


def test_auc_equals_counting_all_pairs(plan: CompositionPlan) -> None:
    rng = np.random.default_rng(4)
    cosines = CompositionCosines(rng.normal(0.3, 1, len(plan.regions)), rng.normal(0, 1, len(plan.mismatches)))
    counted = np.mean([true > other for true in cosines.true for other in cosines.mismatched])
    assert estimate(composition_auc(plan, cosines, NUM_PATIENTS), NUM_PATIENTS) == pytest.approx(counted)


def test_regions_too_large_to_be_apart_are_an_error() -> None:
    params = PARAMS.model_copy(update={"min_side": 0.95, "max_side": 1.0})
    with pytest.raises(ConfigError, match=r"max_mismatch_iou 0\.2"):
        plan_composition(4, params, np.random.default_rng(0))
