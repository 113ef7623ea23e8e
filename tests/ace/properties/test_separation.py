"""Tokens of a landmark cluster across patients: silhouettes by hand, and encoders with known answers."""

from pathlib import Path

import numpy as np
import pytest

from ace.drawing.words import Words
from ace.embed.embedder import unit
from ace.properties.base import Evidence, NotMeasured, Setting
from ace.properties.separation import Separation, SeparationMeasurement, SeparationParams, silhouettes
from ace.protocol.features import DenseParams
from ace.protocol.intervals import estimate
from tests.ace.properties.constructed import collapsed, dense, embedder, map_cohort, place

PARAMS = SeparationParams(num_patients=6, num_landmarks=4)


def planned(num_patients: int = 6) -> SeparationMeasurement | NotMeasured:
    dense_params = DenseParams(locations_per_cell=4, window_step_cells=1)
    setting = Setting(
        cohort=map_cohort(num_patients),
        index=None,
        dense=dense_params,
        seed=0,
        max_patients=num_patients,
        num_examples=2,
    )
    return Separation().plan(setting, PARAMS)


def score(measurement: SeparationMeasurement, tokens: np.ndarray) -> float:
    (reading,) = measurement.read({"tokens": tokens}).values()
    assert reading.chance == 0
    return estimate(reading.measure, reading.num_patients)


def test_silhouettes_are_those_counted_by_hand() -> None:
    tokens = unit(np.random.default_rng(0).normal(size=(3, 4, 5)))
    found = silhouettes(tokens)
    for patient in range(3):
        for landmark in range(4):
            distances = 1 - tokens @ tokens[patient, landmark]
            own = np.delete(distances[:, landmark], patient).mean()
            other = min(distances[:, number].mean() for number in range(4) if number != landmark)
            assert found[patient, landmark] == pytest.approx((other - own) / max(own, other), abs=1e-6)


def test_an_oracle_scores_1_a_collapsed_encoder_0_and_one_that_tells_patients_apart_less() -> None:
    measurement = planned()
    assert isinstance(measurement, SeparationMeasurement)
    landmark_alone = np.tile(np.eye(4), (6, 1, 1))
    patient_alone = np.tile(np.eye(6)[:, None], (1, 4, 1))
    assert score(measurement, landmark_alone) == 1
    assert score(measurement, np.ones((6, 4, 3))) == 0
    assert score(measurement, patient_alone) < 0


def test_tokens_are_read_at_the_landmarks_of_every_patient(tmp_path: Path) -> None:
    measurement = planned()
    assert isinstance(measurement, SeparationMeasurement)
    features = {code: embedder(code) for code in (place, collapsed)}
    found = {}
    for code, own in features.items():
        stored = dense(own, measurement.subjects, measurement.setting.axis, tmp_path / code.__name__)
        found[code] = score(measurement, measurement.ask(own, stored)["tokens"])
    assert found[place] > 0.8
    assert found[collapsed] == 0


def test_patients_without_landmarks_in_common_are_told() -> None:
    found = planned(1)
    assert isinstance(found, NotMeasured)
    assert "fewer than two" in found.reason


def test_every_encoder_has_a_plane_with_a_dot_for_every_token() -> None:
    measurement = planned()
    assert isinstance(measurement, SeparationMeasurement)
    tokens = unit(np.random.default_rng(0).normal(size=(6, 4, 5)))
    arrays = measurement.pictures({"one": {"tokens": tokens}, "other": {"tokens": tokens}}, {})
    assert arrays["one_plane"].shape == (24, 2)
    np.testing.assert_array_equal(arrays["one_plane"], arrays["other_plane"])
    shown = Separation().shown(
        Evidence(encoders=["one", "other"], figures={}, params={}, arrays=arrays, words=Words(one="patient"))
    )
    (picture,) = shown["pictures"]
    assert picture.count("<use ") == 2 * 24
