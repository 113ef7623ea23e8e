from pathlib import Path

import numpy as np
import pytest

from ace.evaluation.measured import MeasuredSplit
from ace.properties.base import Setting
from ace.properties.decomposition import (
    Decomposition,
    DecompositionMeasurement,
    DecompositionParams,
    decomposition_embeddings,
    decompositionality,
    figure_among,
    plan_decomposition,
    remove_and_cut,
    top1_credit,
)
from ace.protocol.cohort import Cohort, Subject
from ace.protocol.features import DenseParams, Features
from ace.protocol.intervals import estimate
from ace.protocol.regions import Region
from shards.core.errors import ConfigError
from tests.ace.properties.constructed import SPEC, collapsed, colour, embedder, plain_canvases, random_colours

PARAMS = DecompositionParams(
    num_draws=20,
    num_candidates=8,
    regions_per_patient=2,
    min_side=0.3,
    max_side=0.8,
    fills=("black",),
    further_candidates=(),
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


def planned(num_patients: int, further: tuple[int, ...]) -> DecompositionMeasurement:
    foreground = np.ones((SPEC.n, SPEC.n), bool)
    canvases = plain_canvases(random_colours(num_patients, seed=2))
    subjects = tuple(
        Subject(key=f"s{number}", canvas=canvas, landmarks={}, foreground=foreground)
        for number, canvas in enumerate(canvases)
    )
    dense = DenseParams(locations_per_cell=2, window_step_cells=1)
    cohort = Cohort(batch="constructed", split="test", spec=SPEC, subjects=subjects)
    setting = Setting(cohort=cohort, index=None, dense=dense, seed=0, max_patients=num_patients, num_examples=1)
    return Decomposition().plan(setting, PARAMS.model_copy(update={"further_candidates": further}))


@pytest.mark.parametrize(("code", "is_oracle"), [(colour, True), (collapsed, False)])
def test_among_other_numbers_an_oracle_finds_all_and_a_collapsed_encoder_one_in_as_many(
    code: object, is_oracle: bool
) -> None:
    measurement = planned(12, (4, 12))
    readings = measurement.read(measurement.ask(embedder(code), Features(Path(), {})))
    for number, name in ((8, "decompositionality"), (4, figure_among(4)), (12, figure_among(12))):
        found = estimate(readings[name].measure, 12)
        assert readings[name].chance == 1 / number
        assert readings[name].facts == {"num_candidates": number, "num_draws": 20}
        assert found == pytest.approx(1 if is_oracle else 1 / number)


def test_a_number_of_candidates_that_patients_do_not_allow_is_left_out_with_the_reason() -> None:
    measurement = planned(12, (4, 13))
    assert set(measurement.further) == {4}
    (left_out,) = measurement.left_out().items()
    assert left_out[0] == "decompositionality_among_13"
    assert "12 test patients, and a draw of 13" in left_out[1].reason


def test_other_numbers_leave_the_headlines_draws_as_they_are() -> None:
    few, many = planned(12, ()), planned(12, (4, 12))
    np.testing.assert_array_equal(few.anywhere.patients, many.anywhere.patients)
    np.testing.assert_array_equal(few.anywhere.choices, many.anywhere.choices)
    assert many.further[4].regions == many.anywhere.regions


def test_a_number_named_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="name each number once"):
        DecompositionParams.from_params(PARAMS.model_dump() | {"further_candidates": [8]}, "decomposition")
