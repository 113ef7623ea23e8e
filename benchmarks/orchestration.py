"""What a service costs that has nothing to do: `dvc repro`, the ticks of its sensors, and *Materialize all*.

A clone of this repository in a temporary folder gets batches of one small file each and as many finished deliveries;
`dvc commit` records them as made. Seconds of the processor (user and system) are with children. A tick is the second
one of a sensor in a process, at which nothing has changed since the first. `repro` is without what the import of dvc
takes, which is `import_dvc`.

Last line: one JSON object with the seconds for each number of batches, and `ratio_*`: those of the most batches over
those of the fewest.

    python benchmarks/orchestration.py [--num-batches 5 50 200 | --small]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from graph import ROOT, add_batches, run

IMPORT = "import dvc.cli, dvc.commands.repro, dvc.repo.reproduce"
TICKS = """
import json, os, sys
from pathlib import Path

from dagster import DagsterInstance, Definitions, build_sensor_context

from ace.operations.params import OperationsParams, read_operations
from pipelines.assets import build_assets
from pipelines.graph import load_graph
from pipelines.metadata import read_checks
from pipelines.sensors import build_dvc_lock_sensor
from pipelines.service import build_service

root = Path()
graph = load_graph(root)
checks = read_checks(root, graph)
service = build_service(root, OperationsParams.from_params({"deliveries": {"name": "clinic"}, "alerts": {}}, ""))
sensors = [build_dvc_lock_sensor(root, graph, checks, read_operations(root / "params.yaml")), *service.sensors]
definitions = Definitions(assets=build_assets(root, graph, checks), jobs=service.jobs, sensors=sensors)
seconds = {}
with DagsterInstance.local_temp(sys.argv[1], {"telemetry": {"enabled": False}}) as instance:
    for sensor in sensors:
        cursor = None
        for _ in range(2):
            before = os.times()
            result = sensor(build_sensor_context(instance, cursor=cursor, definitions=definitions))
            seconds[sensor.name] = sum(os.times()[:4]) - sum(before[:4])
            cursor = result.cursor
            for event in result.asset_events:
                instance.report_runless_asset_event(event)
        assert not result.asset_events
print(json.dumps(seconds))
"""
DONE = '{"step": "accept", "finished": "2026-11-30T12:00:00.000+00:00", "error": null, "outputs": {}}\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-batches", type=int, nargs="+", default=[5, 50, 200], help="batches beside the first one")
    parser.add_argument("--small", action="store_const", const=[1, 2], dest="num_batches", help="1 and 2 batches")
    numbers = sorted(parser.parse_args().num_batches)
    found = {number: measure(number) for number in numbers}
    few, many = found[numbers[0]], found[numbers[-1]]
    ratios = {f"ratio_{name}": round(many[name] / few[name], 2) for name in many if few[name] > 0}
    print(json.dumps({"seconds": {str(number): row for number, row in found.items()}, **ratios}))


def measure(num_batches: int) -> dict[str, float]:
    """Seconds of each thing that a service without work does, with so many batches."""
    with tempfile.TemporaryDirectory() as folder:
        project, home = Path(folder) / "project", Path(folder) / "home"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
        add_batches(project, num_batches)
        for number in range(num_batches):
            delivery = project / "deliveries" / f"clinic-b{number:03}"
            delivery.mkdir(parents=True)
            (delivery / "attempts.jsonl").write_text(DONE, encoding="utf-8")
        home.mkdir()
        (home / "dagster.yaml").write_text((ROOT / "pipelines/dagster.yaml").read_text(encoding="utf-8"))
        dvc = [sys.executable, "-m", "dvc"]
        run([*dvc, "commit", "--force", "--quiet"], project)
        imports = run([sys.executable, "-c", IMPORT], project)
        row: dict[str, float] = {"import_dvc": imports, "repro": round(run([*dvc, "repro"], project) - imports, 2)}
        row |= {f"tick_{name}": round(seconds, 3) for name, seconds in ticks(project, home).items()}
        began = time.monotonic()
        row["materialize_all_cpu"] = materialize_all(project, home)
        row["materialize_all_wall"] = round(time.monotonic() - began, 1)
    print(f"{num_batches} batches: {', '.join(f'{name} {seconds} s' for name, seconds in row.items())}", flush=True)
    return row


def ticks(project: Path, home: Path) -> dict[str, Any]:
    """Seconds of the processor that a tick of each sensor takes."""
    environment = {**os.environ, "PYTHONPATH": str(project), "ACE_ALERT_WEBHOOK": "http://127.0.0.1:9"}
    command = [sys.executable, "-c", TICKS, str(home)]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the ticks failed:\n{done.stdout}\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def materialize_all(project: Path, home: Path) -> float:
    """Seconds of the processor that all steps take when none has anything to do."""
    command = [sys.executable, "-m", "dagster", "asset", "materialize", "--select", "*", "-m", "pipelines.definitions"]
    return run(["env", f"DAGSTER_HOME={home}", *command], project)


if __name__ == "__main__":
    main()
