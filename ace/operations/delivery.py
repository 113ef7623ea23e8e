"""One delivery on the disk: its folder, its report, and how far it is."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ace.operations.attempts import CHECKS, Attempts, Decision, Verdict
from ace.operations.events import Event
from ace.operations.history import kind_of_delivery
from ace.operations.judge import CheckResult, format_results

IMAGES, ATTEMPTS, REPORT, REPORT_TEXT, BUILD_LOG = "images", "attempts.jsonl", "report.json", "report.txt", "build.log"
FETCHING = "fetching"
"""Folder in that of a delivery on S3, while its objects are fetched."""
State = Literal["taken", "registered", "built", "judged", "accepted", "refused"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report says what the checks found in a delivery, and why it was refused if it was.

    Attributes:
        batch: Name of its batch.
        delivery: Name of the folder as it came.
        judged: Time at which it was judged.
        verdict: The judge's; a person may overrule it.
        cause: Why it is refused; None of one that is accepted.
        findings: Results of the checks, under the name that reports have had from the first; none where it was refused
            before its shards were built.
    """

    batch: str
    delivery: str
    judged: str
    verdict: Verdict
    cause: str | None
    findings: list[CheckResult]

    def to_text(self) -> str:
        """Write the report for people."""
        head = f"{self.batch}, delivered as {self.delivery}: {self.verdict} by the checks at {self.judged}"
        parts = [head, self.cause, format_results(self.findings) if self.findings else None]
        return "\n\n".join(filter(None, parts)) + "\n"


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A delivery on the disk.

    Attributes:
        name: Name of its batch.
        folder: Its folder, in deliveries/ or quarantine/.
        state: How far it is.
        event: The last line of the event log about it; None before the first.
    """

    name: str
    folder: Path
    state: State
    event: Event | None

    @property
    def attempts(self) -> Attempts:
        """The record of what was tried."""
        return Attempts(self.folder / ATTEMPTS)

    @property
    def sent_as(self) -> str:
        """Name of the folder as it came."""
        return str(self.origin.get("delivery", ""))

    @property
    def origin(self) -> dict[str, Any]:
        """Return where it came from: `delivery`, `legal_basis`, and of one on S3 its `url`, `mark` and `digest`."""
        return next((line for line in self.attempts.read() if "delivery" in line), {})

    @property
    def legal_basis(self) -> str | None:
        """Return what allowed the images to be used, as params.yaml stated it when they came; None if it did not."""
        stated: str | None = self.origin.get("legal_basis")
        return stated

    @property
    def report(self) -> dict[str, Any] | None:
        """The report; None before it is judged."""
        path = self.folder / REPORT
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @property
    def decision(self) -> Decision | None:
        """Return the last decision of a person, else that of the checks; None before either."""
        overruled, report = self.attempts.overruled(), self.report
        if overruled is not None or report is None:
            return overruled
        return Decision(verdict=report["verdict"], who=CHECKS, why=None, at=report["judged"])

    @property
    def verdict(self) -> Verdict | None:
        """Return whether it is to be accepted or refused; None before that is decided."""
        return self.decision.verdict if self.decision else None

    @property
    def is_logged(self) -> bool:
        """The event log has what was decided, if anything was."""
        decision, event = self.decision, self.event
        if decision is None or event is None:
            return decision is None
        return (event.kind, event.facts["decided"]) == (kind_of_delivery(decision.verdict), decision.at)

    @property
    def outcome(self) -> str:
        """Describe its state in a line, and the cause of a refusal."""
        if self.state != "refused":
            return self.state
        decision = self.decision
        cause = decision.why if decision and decision.why else (self.report or {}).get("cause")
        if not cause:
            return self.state
        first, *others = cause.splitlines()
        if first.endswith(":") and others:
            first += f" {' '.join(others[0].split())}"  # without which it says nothing
        return f"refused: {first}"

    @property
    def last(self) -> str:
        """The last line of the record, for people."""
        line = self.attempts.last()
        if "overruled" in line:
            return f"{line['who']}: {line['overruled']}, {line['why']}"
        if "step" not in line:
            return f"taken at {line.get('at', '')}"
        if "started" in line:
            return f"{line['step']} begun at {line['started']}"
        return f"{line['step']} {line['error'] or 'done'} at {line['finished']}".replace("\n", " ")

    @property
    def is_open(self) -> bool:
        """There is something left to do."""
        is_decided = self.state in ("accepted", "refused") and self.verdict in (None, self.state)
        return not (is_decided and self.is_logged)
