"""Tell how far a retraining is, by the event log and its lock: cheap enough to ask every half minute."""

import fcntl
from collections.abc import Sequence
from pathlib import Path

from ace.operations.clone import git
from ace.operations.events import Event

BEGAN = "retraining_began"
ACCEPTED, REJECTED, ABANDONED = "retraining_accepted", "rejected", "retraining_abandoned"
ENDS = (ACCEPTED, REJECTED, ABANDONED)
"""Kinds of events."""
RETRAINING_LOCK = "ace-retraining.lock"
"""File below git's common directory that the process at work on a retraining has locked."""


def open_retraining(events: Sequence[Event]) -> Event | None:
    """Return the event of the retraining that has begun and not ended, if any."""
    last = next((event for event in reversed(events) if event.kind in (BEGAN, *ENDS)), None)
    return last if last is not None and last.kind == BEGAN else None


def last_rejection(events: Sequence[Event]) -> Event | None:
    """Return the event of the last model that the gate did not accept, if any."""
    return next((event for event in reversed(events) if event.kind == REJECTED), None)


def is_at_work(root: Path) -> bool:
    """Tell whether a process works on a retraining of a clone; it is not kept from its work by the question."""
    folder = Path(git(root, "rev-parse", "--path-format=absolute", "--git-common-dir").strip())
    try:
        file = (folder / RETRAINING_LOCK).open("rb")
    except FileNotFoundError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for a moment: it ends with the file
        except BlockingIOError:
            return True
    return False
