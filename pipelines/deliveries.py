"""Deliveries in the asset graph: external assets, and an observation of each delivery that has changed."""

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dagster import AssetKey, AssetObservation, AssetSpec, MetadataValue

from ace.operations.attempts import Attempts
from ace.operations.delivery import ATTEMPTS, REPORT
from ace.operations.due import DELIVERIES, INCOMING, QUARANTINE, Due
from ace.operations.errors import OperationsError
from ace.operations.events import Event
from ace.operations.history import deliveries, kind_of_delivery
from ace.operations.params import DeliveriesParams
from pipelines.event_log import events_of
from pipelines.graph import Graph
from pipelines.lock import asset_key
from pipelines.sets import SHARD
from shards.core.errors import SourceError
from shards.delivery.manifest import iterate_manifest
from shards.format.layout import MANIFESTS

KEY = AssetKey(DELIVERIES)
"""The asset of all that the service takes in."""
_VERDICTS = {DELIVERIES: "accepted", QUARANTINE: "refused"}
"""Folder → what has become of the deliveries in it that are finished."""
_NONE = "0 of 0 complete"


def build_deliveries(graph: Graph, settings: DeliveriesParams | None) -> list[AssetSpec]:
    """Build what nothing here makes: a source for each manifest that a stage reads, and one for all that is taken in.

    Args:
        graph: of the DVC repository.
        settings: Section `operations.deliveries`; None where nothing is taken in.
    """
    groups = {path: stage.meta.group for stage in graph.stages for path in stage.deliveries}
    sources = [
        AssetSpec(
            asset_key(path),
            deps=[KEY] if settings and settings.numbered.fullmatch(Path(path).stem) else [],
            description="Images that were registered with `python -m shards register`. They stay where they are; the "
            "manifest lists them and is private.",
            group_name=group,
            kinds={"delivery"},
        )
        for path, group in groups.items()
    ]
    if settings is None:
        return sources
    taken_in = AssetSpec(
        KEY,
        description="Images that come through incoming/. Observations say what becomes of each delivery; `python -m "
        "ace deliveries list` says more.",
        group_name=next((stage.meta.group for stage in graph.stages if stage.word == SHARD), None),
        kinds={"delivery"},
    )
    return [taken_in, *sources]


def observe(
    root: Path, folder: Path, due: Due, reported: Mapping[str, str]
) -> tuple[list[AssetObservation], dict[str, str]]:
    """Report what has changed about the deliveries since the last look.

    No observation has the name of a folder in incoming/, nor the words of an error or of a check, which may hold one:
    such names can tell of patients, and Dagster's database outlives them.

    Args:
        root: The service's clone.
        folder: Folder of incoming/, deliveries/ and quarantine/.
        due: What was just found there.
        reported: Name of a delivery → its state when it was reported last, as an earlier call returned it.

    Returns:
        The observations, and the states that have been reported with them.
    """
    taken = [path for place in _VERDICTS for path in sorted((folder / place).glob("[!.]*/"))]
    begun = set(due.unfinished)
    states = {path: _progress(path) if path in begun else _VERDICTS[path.parent.name] for path in taken}
    kept = {path.name: state for path, state in states.items() if reported.get(path.name) == state}
    news = {path: state for path, state in states.items() if path.name not in kept}
    decisions = _decisions(root) if news else {}
    found = []
    for path, state in news.items():
        decision = None if path in begun else decisions.get(path.name)
        if path in begun or (decision and decision.kind == kind_of_delivery(state)):  # else the log is about to have it
            found.append(_observed(f"{path.name}: {state}", _facts(root, path, state, decision)))
            kept[path.name] = state
    arriving = f"{len(due.complete)} of {len(due.arriving)} complete"
    if arriving != reported.get(INCOMING, _NONE):
        facts = {"state": INCOMING, "items": len(due.arriving), "complete": len(due.complete)}
        found.append(_observed(f"{INCOMING}: {arriving}", facts))
    return found, {**kept, INCOMING: arriving}


def _progress(path: Path) -> str:
    """Tell how far a delivery is that was begun: it is held from a step that failed until that step is done."""
    ends = {line["step"]: line["error"] for line in Attempts(path / ATTEMPTS).read() if "finished" in line}
    failed = [f"held, {step} failed with {error.partition(':')[0]}" for step, error in ends.items() if error]
    return failed[-1] if failed else "begun"


def _decisions(root: Path) -> Mapping[str, Event]:
    """Return the last decision about each delivery; none if the log was changed, of which the alerts tell."""
    try:
        return deliveries(events_of(root))
    except OperationsError:
        return {}


def _facts(root: Path, path: Path, state: str, decision: Event | None) -> dict[str, Any]:
    word, _, reason = state.partition(", ")
    tries = Counter(line["step"] for line in Attempts(path / ATTEMPTS).read() if "started" in line)
    facts: dict[str, Any] = {
        "delivery": path.name,
        "state": word,
        "attempts": max(tries.values(), default=0),
        "folder": MetadataValue.path(path),
    }
    if decision is not None:
        facts["decided_by"] = decision.who
        reason = decision.facts.get("why") or _failed_checks(path)
    if reason:
        facts["reason"] = reason
    # As the delivery is moved to quarantine, so is its manifest.
    for folder in (root / MANIFESTS, path):
        with suppress(SourceError):
            facts["images"] = iterate_manifest(folder / f"{path.name}.jsonl")[0].num_images
    return facts


def _failed_checks(path: Path) -> str:
    """Name the checks that a delivery failed, with what was measured."""
    report = json.loads((path / REPORT).read_text(encoding="utf-8"))
    failed = [item for item in report["findings"] if not item["passed"]]
    if report["verdict"] == "refused" and not failed:
        return f"its images cannot be used; {REPORT} says why"
    return "; ".join(f"{item['check']} {_short(item['measured'])}, bound {_short(item['bound'])}" for item in failed)


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _observed(description: str, facts: Mapping[str, Any]) -> AssetObservation:
    return AssetObservation(KEY, description=description, metadata=facts)
