"""Alerts of a service as it runs: real processes of Dagster, and a real server that takes what they send."""

import subprocess
import sys
from pathlib import Path

import pytest

from ace.operations.alerts import PASSWORD, PING, WEBHOOK
from tests.pipelines.test_process import DEFINITIONS, free_port
from tests.pipelines.toy import appears
from tests.support.checkout import ROOT
from tests.support.told import hook_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SECRETS = {WEBHOOK: "s3cret-hook", PING: "s3cret-ping", PASSWORD: "s3cret-password"}
FAILING = """

@dagster.sensor(job_name="__ASSET_JOB", default_status=dagster.DefaultSensorStatus.RUNNING, minimum_interval_seconds=5)
def fragile():
    if (Path(__file__).parent / "fail").exists():
        raise RuntimeError("as asked for")


@dagster.definitions
def defs():
    return dagster.Definitions.merge(build_definitions(Path(__file__).parent), dagster.Definitions(sensors=[fragile]))
"""


def test_it_pings_while_the_daemon_ticks_and_tells_when_a_sensor_fails(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (toy / "params.yaml").open("a") as file:
        file.write("operations: {alerts: {}}\n")
    (toy / "toy_definitions.py").write_text(DEFINITIONS.partition("\n\n@dagster")[0] + FAILING)
    home = tmp_path / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text((ROOT / "pipelines/dagster.yaml").read_text())
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-m", "dagster", "dev", "-m", "toy_definitions", "--port", str(free_port())]
    with hook_server(SECRETS[WEBHOOK]) as hook, (tmp_path / "dev.log").open("wb") as log:
        monkeypatch.setenv(WEBHOOK, hook.url)
        monkeypatch.setenv(PING, hook.url.replace(SECRETS[WEBHOOK], SECRETS[PING]))
        monkeypatch.setenv(PASSWORD, SECRETS[PASSWORD])
        dev = subprocess.Popen(command, cwd=toy, stdout=log, stderr=log)
        try:
            assert appears(lambda: hook.pings, lambda: dev.poll() is None), (tmp_path / "dev.log").read_text()
            (toy / "fail").touch()
            assert appears(lambda: len(hook.posted) > 1, lambda: dev.poll() is None), (tmp_path / "dev.log").read_text()
        finally:
            dev.terminate()
            dev.wait(60)
    assert [(body["title"], body["lines"]) for body in hook.posted] == [
        ("checks failed", ["untrained_accuracy of metrics/train.json"]),
        ("sensors or schedules fail", ["sensor fragile"]),
    ]
    written = [path.read_bytes() for folder in (home, toy) for path in folder.rglob("*") if path.is_file()]
    written.append((tmp_path / "dev.log").read_bytes())
    assert any(b"as asked for" in data for data in written), "the search finds what is there"
    assert not [name for name, secret in SECRETS.items() if any(secret.encode() in data for data in written)]
