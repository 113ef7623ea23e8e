"""Tell how far a retraining is, by the event log and its lock: cheap enough to ask every half minute."""

import fcntl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ace.operations.clone import git
from ace.operations.errors import BusyError
from ace.operations.events import Event

BEGAN = "retraining_began"
ACCEPTED, REJECTED, ABANDONED = "retraining_accepted", "rejected", "retraining_abandoned"
ENDS = (ACCEPTED, REJECTED, ABANDONED)
"""Kinds of events."""
_LOCK = "ace-retraining.lock"
_ASK_AGAIN_S = 0.1


def open_retraining(events: Sequence[Event]) -> Event | None:
    """Return the event of the retraining that has begun and not ended, if any."""
    last = next((event for event in reversed(events) if event.kind in (BEGAN, *ENDS)), None)
    return last if last is not None and last.kind == BEGAN else None


def retraining_of(events: Sequence[Event], registered: Event) -> Event | None:
    """Return the event by which the retraining began that made a version.

    Args:
        events: All events.
        registered: The event that registered the version.

    Returns:
        None for a model that a person trained, also while a retraining had not ended, or until that has.
    """
    began = open_retraining([event for event in events if event.sequence < registered.sequence])
    end = next((event for event in events if event.sequence > registered.sequence and event.kind in ENDS), None)
    is_its_own = end is not None and end.kind == ACCEPTED and end.facts["version"] == registered.facts["version"]
    return began if is_its_own else None


def last_rejection(events: Sequence[Event]) -> Event | None:
    """Return the event of the last model that the gate did not accept, if any."""
    return next((event for event in reversed(events) if event.kind == REJECTED), None)


@contextmanager
def running(root: Path) -> Iterator[None]:
    """Let one call at a time work on retraining a clone; the lock ends with its process.

    Raises:
        BusyError: another one is at work.
    """
    with _lock_file(root).open("a") as file:
        if not _locks(file, fcntl.LOCK_EX):
            time.sleep(_ASK_AGAIN_S)  # `is_at_work` may have it for a moment
            if not _locks(file, fcntl.LOCK_EX):
                raise BusyError("a retraining is at work")
        yield


def is_at_work(root: Path) -> bool:
    """Tell whether a process works on a retraining of a clone; the question keeps no process from it."""
    try:
        file = _lock_file(root).open("rb")
    except FileNotFoundError:
        return False
    with file:
        return not _locks(file, fcntl.LOCK_SH)


def _lock_file(root: Path) -> Path:
    return Path(git(root, "rev-parse", "--path-format=absolute", "--git-common-dir").strip()) / _LOCK


def _locks(file: IO[Any], kind: int) -> bool:
    """Lock a file until it is closed, or return False if another process has locked it."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
