from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ace.properties.base import Setting
from ace.properties.correspondence import (
    ERROR,
    MEDIAN,
    MUTUAL_ERROR,
    MUTUAL_SHARE,
    REFERENCE_CANVAS_PX,
    WITHIN_CELL,
    Correspondence,
    CorrespondenceMeasurement,
    CorrespondenceParams,
    affine_oracle,
    draw_pairs,
    errors_at_reference,
    find_landmarks,
    pair_mean,
    random_guess_errors,
    structure_of,
)
from ace.protocol.cohort import Subject
from ace.protocol.dense import location_axis, points_of
from ace.protocol.features import DenseParams
from ace.protocol.intervals import estimate
from tests.ace.properties.constructed import SPEC, collapsed, dense, embedder, map_cohort, place


def test_an_oracle_errs_by_no_more_than_its_stride(tmp_path: Path) -> None:
    subjects = map_cohort(8).subjects
    axis = location_axis(SPEC, 4, 1)
    pairs = draw_pairs(subjects, 3, 9, np.random.default_rng(0))
    found = find_landmarks(subjects, dense(embedder(place), subjects, axis, tmp_path), axis, pairs)
    true = [points_of(subjects[pair.key], pair.names) for pair in pairs]
    errors = np.concatenate([errors_at_reference(f, t, SPEC.canvas_px) for f, t in zip(found, true, strict=True)])
    stride = SPEC.cell_px / 4 * REFERENCE_CANVAS_PX / SPEC.canvas_px
    assert errors.mean() < 0.6 * stride
    assert errors.max() < 1.2 * stride


def test_a_collapsed_encoder_is_far_worse_than_the_oracle(tmp_path: Path) -> None:
    subjects = map_cohort(8).subjects
    axis = location_axis(SPEC, 2, 1)
    pairs = draw_pairs(subjects, 3, 9, np.random.default_rng(0))
    found = find_landmarks(subjects, dense(embedder(collapsed), subjects, axis, tmp_path), axis, pairs)
    assert len(np.unique(np.concatenate(found), axis=0)) < 5


def test_queries_never_meet_themselves_and_share_their_landmarks() -> None:
    subjects = map_cohort(6).subjects
    pairs = draw_pairs(subjects, keys_per_query=4, max_landmarks=5, rng=np.random.default_rng(1))
    assert all(pair.query != pair.key for pair in pairs)
    assert np.bincount([pair.query for pair in pairs]).tolist() == [4] * 6
    assert len({(pair.query, pair.key) for pair in pairs}) == 24
    assert all(len(pair.names) == 5 for pair in pairs)


def test_errors_are_scaled_to_a_canvas_of_1024_pixels() -> None:
    errors = errors_at_reference(np.array([[3.0, 4.0]]), np.array([[0.0, 0.0]]), canvas_px=512)
    np.testing.assert_allclose(errors, [10.0])


def test_a_random_guess_expects_the_mean_distance_over_the_foreground() -> None:
    subject = map_cohort(1).subjects[0]
    foreground = np.zeros((SPEC.n, SPEC.n), bool)
    foreground[2, 3] = True
    axis = location_axis(SPEC, 2, 1)
    only_cell = replace(subject, foreground=foreground)
    true = np.array([[20.0, 28.0]])
    # Locations at rows 16 and 20 and columns 24 and 28 lie in cell (2, 3): 8-px cells, half-open.
    expected = np.array([[4.0, 4.0], [4.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    errors = random_guess_errors(only_cell, true, axis, SPEC.cell_px)
    np.testing.assert_allclose(np.sort(errors[:, 0]), np.sort(np.hypot(*expected.T)) * 1024 / 48)


def test_the_affine_oracle_recovers_an_affine_map_exactly() -> None:
    rng = np.random.default_rng(0)
    source = rng.uniform(0, 48, (12, 2))
    target = source @ np.array([[0.9, 0.2], [-0.1, 1.1]]) + [3.0, -2.0]
    np.testing.assert_allclose(affine_oracle(source, target), target, atol=1e-9)


def test_the_mean_over_pairs_weighs_every_landmark_alike() -> None:
    subjects = map_cohort(3).subjects
    pairs = draw_pairs(subjects, 1, 9, np.random.default_rng(0))
    values = [np.array([1.0]), np.array([2.0, 3.0]), np.array([])]
    assert estimate(pair_mean(pairs, values, 3), 3) == pytest.approx(2.0)


def planned(num_patients: int = 6) -> CorrespondenceMeasurement:
    dense_params = DenseParams(locations_per_cell=4, window_step_cells=1)
    setting = Setting(
        cohort=map_cohort(num_patients),
        index=None,
        dense=dense_params,
        seed=0,
        max_patients=num_patients,
        num_examples=2,
    )
    params = CorrespondenceParams(num_patients=num_patients, keys_per_query=3, max_landmarks=9, success_px=64.0)
    found = Correspondence().plan(setting, params)
    assert isinstance(found, CorrespondenceMeasurement), found
    return found


def figures(measurement: CorrespondenceMeasurement, code: object, folder: Path) -> dict[str, float]:
    own = embedder(code)
    features = dense(own, measurement.subjects, measurement.setting.axis, folder)
    readings = measurement.read(measurement.ask(own, features))
    return {name: estimate(reading.measure, reading.num_patients) for name, reading in readings.items()}


def test_an_oracle_is_within_a_cell_everywhere_and_all_its_matches_are_mutual(tmp_path: Path) -> None:
    found = figures(planned(), place, tmp_path)
    assert found[WITHIN_CELL] == found[MUTUAL_SHARE] == found["correspondence_within_64px"] == 1
    assert found[MUTUAL_ERROR] == found[ERROR]
    assert 0 < found[MEDIAN] < 64


def test_a_collapsed_encoder_finds_and_returns_to_next_to_nothing(tmp_path: Path) -> None:
    found = figures(planned(), collapsed, tmp_path)
    assert found[WITHIN_CELL] < 0.1
    assert found[MUTUAL_SHARE] < 0.1


def test_the_median_is_numpys_and_its_chance_the_radius_that_half_of_all_guesses_keep_to() -> None:
    measurement = planned()
    rng = np.random.default_rng(0)
    places = rng.uniform(0, SPEC.canvas_px, (sum(len(pair.names) for pair in measurement.pairs), 2))
    readings = measurement.read({"found": places, "returned": places})
    true = [points_of(measurement.subjects[pair.key], pair.names) for pair in measurement.pairs]
    errors = errors_at_reference(places, np.concatenate(true), SPEC.canvas_px)
    assert estimate(readings[MEDIAN].measure, 6) == np.median(errors)
    guesses = measurement.setting.axis.points()  # every cell is foreground, so all landmarks have equally many
    distances = np.linalg.norm(guesses[:, None] - np.concatenate(true), axis=2) * REFERENCE_CANVAS_PX / SPEC.canvas_px
    assert readings[MEDIAN].chance == pytest.approx(np.median(distances), abs=0.5)
    assert readings[WITHIN_CELL].chance == pytest.approx((distances <= REFERENCE_CANVAS_PX / SPEC.n).mean())


def test_mutual_matches_alone_have_their_error_and_chance_is_of_the_way_back() -> None:
    measurement = planned()
    (pair,) = pairs = measurement.pairs[:1]
    upper = np.arange(SPEC.n)[:, None] < np.full(SPEC.n, SPEC.n // 2)
    subjects = list(measurement.subjects)
    subjects[pair.query] = replace(subjects[pair.query], foreground=upper)
    measurement = replace(measurement, pairs=pairs, subjects=tuple(subjects))
    source, true = (points_of(measurement.subjects[at], pair.names) for at in (pair.query, pair.key))
    is_back = np.arange(len(source)) % 3 == 0
    found = true + np.arange(1.0, len(true) + 1)[:, None]
    returned = source + np.where(is_back, SPEC.cell_px, SPEC.cell_px + 1)[:, None] * [[1.0, 0.0]]
    readings = measurement.read({"found": found, "returned": returned})
    errors = errors_at_reference(found, true, SPEC.canvas_px)
    assert estimate(readings[MUTUAL_SHARE].measure, 6) == pytest.approx(is_back.mean())
    assert estimate(readings[MUTUAL_ERROR].measure, 6) == pytest.approx(errors[is_back].mean())
    assert readings[MUTUAL_ERROR].facts["num_matches"] == is_back.sum()
    back, there = (
        random_guess_errors(measurement.subjects[at], ends, measurement.setting.axis, SPEC.cell_px)
        for at, ends in ((pair.query, source), (pair.key, true))
    )
    back, there = ((guess <= REFERENCE_CANVAS_PX / SPEC.n).mean() for guess in (back, there))
    assert readings[MUTUAL_SHARE].chance == pytest.approx(back)
    assert readings[WITHIN_CELL].chance == pytest.approx(there)
    assert back != pytest.approx(there)


def test_the_errors_by_structure_make_up_the_error_of_all() -> None:
    measurement = planned()
    subjects = [
        Subject(
            key=own.key,
            canvas=own.canvas,
            landmarks={
                f"{'rib' if number < 4 else 'lung'}_left_{number:02d}": at
                for number, at in enumerate(own.landmarks.values())
            },
            foreground=own.foreground,
        )
        for own in measurement.subjects
    ]
    pairs = draw_pairs(subjects, 3, 9, np.random.default_rng(0))
    measurement = replace(measurement, subjects=tuple(subjects), pairs=tuple(pairs))
    places = np.random.default_rng(1).uniform(0, SPEC.canvas_px, (9 * len(pairs), 2))
    details = measurement.details({"found": places})
    assert list(details) == ["lung", "rib"]
    counts = [details[name].facts["num_landmarks"] for name in details]
    assert counts == [5 * len(pairs), 4 * len(pairs)]
    errors = [estimate(details[name].measure, 6) for name in details]
    whole = measurement.read({"found": places, "returned": places})[ERROR]
    assert np.average(errors, weights=counts) == pytest.approx(estimate(whole.measure, 6))
    chances = [details[name].chance for name in details]
    assert np.average(chances, weights=counts) == pytest.approx(whole.chance)


@pytest.mark.parametrize(
    ("landmark", "structure"),
    [
        ("rib_left_01_middle", "rib"),
        ("left_upper", "upper"),
        ("carina", "carina"),
        ("vertebra_T10", "vertebra"),
        ("left_01", "left_01"),
    ],
)
def test_a_structure_is_the_first_word_that_is_neither_a_side_nor_a_number(landmark: str, structure: str) -> None:
    assert structure_of(landmark) == structure
