"""Shard sets of painted canvases, built by the real stage `shard` from a user's folder."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ace.data.params import ViewsParams
from shards.build.stage import build_shards
from shards.core.params import GridParams, ShardParams
from shards.reading.reader import ShardIndex
from tests.support.datasets import NO_CHECKS, Here, folder_params

BuildShards = Callable[..., ShardIndex]
VIEWS = ViewsParams.from_params(
    {
        "random": {"min_area": 0.3, "max_area": 0.8},
        "centred": {"sides": [0.8, 0.5, 0.4], "num_teacher_views": 2},
    },
    "views",
)


def build_shards_of(
    images: Mapping[str, np.ndarray], grid: GridParams, root: Path, *, num_bank_pairs: int, image_format: str = "png"
) -> ShardIndex:
    """Put images into a folder below `root`, all of them in `train`, and shard it.

    Samples are named with a fixed key: what is drawn for a sample follows from its name, so every run of a test sees
    the same crops.
    """
    raw = root / "raw"
    raw.mkdir()
    for name, image in images.items():
        Image.fromarray(image).save(raw / name)
    channels = 1 if next(iter(images.values())).ndim == 2 else 3
    params = {
        "image_format": image_format,
        "jpg_quality": 95,
        "num_images_per_shard": 3,
        "num_bank_pairs": num_bank_pairs,
        "seed": 0,
        "splits": {"train": 1.0, "val": 0.0, "test": 0.0},
        "foreground": {"min_mean": 0.0, "min_std": 0.0},
        "max_source_megapixels": 1.0,
        "max_quarantined_fraction": 0.0,
        "quality": NO_CHECKS,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_ID_KEY_FILE", str(root / "key"))
        patch.setenv("ACE_SCRATCH", str(root / "scratch"))
        (root / "key").write_text("a5" * 32)
        build_shards(
            root.name,
            folder_params(raw, root / "raw.jsonl", channels=channels),
            grid,
            ShardParams.from_params(params, "shard"),
            root / "shards",
            execution=Here(),
        )
    return ShardIndex.open(root / "shards")


def grid_params(*scales: tuple[int, int], t: int = 8, n: int = 18, cell_px: int = 16, area: float = 0.85) -> GridParams:
    """A grid with equally likely scales."""
    values = {"n": n, "cell_px": cell_px, "t": t, "min_overlap": 0.5, "min_jitter_area": area}
    values |= {"scales": [{"k": k, "l": l, "weight": 1.0} for k, l in scales]}
    return GridParams.from_params(values, "grid")
