"""The stage: encoders with known answers have known figures, an interrupted run ends the same, leaks are refused."""

import csv
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from ace.downstream import finetune as stage
from ace.downstream import training
from ace.downstream.finetune import CODE, Bench
from ace.downstream.parts import divide
from ace.downstream.registry import TASKS
from ace.downstream.training import ask
from ace.embed.embedder import Embedder
from ace.embed.encoder import Encoder
from ace.embed.opening import EncoderParams
from ace.engine.loop import NonfiniteError
from ace.engine.run import RunOptions
from ace.engine.stop import StoppedError
from shards.core.errors import ConfigError, ContaminationError
from shards.core.params import MeasuredParams
from shards.reading.lineage import COLUMNS, TRAINING_DATASETS, TRAINING_IMAGES
from shards.reading.reader import ShardIndex
from tests.ace.downstream.labelled import Asked, encoder, run_stage, sees, task
from tests.support.checkout import ROOT
from tests.support.forked import Forked

METHODS = ("full", "linear", "knn")
KILLED = """
import sys
from pathlib import Path
from tests.ace.downstream.labelled import run_stage, task
folder = Path(sys.argv[1])
run_stage(folder, folder / "out", task(methods=["full"], training={"checkpoint_every_s": 0}))
"""


def result(out: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((out / "finetuned" / name / "metrics.json").read_text()))


def answers(out: Path, name: str = "trained/full/100pct-seed0") -> dict[str, np.ndarray]:
    with np.load(out / "finetuned" / name / "answers.npz") as arrays:
        return dict(arrays)


def rows(out: Path, name: str = "trained/full/100pct-seed0") -> list[dict[str, float]]:
    lines = (out / "finetuned" / name / "metrics.jsonl").read_text().splitlines()
    measured = ("images_per_s", "data_wait_share", "peak_memory_gb")
    return [{key: value for key, value in json.loads(line).items() if key not in measured} for line in lines]


@pytest.mark.usefixtures("planted")
def test_an_encoder_that_sees_the_label_scores_one_and_a_blind_one_chance(project: Path, tmp_path: Path) -> None:
    table = run_stage(project, tmp_path, task(), ("seeing", "blind"))
    for method in METHODS:
        assert table["seeing"][method]["100pct"]["auroc"]["value"] == 1
        assert table["seeing"][method]["100pct"]["auprc"]["value"] == 1
        blind = table["blind"][method]["100pct"]
        assert blind["auroc"]["value"] == blind["auroc"]["chance"] == 0.5
        assert blind["auprc"]["value"] == pytest.approx(blind["auprc"]["chance"], abs=1e-5)
        gain = table["gain_over_blind"][method]["100pct"]["auroc"]
        assert (gain["value"], gain["low"], gain["high"]) == (0.5, 0.5, 0.5)
    assert table["measured"]["num_reads"] == 1


@pytest.mark.usefixtures("planted")
def test_grades_and_classes_are_learned_too(project: Path, tmp_path: Path) -> None:
    own = task(labels=["g0", "g1"], answer="class", methods=["full", "linear", "knn"])
    table = run_stage(project, tmp_path, own, ("seeing", "blind"))
    for method in METHODS:
        assert table["seeing"][method]["100pct"]["accuracy"]["value"] == 1
        blind = table["blind"][method]["100pct"]["accuracy"]
        assert blind["value"] in (blind["chance"], pytest.approx(1 - blind["chance"]))


@pytest.mark.usefixtures("planted")
def test_swapped_encoders_swap_their_figures(project: Path, tmp_path: Path) -> None:
    table = run_stage(project, tmp_path, task(methods=["linear"]), ("blind", "seeing"))
    assert table["gain_over_seeing"]["linear"]["100pct"]["auroc"]["value"] == -0.5


@pytest.fixture(scope="module")
def whole(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a training that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(out / "scratch"))
        run_stage(project, out, task(methods=["full"]))
    return out


def assert_same(found: Path, expected: Path) -> None:
    ours, theirs = answers(found), answers(expected)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)
    assert rows(found) == rows(expected)


def test_the_loss_of_a_training_falls_and_its_best_step_is_kept(whole: Path) -> None:
    found, told = rows(whole), result(whole, "trained/full/100pct-seed0")
    assert found[-1]["loss"] < 0.7 * found[0]["loss"]
    scores = {row["step"] + 1: row["val_score"] for row in found if "val_score" in row}
    assert told["val_score"] == max(scores.values())
    assert told["step"] == max(scores, key=scores.__getitem__)


def test_the_measured_images_are_asked_about_once_at_the_end_by_the_network_of_the_best_look(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, scores = task(methods=["full"], training={"epochs": 3}), iter([0.1, 0.3, 0.2])
    asked: list[tuple[list[str], bool, dict[str, torch.Tensor]]] = []

    def watched(task: Any, network: Any, shown: Any, *, is_final: bool) -> Any:
        weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        asked.append((shown.part.keys, is_final, weights))
        return ask(task, network, shown, is_final=is_final)

    monkeypatch.setattr(stage, "ask", watched)
    monkeypatch.setattr(training, "ask", watched)
    monkeypatch.setattr(own, "validation_score", lambda truth, answers: next(scores))
    run_stage(project, tmp_path, own)
    parts = divide(ShardIndex.open(project / "shards/phantom-b000"), own.params)
    assert [keys for keys, *_ in asked] == [*[parts.val.keys] * 3, parts.test.keys]
    assert [is_final for _, is_final, _ in asked] == [False, False, False, True]
    *looks, measured = [weights for *_, weights in asked]
    is_same = [all(torch.equal(look[name], measured[name]) for name in measured) for look in looks]
    assert is_same == [False, True, False]


@pytest.mark.parametrize("after", [pytest.param(9, marks=pytest.mark.slow), 25])
def test_a_training_that_is_asked_to_stop_goes_on_to_the_same_answers(
    project: Path, tmp_path: Path, whole: Path, after: int
) -> None:
    with pytest.raises(StoppedError):
        run_stage(project, tmp_path, task(methods=["full"]), request=Asked(after))
    assert not (tmp_path / "finetuned/trained").exists()
    run_stage(project, tmp_path, task(methods=["full"]))
    assert_same(tmp_path, whole)


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_answers(project: Path, tmp_path: Path, whole: Path) -> None:
    for name in ("shards", "models"):
        (tmp_path / name).symlink_to(project / name)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = Forked(KILLED, [str(tmp_path)], env=environment, cwd=ROOT)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "scratch/finetune").glob("*/checkpoints/step-*.json"))) == 0 or not any(
        int(note.stem.removeprefix("step-")) >= 7
        for note in (tmp_path / "scratch/finetune").glob("*/checkpoints/step-*.json")
    ):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out/finetuned/trained").exists()
    run_stage(project, tmp_path / "out", task(methods=["full"]))
    assert_same(tmp_path / "out", whole)


def test_training_ends_when_validation_does_not_grow_and_goes_on_to_the_same_after_a_stop(
    project: Path, tmp_path: Path
) -> None:
    own = task(methods=["full"], training={"patience": 2, "base_lr": 1e-9})
    run_stage(project, tmp_path / "whole", own)
    found = rows(tmp_path / "whole")
    looks = [row["step"] + 1 for row in found if "val_score" in row]
    assert len(looks) == 3, "the first one is the best, and two more are allowed"
    assert found[-1]["step"] + 1 == looks[-1]
    with pytest.raises(StoppedError):
        run_stage(project, tmp_path / "stopped", own, request=Asked(8))
    run_stage(project, tmp_path / "stopped", own)
    assert_same(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.usefixtures("planted")
def test_results_that_hold_are_kept_and_another_reading_of_the_test_images_is_counted(
    project: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_stage(project, tmp_path, task(methods=["linear"]), ("seeing",))
    path = tmp_path / "finetuned/seeing/linear/100pct-seed0/metrics.json"
    before = path.stat().st_mtime_ns
    table = run_stage(
        project, tmp_path, task(methods=["linear", "knn"], seeds=[0, 1], num_examples=2), ("seeing", "blind")
    )
    assert path.stat().st_mtime_ns == before, "another encoder, method or seed repeats nothing"
    assert table["measured"]["num_reads"] == 1
    assert table["measured"]["num_seeds"] == 2
    least, most = table["measured"]["num_training_images"]["100pct"]
    assert least == most == result(tmp_path, "blind/knn/100pct-seed1")["num_training_images"]
    assert table["measured"]["accept_shared_images"] is False
    assert "were measured" not in capfd.readouterr().err
    choosing = task(methods=["linear"], split="val", val_share=0.2, blank="zeros")
    table = run_stage(project, tmp_path, choosing, ("seeing",))
    assert table["measured"]["num_reads"] == 1, "validation images are for that"
    table = run_stage(project, tmp_path, task(methods=["linear"], blank="zeros"), ("seeing",))
    assert table["measured"]["num_reads"] == 2
    assert "measured 2 times" in capfd.readouterr().err


@pytest.mark.usefixtures("planted")
def test_another_bootstrap_tells_the_kept_answers_anew_and_reads_no_image(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"methods": ["linear"], "labels": ["g0"], "shots": [2], "fractions": []}
    name = "blind/linear/2shot-seed0"
    run_stage(project, tmp_path, task(**own), ("blind",))
    before, kept = result(tmp_path, name), (tmp_path / f"finetuned/{name}/answers.npz").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(stage, "_carried_out", None)
        bootstrap = {"num_resamples": 500, "level": 0.6}
        table = run_stage(project, tmp_path, task(**own, bootstrap=bootstrap), ("blind",))
    after = result(tmp_path, name)
    assert (tmp_path / f"finetuned/{name}/answers.npz").stat().st_mtime_ns == kept
    assert after["bootstrap"] == bootstrap
    assert after["scores"] == table["blind"]["linear"]["2shot"]
    assert after["scores"]["auprc"] != before["scores"]["auprc"]
    unchanged = before.keys() - {"bootstrap", "scores"}
    assert {key: after[key] for key in unchanged} == {key: before[key] for key in unchanged}


def test_a_loss_that_is_not_finite_names_a_key_that_the_tasks_file_has(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = task(methods=["full"])
    monkeypatch.setattr(own, "loss", lambda outputs, targets, known: outputs.sum() * torch.nan)
    with pytest.raises(NonfiniteError, match=r"To leave such steps out, set training\.on_nonfinite to skip"):
        run_stage(project, tmp_path, own)
    assert "on_nonfinite" in type(own.params.training).model_fields


@pytest.mark.usefixtures("planted")
def test_a_run_for_each_encoder_method_amount_and_seed_has_a_result(project: Path, tmp_path: Path) -> None:
    own = task(methods=["linear", "knn"], fractions=[1.0, 0.5], shots=[3], seeds=[0, 1])
    table = run_stage(project, tmp_path, own, ("seeing", "blind"))
    names = {path.parent.relative_to(tmp_path / "finetuned").as_posix() for path in tmp_path.rglob("metrics.json")}
    amounts = ("100pct", "50pct", "3shot")
    expected = {
        f"{encoder}/{method}/{amount}-seed{seed}"
        for encoder in ("seeing", "blind")
        for method in ("linear", "knn")
        for amount in amounts
        for seed in (0, 1)
    }
    assert names == expected
    assert list(table["seeing"]["knn"]) == list(amounts)
    sizes = [result(tmp_path, f"seeing/knn/{amount}-seed0")["num_training_images"] for amount in amounts]
    assert sizes[0] > sizes[1] > sizes[2] == 6


@pytest.mark.usefixtures("planted")
def test_a_frozen_encoder_is_read_off_with_the_images_drawn_alone(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = task(methods=["knn"], fractions=[0.5], shots=[3], seeds=[0, 1])
    given: list[tuple[int, int]] = []
    answer = own.answer_frozen

    def watched(method: str, features: Any, truths: Any) -> Any:
        given.append((len(features["train"]), len(truths["train"]["labels"])))
        return answer(method, features, truths)

    monkeypatch.setattr(own, "answer_frozen", watched)
    run_stage(project, tmp_path, own, ("seeing",))
    names = [f"{amount}-seed{seed}" for amount in ("50pct", "3shot") for seed in (0, 1)]
    drawn = [result(tmp_path, f"seeing/knn/{name}")["num_training_images"] for name in names]
    assert given == [(number, number) for number in drawn]


def test_a_frozen_encoder_is_run_once_and_an_untrained_one_once_for_each_seed(
    project: Path, index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[str, int]] = []

    def open_encoder(params: EncoderParams, seed: int, *arguments: object) -> Encoder:
        opened.append((params.network, seed))
        return encoder(sees)

    monkeypatch.setattr(stage, "open_encoder", open_encoder)
    own = task(methods=["knn"])
    for network in ("untrained", "teacher"):
        params = EncoderParams(model=str(project / "models/seeing"), network=network)
        bench = Bench(
            task=own,
            parts=divide(index, own.params),
            truths={},
            encoder=params,
            measured=None,
            options=RunOptions(device="cpu"),
        )
        for seed in (3, 5, 3):
            bench.features(seed)
    assert opened == [("untrained", 3), ("untrained", 5), ("teacher", 0)]


@pytest.mark.usefixtures("planted")
def test_a_result_is_of_the_images_measured_and_of_the_numbers_that_normalise_them(
    project: Path, index: ShardIndex, tmp_path: Path
) -> None:
    brighter = MeasuredParams(mean=(0.6,), std=(0.2,))
    seen = []
    for split, measured in (("val", None), ("test", None), ("test", brighter), ("test", brighter)):
        own = task(methods=["knn"], split=split)
        run_stage(project, tmp_path, own, ("seeing",), measured=measured)
        keys = answers(tmp_path, "seeing/knn/100pct-seed0")["keys"].tolist()
        assert keys == divide(index, own.params).test.keys
        seen.append(result(tmp_path, "seeing/knn/100pct-seed0")["num_reads"])
    assert seen == [{"test": number, "val": 1} for number in (0, 1, 2, 2)]


@pytest.mark.usefixtures("planted")
def test_the_page_needs_no_network_and_shows_pictures_beside_truth_and_answer(project: Path, tmp_path: Path) -> None:
    run_stage(project, tmp_path, task(methods=["linear"], num_examples=2), ("seeing", "blind"))
    text = (tmp_path / "finetuned/page.html").read_text(encoding="utf-8")
    assert "http" not in text
    assert text.count("<img") == 12
    for word in ("best, ", "median, ", "worst, ", "bright", "yes", "1.00"):
        assert word in text


def write_lineage(model: Path, index: ShardIndex, patients: list[str]) -> None:
    """Say that a model was trained on some patients of the set."""
    (model / TRAINING_DATASETS).write_text(json.dumps({index.name: index.dataset.to_json()}))
    with (model / TRAINING_IMAGES).open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *((index.name, f"key-{patient}", patient) for patient in patients)])


def patients_of(index: ShardIndex, split: Any) -> list[str]:
    return sorted({patient.decode() for patient in index.rows["patient"][index.select(split)].tolist()})


@pytest.fixture
def lineage(project: Path, index: ShardIndex) -> Any:
    """Say whom the model `seeing` was trained on; taken back afterwards."""
    model = project / "models/seeing"
    yield lambda split: write_lineage(model, index, patients_of(index, split))
    for name in (TRAINING_DATASETS, TRAINING_IMAGES):
        (model / name).unlink(missing_ok=True)


@pytest.mark.usefixtures("planted")
def test_a_model_that_saw_the_test_patients_is_refused_and_one_that_saw_those_of_train_is_not(
    project: Path, tmp_path: Path, lineage: Any
) -> None:
    lineage("train")
    run_stage(project, tmp_path, task(methods=["linear"]), ("seeing",))
    lineage("test")
    with pytest.raises(
        ContaminationError, match=r"task bright: .* test patients .*accept_shared_images of the task's file"
    ):
        run_stage(project, tmp_path, task(methods=["linear"]), ("seeing",))
    run_stage(project, tmp_path, task(methods=["linear"], accept_shared_images=True), ("seeing",))


@pytest.mark.usefixtures("planted")
def test_patients_whose_pictures_a_model_saw_in_another_set_are_left_out_of_test(
    project: Path, index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seen, asked = patients_of(index, "test")[0], []

    def copies(model: Path, found: ShardIndex, keys: set[str], locate: object) -> list[Any]:
        asked.append((model.name, len(keys)))
        return [SimpleNamespace(first=SimpleNamespace(patient=seen))] if model.name == "blind" else []

    monkeypatch.setattr(stage, "find_trained_copies", copies)
    table = run_stage(project, tmp_path, task(methods=["linear"]), ("seeing", "blind"))
    assert table["measured"]["num_patients"] == len(patients_of(index, "test")) - 1
    assert sorted(asked) == [("blind", len(index.select("test"))), ("seeing", len(index.select("test")))]
    assert f"1 test patients of {index.name} have pictures" in capfd.readouterr().err


def test_what_decides_a_result_is_among_what_the_stage_depends_on() -> None:
    deps = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]["finetune"]["do"]["deps"]
    own = {path for kind in TASKS for path in kind.code}
    for path in {*CODE, *own}:
        assert (ROOT / path).exists()
        assert path.startswith("ace/downstream/") or path in deps
    named = {path.name for path in (ROOT / "ace/downstream").glob("*.py")} - {Path(p).name for p in {*CODE, *own}}
    assert named <= {"__init__.py", "examples.py", "page.py", "registry.py", "table.py"}, (
        "these tell of results, and decide none"
    )


@pytest.mark.usefixtures("planted")
def test_another_version_of_a_library_that_only_this_kind_of_task_uses_makes_a_result_anew(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage(project, tmp_path, task(methods=["linear"]), ("seeing",))
    before = result(tmp_path, "seeing/linear/100pct-seed0")
    monkeypatch.setattr(stage, "version", lambda name: f"another {name}")
    run_stage(project, tmp_path, task(methods=["linear"]), ("seeing",))
    after = result(tmp_path, "seeing/linear/100pct-seed0")
    assert after["fingerprint"] != before["fingerprint"]
    assert after["num_reads"]["test"] == 2


def test_a_library_that_is_not_there_is_named_before_any_work(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = task(methods=["linear"])
    monkeypatch.setattr(type(own), "libraries", ("no-such-library",))
    with pytest.raises(ConfigError, match=r"needs no-such-library, which is not installed: pip install 'ace-pretr"):
        run_stage(project, tmp_path, own, ("trained",))


def test_measured_images_are_computed_with_the_settings_of_the_training(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An accelerator rounds to TF32 unless it is told not to."""
    told: list[str] = []
    asked: list[list[str]] = []

    @contextmanager
    def settings(precision: str, device: object) -> Iterator[None]:
        told.append(precision)
        yield
        told.pop()

    def watched(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            asked.append(list(told))
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(stage, "accelerator_settings", settings)
    monkeypatch.setattr(stage, "ask", watched(ask))
    monkeypatch.setattr(Embedder, "pooled", watched(Embedder.pooled))
    run_stage(project, tmp_path, task(methods=["full", "knn"], training={"epochs": 2}))
    assert asked == [["fp32"]] * 4, "the network that was trained, and E(x) of three parts"
