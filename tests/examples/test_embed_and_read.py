"""The example runs as a user would run it, on an image and a shard set that are made here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from shards.build.stage import build_shards
from shards.reading.reader import ShardIndex, ShardReader
from tests.support.checkout import ROOT
from tests.support.datasets import Here, grid_params, shard_params, write_phantom


@pytest.fixture
def shard_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACE_SCRATCH", str(tmp_path / "scratch"))
    source = write_phantom(tmp_path / "phantom", num_patients=6)
    build_shards("a-b000", source, grid_params(), shard_params(), tmp_path / "a-b000", execution=Here())
    return tmp_path / "a-b000"


@pytest.mark.slow
def test_the_example_embeds_an_image_and_reads_a_sample(shard_set: Path, tmp_path: Path) -> None:
    index = ShardIndex.open(shard_set)
    sample = ShardReader(index).read(int(index.select("test")[0]))
    Image.fromarray(sample.image).save(tmp_path / "chest.png")
    command = [sys.executable, str(ROOT / "examples/embed_and_read.py"), str(tmp_path / "chest.png"), str(shard_set)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300).stdout
    assert re.search(r"embedding of .*chest\.png: \(\d+,\), norm 1\.000", printed)
    assert f"sample {sample.key}: canvas {sample.image.shape}, labels {sample.meta['labels']}" in printed
    # The image is that sample's canvas.
    assert "cosine distance between the two: 0.000" in printed or "-0.000" in printed
