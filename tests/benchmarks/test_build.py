"""The benchmark of building runs as it is called, on a handful of small images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_ends_with_its_ratios_and_peaks_as_one_json_object(tmp_path: Path) -> None:
    scratch, caches = tmp_path / "scratch", tmp_path / "caches"
    scratch.mkdir()
    arguments = {
        "--config": "smoke",
        "--num-images": "6",
        "--image-format": "jpg",
        "--size": "48",
        "--num-rounds": "1",
        "--num-images-memory": "4 8",
    }
    flags = [part for name, value in arguments.items() for part in (name, *value.split())]
    command = [sys.executable, "benchmarks/build.py", *flags]
    # Torch makes its folder of compiled code wherever torchvision is imported.
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(scratch),
        "TORCHINDUCTOR_CACHE_DIR": str(caches),
    }
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout.splitlines()[-1])
    assert (result["image_format"], result["num_images"]) == ("jpg", 6)
    assert 0 < result["ratio_to_bound"] < 1
    assert result["ratio_of_scaling"] > 0
    assert result["images_per_s"] > 0
    assert set(result["memory_mb"]) == {"4", "8"}
    for peaks in result["memory_mb"].values():
        assert all(10 < peaks[process] < 2000 for process in ("main", "largest_worker"))
    assert list(scratch.iterdir()) == []
