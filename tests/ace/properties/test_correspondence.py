from pathlib import Path

import numpy as np
import pytest

from ace.properties.correspondence import (
    REFERENCE_CANVAS_PX,
    affine_oracle,
    draw_pairs,
    errors_at_reference,
    find_landmarks,
    pair_mean,
    random_guess_errors,
)
from ace.protocol.dense import location_axis, points_of
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
    only_cell = type(subject)(subject.key, subject.canvas, subject.landmarks, foreground)
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
