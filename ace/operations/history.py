"""What the events of the log come to: versions, which was accepted when, holds, and what became of deliveries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ace.operations.errors import OperationsError
from ace.operations.events import Event
from ace.operations.model_files import RecordedModel

REGISTERED, PROMOTED, ROLLED_BACK, HELD, RELEASED = "registered", "promoted", "rolled_back", "held", "released"
"""Kinds of events."""
_ACCEPTING = (PROMOTED, ROLLED_BACK)
_DELIVERY = "delivery_"


@dataclass(frozen=True, kw_only=True)
class Version:
    """A registered model.

    Attributes:
        number: Counts from 1.
        commit: The commit whose dvc.lock records the model and all that it was made from.
        model: The model as dvc.lock records it.
        files: Name of each of its files → sha256.
        event: The event that registered it.
    """

    number: int
    commit: str
    model: RecordedModel
    files: Mapping[str, str]
    event: Event

    @property
    def name(self) -> str:
        """The version as people write it, as `v3`, and the name of its folder among the exported models."""
        return f"v{self.number}"


def versions(events: Sequence[Event]) -> dict[int, Version]:
    """Return the registered versions by number, the oldest first."""
    found = {}
    for event in events:
        if event.kind == REGISTERED:
            number, facts = int(event.facts["version"]), event.facts
            found[number] = Version(
                number=number,
                commit=facts["commit"],
                model=RecordedModel(facts["model"], facts["md5"]),
                files=event.files,
                event=event,
            )
    return found


def find_version(events: Sequence[Event], number: int) -> Version:
    """Return a registered version.

    Raises:
        OperationsError: no version has this number.
    """
    found = versions(events)
    if number not in found:
        names = ", ".join(version.name for version in found.values()) or "no version"
        raise OperationsError(f"v{number} is not registered; there is {names}")
    return found[number]


def acceptances(events: Sequence[Event]) -> tuple[Event, ...]:
    """Return the events that made a version the accepted one, the oldest first."""
    return tuple(event for event in events if event.kind in _ACCEPTING)


def accepted(events: Sequence[Event], at: datetime | None = None) -> Event | None:
    """Return the event by which a version is the accepted one.

    Args:
        events: All events.
        at: The moment that is asked about; None for now. Of the events that a clock dated before it, the last one in
            the log counts.

    Returns:
        The event, or None if no version was accepted then.
    """
    return next((event for event in reversed(acceptances(events)) if at is None or event.time <= at), None)


def kind_of_delivery(verdict: str) -> str:
    """Return the kind of event by which a delivery is accepted or refused."""
    return _DELIVERY + verdict


def deliveries(events: Sequence[Event]) -> dict[str, Event]:
    """Return the last event about each delivery, by the name of its batch."""
    return {event.facts["batch"]: event for event in events if event.kind.startswith(_DELIVERY)}


def hold(events: Sequence[Event]) -> Event | None:
    """Return the event that holds retraining, or None if nothing does; a rollback holds it too."""
    last = next((event for event in reversed(events) if event.kind in (HELD, ROLLED_BACK, RELEASED)), None)
    return None if last is None or last.kind == RELEASED else last
