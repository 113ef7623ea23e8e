"""What lies between two regions and beyond them: the lattice, questions by hand, and encoders with known answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ace.drawing.words import Words
from ace.properties.base import Evidence, Setting
from ace.properties.interpolation import (
    FIGURES,
    Interpolation,
    InterpolationMeasurement,
    InterpolationParams,
    draw_questions,
    lattice,
)
from ace.protocol.cohort import Cohort
from ace.protocol.features import DenseParams, Features
from ace.protocol.intervals import estimate
from tests.ace.properties.constructed import SPEC, collapsed, embedder, map_subject

PARAMS = InterpolationParams(num_patients=5, keys_per_query=2, side=0.3)


def planned(params: InterpolationParams = PARAMS) -> InterpolationMeasurement:
    """Patients who lie in the canvas almost alike."""
    subjects = tuple(map_subject(0.2 * number, 0.1 * number, num_landmarks=1, seed=0) for number in range(5))
    dense = DenseParams(locations_per_cell=2, window_step_cells=1)
    cohort = Cohort(batch="constructed", split="test", spec=SPEC, subjects=subjects)
    return Interpolation().plan(
        Setting(cohort=cohort, index=None, dense=dense, seed=0, max_patients=5, num_examples=2), params
    )


def figures(code: object, measurement: InterpolationMeasurement) -> dict[str, float]:
    readings = measurement.read(measurement.ask(embedder(code), Features(Path(), {})))
    return {name: estimate(reading.measure, reading.num_patients) for name, reading in readings.items()}


def evenly(means: torch.Tensor) -> torch.Tensor:
    """A token that changes evenly with the place in the body, and with nothing else."""
    return torch.cat([means[..., :2], torch.full_like(means[..., :1], 0.3)], dim=-1)


def crookedly(means: torch.Tensor) -> torch.Tensor:
    """A token that tells places apart, each by a direction of its own, so that nothing lies between two of them."""
    generator = torch.Generator().manual_seed(0)
    frequencies = 400 * torch.randn(2, 64, generator=generator)
    return torch.cos(means[..., :2] @ frequencies)


@given(st.floats(0.05, 0.5))
def test_a_lattice_fills_the_canvas_half_a_side_apart(side: float) -> None:
    regions, num = lattice(side)
    assert len(regions) == num**2 >= 9
    rows = sorted({region.row for region in regions})
    np.testing.assert_allclose(np.diff(rows), side / 2)
    assert -1e-9 <= rows[0] < side / 4
    assert rows[0] == pytest.approx(1 - rows[-1] - side)
    assert [region.col for region in regions[:num]] == rows


def test_questions_are_all_threes_in_a_row_or_column_in_both_directions() -> None:
    _, num = lattice(0.3)
    questions = draw_questions(num)
    steps = {(0, 1), (1, 0), (0, -1), (-1, 0)}
    places = [(row, col) for row in range(num) for col in range(num)]
    threes = {
        tuple((row + step * down) * num + col + step * right for step in range(3))
        for row, col in places
        for down, right in steps
        if (row + 2 * down, col + 2 * right) in places
    }
    between, beyond = questions["interpolation"], questions["extrapolation"]
    assert {(a, b, c) for (a, c), b in zip(between.given.tolist(), between.wanted.tolist(), strict=True)} == threes
    assert {(a, b, c) for (a, b), c in zip(beyond.given.tolist(), beyond.wanted.tolist(), strict=True)} == threes
    assert len(between.wanted) == len(threes) == 4 * num * (num - 2)


def test_pairs_are_of_different_patients() -> None:
    pairs = planned().pairs
    assert all(query != key for query, key in pairs)
    assert len(set(pairs)) == 2 * 5
    assert np.bincount([query for query, _ in pairs]).tolist() == [2] * 5


def test_an_encoder_that_changes_evenly_with_the_place_answers_all_questions() -> None:
    assert figures(evenly, planned()) == {"interpolation": 1, "extrapolation": 1}


def test_a_collapsed_encoder_scores_exactly_chance() -> None:
    measurement = planned()
    found = figures(collapsed, measurement)
    chance = 1 / (len(measurement.regions) - 2)
    assert found == {"interpolation": pytest.approx(chance), "extrapolation": pytest.approx(chance)}
    readings = measurement.read({"embeddings": np.ones((5, len(measurement.regions), 3))})
    assert [reading.chance for reading in readings.values()] == [chance, chance]


def test_telling_places_apart_is_not_enough() -> None:
    found = figures(crookedly, planned())
    assert found["interpolation"] < 0.6
    assert found["extrapolation"] < 0.6


def test_the_places_given_are_no_candidates() -> None:
    measurement = planned()
    for questions in measurement.questions.values():
        is_candidate, is_right = measurement._candidates(questions)
        assert (is_candidate.sum(axis=1) == len(measurement.regions) - 2).all()
        assert not np.take_along_axis(is_candidate, questions.given, axis=1).any()
        assert (is_right & is_candidate).sum(axis=1).tolist() == [1] * len(questions.wanted)


def test_every_example_shows_three_neighbours_and_each_encoders_nearest_candidates() -> None:
    measurement = planned()
    answer = measurement.ask(embedder(evenly), Features(Path(), {}))
    arrays = measurement.pictures({"one": answer, "other": answer}, {})
    for figure in FIGURES:
        assert arrays[f"{figure}_given"].shape[:2] == (2, 2)
        assert arrays[f"one_{figure}_is_right"][:, 0].all()
        assert not arrays[f"one_{figure}_is_right"][:, 1:].any()
    shown = Interpolation().shown(
        Evidence(encoders=["one", "other"], figures={}, params={}, arrays=arrays, words=Words(one="patient"))
    )
    assert len(shown["pictures"]) == 2 * 2
    assert shown["pictures"][0].count('class="candidate right') == 2
