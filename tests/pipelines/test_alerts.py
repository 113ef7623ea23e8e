"""The sensor `alerts` on a real instance of Dagster, with real servers that take what it sends."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from dagster import (
    AssetCheckResult,
    AssetCheckSeverity,
    AssetKey,
    DagsterInstance,
    Definitions,
    RunRequest,
    SensorResult,
    asset,
    asset_check,
    build_sensor_context,
    job,
    materialize,
    op,
    schedule,
    sensor,
)
from dagster._core.definitions.run_request import InstigatorType
from dagster._core.remote_origin import (
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    ScheduleInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.test_utils import create_run_for_test
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._daemon.types import DaemonHeartbeat
from dagster._utils.error import SerializableErrorInfo

from ace.operations.alerts import PING, WEBHOOK
from ace.operations.attempts import Attempts
from ace.operations.delivery import ATTEMPTS
from ace.operations.events import LOG, Actor, EventLog
from ace.operations.params import OperationsParams
from ace.operations.retraining_state import REJECTED
from pipelines import alerts
from pipelines.service import build_service
from shards.core.errors import ConfigError
from tests.ace.operations.service import init_clone
from tests.support.checkout import git
from tests.support.told import Hook, Post, hook_server, mail_server

SECRET = "s3cret-token"
FAILING: dict[str, bool] = {}
"""What fails now: the steps, by the name of their job, and the check."""
DONE = {"finished": "2026-11-30T12:00:00.000+00:00", "error": None, "outputs": {}}
FAILED = {**DONE, "error": "NoSpaceError: incoming/Jane Doe: the disk is full"}


def step_of(name: str):
    @op(name=f"step_of_{name}")
    def step() -> None:
        if FAILING.get(name):
            raise RuntimeError("Jane Doe")

    @job(name=name)
    def work() -> None:
        step()

    return work


@asset
def page() -> None:
    if FAILING.get("page"):
        raise RuntimeError("Jane Doe")


@asset_check(asset=page)
def bound() -> AssetCheckResult:
    severity = AssetCheckSeverity.WARN if FAILING.get("warns") else AssetCheckSeverity.ERROR
    return AssetCheckResult(passed=not FAILING.get("bound"), severity=severity, description="Jane Doe")


@sensor(job=(deliveries := step_of("deliveries")))
def incoming() -> RunRequest:
    return RunRequest()


@schedule(job=(retrain := step_of("retrain")), cron_schedule="0 2 * * 6")
def retraining() -> RunRequest:
    return RunRequest()


@pytest.fixture(autouse=True)
def _nothing_fails() -> None:
    FAILING.clear()


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[DagsterInstance]:
    """An instance on the disk, whose daemons are well."""
    (tmp_path / "home").mkdir()
    with DagsterInstance.local_temp(str(tmp_path / "home"), {"telemetry": {"enabled": False}}) as instance:
        beat(instance)
        yield instance


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "clone"
    for name in ("incoming", "deliveries", "quarantine"):
        (root / name).mkdir(parents=True)
    init_clone(root)
    git(root, "commit", "--quiet", "--allow-empty", "-m", "a project")
    return root


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    with hook_server(SECRET) as hook:
        monkeypatch.setenv(WEBHOOK, hook.url)
        monkeypatch.setenv(PING, hook.url)
        yield hook


@pytest.fixture
def post() -> Iterator[Post]:
    with mail_server() as post:
        yield post


class Ticks:
    """The sensor, evaluated again and again with its own cursor."""

    def __init__(self, root: Path, instance: DagsterInstance, section: dict | None = None) -> None:
        operations = {"deliveries": {"name": "clinic"}, "alerts": section or {}}
        service = build_service(root, OperationsParams.from_params(operations, "operations"))
        (self.sensor,) = [item for item in service.sensors if item.name == "alerts"]
        self.definitions = Definitions(
            assets=[page],
            asset_checks=[bound],
            jobs=[deliveries, retrain],
            sensors=[incoming, self.sensor],
            schedules=[retraining],
        )
        self.instance = instance
        self.cursor: str | None = None

    def __call__(self) -> str:
        """Evaluate once; the reason that the tick shows."""
        context = build_sensor_context(self.instance, cursor=self.cursor, definitions=self.definitions)
        result = self.sensor(context)
        assert isinstance(result, SensorResult)
        self.cursor = result.cursor
        return str(result.skip_reason and result.skip_reason.skip_message)


@pytest.fixture
def ticks(root: Path, instance: DagsterInstance, hook: Hook) -> Ticks:
    ticks = Ticks(root, instance)
    assert ticks() == "all is told"
    assert hook.posted == []
    return ticks


def beat(instance: DagsterInstance, errors: list | None = None, age_s: float = 0) -> None:
    for daemon in instance.get_required_daemon_types():
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - age_s, daemon, "id", errors))


def execute(instance: DagsterInstance, name: str, *, fails: bool) -> str:
    FAILING[name] = fails
    work = {"deliveries": deliveries, "retrain": retrain}[name]
    return work.execute_in_process(instance=instance, raise_on_error=False).run_id


def tick(instance: DagsterInstance, name: str, kind: InstigatorType, status: TickStatus) -> None:
    """Record a tick as Dagster's daemon does."""
    location = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(module_name="toy"), "toy")
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "__repository__"), name)
    data = ScheduleInstigatorData("0 2 * * 6") if kind == InstigatorType.SCHEDULE else None
    state = InstigatorState(origin, kind, InstigatorStatus.RUNNING, data)
    if not instance.get_instigator_state(origin.get_id(), state.selector_id):
        instance.add_instigator_state(state)
    error = SerializableErrorInfo("Jane Doe", [], "RuntimeError") if status == TickStatus.FAILURE else None
    moment, own = time.time(), state.selector_id
    instance.create_tick(TickData(origin.get_id(), name, kind, status, moment, [], selector_id=own, error=error))


def append(root: Path, kind: str, **facts: str) -> None:
    EventLog(root / LOG).append(kind, facts, actor=Actor("the checks", automatic=True), now=datetime.now(UTC))


def test_a_run_that_failed_is_told_once(ticks: Ticks, instance: DagsterInstance, hook: Hook) -> None:
    run_id = execute(instance, "deliveries", fails=True)
    assert ticks() == "all is told"
    assert ticks() == "all is told"
    assert [(body["title"], body["lines"]) for body in hook.posted] == [
        ("runs failed", [f"run {run_id} of deliveries"])
    ]
    assert "python -m ace ops status" in hook.posted[0]["text"]


def test_the_same_work_that_fails_every_ten_minutes_is_told_again_only_after_a_success(
    ticks: Ticks, instance: DagsterInstance, hook: Hook
) -> None:
    for _ in range(3):
        execute(instance, "deliveries", fails=True)
        ticks()
    assert len(hook.posted) == 1
    execute(instance, "retrain", fails=True)
    ticks()
    assert len(hook.posted) == 2, "other work has its own message"
    execute(instance, "deliveries", fails=False)
    last = execute(instance, "deliveries", fails=True)
    ticks()
    assert [body["lines"] for body in hook.posted[2:]] == [[f"run {last} of deliveries"]]


def test_failures_of_one_tick_are_one_message_of_bounded_length(
    ticks: Ticks, instance: DagsterInstance, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "MAX_LINES", 1)
    execute(instance, "deliveries", fails=True)
    execute(instance, "retrain", fails=True)
    ticks()
    (body,) = hook.posted
    assert len(body["lines"]) == 2
    assert body["lines"][1] == "and 1 more"


def test_of_more_runs_than_one_tick_looks_at_none_is_passed_over(
    ticks: Ticks, instance: DagsterInstance, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "MAX_RUNS", 2)
    for _ in range(3):
        execute(instance, "retrain", fails=False)
    last = [execute(instance, name, fails=True) for name in ("deliveries", "retrain")]
    execute(instance, "retrain", fails=False)
    for _ in range(4):
        ticks()
    last.append(execute(instance, "retrain", fails=True))
    ticks()
    told = [line.split()[1] for body in hook.posted for line in body["lines"]]
    assert told == last, "the success between two failures is seen too"


def test_failures_from_before_the_alerts_are_no_news(root: Path, instance: DagsterInstance, hook: Hook) -> None:
    execute(instance, "deliveries", fails=True)
    append(root, "delivery_refused", batch="clinic-b001")
    ticks = Ticks(root, instance)
    ticks()
    ticks()
    assert hook.posted == []


def test_assets_that_fail_are_named_and_others_are_other_work(
    ticks: Ticks, instance: DagsterInstance, hook: Hook
) -> None:
    expected = []
    for names in (["page"], ["page", "other"], ["page"]):
        keys = frozenset(AssetKey(["data", name]) for name in names)
        run = create_run_for_test(instance, job_name="__ASSET_JOB", asset_selection=keys)
        instance.report_run_failed(run)
        expected.append(f"run {run.run_id} of {', '.join(sorted(key.to_user_string() for key in keys))}")
    ticks()
    assert [body["lines"] for body in hook.posted] == [expected[:2]]


def test_a_check_that_fails_is_told_once_until_it_has_passed(
    ticks: Ticks, instance: DagsterInstance, hook: Hook
) -> None:
    def evaluate(*, fails: bool) -> None:
        FAILING["bound"] = fails
        assert materialize([page, bound], instance=instance).success
        ticks()

    evaluate(fails=True)
    evaluate(fails=True)
    assert [(body["title"], body["lines"]) for body in hook.posted] == [("checks failed", ["bound of page"])]
    evaluate(fails=False)
    assert len(hook.posted) == 1
    evaluate(fails=True)
    assert len(hook.posted) == 2


def test_a_check_that_only_warns_is_not_told(ticks: Ticks, instance: DagsterInstance, hook: Hook) -> None:
    FAILING["bound"] = FAILING["warns"] = True
    materialize([page, bound], instance=instance)
    ticks()
    assert hook.posted == []
    FAILING["warns"] = False
    materialize([page, bound], instance=instance)
    ticks()
    assert len(hook.posted) == 1


def test_a_check_that_runs_again_is_told_no_second_time(
    ticks: Ticks, instance: DagsterInstance, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate() -> None:
        FAILING["bound"] = True
        materialize([page, bound], instance=instance)

    evaluate()
    ticks()
    storage = type(instance.event_log_storage)
    latest = storage.get_latest_asset_check_execution_by_key
    planned = alerts.AssetCheckExecutionRecordStatus.PLANNED

    def running(self: object, keys: object) -> dict:
        return {key: record._replace(status=planned) for key, record in latest(self, keys).items()}

    with monkeypatch.context() as patch:
        patch.setattr(storage, "get_latest_asset_check_execution_by_key", running)
        ticks()
    evaluate()
    ticks()
    assert len(hook.posted) == 1


@pytest.mark.parametrize(
    ("name", "kind", "line"),
    [
        ("incoming", InstigatorType.SENSOR, "sensor incoming"),
        ("retraining", InstigatorType.SCHEDULE, "schedule retraining"),
    ],
)
def test_a_sensor_or_schedule_that_fails_is_told_once_until_it_has_not(
    ticks: Ticks, instance: DagsterInstance, hook: Hook, name: str, kind: InstigatorType, line: str
) -> None:
    for status in (TickStatus.SUCCESS, TickStatus.FAILURE, TickStatus.STARTED, TickStatus.FAILURE):
        tick(instance, name, kind, status)
        ticks()
    assert [(body["title"], body["lines"]) for body in hook.posted] == [("sensors or schedules fail", [line])]
    tick(instance, name, kind, TickStatus.SKIPPED)
    ticks()
    tick(instance, name, kind, TickStatus.FAILURE)
    ticks()
    assert len(hook.posted) == 2


@pytest.mark.parametrize("name", ["alerts", "gone"])
def test_of_itself_and_of_what_is_no_longer_defined_nothing_is_told(
    ticks: Ticks, instance: DagsterInstance, hook: Hook, name: str
) -> None:
    tick(instance, name, InstigatorType.SENSOR, TickStatus.FAILURE)
    ticks()
    assert hook.posted == []


def test_a_delivery_that_is_refused_and_a_model_that_is_rejected_are_told(root: Path, ticks: Ticks, hook: Hook) -> None:
    append(root, "delivery_accepted", batch="clinic-b000")
    append(root, "delivery_refused", batch="clinic-b001", why="Jane Doe")
    append(root, REJECTED, reason={"rule": "not_worse", "value": 0.1}, sentence="…")
    ticks()
    ticks()
    assert [(body["title"], body["lines"]) for body in hook.posted] == [
        ("deliveries were refused", ["clinic-b001 (event 2)"]),
        ("a new model was rejected", ["by the rule not_worse (event 3)"]),
    ]


def test_a_held_delivery_is_told_once_however_often_it_is_tried(root: Path, ticks: Ticks, hook: Hook) -> None:
    attempts = Attempts(root / "deliveries" / "clinic-b001" / ATTEMPTS)
    attempts.path.parent.mkdir()
    lines = [
        {"delivery": "Jane Doe", "at": "now"},
        {"step": "build", **FAILED},
        {"step": "check", "started": "now", "pid": 1},
        {"step": "check", **DONE},
        {"step": "build", **FAILED},
    ]
    for line in lines:
        attempts.append(line)
        ticks()
    assert [(body["title"], body["lines"]) for body in hook.posted] == [("deliveries are held", ["clinic-b001"])]
    attempts.append({"step": "accept", **DONE})
    ticks()
    attempts.append({"step": "refuse", **FAILED})
    ticks()
    assert len(hook.posted) == 2


def test_a_log_that_was_changed_is_told_once_and_mends(root: Path, ticks: Ticks, hook: Hook) -> None:
    append(root, "delivery_refused", batch="clinic-b001")
    ticks()
    text = (root / LOG).read_text()
    (root / LOG).write_text(text.replace("b001", "b0001") + text)
    ticks()
    ticks()
    assert hook.titles == ["deliveries were refused", "the event log was changed"]
    assert "python -m ace models audit" in hook.posted[1]["more"]
    (root / LOG).write_text(text)
    append(root, "delivery_refused", batch="clinic-b002")
    ticks()
    assert hook.posted[2]["lines"] == ["clinic-b002 (event 2)"]


def test_what_did_not_arrive_is_sent_again_and_nothing_twice(
    root: Path, ticks: Ticks, instance: DagsterInstance, hook: Hook
) -> None:
    execute(instance, "deliveries", fails=True)
    append(root, "delivery_refused", batch="clinic-b001")
    append(root, REJECTED, reason={"rule": "floor"})
    hook.codes = [503]
    assert ticks() == f"not sent, and tried again at the next tick: {WEBHOOK}: the server answered 503; no ping"
    hook.codes = [200, 503]
    assert "answered 503" in ticks()
    assert hook.titles == ["runs failed"]
    execute(instance, "deliveries", fails=False)
    assert ticks() == "all is told"
    assert hook.titles == ["runs failed", "deliveries were refused", "a new model was rejected"]


def test_a_way_that_is_shut_keeps_nothing_from_another_one(
    root: Path, instance: DagsterInstance, hook: Hook, post: Post
) -> None:
    mail = {"host": "localhost", "port": post.port, "security": "none", "sender": "a@b", "to": ["c@d"]}
    ticks = Ticks(root, instance, {"mail": mail})
    ticks()
    run_id = execute(instance, "deliveries", fails=True)
    hook.codes = [500, 500]
    ticks()
    ticks()
    assert (len(hook.posted), len(post.mails)) == (0, 1)
    assert run_id in str(post.mails[0][1].get_payload())
    ticks()
    assert (len(hook.posted), len(post.mails)) == (1, 1)


def test_when_its_time_is_up_a_tick_leaves_the_rest_to_the_next_one(
    root: Path, ticks: Ticks, instance: DagsterInstance, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(instance, "deliveries", fails=True)
    with monkeypatch.context() as patch:
        patch.setattr(alerts, "BUDGET_S", -1)
        assert "no time for all messages" in ticks()
    assert hook.posted == []
    ticks()
    assert len(hook.posted) == 1


def test_it_pings_while_all_is_looked_at_and_told_and_the_daemons_are_well(
    ticks: Ticks, instance: DagsterInstance, hook: Hook
) -> None:
    assert hook.pings == 1
    execute(instance, "deliveries", fails=True)
    hook.codes = [500]
    ticks()
    assert hook.pings == 1, "a message did not arrive"
    ticks()
    assert hook.pings == 2, "a failure that was told keeps nobody from pinging"
    beat(instance, errors=[SerializableErrorInfo("no", [], "RuntimeError")])
    assert "a daemon of Dagster fails" in ticks()
    for age_s in (3600, -3600):  # the clock was set back by an hour after the last heartbeat
        beat(instance, age_s=age_s)
        ticks()
    assert hook.pings == 2
    beat(instance)
    hook.codes = [500]
    assert ticks() == f"{PING}: the server answered 500"
    ticks()
    assert hook.pings == 3


def test_a_section_without_anybody_to_tell_fails_the_tick_and_pings_nobody(
    ticks: Ticks, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(WEBHOOK)
    with pytest.raises(ConfigError, match="found nobody to tell"):
        ticks()
    assert hook.pings == 1


def test_messages_ticks_and_home_hold_no_secret_and_nothing_of_patients(
    root: Path, ticks: Ticks, instance: DagsterInstance, hook: Hook, tmp_path: Path
) -> None:
    (root / "incoming" / "Jane Doe").mkdir()
    execute(instance, "deliveries", fails=True)
    append(root, "delivery_refused", batch="clinic-b001", why="Jane Doe")
    tick(instance, "incoming", InstigatorType.SENSOR, TickStatus.FAILURE)
    FAILING["bound"] = True
    materialize([page, bound], instance=instance)
    attempts = Attempts(root / "deliveries" / "clinic-b002" / ATTEMPTS)
    attempts.path.parent.mkdir()
    attempts.append({"step": "build", **FAILED})
    hook.codes = [200, 500]
    shown = [ticks(), ticks(), str(ticks.cursor)]
    assert len(hook.posted) == 5
    assert "Jane" not in json.dumps(hook.posted) + "".join(shown)
    assert SECRET not in json.dumps(hook.posted) + "".join(shown)
    files = [path for folder in (root, tmp_path / "home") for path in folder.rglob("*") if path.is_file()]
    assert any(b"Jane Doe" in path.read_bytes() for path in files), "the search finds what is there"
    assert not any(SECRET.encode() in path.read_bytes() for path in files)


def test_an_audit_is_a_run_at_the_hours_of_the_section_and_its_failure_is_told(
    root: Path, instance: DagsterInstance
) -> None:
    section = {"audit": "0 5 * * *"}
    service = build_service(root, OperationsParams.from_params({"alerts": section}, "operations"))
    (found,) = service.schedules
    assert (found.cron_schedule, found.job.name, [item.name for item in service.jobs]) == (
        "0 5 * * *",
        "audit",
        ["audit"],
    )
    (node,) = found.job.graph.nodes
    assert node.definition.description == "`python -m ace models audit`"
    with pytest.raises(ConfigError, match=r"operations\.alerts\.audit: found"):
        build_service(root, OperationsParams.from_params({"alerts": {"audit": "0 5 * * 9"}}, "operations"))
