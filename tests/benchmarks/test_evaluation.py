"""The benchmark of the evaluation runs as it is called; every benchmark imports what there is."""

import ast
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_every_name_that_a_benchmark_takes_from_the_packages_is_there(path: Path) -> None:
    """Most run only when somebody wants figures, and no type checker reads them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] in ("ace", "pipelines", "shards")
        ):
            module = import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{path}:{node.lineno}: {node.module} has no {alias.name}"


@pytest.mark.slow
def test_it_ends_with_its_ratios_and_peaks_as_one_json_object() -> None:
    command = [
        sys.executable,
        "benchmarks/evaluation.py",
        "--num-patients",
        "2",
        "--regions",
        "1",
        "2",
        "--rounds",
        "1",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout.splitlines()[-1])
    assert result["num_crops"] == 5 * 2
    assert result["speed_over_forward_wall"] > 0
    assert set(result["peak_mb_by_regions"]) == {"1", "2"}
