"""The benchmark of the explorer's pointer runs as it is called, on the page of a small project."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ace.explorer.conftest import evaluated_project, explorer
from tests.support.chromium import find_chromium

__all__ = ["evaluated_project", "explorer"]

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.browser


def call(*arguments: str) -> dict[str, object]:
    command = [sys.executable, "benchmarks/explorer.py", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


@pytest.mark.slow
def test_it_ends_with_the_delay_of_every_encoder_and_patch_as_one_json_object(explorer: Path) -> None:
    find_chromium()
    result = call(str(explorer), "--moves", "5")
    kinds = {name for name in result if ", " in name}
    assert {name.partition(", ")[2] for name in kinds} == {"token", "composed"}
    total = result["all"]
    assert isinstance(total, dict)
    assert total["num_moves"] == 5 * len(kinds)
    assert 0 < total["render_ms"] <= total["render_ms_95th"]
    assert total["render_ms"] < total["delay_ms"] <= total["delay_ms_95th"]


def test_without_a_page_it_says_what_makes_one(tmp_path: Path) -> None:
    assert "dvc repro explore" in str(call(str(tmp_path / "none.html"))["not_measured"])
