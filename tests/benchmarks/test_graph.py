"""The benchmark of a graph of many batches runs as it is called."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_ends_with_its_seconds_bytes_and_ratios_as_one_json_object(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/graph.py", "--num-batches", "1", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout.splitlines()[-1])
    assert set(result["cpu_s"]) == {"1", "2"}
    for seconds in result["cpu_s"].values():
        assert set(seconds) == {"import_graph", "load_graph", "status", "repro"}
        assert all(0 < number < 60 for number in seconds.values())
    assert 0 < result["lock_bytes"]["1"] < result["lock_bytes"]["2"]
    assert result["ratio_load_graph"] > 0
    assert list(tmp_path.iterdir()) == []
