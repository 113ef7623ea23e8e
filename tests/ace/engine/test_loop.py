"""The engine trains what it knows nothing of, a tiny classifier: killed, stopped or divided, it comes to the same."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ace.engine.stop import EXIT_CODE
from tests.ace.pretrain.conftest import ROOT
from tests.ace.pretrain.runs import finish, free_port, signal_when
from tests.support.forked import Forked

SLOW = {"pause_s": 0.01}
NUM_STEPS = 40


def start(folder: Path, num_ranks: int = 1, **options: Any) -> list[Forked]:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if num_ranks > 1:
        environment |= {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    return [
        Forked(
            "from tests.ace.engine.supervised import run; run()",
            [str(folder), json.dumps(options)],
            env=environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_ranks > 1 else {}),
            cwd=ROOT,
        )
        for rank in range(num_ranks)
    ]


def rows(folder: Path) -> list[dict[str, float]]:
    """The log without what depends on the clock and the machine."""
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    measured = ("images_per_s", "data_wait_share", "peak_memory_gb")
    return [{name: value for name, value in line.items() if name not in measured} for line in lines]


def weights(folder: Path, rank: int = 0) -> dict[str, torch.Tensor]:
    return load_file(folder / f"model-rank{rank}.safetensors")


def saved_steps(folder: Path) -> list[int]:
    return sorted(int(note.stem.removeprefix("step-")) for note in (folder / "run/checkpoints").glob("step-*.json"))


def assert_same_to_the_bit(found: Path, expected: Path) -> None:
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert rows(found) == rows(expected)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    (said,) = finish(start(folder))
    assert said.count("warning: step 3 was shown") == 1
    return folder


def test_an_undisturbed_training_learns_and_keeps_its_best_checkpoint(whole: Path) -> None:
    found = rows(whole)
    assert [row["step"] for row in found] == list(range(NUM_STEPS))
    assert found[-1]["loss"] < 0.7 * found[0]["loss"]
    scores = {row["step"] + 1: row["accuracy"] for row in found if "accuracy" in row}
    assert sorted(scores) == [10, 20, 30, 40]
    assert scores[40] > 0.8
    assert max(scores, key=scores.__getitem__) in saved_steps(whole)


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_bits(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    for step in (4, 17):
        processes = start(folder, **SLOW)
        signal_when(processes, lambda step=step: max(saved_steps(folder), default=0) >= step, signal.SIGKILL)
        finish(processes, -signal.SIGKILL)
        assert not (folder / "model-rank0.safetensors").exists()
    (said,) = finish(start(folder))
    assert "resuming after step " in said
    assert "was shown" not in said, "what rows of an earlier process warned of has been said"
    assert_same_to_the_bit(folder, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_training_that_is_asked_to_stop_saves_after_its_step_and_goes_on(
    number: signal.Signals, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "stopped"
    processes = start(folder, checkpoint_every_s=3600, **SLOW)
    log = folder / "run/metrics.jsonl"
    signal_when(processes, lambda: log.exists() and log.read_text().count("\n") >= 5, number)
    (said,) = finish(processes, EXIT_CODE)
    (step,) = saved_steps(folder)
    assert 5 <= step < NUM_STEPS
    assert f"{number.name}: saved after step {step} of {NUM_STEPS}; the same command goes on" in said
    assert f"resuming after step {step}" in finish(start(folder, checkpoint_every_s=3600))[0]
    assert_same_to_the_bit(folder, whole)


def test_a_training_that_waits_for_a_batch_is_stopped_there_and_goes_on(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stalled"
    processes = start(folder, checkpoint_every_s=3600, stalled=6)
    log = folder / "run/metrics.jsonl"
    signal_when(processes, lambda: log.exists() and log.read_text().count("\n") >= 6, signal.SIGTERM)
    (said,) = finish(processes, EXIT_CODE)
    assert f"SIGTERM: saved after step 6 of {NUM_STEPS}, as no batch came for the next" in said
    finish(start(folder, checkpoint_every_s=3600))
    assert_same_to_the_bit(folder, whole)


def test_two_processes_make_the_training_of_one(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    finish(start(folder, 2))
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(folder)[name], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(weights(folder, 0)[name], weights(folder, 1)[name])
    for ours, theirs in zip(rows(folder), rows(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_two_killed_processes_go_on_to_the_same_bits(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    finish(start(undisturbed, 2))
    processes = start(killed, 2, **SLOW)
    signal_when(processes, lambda: max(saved_steps(killed), default=0) >= 6, signal.SIGKILL)
    for process in processes:
        process.kill()
        process.communicate(timeout=60)
    finish(start(killed, 2))
    assert_same_to_the_bit(killed, undisturbed)


def test_a_step_that_is_not_finite_ends_the_run_with_its_batch_or_is_left_out(whole: Path, tmp_path: Path) -> None:
    (said,) = finish(start(tmp_path / "stop", spoiled=7, on_nonfinite="stop"), 2)
    assert "error: step 7: loss nan" in said
    assert "set supervised.on_nonfinite to skip" in said
    (dump,) = (tmp_path / "stop/run/nonfinite").iterdir()
    assert json.loads((dump / "batch.json").read_text())["keys"][0] == "7-0"
    (said,) = finish(start(tmp_path / "skip", spoiled=7, on_nonfinite="skip"))
    assert "warning: step 7: loss nan" in said
    assert [row["step"] for row in rows(tmp_path / "skip")] == [row["step"] for row in rows(whole)]


def test_a_run_directory_of_other_parameters_is_refused(tmp_path: Path) -> None:
    finish(start(tmp_path, epochs=2))
    (said,) = finish(start(tmp_path, epochs=3), 2)
    assert "params.epochs: found 2, expected 3" in said


def test_the_engine_imports_nothing_of_students_teachers_and_data() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "ace/engine").glob("*.py"))
    assert "ace.pretrain" not in sources
    assert "ace.data" not in sources
    assert "ace.losses" not in sources
    assert "networks" not in {
        line.split(".")[2].split()[0] for line in sources.splitlines() if "from ace.models." in line
    }
