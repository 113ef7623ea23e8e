"""Tell the event log what has become of a delivery, with the hashes of the files that show it."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ace.operations.attempts import Decision
from ace.operations.clone import git
from ace.operations.delivery import REPORT, Delivery
from ace.operations.events import LOG, EventLog
from ace.operations.history import kind_of_delivery
from shards.delivery.batches import batch_path
from shards.delivery.project import portable
from shards.format.layout import MANIFESTS, sha256_of


def log_decision(delivery: Delivery, decision: Decision, root: Path) -> None:
    """Append that a delivery was accepted or refused, once that is so on the disk and in the last commit.

    The log goes where git goes, so it has neither the name under which the images came nor the causes of the checks,
    which may name files: the report has them, and the log has its hash.

    Args:
        delivery: The delivery, accepted or refused.
        decision: The decision that made it so.
        root: The service's clone.

    Raises:
        OperationsError: a line of the log is not as it was written.
    """
    name = delivery.name
    batch, manifest = batch_path(name, root), root / MANIFESTS / f"{name}.jsonl"
    if delivery.state == "refused":
        batch, manifest = (delivery.folder / path.name for path in (batch, manifest))
    facts: dict[str, Any] = {"batch": name, "decided": decision.at}
    if (legal_basis := delivery.legal_basis) is not None:
        facts["legal_basis"] = legal_basis
    if not decision.who.automatic:
        facts["why"] = decision.why
    if commit := git(root, "log", "-1", "--format=%H", "--", str(batch_path(name, Path()))).strip():
        facts["commit"] = commit
    paths = [path for path in (batch, manifest, delivery.folder / REPORT) if path.is_file()]
    files = {portable(path, root): sha256_of(path) for path in paths}
    kind = kind_of_delivery(decision.verdict)
    EventLog(root / LOG).append(kind, facts, actor=decision.who, now=datetime.now(UTC), files=files)
