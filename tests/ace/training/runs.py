"""Real training processes, one or several that train together on loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.ace.training.conftest import ROOT

RUN = """
import json, sys
from pathlib import Path
from ace.training.pretrain import RunOptions, pretrain
from ace.training.stop import EXIT_CODE, StoppedError
from tests.ace.training.conftest import tiny_batches, tiny_grid, tiny_params
shards, out, run, options = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
try:
    pretrain(tiny_params(**options), tiny_grid(), tiny_batches(), shards_root=shards, out=out / "model",
             metrics_dir=out / "metrics", options=RunOptions(run_dir=Path(run) if run else None))
except StoppedError as stop:
    print(stop, file=sys.stderr)
    sys.exit(EXIT_CODE)
"""
Process = "subprocess.Popen[str]"


def start_run(
    shards: Path, out: Path, *, num_ranks: int = 1, run_dir: Path | None = None, prelude: str = "", **params: Any
) -> "list[subprocess.Popen[str]]":
    """Start the processes of one training below `out`; `params` are changes of the tiny configuration.

    `prelude` is Python that each runs first.
    """
    environment = {**os.environ, "ACE_SCRATCH": str(out / "scratch"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # Equal to the last bit is promised on the CPU.
    environment["CUDA_VISIBLE_DEVICES"] = ""
    if num_ranks > 1:
        environment |= {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    command = [sys.executable, "-c", prelude + RUN, str(shards), str(out), str(run_dir or ""), json.dumps(params)]
    processes = []
    for rank in range(num_ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_ranks > 1 else {}
        processes.append(subprocess.Popen(command, env=environment | own, cwd=out, stderr=subprocess.PIPE, text=True))
    return processes


def finish(processes: "Sequence[subprocess.Popen[str]]", expected: int = 0) -> list[str]:
    """Wait for all; each one's standard error. They must end with `expected`."""
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [expected] * len(processes), "\n".join(errors)
    return errors


def signal_when(
    processes: "Sequence[subprocess.Popen[str]]", is_time: Callable[[], bool], number: signal.Signals
) -> None:
    """Send a signal to the first process as soon as `is_time`; it must still be running then."""
    deadline = time.monotonic() + 120
    while not is_time():
        assert time.monotonic() < deadline, "it did not come so far"
        assert processes[0].poll() is None, processes[0].communicate()[1]
        time.sleep(0.005)
    processes[0].send_signal(number)


def kill_all(processes: "Sequence[subprocess.Popen[str]]") -> None:
    """SIGKILL to the processes that are left, and wait."""
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate(timeout=60)


def logged_rows(out: Path) -> list[dict[str, Any]]:
    """Rows of the unfinished run below `out` so far."""
    logs = list((out / "scratch/pretrain").glob("*/metrics.jsonl"))
    lines = logs[0].read_text().splitlines(keepends=True) if logs else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def saved_steps(out: Path) -> list[int]:
    """Steps of the unfinished run's checkpoints."""
    notes = (out / "scratch/pretrain").glob("*/checkpoints/step-*.json")
    return sorted(int(note.stem.removeprefix("step-")) for note in notes)


def weights(model: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a finished model."""
    files = ("teacher_backbone", "student_backbone", "heads")
    return {f"{name}/{key}": value for name in files for key, value in load_file(model / f"{name}.safetensors").items()}


def assert_equal_to_the_bit(found: Path, expected: Path) -> None:
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
