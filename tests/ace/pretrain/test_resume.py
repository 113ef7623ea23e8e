"""A run that ends at any moment and goes on later ends with the weights of one that never stopped."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from ace.engine.stop import EXIT_CODE
from tests.ace.pretrain.conftest import BATCH
from tests.ace.pretrain.runs import (
    assert_equal_to_the_bit,
    assert_group_ends,
    finish,
    kill_all,
    logged_rows,
    processes_of_group,
    saved_steps,
    signal_when,
    start_run,
    weights,
)

NUM_STEPS = 18
SLOW_DISK = """
import time, torch
save = torch.save
torch.save = lambda *arguments: (time.sleep(1), save(*arguments))
"""


@pytest.fixture(scope="module")
def finished(noise_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Uninterrupted runs of one and of two processes."""
    outs = {}
    for num_ranks in (1, 2):
        outs[num_ranks] = tmp_path_factory.mktemp(f"finished-{num_ranks}")
        finish(start_run(noise_shards, outs[num_ranks], num_ranks=num_ranks, checkpoint_every_s=3600))
    return outs


@pytest.mark.parametrize(
    ("num_ranks", "params"),
    [
        pytest.param(1, {"checkpoint_every_s": 0}, marks=pytest.mark.slow),
        (1, {"checkpoint_every_s": 0.05}),
        pytest.param(1, {"checkpoint_every_s": 0, "num_workers": 1}, marks=pytest.mark.slow),
        pytest.param(2, {"checkpoint_every_s": 0}, marks=pytest.mark.slow),
        pytest.param(2, {"checkpoint_every_s": 0.05}, marks=pytest.mark.slow),
    ],
    ids=["every step", "now and then", "loader process", "two processes", "two processes, now and then"],
)
def test_a_run_killed_at_random_steps_ends_with_the_same_weights(
    finished: dict[int, Path], noise_shards: Path, tmp_path: Path, num_ranks: int, params: dict[str, float]
) -> None:
    steps = sorted(random.Random(f"{num_ranks}{params}").sample(range(1, NUM_STEPS - 2), 2))
    for step in steps:
        processes = start_run(noise_shards, tmp_path, num_ranks=num_ranks, **params)
        try:
            signal_when(
                processes,
                lambda step=step: len(logged_rows(tmp_path)) >= step and bool(saved_steps(tmp_path)),
                signal.SIGKILL,
            )
        finally:
            kill_all(processes)
        assert processes[0].returncode == -signal.SIGKILL
    errors = finish(start_run(noise_shards, tmp_path, num_ranks=num_ranks, **params))
    assert "resuming after step" in errors[0]
    assert_equal_to_the_bit(tmp_path / "model", finished[num_ranks] / "model")
    rows = [json.loads(line) for line in (tmp_path / "model/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(NUM_STEPS))
    before = [json.loads(line) for line in (finished[num_ranks] / "model/metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "loss_removal"):
        assert [row[name] for row in rows] == [row[name] for row in before]
    assert any(row["loss_removal"] > 0 for row in rows), "the removal term is on, and crops have something erased"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "num_ranks", "num_workers"),
    [
        (signal.SIGTERM, 1, 1),
        (signal.SIGTERM, 2, 0),
        (signal.SIGUSR1, 1, 1),
        (signal.SIGINT, 2, 1),
    ],
)
def test_a_signal_to_one_process_saves_and_ends_all_with_the_code_that_schedulers_requeue_on(
    finished: dict[int, Path],
    noise_shards: Path,
    tmp_path: Path,
    number: signal.Signals,
    num_ranks: int,
    num_workers: int,
) -> None:
    """With its loader's workers in its process group, which get the signal too."""
    processes = start_run(noise_shards, tmp_path, num_ranks=num_ranks, checkpoint_every_s=3600, num_workers=num_workers)
    try:
        signal_when(processes, lambda: len(logged_rows(tmp_path)) >= 3, number)
        errors = finish(processes, EXIT_CODE)
    finally:
        kill_all(processes)
    (step,) = saved_steps(tmp_path)
    assert 3 <= step < NUM_STEPS
    assert f"{number.name}: saved after step {step} of {NUM_STEPS}" in errors[0]
    assert not (tmp_path / "model").exists()
    assert_group_ends(processes[0].pid)
    finish(start_run(noise_shards, tmp_path, num_ranks=num_ranks, checkpoint_every_s=3600))
    assert_equal_to_the_bit(tmp_path / "model", finished[num_ranks] / "model")


def test_a_time_limit_that_is_over_ends_all_processes_with_that_code(noise_shards: Path, tmp_path: Path) -> None:
    """In the loop it is a signal's like: what `StopRequest.reason` says."""
    for error in finish(start_run(noise_shards, tmp_path, num_ranks=2, time_limit_s=0.01), EXIT_CODE):
        assert "time limit: stopped at step 0 of 18, before this process" in error
    assert saved_steps(tmp_path) == []
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_no_process_ends_before_the_first_has_saved_since_launchers_then_kill_the_others(
    noise_shards: Path, tmp_path: Path
) -> None:
    values = {"num_ranks": 2, "checkpoint_every_s": 3600, "prelude": SLOW_DISK}
    processes = start_run(noise_shards, tmp_path, **values)
    try:
        signal_when(processes, lambda: len(logged_rows(tmp_path)) >= 3, signal.SIGTERM)
        processes[1].wait(timeout=120)
        assert saved_steps(tmp_path)
        finish(processes, EXIT_CODE)
    finally:
        kill_all(processes)


@pytest.mark.slow
def test_a_signal_while_it_starts_and_signals_while_it_ends_change_nothing_of_the_exit_code(
    noise_shards: Path, tmp_path: Path
) -> None:
    (process,) = start_run(noise_shards, tmp_path, in_new_interpreter=True)
    assert process.stderr is not None
    process.stderr.readline()
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.005)
    (error,) = finish([process], EXIT_CODE)
    assert "at step 0 of" in error
    assert saved_steps(tmp_path) == []


def test_processes_with_other_shards_than_the_first_end_all_with_the_reason(
    noise_shards: Path, labelled_shards: Path, tmp_path: Path
) -> None:
    """Nobody waits for a process that gave up."""
    first, last = finish(start_run(noise_shards, tmp_path, num_ranks=2, last_shards=labelled_shards), 2)
    assert "error: process 1 of 2: this process has other inputs than the first" in first
    assert "error: this process has other inputs" in last
    assert f"indexes.{BATCH}: found" in last


@pytest.mark.slow
def test_the_others_end_soon_after_one_process_is_killed(noise_shards: Path, tmp_path: Path) -> None:
    processes = start_run(noise_shards, tmp_path, num_ranks=2)
    signal_when(processes, lambda: len(logged_rows(tmp_path)) >= 2, signal.SIGKILL)
    try:
        assert processes[1].wait(timeout=60) != 0
    finally:
        kill_all(processes)


@pytest.mark.slow
def test_loader_processes_end_with_a_trainer_that_is_killed_while_they_start(
    noise_shards: Path, tmp_path: Path
) -> None:
    (process,) = start_run(noise_shards, tmp_path, num_workers=2, in_new_interpreter=True)
    # The trainer, Python's resource tracker and both.
    signal_when([process], lambda: len(processes_of_group(process.pid)) == 4, signal.SIGCONT)
    process.kill()
    process.communicate(timeout=60)
    assert_group_ends(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_shard_ends_the_run_and_its_loader_with_one_message(
    num_workers: int, noise_shards: Path, tmp_path: Path
) -> None:
    shards = Path(shutil.copytree(noise_shards, tmp_path / "shards"))
    for tar in (shards / BATCH).glob("train-*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    processes = start_run(shards, tmp_path, num_workers=num_workers)
    try:
        (said,) = finish(processes, 2)
    finally:
        kill_all(processes)
    assert_group_ends(processes[0].pid)
    assert "Traceback" not in said
    (message,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "found sample . in the place of" in message


BROKEN_STEP = """
from ace.pretrain.step import PretrainStep
def fail(*_, **__):
    raise RuntimeError("out of memory")
PretrainStep.__call__ = fail
"""


@pytest.mark.slow
def test_an_error_of_the_trainer_itself_ends_its_loader_too(noise_shards: Path, tmp_path: Path) -> None:
    processes = start_run(noise_shards, tmp_path, num_workers=1, prelude=BROKEN_STEP)
    try:
        (said,) = finish(processes, 1)
    finally:
        kill_all(processes)
    assert_group_ends(processes[0].pid)
    assert "RuntimeError: out of memory" in said


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes_and_ends_close(
    finished: dict[int, Path], noise_shards: Path, tmp_path: Path
) -> None:
    config = json.loads((finished[1] / "model/config.json").read_text())
    still = {"backbone": {**config["params"]["pretrain"]["backbone"], "drop_path": 0.0}}
    # Stochastic depth is drawn for each process by itself.
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder in (alone, together):
        folder.mkdir()
    finish(start_run(noise_shards, alone, **still))
    processes = start_run(noise_shards, together, **still)
    signal_when(processes, lambda: len(logged_rows(together)) >= 5, signal.SIGTERM)
    finish(processes, EXIT_CODE)
    finish(start_run(noise_shards, together, num_ranks=2, **still))
    ours, theirs = weights(together / "model"), weights(alone / "model")
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-3


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    finished: dict[int, Path], noise_shards: Path, tmp_path: Path
) -> None:
    processes = start_run(noise_shards, tmp_path, checkpoint_every_s=0, keep_checkpoints=3)
    signal_when(processes, lambda: len(logged_rows(tmp_path)) >= 6, signal.SIGTERM)
    finish(processes, EXIT_CODE)
    newest = max((tmp_path / "scratch/pretrain").glob("*/checkpoints/step-*.pt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    (error,) = finish(start_run(noise_shards, tmp_path, keep_checkpoints=3))
    assert f"{newest}: damaged" in error
    assert f"resuming after step {int(newest.stem[5:]) - 1}" in error
    assert_equal_to_the_bit(tmp_path / "model", finished[1] / "model")


def test_a_named_run_directory_is_kept_and_refuses_other_inputs(
    finished: dict[int, Path], noise_shards: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    finish(start_run(noise_shards, tmp_path, run_dir=run_dir))
    assert_equal_to_the_bit(tmp_path / "model", finished[1] / "model")
    kept = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}.{end}" for step in (NUM_STEPS - 1, NUM_STEPS) for end in ("json", "pt")]
    shutil.rmtree(tmp_path / "model")
    (error,) = finish(start_run(noise_shards, tmp_path, run_dir=run_dir))
    assert f"resuming after step {NUM_STEPS}" in error
    assert_equal_to_the_bit(tmp_path / "model", finished[1] / "model")
    (process,) = start_run(noise_shards, tmp_path, run_dir=run_dir, base_lr=0.001, num_workers=1)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2
    assert f"pretrain.base_lr: found {0.05}, expected 0.001" in error
    assert "num_workers" not in error
