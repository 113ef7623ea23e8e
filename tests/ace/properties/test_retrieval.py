"""A region finds the same anatomy among regions of other patients: credit against a loop, and encoders with answers."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ace.properties.base import NotMeasured, Setting
from ace.properties.retrieval import HEADLINE, RegionSet, Retrieval, RetrievalMeasurement, RetrievalParams, top_credit
from ace.protocol.features import DenseParams, Features
from ace.protocol.intervals import estimate
from shards.core.errors import ConfigError
from tests.ace.properties.constructed import SPEC, collapsed, embedder, map_cohort, place

PARAMS = RetrievalParams(num_patients=8, num_landmarks=5, side=0.3, further_sides=(0.2,))
NOTHING = Features(Path(), {})


def planned(params: RetrievalParams = PARAMS, seed: int = 0) -> RetrievalMeasurement:
    dense = DenseParams(locations_per_cell=2, window_step_cells=1)
    setting = Setting(cohort=map_cohort(8), index=None, dense=dense, seed=seed, max_patients=8, num_examples=3)
    found = Retrieval().plan(setting, params)
    assert isinstance(found, RetrievalMeasurement), found
    return found


def figures(measurement: RetrievalMeasurement, code: object) -> dict[str, float]:
    readings = measurement.read(measurement.ask(embedder(code), NOTHING))
    return {name: estimate(reading.measure, reading.num_patients) for name, reading in readings.items()}


@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 6))
def test_credit_is_the_share_of_orders_of_ties_in_which_a_right_candidate_is_among_the_first(
    seed: int, rank: int, num_candidates: int
) -> None:
    rng = np.random.default_rng(seed)
    similarities = rng.integers(0, 3, (4, num_candidates)).astype(float)
    is_candidate = rng.random((4, num_candidates)) < 0.8
    is_right = is_candidate & (rng.random((4, num_candidates)) < 0.4)
    found = top_credit(similarities, is_candidate, is_right, rank)
    for query in range(4):
        own = np.flatnonzero(is_candidate[query])
        last = np.sort(similarities[query, own])[::-1][:rank].min(initial=np.inf)
        sure = [number for number in own if similarities[query, number] > last]
        tied = [number for number in own if similarities[query, number] == last]
        draws = list(combinations(tied, min(rank, len(own)) - len(sure)))
        hits = [is_right[query, [*sure, *drawn]].any() for drawn in draws]
        assert found[query] == pytest.approx(np.mean(hits))


def test_candidates_are_of_other_patients_and_right_where_the_same_anatomy_lies_within_a_cell() -> None:
    measurement = planned()
    own = measurement.sets[HEADLINE]
    regions, patient = own.regions, own.patient
    corners = [np.array([region.row, region.col, region.side]) * SPEC.canvas_px for region in regions]
    centers = [corner[:2] + corner[2] / 2 for corner in corners]
    atlas = {}  # the constructed patients lie shifted in one atlas, so places there are anatomy
    for number, subject in enumerate(measurement.subjects):
        first = next(iter(subject.landmarks))
        shift = np.array(subject.landmarks[first]) - np.array(measurement.subjects[0].landmarks[first])
        atlas[number] = shift
    for query in range(len(regions)):
        for candidate in range(len(regions)):
            is_other = patient[query] != patient[candidate]
            apart = centers[query] - atlas[patient[query]] - (centers[candidate] - atlas[patient[candidate]])
            assert own.is_candidate[query, candidate] == is_other
            assert own.is_right[query, candidate] == (is_other and np.linalg.norm(apart) <= SPEC.cell_px)
    assert own.is_right.any(axis=1).all()


def test_an_encoder_that_reads_places_of_the_atlas_retrieves_them_and_a_collapsed_one_guesses() -> None:
    measurement = planned()
    sizes = {suffix: len(own.regions) for suffix, own in measurement.sets.items()}
    chance = measurement.read({f"embeddings{suffix}": np.ones((size, 2)) for suffix, size in sizes.items()})
    seen, blind = figures(measurement, place), figures(measurement, collapsed)
    for suffix in (HEADLINE, "_side_20_percent"):
        assert seen[f"retrieval_top1{suffix}"] > 0.9
        assert seen[f"retrieval_top5{suffix}"] == 1
    for name, reading in chance.items():
        assert estimate(reading.measure, reading.num_patients) == pytest.approx(reading.chance)
        assert blind[name] == pytest.approx(reading.chance, abs=0.05)
    assert chance["retrieval_top1"].chance < chance["retrieval_top5"].chance


def test_a_side_that_leaves_every_canvas_is_told() -> None:
    dense = DenseParams(locations_per_cell=2, window_step_cells=1)
    setting = Setting(cohort=map_cohort(8), index=None, dense=dense, seed=0, max_patients=8, num_examples=3)
    found = Retrieval().plan(setting, PARAMS.model_copy(update={"side": 0.99, "further_sides": ()}))
    assert isinstance(found, NotMeasured)
    assert "leave the canvas" in found.reason


def test_smaller_regions_have_the_same_centres_and_leave_the_headlines_as_they_are() -> None:
    both, alone = planned(), planned(PARAMS.model_copy(update={"further_sides": ()}))
    assert alone.sets[HEADLINE].regions == both.sets[HEADLINE].regions
    large, small = both.sets.values()

    def centres(own: RegionSet) -> set[tuple[float, float]]:
        return {(round(r.row + r.side / 2, 9), round(r.col + r.side / 2, 9)) for r in own.regions}

    assert centres(large) <= centres(small)
    assert {region.side for region in small.regions} == {0.2}


def test_a_further_side_that_is_not_smaller_is_refused() -> None:
    with pytest.raises(ConfigError, match="smaller than the one before it"):
        RetrievalParams.from_params(PARAMS.model_dump() | {"further_sides": [0.2, 0.3]}, "retrieval")
