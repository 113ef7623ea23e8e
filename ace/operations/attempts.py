"""The record of a delivery: what was tried, when it began and ended, what came of it, and who overruled the judge."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ace.operations.events import Actor

Verdict = Literal["accepted", "refused"]
CHECKS = Actor("the checks", automatic=True)
"""Whoever decides about deliveries that no person decides about."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """A decision says whether a delivery is accepted or refused, and by whom.

    Attributes:
        verdict: `accepted` or `refused`.
        who: The person or the checks that decided.
        why: The reason; None where the report has it.
        at: Time of the decision.
    """

    verdict: Verdict
    who: Actor
    why: str | None
    at: str


@dataclass(frozen=True)
class Attempts:
    """A file of JSON lines that only grows.

    A line says that a step has started, another one that it has finished: a start without an end is a step that was
    killed.

    Attributes:
        path: The file.
    """

    path: Path

    @contextmanager
    def step(self, name: str) -> Iterator[dict[str, Any]]:
        """Record a step, and what the block puts into the mapping as its outputs; an error is recorded and goes on."""
        self.append({"step": name, "started": now(), "pid": os.getpid()})
        outputs: dict[str, Any] = {}
        try:
            yield outputs
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
            self.append({"step": name, "finished": now(), "error": said, "outputs": outputs})
            raise
        self.append({"step": name, "finished": now(), "error": None, "outputs": outputs})

    def append(self, line: dict[str, Any]) -> None:
        """Add a line, whole; behind what a kill left half written, on a line of its own."""
        text = json.dumps(line) + "\n"
        with self.path.open("ab+") as file:
            if file.tell() and not _ends_a_line(self.path):
                text = "\n" + text
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """Read the lines; what a kill left half written is none."""
        return [*self._newest_first()][::-1]

    def last(self) -> dict[str, Any]:
        """Read the last line; it is empty before there is one."""
        return next(self._newest_first(), {})

    def _newest_first(self) -> Iterator[dict[str, Any]]:
        if not self.path.is_file():
            return
        for text in reversed(self.path.read_text(encoding="utf-8", errors="replace").splitlines()):
            try:
                yield json.loads(text)
            except ValueError:
                continue

    def overrule(self, verdict: Verdict, who: Actor, why: str) -> None:
        """Keep that somebody overruled the judge."""
        self.append({"overruled": verdict, "who": who.name, "automatic": who.automatic, "why": why, "at": now()})

    def overruled(self) -> Decision | None:
        """Return the last decision by which somebody overruled the judge."""
        line = next((line for line in reversed(self.read()) if "overruled" in line), None)
        if line is None:
            return None
        return Decision(
            verdict=line["overruled"], who=Actor(line["who"], line["automatic"]), why=line["why"], at=line["at"]
        )


def now() -> str:
    """Return the time as the record has it, UTC, so fine that it tells decisions apart."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
