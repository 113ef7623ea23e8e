"""What the event log says of withdrawals: what each one affects, what was decided, and what is left to do."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from ace.operations import history
from ace.operations.events import Actor, Event, EventLog

RECEIVED, EXCLUDED, SETTLED = "withdrawal_received", "withdrawal_excluded", "withdrawal_settled"
COMPLETED = "withdrawal_completed"
ERASING, ERASED = "erasure_began", "erasure_completed"
"""Kinds of events."""
Action = Literal["retire", "retrain", "keep"]


@dataclass(frozen=True, kw_only=True)
class Withdrawal:
    """A patient's withdrawal, as far as it has come.

    Attributes:
        received: The event by which it began. Its facts have `patient` (the patient's mark), `received` (the time at
            which the wish came), `batches` (their names), `versions` (numbers of the models
            that were trained with them) and `outs` (paths that the last commit's dvc.lock makes from these batches).
        excluded: The event that says that nothing reads the images any more; None before.
        decisions: Number of a version → the last event that says what becomes of it.
        erasing: The event that names what is erased, and the files that have other bytes since; None before.
        erased: The event that says that it is done, and what is left; None before.
        completed: The event after which nothing was left to do; None before.
    """

    received: Event
    excluded: Event | None
    decisions: Mapping[int, Event]
    erasing: Event | None = None
    erased: Event | None = None
    completed: Event | None = None

    @property
    def number(self) -> int:
        """The number by which people name it: that of its first event."""
        return self.received.sequence

    @property
    def mark(self) -> str:
        """The keyed hash that stands for the patient (`patients.mark_of`)."""
        return str(self.received.facts["patient"])

    @property
    def batches(self) -> list[str]:
        """Names of the batches that had images of the patient."""
        return list(self.received.facts["batches"])

    @property
    def versions(self) -> list[int]:
        """Numbers of the models that were trained with the patient."""
        return list(self.received.facts["versions"])

    @property
    def undecided(self) -> list[int]:
        """Numbers of the versions of which nobody has said yet what becomes of them."""
        return [number for number in self.versions if number not in self.decisions]

    def action(self, version: int) -> Action | None:
        """Return what is to become of a version; None if nobody has said it, or the version is not affected."""
        event = self.decisions.get(version)
        return None if event is None else event.facts["action"]

    def has(self, version: int, action: Action, why: str) -> bool:
        """Tell whether this was the last decision about a version."""
        event = self.decisions.get(version)
        return event is not None and (event.facts["action"], event.facts["why"]) == (action, why)

    def has_successor(self, events: Sequence[Event]) -> bool:
        """Tell whether a version that was registered after the withdrawal, and so without the patient, was accepted."""
        known = history.versions(events)
        accepted = {int(event.facts["version"]) for event in history.acceptances(events)}
        return any(known[version].event.sequence > self.number for version in accepted)

    def waits_for_training(self, events: Sequence[Event]) -> bool:
        """Tell whether a model has to be trained without the patient."""
        is_asked = any(self.action(number) == "retrain" for number in self.versions)
        return is_asked and not self.has_successor(events)

    def todo(self, events: Sequence[Event]) -> list[str]:
        """List what is left to do, a line each."""
        found = []
        if self.excluded is None:
            found.append("the images are not excluded everywhere: give the same command again")
        if self.erasing is not None and self.erased is None:
            found.append("the erasure is not finished: give the same command again")
        if self.undecided:
            names = ", ".join(f"v{number}" for number in self.undecided)
            found.append(f"say what becomes of {names}: python -m ace withdraw --settle {self.number} --action …")
        last = history.accepted(events)
        accepted = None if last is None else last.facts["version"]
        if accepted is not None and self.action(accepted) == "retire":
            found.append(f"v{accepted} is to be retired and is the accepted model: promote or roll back to another one")
        if self.waits_for_training(events):
            found.append("a model without the patient has to be trained and accepted: python -m ace retrain run")
        return found


def withdrawals(events: Sequence[Event]) -> dict[int, Withdrawal]:
    """Return the withdrawals by number, the oldest first."""
    found: dict[int, Withdrawal] = {}
    for event in events:
        number = int(event.facts.get("withdrawal", 0))
        if event.kind == RECEIVED:
            found[event.sequence] = Withdrawal(received=event, excluded=None, decisions={})
        elif event.kind == EXCLUDED:
            found[number] = replace(found[number], excluded=event)
        elif event.kind == SETTLED:
            decided = dict.fromkeys(event.facts["versions"], event)
            found[number] = replace(found[number], decisions={**found[number].decisions, **decided})
        elif event.kind == ERASING:
            found[number] = replace(found[number], erasing=event)
        elif event.kind == ERASED:
            found[number] = replace(found[number], erased=event)
        elif event.kind == COMPLETED:
            found[number] = replace(found[number], completed=event)
    return found


def affected_versions(events: Sequence[Event]) -> set[int]:
    """Return the numbers of the versions that were trained with patients who have withdrawn since."""
    return {number for withdrawal in withdrawals(events).values() for number in withdrawal.versions}


def retiring(events: Sequence[Event], version: int) -> Event | None:
    """Return the event by which a version may not be accepted any more, or None if it may.

    It is retired, or was to be replaced by a model without the patient, and has been.
    """
    for withdrawal in withdrawals(events).values():
        action = withdrawal.action(version)
        if action == "retire" or (action == "retrain" and withdrawal.has_successor(events)):
            return withdrawal.decisions[version]
    return None


def waiting_for_training(events: Sequence[Event]) -> Withdrawal | None:
    """Return the first withdrawal for which a model has to be trained without the patient, if any."""
    return next((found for found in withdrawals(events).values() if found.waits_for_training(events)), None)


def complete_withdrawals(log: EventLog, events: Sequence[Event], actor: Actor, clock: Callable[[], datetime]) -> None:
    """Write into the log which withdrawals have nothing left to do."""
    for found in withdrawals(events).values():
        if not (found.completed or found.todo(events)):
            log.append(COMPLETED, {"withdrawal": found.number}, actor=actor, now=clock())
