"""The event log: JSON lines that are only ever appended, each with the sha256 of the line before it.

Every decision about models and deliveries is a line. Whoever changes, removes or moves one breaks the chain, and
`check_lines` says where. What is cut off at the end breaks nothing: it is missed where the sha256 of a later line is
kept elsewhere, as in the message of each tag of the registry.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from ace.operations.durable import sync_folder
from ace.operations.errors import OperationsError
from shards.format.layout import sha256_of
from shards.runtime.atomic import atomic_path, clear_when_full

LOG = Path("registry/events.jsonl")
"""The log in the service's clone, tracked by git."""
SET_ASIDE = "set_aside"
"""Kind of the event that tells of a half line, and the folder beside the log where such lines are kept."""
BEGINNING = "0" * 64
"""The first line has this in place of the sha256 of a line before it."""


@dataclass(frozen=True)
class Actor:
    """Whoever makes an event happen.

    Attributes:
        name: A person's name and address as git knows them, `schedule`, or `the checks` of a delivery.
        automatic: True if nobody was at the keyboard.
    """

    name: str
    automatic: bool = False


class Event(BaseModel):
    """One line of the log.

    Attributes:
        sequence: Number of the line, from 1.
        time: What the clock showed. Clocks are set back at times: the order is that of the lines.
        who: Name of the actor.
        automatic: True if nobody was at the keyboard.
        kind: What happened, as `promoted`.
        facts: What is to be known about it.
        files: Name → sha256 of the bytes that the event is about.
        previous: sha256 of the line before; of the first line `BEGINNING`.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    sequence: int
    time: AwareDatetime
    who: str
    automatic: bool
    kind: str
    facts: dict[str, Any]
    files: dict[str, str]
    previous: str
    _sha256: str = ""

    @property
    def sha256(self) -> str:
        """Hash of the line, without its newline."""
        return self._sha256

    @classmethod
    def from_line(cls, line: bytes) -> "Event":
        """Read a line, without its newline.

        Raises:
            ValueError: it is no event.
        """
        event = cls.model_validate_json(line)
        event._sha256 = hashlib.sha256(line).hexdigest()
        return event


@dataclass(frozen=True)
class Problem:
    """The first line of a log that is not as it was written.

    Attributes:
        line: Its number, from 1.
        how: What happened to it.
        text: A sentence for people that says what is wrong with the line.
    """

    line: int
    how: Literal["changed", "missing", "reordered", "truncated", "half"]
    text: str


def check_lines(data: bytes, heads: Mapping[int, str]) -> Problem | None:
    """Find the first line of a log that is not as it was written.

    Args:
        data: The log's bytes.
        heads: Number of a line → its sha256, for lines whose sha256 is kept elsewhere.

    Returns:
        The problem, or None if there is none.
    """
    *lines, rest = data.split(b"\n")
    previous = BEGINNING
    for number, line in enumerate(lines, 1):
        try:
            event = Event.from_line(line)
        except ValueError:
            return Problem(number, "changed", f"line {number} was changed: it is no event")
        if event.sequence != number:
            if event.sequence < number or number in map(_sequence, lines[number:]):
                text = f"line {number} has the number {event.sequence}: lines were moved or doubled"
                return Problem(number, "reordered", text)
            return Problem(number, "missing", f"line {number} is missing: the line there has number {event.sequence}")
        if event.previous != previous:
            last = max(1, number - 1)
            text = f"line {last} was changed, or what line {number} keeps of it: their sha256 differ"
            return Problem(last, "changed", text)
        if heads.get(number, event.sha256) != event.sha256:
            return Problem(number, "changed", f"line {number} was changed: a tag of the registry keeps another sha256")
        previous = event.sha256
    if heads and max(heads) > len(lines):
        text = f"the log ends after {len(lines)} lines, and a tag of the registry names line {max(heads)}"
        return Problem(len(lines) + 1, "truncated", text)
    if rest:
        text = f"line {len(lines) + 1} is half written; the next event sets it aside"
        return Problem(len(lines) + 1, "half", text)
    return None


def _sequence(line: bytes) -> int | None:
    try:
        return Event.from_line(line).sequence
    except ValueError:
        return None


@dataclass(frozen=True)
class EventLog:
    """The event log of one clone.

    Attributes:
        path: Its file; missing before the first event.
    """

    path: Path

    def read(self) -> bytes:
        """Read the bytes of the log while nobody writes to it."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return b""
        with _locked(descriptor, fcntl.LOCK_SH):
            return _read_all(descriptor)

    def events(self, heads: Mapping[int, str] | None = None) -> tuple[Event, ...]:
        """Return all events, the oldest first; a half last line is no event.

        Args:
            heads: Number of a line → its sha256, as `check_lines` takes them.

        Raises:
            OperationsError: a line is not as it was written.
        """
        return self._parsed(self.read(), heads or {})

    def append(
        self,
        kind: str,
        facts: Mapping[str, Any],
        *,
        actor: Actor,
        now: datetime,
        files: Mapping[str, str] | None = None,
    ) -> Event:
        """Write an event at the end of the log, and return when it is on the disk.

        Several processes may append at once. After a kill the event is there whole or not at all: half a line at the
        end is kept in a file of its own, in the folder `set_aside` beside the log, and an event of its own says so.

        Args:
            kind: What happened.
            facts: What is to be known about it, as JSON has it.
            actor: Whoever made it happen.
            now: What the clock shows.
            files: Name → sha256 of the bytes that it is about.

        Raises:
            OperationsError: a line of the log is not as it was written.
            NoSpaceError: the disk is full.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        with _locked(descriptor, fcntl.LOCK_EX), clear_when_full(self.path.parent):
            self._set_half_line_aside(descriptor)
            events = self._parsed(_read_all(descriptor), {})
            said = {name for event in events if event.kind == SET_ASIDE for name in event.files}
            for path in sorted(self.path.parent.glob(f"{SET_ASIDE}/[0-9]*")):
                name = f"{SET_ASIDE}/{path.name}"
                if name not in said:
                    half = {"bytes": path.stat().st_size}, {name: sha256_of(path)}
                    events = (*events, _write(descriptor, _following(events, SET_ASIDE, *half, actor, now)))
            written = _write(descriptor, _following(events, kind, facts, files or {}, actor, now))
            sync_folder(self.path.parent)
            return written

    def _parsed(self, data: bytes, heads: Mapping[int, str]) -> tuple[Event, ...]:
        problem = check_lines(data, heads)
        if problem is not None and problem.how != "half":
            raise OperationsError(
                f"{self.path}: {problem.text}. Restore the file from git or a backup (`git log -- {LOG}`), then check "
                "it: python -m ace models audit"
            )
        return tuple(Event.from_line(line) for line in data.split(b"\n")[:-1])

    def _set_half_line_aside(self, descriptor: int) -> None:
        data = _read_all(descriptor)
        *lines, half = data.split(b"\n")
        if half:
            folder = self.path.parent / SET_ASIDE
            with atomic_path(folder / f"{len(lines) + 1}-{hashlib.sha256(half).hexdigest()}") as temporary:
                temporary.write_bytes(half)
            sync_folder(folder)
            os.ftruncate(descriptor, len(data) - len(half))


def _following(
    events: tuple[Event, ...],
    kind: str,
    facts: Mapping[str, Any],
    files: Mapping[str, str],
    actor: Actor,
    now: datetime,
) -> Event:
    """Return the event that comes after these."""
    return Event(
        sequence=len(events) + 1,
        time=now.astimezone(UTC),
        who=actor.name,
        automatic=actor.automatic,
        kind=kind,
        facts=dict(facts),
        files=dict(files),
        previous=events[-1].sha256 if events else BEGINNING,
    )


def _write(descriptor: int, event: Event) -> Event:
    line = event.model_dump_json().encode()
    unwritten = line + b"\n"
    while unwritten:
        unwritten = unwritten[os.write(descriptor, unwritten) :]
    os.fsync(descriptor)
    return Event.from_line(line)


def _read_all(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


@contextmanager
def _locked(descriptor: int, operation: int) -> Iterator[None]:
    """Hold a lock on an open file, which ends with the process too, and close the file after."""
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)
