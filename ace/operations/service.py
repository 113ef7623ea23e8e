"""Stop and start the service: while it is stopped nothing begins by itself, and the accepted model goes on serving."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from ace.operations.clone import Clone
from ace.operations.errors import OperationsError, StoppedError
from ace.operations.events import LOG, Actor, Event, EventLog
from ace.operations.tags import read_events

STOPPED, STARTED = "stopped", "started"
"""Kinds of events."""


def stopped(events: Sequence[Event]) -> Event | None:
    """Return the event that stopped the service, or None if it is not stopped."""
    last = next((event for event in reversed(events) if event.kind in (STOPPED, STARTED)), None)
    return None if last is None or last.kind == STARTED else last


def refuse_when_stopped(root: Path) -> None:
    """Refuse to begin anything while the service is stopped.

    Args:
        root: The service's clone.

    Raises:
        StoppedError: it is stopped.
        OperationsError: a line of the log is not as it was written.
    """
    event = stopped(read_events(root))
    if event is not None:
        raise StoppedError(
            f"{event.who} has stopped the service at {event.time:%Y-%m-%d %H:%M} UTC: {event.facts['why']}. To start "
            "it again: python -m ace ops start --why TEXT"
        )


def stop(clone: Clone, actor: Actor, why: str, now: datetime) -> Event:
    """Stop the service, and return the event that says so: the one that is there already, or else a new one.

    What is at work goes on to the end of its step or its delivery.

    Raises:
        OperationsError: this is not the service's clone, or its log is not as it was written.
    """
    clone.check()
    event = stopped(read_events(clone.root))
    return event or EventLog(clone.root / LOG).append(STOPPED, {"why": why}, actor=actor, now=now)


def start(clone: Clone, actor: Actor, why: str, now: datetime) -> Event:
    """Let the service go on.

    Raises:
        OperationsError: it is not stopped, or as `stop`.
    """
    clone.check()
    if stopped(read_events(clone.root)) is None:
        raise OperationsError("the service is not stopped, so there is nothing to start")
    return EventLog(clone.root / LOG).append(STARTED, {"why": why}, actor=actor, now=now)
