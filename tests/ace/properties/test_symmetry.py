"""A mirrored landmark is found at its counterpart: names of counterparts, and encoders with known answers."""

from pathlib import Path

import numpy as np
import pytest

from ace.drawing.words import Words
from ace.embed.embedder import Embedder
from ace.properties.base import Evidence, NotMeasured, Setting
from ace.properties.symmetry import Symmetry, SymmetryMeasurement, SymmetryParams, counterpart, paired_names
from ace.protocol.cohort import Cohort, Subject
from ace.protocol.features import DenseParams, Features, write_features
from ace.protocol.intervals import estimate
from tests.ace.properties.constructed import SPEC, collapsed, embedder, map_cohort, place

PARAMS = SymmetryParams(num_patients=4, max_landmarks=4)
SIZE_PX = SPEC.canvas_px
MIDDLE = SIZE_PX / 2


def subject(number: int, shift_px: float) -> Subject:
    """A body whose midline lies off the middle of the canvas: red is the height, green the distance to the midline."""
    rows, cols = np.mgrid[:SIZE_PX, :SIZE_PX] + 0.5
    midline = MIDDLE + shift_px
    painted = np.stack([rows * 2, np.abs(cols - midline) * 4, np.zeros_like(rows)], axis=-1)
    landmarks = {"heart": (24.0, midline)}
    for name, (row, apart) in {"apex": (12.0, 10.0), "dome_01": (36.0, 14.0)}.items():
        landmarks[f"{name}_left"], landmarks[f"{name}_right"] = (row, midline + apart), (row, midline - apart)
    return Subject(
        key=f"s{number}",
        canvas=painted.clip(0, 255).astype(np.uint8),
        landmarks=landmarks,
        foreground=np.ones((SPEC.n, SPEC.n), bool),
    )


def planned(subjects: tuple[Subject, ...]) -> SymmetryMeasurement | NotMeasured:
    dense = DenseParams(locations_per_cell=4, window_step_cells=1)
    cohort = Cohort(batch="constructed", split="test", spec=SPEC, subjects=subjects)
    return Symmetry().plan(
        Setting(cohort=cohort, index=None, dense=dense, seed=0, max_patients=9, num_examples=2), PARAMS
    )


def found_by(own: Embedder, measurement: SymmetryMeasurement, folder: Path) -> float:
    canvases = {item.key: item.canvas for item in measurement.subjects}
    views = {view: canvases[view.key] for view in measurement.dense_views()}
    features: Features = write_features(folder, own, measurement.setting.axis, views, {})
    (reading,) = measurement.read(measurement.ask(own, features)).values()
    return estimate(reading.measure, reading.num_patients)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rib_left_01_middle", "rib_right_01_middle"),
        ("left_upper", "right_upper"),
        ("dome_right", "dome_left"),
        ("cleft", "cleft"),
        ("carina", "carina"),
    ],
)
def test_a_counterpart_differs_in_the_side_alone(name: str, expected: str) -> None:
    assert counterpart(name) == expected
    assert counterpart(expected) == name


def test_landmarks_without_a_side_or_without_their_counterpart_take_no_part() -> None:
    whole = subject(0, 0)
    assert paired_names(whole) == ["apex_left", "apex_right", "dome_01_left", "dome_01_right"]
    some = {name: point for name, point in whole.landmarks.items() if name != "apex_right"}
    assert paired_names(Subject(key="s", canvas=whole.canvas, landmarks=some, foreground=whole.foreground)) == [
        "dome_01_left",
        "dome_01_right",
    ]
    told = planned(map_cohort(3).subjects)
    assert isinstance(told, NotMeasured)
    assert "differ in left and right alone" in told.reason


def test_mirrored_pixels_miss_where_the_midline_is_off_the_middle_and_hit_where_it_is_not(tmp_path: Path) -> None:
    for shift_px, expected in ((0.0, 1.0), (6.0, 0.0)):
        measurement = planned(tuple(subject(number, shift_px) for number in range(3)))
        assert isinstance(measurement, SymmetryMeasurement)
        (baseline,) = measurement.baselines()["symmetry"].values()
        assert estimate(baseline.measure, 3) == expected


def test_an_encoder_blind_to_the_side_finds_one_of_each_two_and_a_collapsed_one_next_to_nothing(tmp_path: Path) -> None:
    """Painted with the distance to the midline, both places of a pair look alike: the first as one reads is found."""
    measurement = planned(tuple(subject(number, 3.0) for number in range(3)))
    assert isinstance(measurement, SymmetryMeasurement)
    assert found_by(embedder(place), measurement, tmp_path / "place") == 0.5
    assert found_by(embedder(collapsed), measurement, tmp_path / "collapsed") <= 0.25


def test_within_one_cell_counts_as_found_and_chance_is_the_share_of_places_that_do() -> None:
    measurement = planned(tuple(subject(number, 0.0) for number in range(3)))
    assert isinstance(measurement, SymmetryMeasurement)
    targets = np.concatenate(
        [
            [subject.landmarks[counterpart(name)] for name in names]
            for subject, names in zip(measurement.subjects, measurement.names, strict=True)
        ]
    )
    for off_px, expected in ((0.0, 1.0), (SPEC.cell_px, 1.0), (SPEC.cell_px + 0.1, 0.0)):
        (reading,) = measurement.read({"found": targets + np.array([off_px, 0.0])}).values()
        assert estimate(reading.measure, 3) == expected
    places = measurement.setting.axis.points()
    near = [(np.linalg.norm(places - target, axis=1) <= SPEC.cell_px).mean() for target in targets]
    assert reading.chance == pytest.approx(np.mean(near))


def test_the_first_patients_are_shown_with_what_every_encoder_found(tmp_path: Path) -> None:
    measurement = planned(tuple(subject(number, 3.0) for number in range(3)))
    assert isinstance(measurement, SymmetryMeasurement)
    answer = {"found": np.arange(24.0).reshape(12, 2)}
    arrays = measurement.pictures({"one": answer, "other": answer}, {})
    assert sorted(arrays) == sorted(
        f"{name}_{number}" for name in ("canvas", "targets", "one_found", "other_found") for number in range(2)
    )
    np.testing.assert_array_equal(arrays["one_found_1"], answer["found"][4:8])
    expected = [measurement.subjects[1].landmarks[counterpart(name)] for name in measurement.names[1]]
    np.testing.assert_array_equal(arrays["targets_1"], expected)
    words = Words(one="patient")
    shown = Symmetry().shown(Evidence(encoders=["one", "other"], figures={}, params={}, arrays=arrays, words=words))
    assert len(shown["pictures"]) == 2
    assert shown["pictures"][0].count("<svg") == 2
    assert shown["pictures"][0].count("<circle") == 2 * 2 * 4
