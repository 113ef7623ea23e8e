"""Jobs, sensor and schedule of the service, with a small program in the place of `python -m ace`."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dagster import (
    AssetSpec,
    DagsterInstance,
    DagsterRunStatus,
    MaterializeResult,
    RetryPolicy,
    RunRequest,
    SensorResult,
    SkipReason,
    build_schedule_context,
    build_sensor_context,
    multi_asset,
)
from dagster._core.test_utils import create_run_for_test

from ace.operations import incoming, service
from ace.operations.attempts import Attempts
from ace.operations.clone import Clone
from ace.operations.delivery import ATTEMPTS
from ace.operations.due import look
from ace.operations.events import LOG, Actor, EventLog
from ace.operations.incoming import MARKER
from ace.operations.params import OperationsParams, ScheduleParams
from ace.operations.retraining_state import BEGAN, REJECTED, running
from pipelines.lock import COMMIT
from pipelines.process import KILLED
from pipelines.service import AGAIN_S, TRAIN_AGAIN, Service, build_service, with_age
from shards.core.errors import ConfigError
from tests.ace.operations.service import init_clone
from tests.support.checkout import ROOT, git

PROGRAM = """
import json, pathlib, sys

with open("calls.txt", "a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")
answer = pathlib.Path("answer.json")
if "due" in sys.argv:
    print(answer.read_text())
codes = pathlib.Path("codes.json")
if codes.exists() and (code := json.loads(codes.read_text()).get(sys.argv[1])):
    print("the disk is full", file=sys.stderr)
    sys.exit(code)
"""
OPERATIONS = OperationsParams.from_params(
    {"deliveries": {"name": "clinic"}, "schedule": {"cron": "0 2 * * 6", "timezone": "Europe/Berlin"}}, "operations"
)
DONE = {"finished": "2026-11-30T12:00:00.000+00:00", "error": None, "outputs": {}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A clone whose own `ace` is the small program, which wins because commands run in the clone."""
    (tmp_path / "ace").mkdir()
    (tmp_path / "ace" / "__main__.py").write_text(PROGRAM)
    (tmp_path / "ace" / "__init__.py").touch()
    for name in ("incoming", "deliveries", "quarantine"):
        (tmp_path / name).mkdir()
    init_clone(tmp_path)
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "-m", "a project")
    return tmp_path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time that the sensor sees, to be set."""
    now = [time.time()]
    monkeypatch.setattr("pipelines.service.time.time", lambda: now[0])
    return now


class Ticks:
    """The sensor `incoming`, evaluated again and again with its own cursor."""

    def __init__(self, root: Path, instance: DagsterInstance) -> None:
        (self.sensor,) = build_service(root, OPERATIONS).sensors
        self.instance = instance
        self.cursor: str | None = None

    def __call__(self) -> SensorResult:
        result = self.sensor(build_sensor_context(self.instance, cursor=self.cursor))
        assert isinstance(result, SensorResult)
        self.cursor = result.cursor
        return result

    def key(self) -> str | None:
        """Key of the run that is asked for; None if none is, for a reason."""
        result = self()
        if not result.run_requests:
            assert result.skip_reason is not None
            return None
        return result.run_requests[0].run_key


@pytest.fixture
def ticks(root: Path, instance: DagsterInstance) -> Ticks:
    return Ticks(root, instance)


def calls(root: Path) -> list[str]:
    return (root / "calls.txt").read_text().splitlines()


def let_fail(root: Path, word: str, code: int) -> None:
    """Let commands that begin with a word end with an exit code."""
    (root / "codes.json").write_text(json.dumps({word: code}))


def jobs(root: Path) -> dict:
    return {job.name: job for job in build_service(root, OPERATIONS).jobs}


def test_nothing_is_there_while_the_section_is_empty(root: Path) -> None:
    assert build_service(root, OperationsParams()) == Service()


def test_a_complete_folder_is_asked_for_once_and_again_after_a_while_if_it_stays(
    root: Path, ticks: Ticks, clock: list[float]
) -> None:
    assert "none came" in str(ticks().skip_reason)
    folder = root / "incoming" / "March"
    folder.mkdir()
    (folder / "a.png").touch()
    assert "1 item in incoming/, none complete" in str(ticks().skip_reason)
    (folder / MARKER).touch()
    first = ticks.key()
    assert first is not None
    assert "as when a run was asked for last" in str(ticks().skip_reason)
    (root / "incoming" / "April").mkdir()
    (root / "incoming" / "April" / MARKER).touch()
    second = ticks.key()
    assert second not in (None, first)
    assert ticks.key() is None
    clock[0] += AGAIN_S + 1
    third = ticks.key()
    assert third not in (None, first, second)
    (folder / "late.png").touch()
    assert ticks.key() not in (None, first, second, third), "the folder is another one than the last run saw"


@pytest.mark.parametrize("step_s", [-3600, 30 * 86400, -30 * 86400], ids=["an hour back", "ahead", "a month back"])
def test_no_step_of_the_clock_keeps_a_delivery_that_failed_from_being_tried_again(
    root: Path, ticks: Ticks, clock: list[float], step_s: float
) -> None:
    attempts = Attempts(root / "deliveries" / "clinic-b001" / ATTEMPTS)
    attempts.path.parent.mkdir()
    attempts.append({"step": "build", **DONE, "error": "NoSpaceError: full"})
    first = ticks.key()
    clock[0] += step_s
    second = ticks.key()
    assert second not in (None, first)
    assert ticks.key() is None, "from then on every ten minutes, as ever"
    clock[0] += AGAIN_S + 1
    assert ticks.key() not in (None, first, second)


def test_a_request_that_is_made_again_after_a_kill_of_the_daemon_has_the_same_key(root: Path, ticks: Ticks) -> None:
    (root / "incoming" / "March").mkdir()
    (root / "incoming" / "March" / MARKER).touch()
    before = ticks.cursor
    first = ticks.key()
    ticks.cursor = before
    assert ticks.key() == first


def test_a_request_has_no_name_of_a_folder(root: Path, ticks: Ticks) -> None:
    (root / "incoming" / "Jane Doe").mkdir()
    (root / "incoming" / "Jane Doe" / MARKER).touch()
    (request,) = ticks().run_requests or []
    assert "Jane" not in f"{request} {ticks().skip_reason}"


def test_a_folder_without_the_marker_is_looked_through_once_until_it_can_have_settled(
    root: Path, ticks: Ticks, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "incoming" / "March").mkdir()
    (root / "incoming" / "March" / "a.png").touch()
    looks, entries = [], incoming._entries
    monkeypatch.setattr(incoming, "_entries", lambda folder: [looks.append(folder), *entries(folder)][1:])
    assert ticks.key() is None
    assert ticks.key() is None
    assert len(looks) == 1
    clock[0] += 601
    assert ticks.key() is not None
    assert len(looks) == 2


@pytest.mark.parametrize(
    ("place", "line", "is_due"),
    [
        ("deliveries", {"step": "accept", **DONE}, False),
        ("deliveries", {"step": "accept", **DONE, "error": "OperationsError: git"}, True),
        ("deliveries", {"step": "build", **DONE, "error": "NoSpaceError: full"}, True),
        ("deliveries", {"step": "accept", "started": "now", "pid": 1}, True),
        ("deliveries", {"step": "refuse", **DONE}, True),
        ("deliveries", {"delivery": "March", "at": "now"}, True),
        ("quarantine", {"step": "refuse", **DONE}, False),
        ("quarantine", {"overruled": "accepted"}, True),
    ],
)
def test_a_delivery_that_was_begun_and_not_finished_is_asked_for(
    root: Path, ticks: Ticks, place: str, line: dict, is_due: bool
) -> None:
    (root / place / "clinic-b001").mkdir()
    Attempts(root / place / "clinic-b001" / ATTEMPTS).append(line)
    assert (ticks.key() is not None) == is_due


def test_a_delivery_that_is_held_is_tried_again_after_a_while_and_not_at_once(
    root: Path, ticks: Ticks, clock: list[float]
) -> None:
    attempts = Attempts(root / "deliveries" / "clinic-b001" / ATTEMPTS)
    attempts.path.parent.mkdir()
    attempts.append({"step": "build", **DONE, "error": "NoSpaceError: full"})
    assert ticks.key() is not None
    attempts.append({"step": "build", **DONE, "error": "NoSpaceError: full"})
    assert ticks.key() is None
    clock[0] += AGAIN_S + 1
    assert ticks.key() is not None


def test_a_stopped_service_asks_for_nothing_and_says_who_stopped_it(
    root: Path, ticks: Ticks, instance: DagsterInstance
) -> None:
    (root / "incoming" / "March").mkdir()
    (root / "incoming" / "March" / MARKER).touch()
    clone, anna = Clone(root), Actor("Anna")
    service.stop(clone, anna, "holidays", datetime.now(UTC))
    assert "by Anna: holidays" in str(ticks().skip_reason)
    (schedule,) = build_service(root, OPERATIONS).schedules
    assert "by Anna: holidays" in str(schedule(build_schedule_context(instance, datetime.now(UTC))))
    service.start(clone, anna, "back", datetime.now(UTC))
    assert ticks.key() is not None


@pytest.mark.parametrize("job", ["deliveries", "retrain"])
@pytest.mark.parametrize("status", [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED])
def test_while_a_run_takes_deliveries_or_trains_no_other_one_is_asked_for(
    root: Path, ticks: Ticks, instance: DagsterInstance, status: DagsterRunStatus, job: str
) -> None:
    (root / "incoming" / "March").mkdir()
    (root / "incoming" / "March" / MARKER).touch()
    run = create_run_for_test(instance, job_name=job, status=status)
    assert f"run {run.run_id[:8]} of {job} has not finished" in str(ticks().skip_reason)
    instance.delete_run(run.run_id)
    assert ticks.key() is not None


def test_while_a_training_by_hand_is_at_work_no_delivery_is_asked_for(root: Path, ticks: Ticks) -> None:
    (root / "incoming" / "March").mkdir()
    (root / "incoming" / "March" / MARKER).touch()
    log, by_anna = EventLog(root / LOG), {"actor": Actor("Anna"), "now": datetime(2026, 11, 30, 12, tzinfo=UTC)}
    log.append(BEGAN, {}, **by_anna)
    with running(root):
        assert "the retraining that began 2026-11-30 12:00 UTC is at work" in str(ticks().skip_reason)
        log.append(REJECTED, {}, **by_anna)
        assert ticks.key() is not None  # it has ended
    log.append(BEGAN, {}, **by_anna)
    (root / "incoming" / "April").mkdir()
    (root / "incoming" / "April" / MARKER).touch()
    assert ticks.key() is not None  # it was killed
    with running(root):  # which the question of the sensor has not kept from its work
        pass


def test_the_schedule_does_not_wait_for_a_delivery(root: Path, instance: DagsterInstance) -> None:
    (schedule,) = build_service(root, OPERATIONS).schedules
    (root / "answer.json").write_text(json.dumps({"due": True, "reason": "600 of 500 new images", "run_key": "abc"}))
    create_run_for_test(instance, job_name="deliveries", status=DagsterRunStatus.STARTED)
    assert isinstance(schedule(build_schedule_context(instance, datetime.now(UTC))), RunRequest)


def test_a_look_reads_the_record_of_each_finished_delivery_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        folder = root / "deliveries" / f"clinic-b{number:03}"
        folder.mkdir()
        for step in ("move", "check", "register", "build", "judge", "accept"):
            Attempts(folder / ATTEMPTS).append({"step": step, "started": "now", "pid": 1})
            Attempts(folder / ATTEMPTS).append({"step": step, **DONE})
    read: list[Path] = []
    whole = Attempts.last
    monkeypatch.setattr(Attempts, "last", lambda self: read.append(self.path) or whole(self))
    assert look(root, 600, time.time()).state is None
    assert len(read) == len(set(read)) == 20


def test_the_jobs_give_their_commands_in_order_and_tag_the_run_with_the_commit(
    root: Path, instance: DagsterInstance
) -> None:
    found = jobs(root)
    assert [found[name].execute_in_process(instance=instance).success for name in ("deliveries", "retrain")] == [
        True
    ] * 2
    assert calls(root) == ["deliveries run", "ops publish", "retrain run --automatic", "ops publish"]
    head = git(root, "rev-parse", "HEAD").strip()
    assert [run.tags[COMMIT] for run in instance.get_runs()] == [head, head]


def test_a_command_that_fails_shows_its_last_lines_and_nothing_is_published(
    root: Path, instance: DagsterInstance
) -> None:
    let_fail(root, "deliveries", 1)
    done = jobs(root)["deliveries"].execute_in_process(instance=instance, raise_on_error=False)
    (failure,) = done.get_step_failure_events()
    assert "the disk is full" in str(failure.step_failure_data.user_failure_data.metadata["last_lines"].value)
    assert calls(root) == ["deliveries run"]


def test_steps_wait_for_each_other_in_pools_and_publishing_and_training_are_tried_again(root: Path) -> None:
    ops = {node.name: node.definition for job in jobs(root).values() for node in job.graph.nodes}
    assert {name: op.pool for name, op in ops.items()} == {"take": "deliver", "train": "gpu", "publish": "publish"}
    assert {name: op.retry_policy.max_retries for name, op in ops.items() if op.retry_policy} == {
        "publish": 3,
        "train": 6,
    }
    assert [TRAIN_AGAIN.calculate_delay(number) / 60 for number in range(1, 7)] == [10, 20, 30, 40, 50, 60]


@pytest.mark.parametrize(
    ("word", "code", "called"),
    [
        ("ops", 1, ["retrain run --automatic", *["ops publish"] * 3]),  # a remote cannot be reached
        ("ops", 2, ["retrain run --automatic", "ops publish"]),  # a person must settle it
        ("ops", KILLED, ["retrain run --automatic", *["ops publish"] * 3]),
        ("retrain", 75, ["retrain run --automatic"] * 3),  # a delivery is at work
        ("retrain", 2, ["retrain run --automatic"]),
    ],
)
def test_only_what_passes_by_itself_is_tried_again(
    root: Path,
    instance: DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    word: str,
    code: int,
    called: list[str],
) -> None:
    for name in ("PUBLISH_AGAIN", "TRAIN_AGAIN"):
        monkeypatch.setattr(f"pipelines.service.{name}", RetryPolicy(max_retries=2))
    let_fail(root, word, code)
    assert not jobs(root)["retrain"].execute_in_process(instance=instance, raise_on_error=False).success
    assert calls(root) == called


def test_the_schedule_asks_the_command_and_passes_its_reason_on(root: Path, instance: DagsterInstance) -> None:
    (schedule,) = build_service(root, OPERATIONS).schedules
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 2 * * 6", "Europe/Berlin")
    answer, moment = root / "answer.json", datetime(2026, 12, 5, 1, tzinfo=UTC)

    def ask(moment: datetime) -> object:
        return schedule(build_schedule_context(instance, moment))

    answer.write_text(json.dumps({"due": False, "reason": "120 of 500 new images since v12", "run_key": "abc"}))
    reason = ask(moment)
    assert isinstance(reason, SkipReason)
    assert reason.skip_message == "120 of 500 new images since v12"
    answer.write_text(json.dumps({"due": True, "reason": "600 of 500 new images since v12", "run_key": "abc"}))
    requests = [ask(moment), ask(moment), ask(moment + timedelta(days=7))]
    keys = [request.run_key for request in requests if isinstance(request, RunRequest)]
    assert keys[0] == keys[1], "a daemon that was killed asks again"
    assert keys[2] != keys[0], "a run that failed is due again a week later"
    let_fail(root, "retrain", 1)
    with pytest.raises(ConfigError, match="the disk is full"):
        ask(moment)


@pytest.fixture
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterInstance]:
    """An instance on the disk, which a schedule opens by its reference."""
    home = tmp_path_factory.mktemp("home")
    with DagsterInstance.local_temp(str(home), {"telemetry": {"enabled": False}}) as instance:
        yield instance


def test_deliveries_on_s3_are_asked_for_while_nothing_else_is_at_work(root: Path, lasting: DagsterInstance) -> None:
    assert not build_service(root, OperationsParams.from_params({"deliveries": {"name": "a"}}, "")).schedules
    by_s3 = {"deliveries": {"name": "clinic", "incoming": "s3://hospital/in"}}
    (schedule,) = build_service(root, OperationsParams.from_params(by_s3, "operations")).schedules
    moment, by_anna = datetime(2026, 12, 5, 1, tzinfo=UTC), {"actor": Actor("Anna"), "now": datetime.now(UTC)}
    assert (schedule.name, schedule.job.name) == ("deliveries_on_s3", "deliveries")

    def ask(moment: datetime = moment) -> str:
        """The key of a run, or the reason why none is asked for."""
        found = schedule(build_schedule_context(lasting, moment))
        if isinstance(found, RunRequest):
            return f"run {found.run_key}"
        assert isinstance(found, SkipReason)
        return str(found.skip_message)

    answer = root / "answer.json"
    answer.write_text(json.dumps({"due": False, "reason": "0 complete of 1 on S3", "run_key": "abc"}))
    assert ask() == "0 complete of 1 on S3"
    assert calls(root) == ["deliveries due --json"]
    answer.write_text(json.dumps({"due": True, "reason": "1 complete of 1 on S3", "run_key": "abc"}))
    assert ask() == ask() == f"run abc@{moment.isoformat()}"
    assert ask(moment + timedelta(minutes=10)) != ask()

    run = create_run_for_test(lasting, job_name="retrain", status=DagsterRunStatus.STARTED)
    assert ask() == f"run {run.run_id[:8]} of retrain has not finished"
    lasting.delete_run(run.run_id)
    EventLog(root / LOG).append(BEGAN, {}, **by_anna)
    with running(root):
        assert "is at work, and 1 complete of 1 on S3 wait for its end" in ask()
    service.stop(Clone(root), Actor("Anna"), "holidays", datetime.now(UTC))
    assert ask().endswith("by Anna: holidays")


def test_on_a_machine_too_busy_to_answer_one_run_is_asked_for_all_the_same(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.service.DUE_TIMEOUT_S", 0.001)
    (schedule,) = build_service(root, OPERATIONS).schedules
    with DagsterInstance.local_temp() as instance:
        answers = [schedule(build_schedule_context(instance, datetime(2026, 12, 5, 1, tzinfo=UTC)))]
        create_run_for_test(instance, job_name="retrain", status=DagsterRunStatus.STARTED)
        answers.append(schedule(build_schedule_context(instance, datetime(2026, 12, 12, 1, tzinfo=UTC))))
    assert isinstance(answers[0], RunRequest)
    assert "of retrain has not finished" in str(answers[1])


@pytest.mark.parametrize("section", [{"cron": "0 2 * *"}, {"cron": "0 2 * * 6", "timezone": "Berlin"}])
def test_a_schedule_that_means_nothing_is_refused(section: dict) -> None:
    with pytest.raises(ConfigError, match=r"operations\.schedule\.(cron|timezone)"):
        OperationsParams.from_params({"schedule": section}, "params.yaml: operations")


def test_a_time_that_never_comes_is_refused(root: Path) -> None:
    section = OperationsParams.from_params({"schedule": {"cron": "0 2 * * 9"}}, "params.yaml: operations")
    with pytest.raises(ConfigError, match="found '0 2"):
        build_service(root, section)


def test_the_model_alone_becomes_too_old(root: Path) -> None:
    @multi_asset(specs=[AssetSpec(["models", "ace"]), AssetSpec(["models", "other"])])
    def train() -> MaterializeResult:
        return MaterializeResult()

    def policies(settings: ScheduleParams | None) -> dict[str, object]:
        assets: list[AssetsDefinition] = with_age([train], settings)
        return {
            key.to_user_string(): asset.get_asset_spec(key).freshness_policy for asset in assets for key in asset.keys
        }

    assert set(policies(None).values()) == {None}
    assert set(policies(ScheduleParams(cron="0 2 * * 6")).values()) == {None}
    found = policies(ScheduleParams(cron="0 2 * * 6", max_age_days=30))
    assert found["models/other"] is None
    assert found["models/ace"].fail_window.to_timedelta() == timedelta(days=30)


def test_the_instance_starts_runs_of_dead_workers_again_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text((ROOT / "pipelines/dagster.yaml").read_text())
    with DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.run_retries_enabled
        assert instance.run_retries_max_retries == 2
        assert not instance.run_retries_retry_on_asset_or_op_failure
        assert instance.freshness_enabled
        assert instance.run_monitoring_enabled


def test_definitions_load_without_torch() -> None:
    program = "import sys, pipelines.definitions; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
