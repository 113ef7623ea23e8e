"""Tasks of places on a tiny set in the phantom's layout."""

from pathlib import Path
from typing import Any

from ace.downstream.base import Task
from ace.downstream.params import TaskParams
from ace.downstream.registry import COMMON, task_of
from shards.build.stage import build_shards
from shards.core.config import read_params
from shards.core.params import GridParams
from shards.reading.reader import ShardIndex
from tests.support.checkout import ROOT
from tests.support.datasets import NO_CHECKS, Here, grid_params, shard_params, write_phantom

OWN: dict[str, dict[str, Any]] = {
    "segmentation": {"structures": ["heart", "nodule"], "mask_px": 48, "decoder_channels": 16},
    "landmarks": {"landmarks": ["carina", "apex_left"], "sigma": 0.05, "decoder_channels": 16},
}


def build(folder: Path, num_patients: int = 20, grid: GridParams | None = None) -> ShardIndex:
    """Patients of one or two images: all have a heart and two landmarks, every second one a nodule."""
    source, out = write_phantom(folder / "raw", num_patients), folder / "shards/phantom-b000"
    shard = shard_params(quality=NO_CHECKS)
    build_shards("phantom-b000", source, grid or grid_params(), shard, out, execution=Here())
    return ShardIndex.open(out)


def task(kind: str, **changes: Any) -> Task[TaskParams]:
    values = read_params(ROOT / f"configs/tasks/{COMMON}.yaml")[kind]
    values |= {"batch": "phantom-b000", "kind": kind, "bootstrap": {"num_resamples": 200, "level": 0.95}} | OWN[kind]
    return task_of({**values, **changes}, "test")
