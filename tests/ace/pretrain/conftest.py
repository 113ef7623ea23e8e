"""A run small enough to train in seconds: smooth noise images in the phantom's layout, 2×2 tokens of 8 px."""

import csv
import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from ace.pretrain.params import PretrainParams
from shards.build.stage import build_shards
from shards.core.params import GridParams, MixParams, PhantomSourceParams, ShardParams
from tests.support.datasets import Here

ROOT = Path(__file__).parents[3]
BATCH = "noise-b000"


@cache
def _demo() -> dict[str, Any]:
    values: dict[str, Any] = YAML(typ="safe", pure=True).load((ROOT / "configs/demo.yaml").read_text(encoding="utf-8"))
    return values


def demo_values(section: str) -> dict[str, Any]:
    return deepcopy(_demo()[section])


def tiny_grid(**changes: Any) -> GridParams:
    values = {**demo_values("grid"), "n": 8, "cell_px": 8, "t": 2, **changes}
    return GridParams.from_params(values, "grid")


def tiny_params(**changes: Any) -> PretrainParams:
    values = demo_values("pretrain")
    values["backbone"] = {
        "name": "vit_tiny_patch16_224",
        "model_args": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "class_token": False},
        "in_channels": 1,
        "token_activation": "identity",
        "drop_path": 0.2,
        "weights": None,
    }
    if changes.get("loss_weights", values["loss_weights"])["removal"] == 0:
        values["augment"]["erase"]["fills"]["tissue"] = 0.0  # the fill that needs the term
    values |= {"epochs": 6, "warmup_epochs": 1, "batch_size": 8, "num_workers": 0, "log_every_steps": 1}
    values |= {
        "global_head": {"hidden_dim": 16, "bottleneck_dim": 8, "out_dim": 32},
        "checkpoint_every_s": 0,
        **changes,
    }
    return PretrainParams.from_params(values, "pretrain")


def tiny_mix() -> dict[str, MixParams]:
    return {BATCH: MixParams.from_params({"weight": 1.0, "mean": 0.5, "std": 0.25}, "mix")}


def write_noise_dataset(root: Path, *, num_images: int, size_px: int) -> None:
    """Smooth random images, one a patient, as the phantom stage would leave them."""
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "patient_id", "study_id", "view", "nodule"])
        for number in range(num_images):
            name = f"p{number:04d}-i0"
            coarse = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8))
            coarse.resize((size_px, size_px), Image.Resampling.BICUBIC).save(root / "images" / f"{name}.png")
            writer.writerow([name, f"p{number:04d}", f"p{number:04d}-s0", "PA", number % 2])
    (root / "landmarks.csv").write_text("image_id,landmark,row,col\n")
    (root / "dataset.json").write_text(json.dumps({"name": "noise"}))


@pytest.fixture(scope="session")
def noise_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of shard sets with one set, BATCH, on the tiny grid."""
    splits = {"train": 0.8, "val": 0.1, "test": 0.1}
    return build_noise_shards(tmp_path_factory.mktemp("noise"), num_images=40, splits=splits)


@pytest.fixture(scope="session")
def labelled_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `noise_shards`, with enough images with and without `nodule` in val for a probe."""
    splits = {"train": 0.6, "val": 0.3, "test": 0.1}
    return build_noise_shards(tmp_path_factory.mktemp("labelled"), num_images=60, splits=splits)


def build_noise_shards(root: Path, *, num_images: int, splits: dict[str, float]) -> Path:
    """Below `root`: a noise dataset, and a folder of shard sets with one set of it, BATCH."""
    write_noise_dataset(root / "raw", num_images=num_images, size_px=64)
    values = {**demo_values("shard"), "splits": splits}
    source = PhantomSourceParams(kind="phantom", dep=str(root / "raw"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(root / "scratch"))
        params = ShardParams.from_params(values, "shard")
        build_shards(BATCH, source, tiny_grid(), params, root / "shards" / BATCH, execution=Here())
    return root / "shards"
