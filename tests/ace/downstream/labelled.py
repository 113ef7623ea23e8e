"""A task in seconds: images whose brightness is their label, on a tiny grid, and encoders whose answers are known."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ace.downstream import finetune as stage
from ace.downstream.base import Task
from ace.downstream.params import TaskParams
from ace.downstream.registry import COMMON, task_of
from ace.embed.encoder import Encoder
from ace.embed.opening import EncoderParams
from ace.engine.run import RunOptions
from ace.engine.stop import StopRequest
from shards.build.stage import build_shards
from shards.core.config import read_params
from shards.core.normalisation import Normalisation
from shards.core.params import MeasuredParams
from shards.reading.reader import ShardIndex
from tests.ace.evaluation.drawn_project import BATCH, GRID
from tests.ace.properties.constructed import FromCellMeans
from tests.support.checkout import ROOT
from tests.support.datasets import NO_CHECKS, Here, folder_params, shard_params, smooth_image, write_csv

NUM_PATIENTS = 60
SPLITS = ("train", "train", "train", "val", "test", "test")


def build(folder: Path, *, num_patients: int = NUM_PATIENTS, batch: str = BATCH) -> ShardIndex:
    """Patients with one or two images: those of every second one are bright; of every third one dim labels too."""
    rows = []
    (folder / "images").mkdir(parents=True)
    for patient in range(num_patients):
        for number in range(1 + patient % 2):
            is_bright, name = patient // 2 % 2 == 0, f"{patient:03}-{number}.png"
            pixels = smooth_image(64, 64, 2 * patient + number) // 4 + (150 if is_bright else 20)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / name)
            grade = 2 if is_bright and patient % 3 == 0 else int(is_bright)
            grades = [int(grade == own) for own in range(3)]
            rows.append(
                (name, patient, SPLITS[patient // 4 % 6], int(is_bright), -1 if patient % 7 == 6 else 0, *grades)
            )
    write_csv(folder / "labels.csv", ("path", "patient", "split", "bright", "doubted", "g0", "g1", "g2"), rows)
    source = folder_params(folder / "images", folder / f"{batch}.jsonl", folder / "labels.csv")
    params = shard_params(quality=NO_CHECKS)
    build_shards(batch, source, GRID, params, folder / "shards" / batch, execution=Here())
    return ShardIndex.open(folder / "shards" / batch)


def values_of(**changes: Any) -> dict[str, Any]:
    """The values of a small task's file; sections that are given are laid over those of configs/tasks/common.yaml."""
    values = dict(read_params(ROOT / f"configs/tasks/{COMMON}.yaml")["classification"])
    values |= {"batch": BATCH, "kind": "classification", "labels": ["bright"], "answer": "labels"}
    training = {"epochs": 6, "batch_size": 8, "warmup_epochs": 1, "base_lr": 1.0, "num_workers": 1, "patience": 8}
    values["training"] = {**values["training"], **training, "checkpoint_every_s": 600, "log_every_steps": 1}
    values["bootstrap"] = {"num_resamples": 100, "level": 0.95}
    values["knn"] = {"k": 5, "temperature": 0.07}
    for name, value in changes.items():
        values[name] = {**values[name], **value} if isinstance(values.get(name), dict) else value
    return values


def task(**changes: Any) -> Task[TaskParams]:
    return task_of(values_of(**changes), "test")


class Asked(StopRequest):
    """Asks for the end at the n-th time that somebody wants to know."""

    def __init__(self, after: int | None = None) -> None:
        super().__init__(None)
        self._left = after

    @property
    def reason(self) -> str | None:
        if self._left is None:
            return None
        self._left -= 1
        return "SIGTERM" if self._left < 0 else None


class KnownBackbone(FromCellMeans):
    """Tokens of cell means, with all that a head asks of a backbone; its one parameter does nothing."""

    def __init__(self, code: Callable[[Tensor], Tensor]) -> None:
        super().__init__(GRID.spec, code)
        self.crop_px, self.t = GRID.spec.crop_px, GRID.spec.t
        self.width = code(torch.zeros(1, 1, 1, 3)).shape[-1]
        self.unused = nn.Parameter(torch.zeros(()), requires_grad=False)


def encoder(code: Callable[[Tensor], Tensor]) -> Encoder:
    """An encoder of cell means that takes pixels in [0, 1] as they are."""
    return Encoder(
        backbone=KnownBackbone(code),
        spec=GRID.spec,
        in_channels=3,
        precision="fp32",
        given={BATCH: Normalisation.of(0.0, 1.0)},
    )


def sees(means: Tensor) -> Tensor:
    """The token is the brightness, and how far it is from white: E(x) has a direction that tells it."""
    return torch.cat([means, 1 - means], dim=-1)


def blind(means: Tensor) -> Tensor:
    return torch.ones(*means.shape[:-1], 6)


def run_stage(
    root: Path,
    out: Path,
    own: Task[TaskParams],
    names: Sequence[str] = ("trained",),
    request: StopRequest | None = None,
    measured: MeasuredParams | None = None,
) -> dict[str, Any]:
    """The stage on models below `root/models`; its table."""
    encoders = {name: EncoderParams(model=str(root / "models" / name), network="teacher") for name in names}
    stage.finetune(
        "bright",
        own,
        encoders,
        shards_root=root / "shards",
        out=out / "finetuned",
        metrics=out / "table.json",
        request=request or Asked(),
        measured=measured,
        options=RunOptions(device="cpu"),
        project=root,
    )
    return read_params(out / "table.json")
