from pathlib import Path

import numpy as np
import pytest
import torch

from ace.embed.embedder import unit
from ace.properties.base import Setting
from ace.properties.composition import (
    UNMATCHED,
    Composition,
    CompositionCosines,
    CompositionParams,
    CompositionPlan,
    compare,
    composition_auc,
    compositionality,
    embed_parts,
    embed_quadrants,
    plan_composition,
)
from ace.protocol.cohort import Cohort, Subject
from ace.protocol.features import DenseParams, Features
from ace.protocol.intervals import estimate
from ace.protocol.regions import even_tiling, iou_matrix
from shards.core.errors import ConfigError
from tests.ace.properties.constructed import SPEC, collapsed, colour, embedder, plain_canvases, random_colours

PARAMS = CompositionParams(
    regions_per_patient=3,
    mismatches_per_region=2,
    min_side=0.4,
    max_side=0.7,
    max_mismatch_iou=0.2,
    cuts=("2x2", "3x3", "random"),
    further_regions_per_patient=2,
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
    cosines = compare(plan, *embed_quadrants(embedder(colour), plain_canvases(colours), plan))
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
    embed_quadrants(embedder(record, images_per_forward=5), [canvas], one_region)
    brightness = seen[0].mean(dim=(1, 2, 3)).numpy()
    np.testing.assert_allclose(brightness[1:], [0, 1, 0, 0], atol=0.15)
    assert brightness[0] == pytest.approx(0.25, abs=0.06)


def test_a_collapsed_encoder_scores_chance(plan: CompositionPlan) -> None:
    canvases = plain_canvases(random_colours(NUM_PATIENTS, seed=1))
    cosines = compare(plan, *embed_quadrants(embedder(collapsed), canvases, plan))
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


def plain_cohort() -> Cohort:
    """Patients of one colour each."""
    foreground = np.ones((SPEC.n, SPEC.n), bool)
    canvases = plain_canvases(random_colours(NUM_PATIENTS, seed=1))
    subjects = tuple(
        Subject(key=f"s{number}", canvas=canvas, landmarks={}, foreground=foreground)
        for number, canvas in enumerate(canvases)
    )
    return Cohort(batch="constructed", split="test", spec=SPEC, subjects=subjects)


def figures(code: object, params: CompositionParams = PARAMS) -> dict[str, tuple[float, float | None]]:
    """Value and chance of every figure of an encoder."""
    dense = DenseParams(locations_per_cell=2, window_step_cells=1)
    setting = Setting(cohort=plain_cohort(), index=None, dense=dense, seed=0, max_patients=NUM_PATIENTS, num_examples=1)
    measurement = Composition().plan(setting, params)
    readings = measurement.read(measurement.ask(embedder(code), Features(Path(), {})))
    return {name: (estimate(own.measure, own.num_patients), own.chance) for name, own in readings.items()}


def test_a_mean_of_pixels_is_composed_of_its_parts_however_they_are_cut() -> None:
    found = figures(colour)
    mismatched = found[UNMATCHED][1]
    assert mismatched is not None
    assert found[UNMATCHED][0] == pytest.approx(1)
    assert found["compositionality"][0] == pytest.approx(1 - mismatched)
    for cut in ("3x3", "random"):
        assert found[f"compositionality_{cut}"][0] == pytest.approx(found["compositionality"][0], abs=0.1)
        assert found[f"compositionality_{cut}"][1] == 0


def test_a_collapsed_encoder_has_the_best_unmatched_cosine_and_scores_chance_in_every_figure() -> None:
    found = figures(collapsed)
    assert found[UNMATCHED] == pytest.approx((1, 1))
    for name in ("compositionality", "compositionality_3x3", "compositionality_random"):
        assert found[name] == pytest.approx((0, 0), abs=1e-6)


def test_other_cuts_leave_the_headline_as_it_is() -> None:
    alone = figures(colour, PARAMS.model_copy(update={"cuts": ("2x2",)}))
    assert alone.items() <= figures(colour).items()
    assert alone.keys() == {"compositionality", "compositionality_auc", UNMATCHED}


def test_the_mean_of_parts_is_weighted_by_area_and_parts_lie_where_the_tiling_says(plan: CompositionPlan) -> None:
    """Red above an edge at two thirds of the region, green below it: the parts are pure, and so is their mean known."""
    region = plan.regions[0]
    canvas = np.zeros((48, 48, 3), np.uint8)
    edge = round((region.row + region.side * 2 / 3) * 48)
    canvas[:edge, :, 0], canvas[edge:, :, 1] = 255, 255
    share = (edge / 48 - region.row) / region.side
    tiling = ((0.0, 0.0, share, 1.0), (share, 0.0, 1.0, 1.0))
    one = CompositionPlan(plan.regions[:1], plan.patient[:1], np.array([[0, 0]]))
    parts = embed_parts(embedder(colour), [canvas], one, [tiling], "random")
    expected = unit(np.array([[share, 1 - share, 0]]))
    np.testing.assert_allclose(parts, expected, atol=0.02)


def test_an_even_tiling_of_two_by_two_gives_the_quadrants(plan: CompositionPlan) -> None:
    canvases = [np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8) for _ in range(NUM_PATIENTS)]
    tilings = [even_tiling(2)] * len(plan.regions)
    _, expected = embed_quadrants(embedder(colour), canvases, plan)
    np.testing.assert_allclose(embed_parts(embedder(colour), canvases, plan, tilings, "2x2"), expected, atol=1e-3)


def test_further_cuts_keep_the_mismatches_among_the_regions_kept(plan: CompositionPlan) -> None:
    is_kept = np.arange(len(plan.regions)) % 3 < 2
    kept = plan.among(is_kept)
    numbers = np.flatnonzero(is_kept)
    assert [plan.regions[number] for number in numbers] == list(kept.regions)
    expected = {(whole, parts) for whole, parts in plan.mismatches.tolist() if is_kept[whole] and is_kept[parts]}
    assert {tuple(pair) for pair in numbers[kept.mismatches].tolist()} == expected
    assert expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cuts": ("3x3",)}, "first has to be 2x2"),
        ({"cuts": ("2x2", "3x3", "3x3")}, "name each once"),
        ({"further_regions_per_patient": 4}, "regions_per_patient is 3"),
    ],
)
def test_cuts_that_make_no_sense_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CompositionParams.from_params(PARAMS.model_dump() | changes, "composition")
