"""The benchmark of a service that has nothing to do runs as it is called."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_ends_with_its_seconds_and_ratios_as_one_json_object(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/orchestration.py", "--small"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout.splitlines()[-1])
    assert set(result["seconds"]) == {"1", "2"}
    for row in result["seconds"].values():
        assert set(row) == {
            *("import_dvc", "repro", "tick_dvc_lock", "tick_incoming", "tick_alerts"),
            *("materialize_all_cpu", "materialize_all_wall"),
        }
        assert 0 < row["import_dvc"] < 60
        assert all(row[f"tick_{name}"] < 1 for name in ("dvc_lock", "incoming", "alerts"))
        assert row["materialize_all_cpu"] > row["import_dvc"]
    assert result["ratio_materialize_all_cpu"] > 0
    assert {name: len(slopes) for name, slopes in result["s_per_batch"].items()} == dict.fromkeys(row, 1)
    assert set(result["memory"]) == {"code_server", "daemon", "webserver"}
    assert all(20 < process["mb"] < 2000 for process in result["memory"].values())
    assert list(tmp_path.iterdir()) == []
