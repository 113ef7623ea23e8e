"""A running service whose clock is a month ahead for a while: real processes of Dagster that are shown another time."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dagster import DagsterInstance

from ace.operations.alerts import PING, WEBHOOK
from tests.pipelines.test_process import DEFINITIONS, free_port
from tests.support.checkout import ROOT
from tests.support.told import hook_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
MONTH_S = 30 * 86400
LIMIT_S = 400
QUIET_S = 45
"""Seconds in which the sensor dvc_lock would tick four times."""
CLOCK = """
import datetime, time
from pathlib import Path

real, shift = time.time, Path({shift!r})
time.time = lambda: real() + float(shift.read_text())

import dagster._time

utc = datetime.timezone.utc
dagster._time._mockable_get_current_datetime = lambda: datetime.datetime.fromtimestamp(time.time(), utc)
"""


@contextmanager
def dev(root: Path) -> Iterator[Callable[[Callable[[], object]], None]]:
    """`dagster dev`; gives a function that waits for something while it runs."""
    command = [sys.executable, "-m", "dagster", "dev", "-m", "toy_definitions", "--port", str(free_port())]
    with (root.parent / "dev.log").open("ab") as log:
        process = subprocess.Popen(command, cwd=root, stdout=log, stderr=log)

    def wait_for(look: Callable[[], object]) -> None:
        end = time.monotonic() + LIMIT_S
        while not look():
            said = (root.parent / "dev.log").read_text()[-3000:]
            assert process.poll() is None, said
            assert time.monotonic() < end, said
            time.sleep(0.5)

    try:
        yield wait_for
    finally:
        process.terminate()
        process.wait(120)


def set_clock(shift: Path, ahead_s: int) -> None:
    """Let the service's clock be ahead by some seconds; no process reads a half number."""
    shift.with_suffix(".tmp").write_text(str(ahead_s))
    shift.with_suffix(".tmp").rename(shift)


def num_ticks() -> int:
    with DagsterInstance.get() as instance:
        states = [state for state in instance.all_instigator_state() if state.name == "dvc_lock"]
        return sum(len(instance.get_ticks(state.instigator_origin_id, state.selector_id)) for state in states)


def test_a_service_whose_clock_is_set_back_by_a_month_is_silent_until_the_record_of_its_ticks_is_moved_away(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (toy / "params.yaml").open("a") as file:
        file.write("operations: {alerts: {}}\n")
    (toy / "toy_definitions.py").write_text(DEFINITIONS)
    home, shift = tmp_path / "home", tmp_path / "shift"
    home.mkdir()
    (home / "dagster.yaml").write_text((ROOT / "pipelines/dagster.yaml").read_text())
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock/sitecustomize.py").write_text(CLOCK.format(shift=str(shift)))
    set_clock(shift, 0)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'clock'}:{ROOT}")
    with hook_server("hook") as hook:
        monkeypatch.setenv(WEBHOOK, hook.url)
        monkeypatch.setenv(PING, hook.url.replace("hook", "ping"))
        with dev(toy) as wait_for:
            wait_for(lambda: hook.pings)
            set_clock(shift, MONTH_S)
            before = hook.pings
            wait_for(lambda: hook.pings > before + 1)  # the first of them may have been under way
            set_clock(shift, 0)
            time.sleep(QUIET_S / 3)  # what is under way
            before = hook.pings, num_ticks()
            time.sleep(QUIET_S)
            assert (hook.pings, num_ticks()) == before, "no tick, and so no ping: the outside watch raises the alarm"
        (home / "schedules").rename(tmp_path / "schedules")
        with dev(toy) as wait_for:
            wait_for(lambda: hook.pings > before[0] and num_ticks() > 0)
