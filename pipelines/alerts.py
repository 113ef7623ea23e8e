"""The sensor `alerts`: it tells people what went wrong, each thing once, and an outside watch that all is looked at."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from dagster import (
    AssetCheckKey,
    AssetCheckSeverity,
    DagsterEventType,
    DagsterInstance,
    DagsterRun,
    DefaultSensorStatus,
    RunStatusChangeRecordsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    sensor,
)
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.scheduler.instigation import TickStatus
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecord,
    AssetCheckExecutionRecordStatus,
)
from dagster._daemon.controller import all_daemons_healthy

from ace.operations.alerts import Channel, Message, NotSentError, open_channels, ping
from ace.operations.attempts import Attempts
from ace.operations.delivery import ATTEMPTS
from ace.operations.due import unfinished
from ace.operations.errors import OperationsError
from ace.operations.events import Event
from ace.operations.history import kind_of_delivery
from ace.operations.params import AlertsParams
from ace.operations.retraining_state import REJECTED
from pipelines.event_log import events_of

NAME = "alerts"
TICK_S = 60
BUDGET_S = 20
"""Seconds after which a tick begins no other message: Dagster gives it up after a minute."""
MAX_RUNS = 1000
"""Runs that one tick looks at."""
MAX_LINES, MAX_WIDTH = 20, 200
STATUS = "python -m ace ops status"
_FINISHED = [TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a tick looks at.

    Attributes:
        instance: Dagster's record of runs, checks and ticks.
        checks: The checks that are defined now.
        names: The sensors and schedules that are defined now.
        deliveries: Folder of deliveries/; None where none are taken in.
        events: The event log, the oldest first; None where it is not as it was written.
    """

    instance: DagsterInstance
    checks: Sequence[AssetCheckKey]
    names: frozenset[str]
    deliveries: Path | None
    events: Sequence[Event] | None


Found = tuple[list[str], Any]
"""What is new, a line each, and what is to be kept for the next look."""


def _runs(seen: Seen, kept: Any) -> Found:
    """Find runs that failed; the same work that fails again and again is told once until it succeeds."""
    kinds = (DagsterEventType.RUN_FAILURE, DagsterEventType.RUN_SUCCESS)
    if kept is None:  # old failures are no news
        newest = [record.storage_id for kind in kinds for record in _changes(seen.instance, kind, None)]
        return [], {"last": max(newest, default=0), "failing": []}
    last, failing, lines = kept["last"], set(kept["failing"]), []
    records = [record for kind in kinds for record in _changes(seen.instance, kind, last)]
    # No more than were asked for of each kind: beyond them, ends of one kind are known and of the other are not.
    for record in sorted(records, key=lambda record: record.storage_id)[:MAX_RUNS]:
        last = record.storage_id
        run = seen.instance.get_run_by_id(record.run_id)
        if run is None:
            continue
        work = _work(run)
        key = hashlib.sha256(work.encode()).hexdigest()[:16]
        if record.event_type == DagsterEventType.RUN_SUCCESS:
            failing.discard(key)
        elif key not in failing:
            failing.add(key)
            lines.append(f"run {run.run_id} of {shorten(work, MAX_WIDTH)}")
    return lines, {"last": last, "failing": sorted(failing)}


def _changes(instance: DagsterInstance, kind: DagsterEventType, last: int | None) -> Sequence[Any]:
    """Return how runs ended after the event with a number; the last such end if there is no number."""
    after = RunStatusChangeRecordsFilter(kind, after_storage_id=last)  # type: ignore[arg-type]
    limit = 1 if last is None else MAX_RUNS
    return instance.fetch_run_status_changes(after, limit=limit, ascending=last is not None).records


def _work(run: DagsterRun) -> str:
    """Name what a run does: the assets that it makes, or its job."""
    return ", ".join(sorted(key.to_user_string() for key in run.asset_selection or ())) or run.job_name


def _checks(seen: Seen, kept: Any) -> Found:
    latest = seen.instance.event_log_storage.get_latest_asset_check_execution_by_key(seen.checks)
    failed = []
    for key, record in latest.items():
        name = f"{key.name} of {key.asset_key.to_user_string()}"
        is_running = record.status == AssetCheckExecutionRecordStatus.PLANNED
        has_failed = record.status == AssetCheckExecutionRecordStatus.FAILED and not _is_warning(record)
        if has_failed or (is_running and name in (kept or ())):
            failed.append(name)
    return _new(failed, kept)


def _is_warning(record: AssetCheckExecutionRecord) -> bool:
    """Tell whether a check only warns, as that of the gate: `_rejected` tells of it."""
    event = record.event and record.event.dagster_event
    return event is not None and event.asset_check_evaluation_data.severity == AssetCheckSeverity.WARN


def _ticks(seen: Seen, kept: Any) -> Found:
    failed = []
    for state in seen.instance.all_instigator_state():
        if state.name not in seen.names or not state.is_running:
            continue
        ticks = seen.instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1, statuses=_FINISHED)
        if ticks and ticks[0].status == TickStatus.FAILURE:
            word = "schedule" if state.instigator_type == InstigatorType.SCHEDULE else "sensor"
            failed.append(f"{word} {state.name}")
    return _new(failed, kept)


def _refused(seen: Seen, kept: Any) -> Found:
    return _decided(seen, kept, kind_of_delivery("refused"), lambda event: str(event.facts["batch"]))


def _rejected(seen: Seen, kept: Any) -> Found:
    return _decided(seen, kept, REJECTED, lambda event: f"by the rule {event.facts['reason']['rule']}")


def _held(seen: Seen, kept: Any) -> Found:
    """Find deliveries of which a step failed; one is told once until it is accepted or refused."""
    held = []
    for folder in unfinished(seen.deliveries) if seen.deliveries else ():
        if folder.name in (kept or ()) or Attempts(folder / ATTEMPTS).last().get("error"):
            held.append(folder.name)
    return _new(held, kept)


def _log(seen: Seen, kept: Any) -> Found:
    return _new(
        ["a line is not as it was written; nothing is decided until it is"] if seen.events is None else [], kept
    )


def _decided(seen: Seen, kept: Any, kind: str, line: Callable[[Event], str]) -> Found:
    """Find events of a kind in the lines that were added to the log; what a new service finds there is no news."""
    if seen.events is None:
        return [], kept
    number = len(seen.events)
    new = seen.events[number if kept is None else kept :]
    return [f"{line(event)} (event {event.sequence})" for event in new if event.kind == kind], number


def _new(present: Sequence[str], kept: Any) -> Found:
    """Return what is there and was not at the last look; what has gone can be new again."""
    return [name for name in present if name not in (kept or ())], sorted(present)


@dataclass(frozen=True)
class Kind:
    """A kind of thing that people are told.

    Attributes:
        title: As a message names it.
        more: Command or page that shows more.
        find: Finds what is new.
    """

    title: str
    more: str
    find: Callable[[Seen, Any], Found]


KINDS: Mapping[str, Kind] = {
    "runs": Kind("runs failed", f"{STATUS}, and /runs/ID in Dagster", _runs),
    "checks": Kind("checks failed", "the checks on the asset's page in Dagster", _checks),
    "ticks": Kind("sensors or schedules fail", "Automation in Dagster", _ticks),
    "refused": Kind("deliveries were refused", "python -m ace deliveries list", _refused),
    "held": Kind("deliveries are held", "python -m ace deliveries list", _held),
    "rejected": Kind("a new model was rejected", STATUS, _rejected),
    "log": Kind("the event log was changed", "python -m ace models audit", _log),
}


def build_alerts_sensor(root: Path, params: AlertsParams, deliveries: Path | None) -> SensorDefinition:
    """Build the sensor that tells what went wrong.

    Args:
        root: The service's clone.
        params: Section `operations.alerts`.
        deliveries: Folder of deliveries/; None where none are taken in.
    """

    @sensor(name=NAME, minimum_interval_seconds=TICK_S, default_status=DefaultSensorStatus.RUNNING)
    def alerts(context: SensorEvaluationContext) -> SensorResult:
        """Tells each new thing that went wrong once, then pings; what did not arrive is sent again at the next tick."""
        memory = json.loads(context.cursor) if context.cursor else {}
        channels, seen = open_channels(params), _look(context, root, deliveries)
        end = time.monotonic() + BUDGET_S
        notes = [note for channel in channels for note in _tell(channel, seen, memory, end)]
        is_well = not notes
        notes += _ping(context.instance) if is_well else ["no ping"]
        return SensorResult(skip_reason="; ".join(notes) or "all is told", cursor=json.dumps(memory))

    return alerts


def _look(context: SensorEvaluationContext, root: Path, deliveries: Path | None) -> Seen:
    repository = context.repository_def
    assert repository is not None
    own = {item.name for item in repository.sensor_defs} | {item.name for item in repository.schedule_defs}
    try:
        events = events_of(root)
    except OperationsError:
        events = None
    checks = sorted(repository.asset_graph.asset_check_keys)
    return Seen(
        instance=context.instance, checks=checks, names=frozenset(own - {NAME}), deliveries=deliveries, events=events
    )


def _tell(channel: Channel, seen: Seen, memory: dict[str, Any], end: float) -> list[str]:
    """Send what is new by one channel, and write into the memory what has arrived; returns what has not."""
    told = memory.setdefault(channel.name, {})
    for name, kind in KINDS.items():
        lines, kept = kind.find(seen, told.get(name))
        if lines:
            if time.monotonic() > end:
                return [f"{channel.name}: no time for all messages, the next tick goes on"]
            more = [f"and {len(lines) - MAX_LINES} more"] if len(lines) > MAX_LINES else []
            try:
                channel.send(Message(kind.title, [*lines[:MAX_LINES], *more], kind.more))
            except NotSentError as error:
                return [f"not sent, and tried again at the next tick: {error}"]
        told[name] = kept
    return []


def _ping(instance: DagsterInstance) -> list[str]:
    # Dagster takes a heartbeat from before the clock was set back for one of now, until that time has come again.
    newest = max((heartbeat.timestamp for heartbeat in instance.get_daemon_heartbeats().values()), default=0)
    if newest > time.time() + TICK_S or not all_daemons_healthy(instance):
        return ["no ping: a daemon of Dagster fails or does not answer"]
    try:
        ping()
    except NotSentError as error:
        return [str(error)]
    return []
