"""A small process between a Dagster step and dvc, which ends everything dvc started as soon as the step is gone.

A step cannot do this itself: it may be killed, and a command may start processes in sessions of their own, as torchrun
does. Runs as `python supervisor.py GRACE_S COMMAND…`, stops at the end of its standard input, and imports little,
because every step starts one.
"""

import ctypes
import signal
import sys
import time
from contextlib import suppress
from select import select
from subprocess import DEVNULL, Popen

import psutil

POLL_S = 0.25
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PR_SET_CHILD_SUBREAPER = 36


def supervise(grace_s: float, command: list[str]) -> int:
    """Run a command until it ends, or until standard input does; then end all its descendants.

    Args:
        grace_s: Seconds between SIGTERM and SIGKILL.
        command: Program and arguments.

    Returns:
        The command's exit code, as a shell gives it: 128 more than the number of the signal that ended it.
    """
    _adopt_orphans()
    stops: list[int] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda received, frame: stops.append(received))
    process = Popen(command, stdin=DEVNULL)
    while process.poll() is None and not stops and not _is_closed(POLL_S):
        pass
    _end_descendants(grace_s)
    code = process.wait()
    return code if code >= 0 else 128 - code


def _adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, wherever the system offers it (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _is_closed(timeout_s: float) -> bool:
    """Tell whether the step has closed its end of standard input, or is gone; nothing is ever written to it."""
    ready, _, _ = select([sys.stdin], [], [], timeout_s)
    return bool(ready)


def _end_descendants(grace_s: float) -> None:
    """Send SIGTERM to all processes below this one, in whatever session, and SIGKILL to those that stay."""
    known: set[psutil.Process] = set()
    deadline = time.monotonic() + grace_s
    number = signal.SIGTERM
    signalled: set[psutil.Process] = set()
    while living := _living(known):
        if number != signal.SIGKILL and time.monotonic() >= deadline:
            number, signalled = signal.SIGKILL, set()
        for process in living - signalled:
            with suppress(psutil.Error):
                process.send_signal(number)
        signalled |= living
        time.sleep(min(POLL_S, grace_s))


def _living(known: set[psutil.Process]) -> set[psutil.Process]:
    """Add the descendants of now to the known ones, and return those that are not dead."""
    known |= set(psutil.Process().children(recursive=True))
    return {process for process in known if is_alive(process)}


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process still runs; a zombie does not, nor another process that was given the same id."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    sys.exit(supervise(float(sys.argv[1]), sys.argv[2:]))
