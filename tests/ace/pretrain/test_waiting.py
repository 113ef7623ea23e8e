"""A training whose loader gives nothing: it hears that it should end, and says what is wrong."""

import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from ace.engine.stop import EXIT_CODE
from tests.ace.data.stalled import NUM_BATCHES
from tests.ace.pretrain.runs import (
    Process,
    assert_group_ends,
    finish,
    kill_all,
    logged_rows,
    processes_of_group,
    saved_steps,
    signal_when,
    start_run,
)

OPTIONS = {"num_workers": 1, "checkpoint_every_s": 3600}
STALLED = """
import os
from ace.data import loader
from tests.ace.data import stalled
loader.GRACE_S, loader.POLL_S = 0.3, 0.05
if os.environ.get("RANK", "1") == "1":
    loader._collate = stalled.{collate}
"""
"""Python that stalls the loader of a training, or of the second of its two processes; nobody waits long for it."""
CLOCK = """
from types import SimpleNamespace
from ace.engine import stop
stop.time = SimpleNamespace(monotonic=lambda: 1e6 if os.path.exists({over!r}) else 0.0)
"""
"""Python with which a training's time limit is over as soon as a file is there."""
SMALL_MEMORY = """
import ctypes, os
from pathlib import Path
libc = ctypes.CDLL(None)
user, group = os.getuid(), os.getgid()
assert libc.unshare(0x10020000) == 0  # namespaces of its own for users and mounts
for name, value in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
    Path("/proc/self", name).write_text(value)
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # nobody else sees what is mounted
assert libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=64k") == 0
"""
"""Python after which a process sees 64 kB of shared memory, as by `unshare -Urm`, which needs no rights where users may
have namespaces."""


def wait_for_rows(processes: Sequence[Process], out: Path, number: int) -> None:
    """Until the training below `out` has used up what its loader gives."""
    signal_when(processes, lambda: len(logged_rows(out)) == number, signal.SIGCONT)


def has_loader(group: int) -> bool:
    """Whether a loader's process has been started in this group."""
    commands = []
    for process in processes_of_group(group):
        with suppress(OSError):
            commands.append(Path(f"/proc/{process}/cmdline").read_bytes())
    return any(b"spawn_main" in command for command in commands)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_training_whose_loader_gives_nothing_saves_and_ends_at_a_signal(
    number: signal.Signals, noise_shards: Path, tmp_path: Path
) -> None:
    """The same command then goes on."""
    (process,) = start_run(noise_shards, tmp_path, prelude=STALLED.format(collate="collate"), **OPTIONS)
    try:
        wait_for_rows([process], tmp_path, NUM_BATCHES)
        process.send_signal(number)
        (said,) = finish([process], EXIT_CODE)
    finally:
        kill_all([process])
    assert f"{number.name}: saved after step 3 of 18, as no batch came for the next" in said
    assert saved_steps(tmp_path) == [3]
    assert_group_ends(process.pid)
    (said,) = finish(start_run(noise_shards, tmp_path))
    assert "resuming after step 3" in said


@pytest.mark.slow
def test_a_training_whose_loader_gives_nothing_saves_and_ends_at_its_time_limit(
    noise_shards: Path, tmp_path: Path
) -> None:
    over = tmp_path / "over"
    prelude = STALLED.format(collate="collate") + CLOCK.format(over=str(over))
    (process,) = start_run(noise_shards, tmp_path, prelude=prelude, time_limit_s=30, **OPTIONS)
    try:
        wait_for_rows([process], tmp_path, NUM_BATCHES)
        over.touch()
        (said,) = finish([process], EXIT_CODE)
    finally:
        kill_all([process])
    assert "time limit: saved after step 3 of 18, as no batch came for the next" in said
    assert saved_steps(tmp_path) == [3]
    assert_group_ends(process.pid)


def test_a_training_that_never_gets_a_batch_ends_at_a_signal_too(noise_shards: Path, tmp_path: Path) -> None:
    prelude = STALLED.format(collate="never")
    (process,) = start_run(noise_shards, tmp_path, prelude=prelude, **OPTIONS)
    try:
        signal_when([process], lambda: has_loader(process.pid), signal.SIGCONT)
        process.send_signal(signal.SIGTERM)
        (said,) = finish([process], EXIT_CODE)
    finally:
        kill_all([process])
    assert "SIGTERM: saved after step 0 of 18, as no batch came for the next" in said
    assert saved_steps(tmp_path) == []
    assert_group_ends(process.pid)


@pytest.mark.slow
def test_of_two_processes_the_one_that_gets_nothing_ends_and_the_other_with_it(
    noise_shards: Path, tmp_path: Path
) -> None:
    prelude = STALLED.format(collate="collate")
    processes = start_run(noise_shards, tmp_path, num_ranks=2, prelude=prelude, **OPTIONS)
    try:
        wait_for_rows(processes, tmp_path, NUM_BATCHES)
        for process in processes:
            process.send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        kill_all(processes)
    assert [process.returncode for process in processes] == [1, EXIT_CODE], said
    assert "SIGTERM: after step 3 of 18 no batch came; the same command goes on at the last checkpoint" in said[1]
    assert "error: process 1 of 2: SIGTERM: after step 3" in said[0]
    for process in processes:
        assert_group_ends(process.pid)


def test_too_little_shared_memory_ends_a_training_before_its_first_step(noise_shards: Path, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], capture_output=True).returncode:
        pytest.skip("NOT TESTED: this system gives users no namespace of their own, for a small /dev/shm")
    (said,) = finish(start_run(noise_shards, tmp_path, prelude=SMALL_MEMORY, num_workers=2), 2)
    assert "error: /dev/shm: 0.0655 MB free" in said
    assert "up to 6 batch(es) of" in said
