"""Real training processes, one or several that train together on loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.ace.pretrain.conftest import ROOT
from tests.support.forked import Forked

RUN = """
import json, sys
from pathlib import Path
from ace.engine.stop import EXIT_CODE, StoppedError, stop_requests
shards, out, run, options = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
try:
    with stop_requests(json.loads(sys.argv[5])) as request:
        print("started", file=sys.stderr, flush=True)
        from ace.engine.run import RunOptions
        from ace.pretrain.pretrain import pretrain
        from shards.core.errors import UserError
        from tests.ace.pretrain.conftest import tiny_mix, tiny_grid, tiny_params
        how = RunOptions(run_dir=Path(run) if run else None, device=sys.argv[6] or None)
        pretrain(tiny_params(**options), tiny_grid(), tiny_mix(), shards_root=shards, out=out / "model",
                 metrics_dir=out / "metrics", request=request, options=how)
except StoppedError as stop:
    print(stop, file=sys.stderr)
    sys.exit(EXIT_CODE)
except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
"""
"""As `python -m ace pretrain`, with the tiny configuration."""
Process = subprocess.Popen[str] | Forked


def start_run(
    shards: Path,
    out: Path,
    *,
    num_ranks: int = 1,
    run_dir: Path | None = None,
    last_shards: Path | None = None,
    prelude: str = "",
    time_limit_s: float | None = None,
    on_device: str | None = None,
    in_new_interpreter: bool = False,
    **params: Any,
) -> list[Process]:
    """Start the processes of one training below `out`, each in a group of its own, as a scheduler would.

    Args:
        shards: Folder of the shard sets.
        out: Gets the model, the metrics and the scratch folder.
        num_ranks: How many.
        run_dir: As `--run`.
        last_shards: What the last process has instead of `shards`.
        prelude: Python that each process runs first.
        time_limit_s: As `--time-limit`, in seconds.
        on_device: As `--device`.
        in_new_interpreter: Import everything anew, as a user's command does; it takes seconds more.
        params: Changes of the tiny configuration.
    """
    environment = {**os.environ, "ACE_SCRATCH": str(out / "scratch"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if on_device != "cuda":
        # Equal to the last bit is promised on the CPU.
        environment["CUDA_VISIBLE_DEVICES"] = ""
    if num_ranks > 1:
        environment |= {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    processes: list[Process] = []
    for rank in range(num_ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if num_ranks > 1 else {}
        seen = last_shards if last_shards is not None and rank == num_ranks - 1 else shards
        arguments = [str(seen), str(out), str(run_dir or ""), json.dumps(params), json.dumps(time_limit_s)]
        arguments.append(on_device or "")
        code, env = prelude + RUN, environment | own
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                env=env,
                cwd=out,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            if in_new_interpreter
            else Forked(code, arguments, env=env, cwd=out)
        )
    return processes


def finish(processes: Sequence[Process], expected: int = 0) -> list[str]:
    """Wait for all; each one's standard error. They must end with `expected`."""
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [expected] * len(processes), "\n".join(errors)
    return errors


def signal_when(processes: Sequence[Process], is_time: Callable[[], bool], number: signal.Signals) -> None:
    """Send a signal to the first process and its loader as soon as `is_time`; it must still be running then."""
    deadline = time.monotonic() + 120
    while not is_time():
        assert time.monotonic() < deadline, "it did not come so far"
        assert processes[0].poll() is None, processes[0].communicate()[1]
        time.sleep(0.005)
    os.killpg(processes[0].pid, number)


def processes_of_group(group: int) -> list[int]:
    """Those of a session that `start_run` began and that are not just waiting to be collected."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, own_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            found += [int(folder.name)] if int(own_group) == group and state != "Z" else []
    return found


def assert_group_ends(group: int, *, timeout_s: float = 60) -> None:
    """No process of the group is left in a while; those that are left then are killed."""
    deadline = time.monotonic() + timeout_s
    while left := processes_of_group(group):
        if time.monotonic() > deadline:
            os.killpg(group, signal.SIGKILL)
            raise AssertionError(f"still running: {left}")
        time.sleep(0.05)


def kill_all(processes: Sequence[Process]) -> None:
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


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
