"""What a service costs that has nothing to do: `dvc repro`, the ticks of its sensors, *Materialize all*, and memory.

A clone of this repository in a temporary folder gets batches of one small file each and as many finished deliveries;
`dvc commit` records them as made. No shard set is real: what `verify` and the metadata of a run would read of one is
not measured. Seconds of the processor (user and system) are with children. A tick is the second one of a sensor in a
process, at which nothing has changed since the first. `repro` is without what the import of dvc takes, which is
`import_dvc`. Memory is what the processes of `dagster dev` hold after so many ticks of the sensor `dvc_lock`, with the
most batches; what each tick adds is a straight line through the later two thirds of them. The processes warm up for
some 150 ticks, so that fewer do not tell whether memory is flat.

Last line: one JSON object with the seconds for each number of batches; `ratio_*`, those of the most batches over those
of the fewest; `s_per_batch`, what one batch more costs from each number of batches to the next, the same wherever the
cost is linear; and `memory`.

    python benchmarks/orchestration.py [--batches 5 50 200] [--num-ticks 30] [--small]
"""

import argparse
import ctypes
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
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


NOTHING_NEW = "Sensor dvc_lock skipped: dvc.lock holds nothing new"
PROCESSES = {"code_server": "grpc", "daemon": "dagster._daemon", "webserver": "dagster_webserver"}
"""What tells a process of `dagster dev` from the others: a word of its command."""
PR_SET_CHILD_SUBREAPER = 36
Rows = Mapping[int, Mapping[str, float]]
"""Number of batches → what was measured → seconds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[5, 50, 200], help="batches beside the first one")
    parser.add_argument("--num-ticks", type=int, default=30, help="ticks of ten seconds for which memory is looked at")
    parser.add_argument("--small", action="store_true", help="1 and 2 batches, and 3 ticks")
    arguments = parser.parse_args()
    numbers = [1, 2] if arguments.small else sorted(arguments.batches)
    num_ticks = 3 if arguments.small else arguments.num_ticks
    # The server from which steps are forked outlives its run, and its seconds count too.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    rows, held = {}, {}
    for number in numbers:
        with tempfile.TemporaryDirectory() as folder:
            project, home = build(Path(folder), number)
            rows[number] = measure(project, home, number)
            if number == numbers[-1]:
                held = memory(project, home, num_ticks)
    few, many = rows[numbers[0]], rows[numbers[-1]]
    ratios = {f"ratio_{name}": round(many[name] / few[name], 2) for name in many if few[name] > 0}
    seconds = {str(number): row for number, row in rows.items()}
    print(json.dumps({"seconds": seconds, **ratios, "s_per_batch": per_batch(rows), "memory": held}))


def per_batch(rows: Rows) -> dict[str, list[float]]:
    """Seconds that one batch more costs, from each number of batches to the next."""
    pairs = list(pairwise(sorted(rows)))
    names = rows[min(rows)]
    return {
        name: [round((rows[many][name] - rows[few][name]) / (many - few), 4) for few, many in pairs] for name in names
    }


def build(folder: Path, num_batches: int) -> tuple[Path, Path]:
    """A project of so many batches that has nothing to do, and a home for Dagster."""
    project, home = folder / "project", folder / "home"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
    add_batches(project, num_batches)
    for number in range(num_batches):
        delivery = project / "deliveries" / f"clinic-b{number:03}"
        delivery.mkdir(parents=True)
        (delivery / "attempts.jsonl").write_text(DONE, encoding="utf-8")
    home.mkdir()
    (home / "dagster.yaml").write_text((ROOT / "pipelines/dagster.yaml").read_text(encoding="utf-8"))
    run([sys.executable, "-m", "dvc", "commit", "--force", "--quiet"], project)
    return project, home


def measure(project: Path, home: Path, num_batches: int) -> dict[str, float]:
    """Seconds of each thing that a service without work does."""
    imports = run([sys.executable, "-c", IMPORT], project)
    repro = run([sys.executable, "-m", "dvc", "repro"], project)
    row: dict[str, float] = {"import_dvc": imports, "repro": round(repro - imports, 2)}
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
    before = children_s()
    run(["env", f"DAGSTER_HOME={home}", *command], project)
    while psutil.Process().children():
        os.wait()
    return round(children_s() - before, 2)


def children_s() -> float:
    """Seconds of the processor of all processes that were started here and have ended."""
    return sum(os.times()[2:4])


def memory(project: Path, home: Path, num_ticks: int) -> dict[str, dict[str, float]]:
    """MB that each process of `dagster dev` holds after so many ticks, and kB that a tick adds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(project), "DAGSTER_HOME": str(home)}
    command = [sys.executable, "-m", "dagster", "dev", "-m", "pipelines.definitions", "--port", str(port)]
    held: dict[str, list[int]] = {name: [] for name in PROCESSES}
    with subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as dev:
        assert dev.stdout is not None
        for line in dev.stdout:
            if NOTHING_NEW in line:
                found = psutil.Process(dev.pid).children(recursive=True)
                for name, word in PROCESSES.items():
                    held[name].append(sum(item.memory_info().rss for item in found if word in " ".join(item.cmdline())))
            if len(held["daemon"]) == num_ticks:
                dev.terminate()
                dev.stdout.read()
    later = {name: sizes[num_ticks // 3 :] for name, sizes in held.items()}
    if not all(map(all, later.values())):
        raise SystemExit(f"dagster dev ended, or is made of other processes than {PROCESSES}: {held}")
    return {
        name: {
            "mb": round(sizes[-1] / 1e6, 1),
            "kb_per_tick": round(float(np.polyfit(range(len(sizes)), sizes, 1)[0]) / 1e3, 1),
        }
        for name, sizes in later.items()
    }


if __name__ == "__main__":
    main()
