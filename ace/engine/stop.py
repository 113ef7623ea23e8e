"""Ending a training on request: a signal or a time limit lets the running step finish and its state be saved."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: not finished, start the same command again. Schedulers can be told to requeue on it."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StoppedError(Exception):
    """The training was asked to end before its last step; its state is saved."""


class StoppedAloneError(StoppedError):
    """One of several processes was asked to end while it waited for data, and the others may wait for it."""


class StopRequest:
    """A request says why training should end after the running step, if it should; `stop_requests` makes it."""

    def __init__(self, time_limit_s: float | None) -> None:
        self._deadline = None if time_limit_s is None else time.monotonic() + time_limit_s
        self._signal: str | None = None

    @property
    def reason(self) -> str | None:
        """`SIGTERM`, `time limit`, or None to go on."""
        if self._signal is None and self._deadline is not None and time.monotonic() >= self._deadline:
            return "time limit"
        return self._signal

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self._signal is not None:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number).name


@contextmanager
def stop_requests(time_limit_s: float | None) -> Iterator[StopRequest]:
    """Listen for SIGTERM, SIGINT and SIGUSR1 instead of dying of them; a second SIGINT interrupts at once.

    After a StoppedError SIGTERM and SIGUSR1 stay ignored: torchrun and schedulers send them again to what is on its way
    out, and the process is to end with its own exit code.

    Args:
        time_limit_s: Seconds from now after which training should end; None for no limit.
    """
    request = StopRequest(time_limit_s)
    previous = {number: signal.signal(number, request._on_signal) for number in SIGNALS}
    try:
        yield request
    except StoppedError:
        previous |= {number: signal.SIG_IGN for number in SIGNALS if number != signal.SIGINT}
        raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes started inside never get these signals: whoever signals the whole group must not kill the loader.

    The mask of blocked signals passes to a child; what arrives here meanwhile is delivered afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        # The first queue would start it, and it unblocks SIGTERM and SIGINT when it does.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
