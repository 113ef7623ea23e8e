"""What a graph of many batches costs: Dagster's reading of it, `dvc status`, and `dvc repro` with nothing to do.

A clone of this repository in a temporary folder gets batches of one small file each, so that only the graph is large;
`dvc commit` records them as made. All times are of the processor (user and system), children included.

Last line: one JSON object with the seconds for each number of batches, the bytes of dvc.lock, which DVC writes anew
after every stage, and `ratio_*`: the seconds of the most batches over those of the fewest.

    python benchmarks/graph.py [--num-batches 1 200]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.graph import load_graph
from shards.delivery.yaml_lines import add_deps, add_item

ROOT = Path(__file__).parents[1]
FIRST = "phantom-b000"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-batches", type=int, nargs="+", default=[1, 200], help="batches beside the first one")
    arguments = parser.parse_args()
    numbers = sorted(arguments.num_batches)
    found = {number: measure(number) for number in numbers}
    (fewest, _), (most, _) = found[numbers[0]], found[numbers[-1]]
    result: dict[str, Any] = {
        "cpu_s": {str(number): seconds for number, (seconds, _) in found.items()},
        "lock_bytes": {str(number): num_bytes for number, (_, num_bytes) in found.items()},
    }
    print(json.dumps(result | {f"ratio_{name}": round(most[name] / fewest[name], 2) for name in most}))


def measure(num_batches: int) -> tuple[dict[str, float], int]:
    """Seconds of the processor for each command, in a project of so many batches, and the bytes of its dvc.lock."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
        add_batches(project, num_batches)
        dvc = [sys.executable, "-m", "dvc"]
        run([*dvc, "commit", "--force", "--quiet"], project)
        load = "from pathlib import Path; from pipelines.graph import load_graph; load_graph(Path())"
        row = {
            "import_graph": run([sys.executable, "-c", load.rpartition(";")[0]], project),
            "load_graph": run([sys.executable, "-c", load], project),
            "status": run([*dvc, "status"], project),
            "repro": run([*dvc, "repro"], project),
        }
        num_bytes = (project / "dvc.lock").stat().st_size
    seconds = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in row.items())
    print(f"{num_batches} batches: {seconds}, dvc.lock {num_bytes:,} bytes")
    return row, num_bytes


def add_batches(project: Path, number: int) -> None:
    """Add batches to params.yaml and dvc.yaml, and make every out of the graph as a small file."""
    params, graph = (project / name for name in ("params.yaml", "dvc.yaml"))
    params_text, graph_text = params.read_text(encoding="utf-8"), graph.read_text(encoding="utf-8")
    template = (project / "batches" / f"{FIRST}.yaml").read_text(encoding="utf-8")
    names = [f"clinic-b{position:03}" for position in range(number)]
    (project / "data" / "manifests").mkdir(parents=True)
    for name in names:
        manifest = f"data/manifests/{name}.jsonl"
        (project / manifest).write_text(f"{name}\n", encoding="utf-8")
        (project / "batches" / f"{name}.yaml").write_text(template, encoding="utf-8")
        params_text = add_item(params_text, "batches", name, manifest)
        params_text = add_item(params_text, "mix", name, {"weight": 1.0, "mean": 0.5, "std": 0.25})
        graph_text = add_deps(graph_text, name)
    params.write_text(params_text, encoding="utf-8")
    graph.write_text(graph_text, encoding="utf-8")
    for out in sorted(load_graph(project).produced):
        path = project / out if Path(out).suffix else project / out / "file"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n" if path.suffix == ".json" else f"{out}\n", encoding="utf-8")


def run(command: Sequence[str], folder: Path) -> float:
    """Seconds of the processor that a command took with all that it started."""
    before = os.times()
    environment = {**os.environ, "PYTHONPATH": str(folder), "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    after = os.times()
    return round(after.children_user + after.children_system - before.children_user - before.children_system, 2)


if __name__ == "__main__":
    main()
