"""Clusters of tokens against masks: matches counted by hand, and clusterings with known answers."""

from pathlib import Path

import numpy as np
import pytest

from ace.drawing.words import Words
from ace.properties.base import Evidence, Setting
from ace.properties.cosegmentation import (
    DICE,
    IOU,
    Cosegmentation,
    CosegmentationMeasurement,
    CosegmentationParams,
    at_locations,
    cluster_tokens,
    match,
    shuffled,
)
from ace.protocol.dense import location_axis
from ace.protocol.features import DenseParams
from ace.protocol.intervals import estimate
from shards.reading.reader import ShardIndex
from tests.ace.properties.constructed import SPEC, collapsed, dense, embedder, map_cohort, place

PARAMS = CosegmentationParams(num_patients=4, num_clusters=4)
NAMES = ("lower", "upper_left")


def setting(num_patients: int = 4, index: ShardIndex | None = None) -> Setting:
    dense_params = DenseParams(locations_per_cell=2, window_step_cells=1)
    return Setting(
        cohort=map_cohort(num_patients), index=index, dense=dense_params, seed=0, max_patients=9, num_examples=2
    )


def drawn() -> CosegmentationMeasurement:
    """Two structures: the lower half of every canvas, and its upper left quarter but for a patient's own strip."""
    own = setting()
    num = len(own.axis.positions_px)
    masks = np.zeros((4, 2, num, num), bool)
    masks[:, 0, num // 2 :] = True
    for patient in range(4):
        masks[patient, 1, : num // 2 - patient, : num // 2] = True
    return CosegmentationMeasurement(
        setting=own, params=PARAMS, subjects=own.cohort.subjects, structures=NAMES, masks=masks
    )


def figures(measurement: CosegmentationMeasurement, clusters: np.ndarray) -> dict[str, tuple[float, float]]:
    answers = {"clusters": clusters}
    readings = {**measurement.read(answers), **measurement.details(answers)}
    return {name: (estimate(own.measure, own.num_patients), own.chance) for name, own in readings.items()}


def test_clusters_that_are_the_structures_score_1_whatever_their_numbers() -> None:
    measurement = drawn()
    clusters = np.where(measurement.masks[:, 0], 3, np.where(measurement.masks[:, 1], 0, 2))
    found = figures(measurement, clusters)
    assert [found[name][0] for name in (IOU, DICE, *NAMES)] == [1, 1, 1, 1]
    assert found[IOU][1] < 0.5
    assert found[DICE][1] < 0.6


def test_one_cluster_for_all_scores_exactly_chance() -> None:
    measurement = drawn()
    found = figures(measurement, np.zeros((4, *measurement.masks.shape[2:]), int))
    for value, chance in found.values():
        assert value == pytest.approx(chance)
    assert found["lower"][0] == pytest.approx(measurement.masks[:, 0].mean())


def test_matches_are_those_of_a_loop_over_clusters() -> None:
    rng = np.random.default_rng(0)
    masks, clusters = rng.random((3, 2, 5, 5)) < 0.4, rng.integers(0, 4, (3, 5, 5))
    found = match(clusters, masks, 4)
    for structure in range(2):
        inside = masks[:, structure]
        ious = [(inside & (clusters == c)).sum() / (inside | (clusters == c)).sum() for c in range(4)]
        assert found.cluster[structure] == np.argmax(ious)
        assert found.iou[structure] == pytest.approx(max(ious))
        best = clusters == np.argmax(ious)
        assert found.dice[structure] == pytest.approx(2 * (inside & best).sum() / (inside.sum() + best.sum()))
        np.testing.assert_array_equal(found.shared[:, structure], (inside & best).sum(axis=(1, 2)))


def test_a_cluster_that_is_empty_over_all_patients_is_matched_with_nothing() -> None:
    masks = np.ones((2, 1, 2, 2), bool)
    found = match(np.full((2, 2, 2), 1), masks, 3)
    assert found.cluster.tolist() == [1]
    assert found.iou.tolist() == [1]


def test_shuffling_keeps_the_sizes_of_clusters_in_each_patient() -> None:
    clusters = np.random.default_rng(0).integers(0, 4, (3, 5, 5))
    moved = shuffled(clusters, np.random.default_rng(1))
    assert not np.array_equal(moved, clusters)
    np.testing.assert_array_equal(np.sort(moved.reshape(3, -1)), np.sort(clusters.reshape(3, -1)))


def test_tokens_of_an_atlas_cluster_by_place_and_a_collapsed_encoder_has_one_cluster(tmp_path: Path) -> None:
    measurement = drawn()
    found = {}
    for code in (place, collapsed):
        own = embedder(code)
        stored = dense(own, measurement.subjects, measurement.setting.axis, tmp_path / code.__name__)
        clusters = measurement.ask(own, stored)["clusters"]
        assert clusters.shape == (4, *measurement.masks.shape[2:])
        found[code] = figures(measurement, clusters)[IOU]
    assert found[place][0] > found[place][1] + 0.1
    assert found[collapsed][0] == pytest.approx(found[collapsed][1])


def test_well_separated_tokens_are_clustered_as_they_lie() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 3, 60)
    found = cluster_tokens(np.eye(3)[true] + rng.normal(0, 0.01, (60, 3)), 3, seed=0)
    assert len({(a, b) for a, b in zip(true.tolist(), found.tolist(), strict=True)}) == 3


def test_a_mask_is_read_at_the_centres_of_locations() -> None:
    axis = location_axis(SPEC, 2, 1)
    mask = np.zeros((SPEC.canvas_px, SPEC.canvas_px), bool)
    mask[12, 20] = True  # rows 4, 8, 12 …: the third location in rows, the fifth in columns
    found = at_locations(mask, axis)
    assert np.argwhere(found).tolist() == [[2, 4]]


def test_pictures_hold_the_structures_and_the_clusters_in_their_colours() -> None:
    measurement = drawn()
    clusters = np.where(measurement.masks[:, 0], 3, np.where(measurement.masks[:, 1], 0, 2))
    arrays = measurement.pictures({"one": {"clusters": clusters}}, {})
    np.testing.assert_array_equal(arrays["masks"][0] == 0, measurement.masks[0, 0])
    np.testing.assert_array_equal(arrays["masks"][0] == 1, measurement.masks[0, 1])
    np.testing.assert_array_equal(arrays["one_clusters"][0] == 0, measurement.masks[0, 0])
    assert (arrays["one_clusters"][0][arrays["masks"][0] == -1] >= len(NAMES)).all()
    shown = Cosegmentation().shown(
        Evidence(encoders=["one"], figures={}, params={}, arrays=arrays, words=Words(one="patient"))
    )
    legend, *rows = shown["pictures"]
    assert "upper left" in legend
    assert [row.count("<img ") for row in rows] == [3, 3]
