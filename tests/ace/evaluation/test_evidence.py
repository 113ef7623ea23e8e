import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ace.evaluation.cohort import read_cohort
from ace.evaluation.evidence import evaluate
from ace.evaluation.params import Bound, EvaluateParams
from ace.evaluation.summary import summary_table
from shards.errors import ConfigError
from shards.read import ShardIndex, ShardReader
from tests.ace.evaluation.drawn_project import BATCH, EVALUATE, write_project

PARAMS = EvaluateParams.from_params(EVALUATE, "evaluate")


def run(project: Path, out: Path, params: EvaluateParams = PARAMS) -> dict[str, Any]:
    evaluate(params, project / "data/shards", project / "models/ace", out / "properties.json", out / "evidence")
    return dict(json.loads((out / "properties.json").read_text()))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("project")
        patch.setenv("ACE_SCRATCH", str(root / "scratch"))
        yield write_project(root)


@pytest.fixture(scope="module")
def result(project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("out")
    return run(project, out), out


def test_every_figure_has_its_n_chance_and_an_interval_around_it(result: tuple[dict[str, Any], Path]) -> None:
    figures, _ = result
    for encoder in ("trained", "untrained"):
        assert figures[encoder].keys() >= {"compositionality", "decompositionality", "correspondence_px_at_1024"}
        for figure in figures[encoder].values():
            assert figure["low"] <= figure["value"] <= figure["high"]
            assert figure["n"] >= 6
            assert "chance" in figure
    assert figures["trained"]["decompositionality"]["batch"] == 8
    assert figures["trained"]["decompositionality"]["chance"] == 0.125
    assert figures["trained"]["compositionality"]["chance"] == 0
    assert figures["trained"]["compositionality"] != figures["untrained"]["compositionality"]


def test_gain_is_positive_where_the_trained_encoder_is_better(result: tuple[dict[str, Any], Path]) -> None:
    figures, _ = result
    for name, gain in figures["gain"].items():
        sign = -1 if name == "correspondence_px_at_1024" else 1
        expected = sign * (figures["trained"][name]["value"] - figures["untrained"][name]["value"])
        assert gain["value"] == pytest.approx(expected, abs=2e-5)


def test_baselines_are_ordered_affine_oracle_same_pixel_random_guess(result: tuple[dict[str, Any], Path]) -> None:
    figures, _ = result
    baselines = figures["baselines"]["correspondence_px_at_1024"]
    chance = figures["trained"]["correspondence_px_at_1024"]["chance"]
    assert baselines["affine_oracle"]["value"] < baselines["same_pixel"]["value"] < chance


def test_the_same_params_give_the_same_bytes(
    project: Path, result: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    figures, out = result
    assert run(project, tmp_path) == figures
    for path in sorted((out / "evidence").glob("*.npz")):
        first, second = np.load(path), np.load(tmp_path / "evidence" / path.name)
        assert first.keys() == second.keys()
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])


def test_evidence_loads_without_pickle_and_marks_the_right_candidate(result: tuple[dict[str, Any], Path]) -> None:
    _, out = result
    names = sorted(path.name for path in (out / "evidence").iterdir())
    assert names == ["composition.npz", "correspondence.npz", "decomposition.npz", "independence.json", "protocol.json"]
    arrays = np.load(out / "evidence" / "decomposition.npz", allow_pickle=False)
    for encoder in ("trained", "untrained"):
        for example, (is_right, rank) in enumerate(
            zip(arrays[f"{encoder}_is_right"], arrays[f"{encoder}_rank"], strict=True)
        ):
            assert is_right.sum() == (rank <= len(is_right))
            if is_right.any():
                assert is_right[rank - 1]
                np.testing.assert_array_equal(arrays[f"{encoder}_best"][example][rank - 1], arrays["removed"][example])
    assert np.load(out / "evidence" / "correspondence.npz")["trained_colours"].shape == (3, 15, 15, 3)


def test_a_cohort_has_one_image_of_each_test_patient(project: Path) -> None:
    root = project / "data/shards" / BATCH
    index, reader = ShardIndex.open(root), ShardReader(ShardIndex.open(root))
    test_rows = index.select("test")
    patient_of = {reader.read(int(row)).key: index.rows["patient"][row].decode() for row in test_rows}
    cohort = read_cohort(ShardIndex.open(root), max_patients=1000, seed=0)
    found = [patient_of[subject.key] for subject in cohort.subjects]
    assert len(set(found)) == len(found) == len(set(patient_of.values()))
    assert len(patient_of) > len(found)


def test_a_smaller_cohort_is_the_beginning_of_a_larger_one(project: Path) -> None:
    root = project / "data/shards" / BATCH
    index = ShardIndex.open(root)
    few, many = read_cohort(index, 5, seed=0).subjects, read_cohort(index, 9, seed=0).subjects
    assert [subject.key for subject in few] == [subject.key for subject in many[:5]]
    assert [subject.key for subject in few] != [subject.key for subject in read_cohort(index, 5, seed=1).subjects]


def test_fewer_test_patients_than_the_batch_is_a_configuration_error(project: Path, tmp_path: Path) -> None:
    values = EVALUATE | {"max_patients": 64, "decomposition": EVALUATE["decomposition"] | {"batch": 60}}
    with pytest.raises(ConfigError, match=r"\d+ test patients, but a draw needs 60"):
        run(project, tmp_path, EvaluateParams.from_params(values, "evaluate"))
    assert not list(tmp_path.iterdir())


def test_a_model_of_another_grid_is_refused(project: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for path in (project / "models/ace").iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    config = json.loads((model / "config.json").read_text())
    config["params"]["grid"]["n"] = 10
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"\(10, 8, 4\).*has \(8, 8, 4\)"):
        evaluate(PARAMS, project / "data/shards", model, tmp_path / "m.json", tmp_path / "evidence")


def test_without_landmarks_correspondence_is_null_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACE_SCRATCH", str(tmp_path / "scratch"))
    figures = run(write_project(tmp_path / "project", has_landmarks=False), tmp_path)
    for encoder in ("trained", "untrained", "gain"):
        figure = figures[encoder]["correspondence_px_at_1024"]
        assert figure["value"] is None
        assert "landmarks" in figure["reason"]
    assert "landmarks" in summary_table(tmp_path / "properties.json")
    assert "trained_colours" in np.load(tmp_path / "evidence" / "correspondence.npz")


def test_the_summary_names_each_property_with_its_chance(result: tuple[dict[str, Any], Path]) -> None:
    figures, out = result
    lines = summary_table(out / "properties.json").splitlines()
    for name in ("compositionality", "decompositionality", "correspondence"):
        assert any(line.startswith(name) for line in lines)
    line = next(line for line in lines if line.startswith("decompositionality"))
    assert f"{figures['trained']['decompositionality']['value']:.1%}" in line
    assert "12.5%" in line


def test_a_bound_accepts_its_ends_and_needs_one_side() -> None:
    assert Bound(min=0.0, max=1.0).accepts(1.0)
    assert not Bound(min=0.0).accepts(-1e-9)
    assert Bound(max=3.0).accepts(-100.0)
    with pytest.raises(ConfigError, match="min, a max, or both"):
        Bound.from_params({}, "checks")
    with pytest.raises(ConfigError, match=r"min 2\.0 is above max 1\.0"):
        Bound.from_params({"min": 2.0, "max": 1.0}, "checks")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_patients": 7}, "max_patients 7 is below decomposition.batch 8"),
        ({"composition": EVALUATE["composition"] | {"min_side": 0.9}}, "min_side 0.9 is above max_side 0.7"),
    ],
)
def test_contradicting_params_name_both_numbers(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluateParams.from_params(EVALUATE | change, "evaluate")
