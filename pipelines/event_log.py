"""Read the event log again only after a change of it: to check a chain of thousands of lines takes a while."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from ace.operations.events import LOG, Event
from ace.operations.tags import read_events


def events_of(root: Path) -> Sequence[Event]:
    """Return the events of a clone's log, the oldest first; none if there is no log.

    Raises:
        OperationsError: a line is not as it was written, or a line that a tag names is missing.
    """
    try:
        status = (root / LOG).stat()
    except FileNotFoundError:
        return ()
    return _events_as_of(root, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=1)
def _events_as_of(root: Path, mtime_ns: int, num_bytes: int) -> Sequence[Event]:
    return read_events(root)
