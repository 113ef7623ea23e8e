"""The service in Dagster: jobs that give commands of `python -m ace`, and what starts them by itself.

Whatever is decided, is decided by the commands: each can be given by hand as well, and finishes what was killed.
"""

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dagster import (
    AssetsDefinition,
    Backoff,
    DagsterInstance,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    FreshnessPolicy,
    In,
    Jitter,
    JobDefinition,
    Nothing,
    OpDefinition,
    OpExecutionContext,
    RetryPolicy,
    RunRequest,
    RunsFilter,
    ScheduleDefinition,
    ScheduleEvaluationContext,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    job,
    op,
    schedule,
    sensor,
)
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._utils.schedules import is_valid_cron_schedule

from ace.engine.stop import EXIT_CODE
from ace.gate.params import MODEL
from ace.operations.due import Due, look
from ace.operations.params import DeliveriesParams, OperationsParams, ScheduleParams
from ace.operations.retraining_state import is_at_work, open_retraining
from ace.operations.service import stopped
from pipelines.alerts import build_alerts_sensor
from pipelines.deliveries import observe
from pipelines.event_log import events_of
from pipelines.lock import asset_key, commit_tag
from pipelines.process import run_ace
from shards.core.errors import ConfigError
from shards.runtime.text import count_of

TAKE, RETRAIN, PUBLISH = ("deliveries", "run"), ("retrain", "run", "--automatic"), ("ops", "publish")
"""Commands of `python -m ace`."""
DUE, DUE_ON_S3 = ("retrain", "due", "--json"), ("deliveries", "due", "--json")
S3_CRON = "*/10 * * * *"
AUDIT = ("models", "audit")
AUDIT_AGAIN = RetryPolicy(max_retries=1, delay=600)
"""What is decided just then looks half done."""
DUE_TIMEOUT_S = 50
"""Dagster gives up an evaluation of a schedule after a minute."""
TICK_S = 30
PUBLISH_AGAIN = RetryPolicy(max_retries=3, delay=60, backoff=Backoff.EXPONENTIAL, jitter=Jitter.PLUS_MINUS)
"""For a network that is down or a disk that is not mounted."""
TRAIN_AGAIN = RetryPolicy(max_retries=6, delay=600, backoff=Backoff.LINEAR)
"""For a delivery that is at work: after 10, 20 and up to 60 minutes. Meanwhile the sensor asks for no other one."""
UNREACHABLE = 1
"""Exit code of `ops publish` where a remote cannot be reached; what a person must settle has another one."""
AGAIN_S = 600
"""Seconds after which the same work is asked for again, if a run of it changed nothing."""


def with_age(assets: Sequence[AssetsDefinition], settings: ScheduleParams | None) -> list[AssetsDefinition]:
    """Let Dagster show the model as too old from the age that the schedule names, if it names one."""
    if settings is None or settings.max_age_days is None:
        return list(assets)
    policy, key = FreshnessPolicy.time_window(timedelta(days=settings.max_age_days)), asset_key(MODEL)
    return [
        asset.map_asset_specs(
            lambda spec: spec.replace_attributes(freshness_policy=policy) if spec.key == key else spec
        )
        for asset in assets
    ]


@dataclass(frozen=True)
class Service:
    """All that runs by itself; nothing while the section `operations` is empty."""

    jobs: Sequence[JobDefinition] = ()
    sensors: Sequence[SensorDefinition] = ()
    schedules: Sequence[ScheduleDefinition] = ()


def build_service(root: Path, operations: OperationsParams) -> Service:
    """Build the jobs, sensors and schedules of the service.

    Args:
        root: The service's clone.
        operations: The section `operations` of its params.yaml.

    Raises:
        ConfigError: the schedule is no time.
    """
    publish = _op(root, "publish", PUBLISH, "publish", follows=True, retries=PUBLISH_AGAIN, passing=UNREACHABLE)
    train = _op(root, "train", RETRAIN, "gpu", retries=TRAIN_AGAIN, passing=EXIT_CODE)
    take = _op(root, "take", TAKE, "deliver")
    deliveries = _job("deliveries", "Take new images in, and publish what was accepted", take, publish)
    retrain = _job("retrain", "Train, decide, and publish what was decided", train, publish)
    sensors = [_incoming(root, operations.deliveries, deliveries, retrain)] if operations.deliveries else []
    schedules = [_retraining(root, operations.schedule, retrain)] if operations.schedule else []
    if operations.deliveries and operations.deliveries.incoming:
        schedules.append(_on_s3(root, deliveries, retrain))
    jobs = [deliveries, retrain] if sensors or schedules else []
    if operations.alerts is not None:
        folder = root / operations.deliveries.folder if operations.deliveries else None
        sensors.append(build_alerts_sensor(root, operations.alerts, folder))
        if operations.alerts.audit is not None:
            audit, times = _auditing(root, operations.alerts.audit)
            jobs.append(audit)
            schedules.append(times)
    return Service(tuple(jobs), tuple(sensors), tuple(schedules))


def _op(
    root: Path,
    name: str,
    arguments: Sequence[str],
    pool: str,
    *,
    follows: bool = False,
    retries: RetryPolicy | None = None,
    passing: int | None = None,
) -> OpDefinition:
    """Make a step of a command, which is tried again after the exit code `passing` alone."""
    command = " ".join(["python -m ace", *arguments])

    @op(
        name=name,
        description=f"`{command}`",
        pool=pool,
        ins={"before": In(Nothing)} if follows else {},
        retry_policy=retries,
    )
    def run(context: OpExecutionContext) -> None:
        if not follows:
            context.instance.add_run_tags(context.run_id, commit_tag(root))
        run_ace(root, arguments, passing)

    return run


def _job(name: str, description: str, first: OpDefinition, publish: OpDefinition) -> JobDefinition:
    @job(name=name, description=description)
    def steps() -> None:
        publish(before=first())

    return steps


@dataclass(frozen=True, kw_only=True)
class _Memory:
    """The sensor keeps this from one evaluation to the next, as its cursor.

    Attributes:
        settling: Name of a folder → time before which its files need no look.
        state: The work that was asked for last; None if none was.
        asked_s: Time of that, in seconds.
        count: Runs that were asked for so far.
        reported: Name of a delivery → what was reported of it last.
    """

    settling: Mapping[str, float] = field(default_factory=dict)
    state: str | None = None
    asked_s: float = 0
    count: int = 0
    reported: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, cursor: str | None) -> "_Memory":
        return cls(**json.loads(cursor)) if cursor else cls()

    def to_cursor(self) -> str:
        return json.dumps(asdict(self))


def _incoming(
    root: Path, settings: DeliveriesParams, deliveries: JobDefinition, retrain: JobDefinition
) -> SensorDefinition:
    @sensor(
        name="incoming", job=deliveries, minimum_interval_seconds=TICK_S, default_status=DefaultSensorStatus.RUNNING
    )
    def incoming(context: SensorEvaluationContext) -> SensorResult:
        """Asks for a run when a folder in incoming/ is complete, or a delivery was begun and not finished.

        It waits while another run takes deliveries or a model is trained: both change the same tracked files. What has
        changed about a delivery is reported as an observation of the asset `deliveries`.
        """
        now_s, memory = time.time(), _Memory.read(context.cursor)
        due = look(root / settings.folder, settings.settle_s, now_s, memory.settling)
        settling = {item.path.name: item.settles_s for item in due.arriving if item.settles_s > now_s}
        reports, reported = observe(root, root / settings.folder, due, memory.reported)
        memory = replace(memory, settling=settling, reported=reported)
        why = _why_not(root, due, memory, now_s) or _at_work(context.instance, deliveries.name, retrain.name)
        if why is not None:
            return SensorResult(skip_reason=why, asset_events=reports, cursor=memory.to_cursor())
        # Asked for a second time after a kill of the daemon it has the same key, and does not run twice.
        request = RunRequest(run_key=f"{due.state}-{memory.count}")
        memory = replace(memory, state=due.state, asked_s=now_s, count=memory.count + 1)
        return SensorResult(run_requests=[request], asset_events=reports, cursor=memory.to_cursor())

    return incoming


def _why_not(root: Path, due: Due, memory: _Memory, now_s: float) -> str | None:
    """Say why no run is asked for now; None if nothing speaks against it."""
    if due.state is None:
        arriving = f"{count_of(len(due.arriving), 'item')} in incoming/, none complete" if due.arriving else "none came"
        return f"no delivery is due: {arriving}; python -m ace deliveries list"
    if event := stopped(events_of(root)):
        return f"stopped since {event.time:%Y-%m-%d %H:%M} UTC by {event.who}: {event.facts['why']}"
    work = f"{len(due.complete)} complete in incoming/, {len(due.unfinished)} begun"
    if due.state == memory.state and memory.asked_s <= now_s < memory.asked_s + AGAIN_S:  # clocks are set back at times
        again = datetime.fromtimestamp(memory.asked_s + AGAIN_S, UTC)
        return f"{work}, as when a run was asked for last; asked for again at {again:%H:%M:%S} UTC if that stays so"
    return _trained_by_hand(root, work)


def _trained_by_hand(root: Path, work: str) -> str | None:
    """Say that a training is at work that no run of Dagster has begun; None if none is."""
    began = open_retraining(events_of(root))
    if began is not None and is_at_work(root):
        return f"the retraining that began {began.time:%Y-%m-%d %H:%M} UTC is at work, and {work} wait for its end"
    return None


def _at_work(instance: DagsterInstance, *names: str) -> str | None:
    for name in names:
        for run in instance.get_runs(RunsFilter(job_name=name, statuses=NOT_FINISHED_STATUSES), limit=1):
            return f"run {run.run_id[:8]} of {name} has not finished"
    return None


def _on_s3(root: Path, deliveries: JobDefinition, retrain: JobDefinition) -> ScheduleDefinition:
    @schedule(
        name="deliveries_on_s3", job=deliveries, cron_schedule=S3_CRON, default_status=DefaultScheduleStatus.RUNNING
    )
    def on_s3(context: ScheduleEvaluationContext) -> RunRequest | SkipReason:
        """Asks `deliveries due` whether a delivery on S3 is complete, and for a run if so, as the sensor `incoming`."""
        if event := stopped(events_of(root)):
            return SkipReason(f"stopped since {event.time:%Y-%m-%d %H:%M} UTC by {event.who}: {event.facts['why']}")
        if why := _at_work(context.instance, deliveries.name, retrain.name):
            return SkipReason(why)
        answer = _ask(root, DUE_ON_S3)
        why = _trained_by_hand(root, answer["reason"]) if answer["due"] else answer["reason"]
        if why is not None:
            return SkipReason(why)
        # With the time: one that is held is due again.
        return RunRequest(run_key=f"{answer['run_key']}@{context.scheduled_execution_time.isoformat()}")

    return on_s3


def _retraining(root: Path, settings: ScheduleParams, retrain: JobDefinition) -> ScheduleDefinition:
    _check_cron("schedule.cron", settings.cron)

    @schedule(
        name="retraining",
        job=retrain,
        cron_schedule=settings.cron,
        execution_timezone=settings.timezone,
        default_status=DefaultScheduleStatus.RUNNING,
    )
    def retraining(context: ScheduleEvaluationContext) -> RunRequest | SkipReason:
        """Asks `retrain due` whether there is anything to train, and for a run if so.

        It does not wait for a delivery, or a week would pass: the run itself tries again. Nor does it for an answer
        that takes too long, as on a busy machine: then a run is asked for, which finds out by itself.
        """
        if event := stopped(events_of(root)):
            return SkipReason(f"stopped since {event.time:%Y-%m-%d %H:%M} UTC by {event.who}: {event.facts['why']}")
        moment = context.scheduled_execution_time.isoformat()
        try:
            answer = _ask(root, DUE)
        except subprocess.TimeoutExpired:
            why = _at_work(context.instance, retrain.name)
            return SkipReason(why) if why else RunRequest(run_key=moment)
        if not answer["due"]:
            return SkipReason(answer["reason"])
        # With the time, since Dagster never runs a key twice, and a run that failed is due again; `retrain due` itself
        # knows which candidates were decided about.
        return RunRequest(run_key=f"{answer['run_key']}@{moment}")

    return retraining


def _auditing(root: Path, cron: str) -> tuple[JobDefinition, ScheduleDefinition]:
    """Check the event log and the bytes that it names at set times; a problem fails the run, which is told."""
    _check_cron("alerts.audit", cron)
    step = _op(root, "audit", AUDIT, "audit", retries=AUDIT_AGAIN, passing=1)

    @job(name="audit", description="Check that the event log, its tags and all that they name are as written")
    def steps() -> None:
        step()

    status = DefaultScheduleStatus.RUNNING
    return steps, ScheduleDefinition(name="auditing", job=steps, cron_schedule=cron, default_status=status)


def _check_cron(where: str, cron: str) -> None:
    if not is_valid_cron_schedule(cron):
        raise ConfigError(f"operations.{where}: found '{cron}'; expected a time, as 0 2 * * 6")


def _ask(root: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Give a command of `python -m ace` that answers with JSON."""
    command = [sys.executable, "-m", "ace", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=DUE_TIMEOUT_S, check=False)
    if done.returncode:
        raise ConfigError(
            f"python -m ace {' '.join(arguments)} failed (exit code {done.returncode}): {done.stderr[-2000:]}"
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
