"""From a public dataset's files to a fine-tuned network: register, build, train, answer, score."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ace.downstream.base import Arrays, Task
from ace.downstream.images import TrainingImages, as_input
from ace.downstream.params import TaskParams
from ace.downstream.parts import Parts, divide
from ace.downstream.registry import COMMON
from ace.downstream.shown import ShownPart
from ace.embed.encoder import Encoder
from ace.models.backbone import build_backbone
from ace.models.params import BackboneParams
from ace.protocol.intervals import estimate
from shards.build.stage import build_shards
from shards.core.config import read_params
from shards.core.grid import GridSpec, Scale
from shards.core.identity import KEY_FILE_VARIABLE
from shards.core.normalisation import Normalisation
from shards.delivery.batches import read_batches
from shards.delivery.project import Project
from shards.delivery.register import register_batch
from shards.reading.reader import ShardIndex
from shards.sources.base import Source
from shards.sources.datasets import drive, jsrt
from tests.ace.downstream.drawn import build, task
from tests.ace.downstream.labelled import run_stage
from tests.ace.evaluation.drawn_project import GRID, write_model
from tests.support.checkout import ROOT, copy_project
from tests.support.datasets import NO_CHECKS, Here, shard_params
from tests.support.segmented import write_drive, write_jsrt

SIZE_PX = 64
pytestmark = pytest.mark.slow


def built(source: Source, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ShardIndex:
    """Register the folder `raw` with the repository's own parameters, and build its shards."""
    # A fixed key: splits follow from it.
    (folder / "id.key").write_text("ab" * 32, encoding="ascii")
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(folder / "id.key"))
    monkeypatch.setenv("ACE_SCRATCH", str(folder / "scratch"))
    (folder / "project").mkdir()
    copy_project(folder / "project")
    monkeypatch.chdir(folder / "project")
    register_batch("own-b000", folder / "raw", source, project=Project(Path("params.yaml"), Path("dvc.yaml")))
    batch = read_batches(Path("params.yaml"), read_params(Path("params.yaml")))["own-b000"]
    params = shard_params(quality=NO_CHECKS, max_source_megapixels=100.0)
    build_shards("own-b000", batch.source, batch.grid, params, folder / "set", execution=Here())
    return ShardIndex.open(folder / "set")


def encoder(channels: int) -> Encoder:
    model_args = {"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 16], "output_stride": 16, "ls_init_value": 1.0}
    values: dict[str, Any] = {"name": "convnext_atto", "model_args": model_args, "in_channels": channels}
    values |= {"token_activation": "relu", "drop_path": 0.0, "weights": None}
    spec = GridSpec(
        n=2 * SIZE_PX // 16,
        cell_px=16,
        t=SIZE_PX // 16,
        scales=(Scale(2, 2, 1.0),),
        min_overlap=0.5,
        min_jitter_area=0.85,
    )
    torch.manual_seed(0)
    backbone = build_backbone(BackboneParams.from_params(values, "backbone"), spec)
    return Encoder(
        backbone=backbone,
        spec=spec,
        in_channels=channels,
        precision="fp32",
        given={name: Normalisation((0.5,), (0.25,)) for name in ("own-b000", "phantom-b000")},
    )


def fine_tuned(own: Task[TaskParams], parts: Parts, shown_by: Encoder, num_steps: int) -> tuple[list[float], Arrays]:
    """Losses of some steps, and what the network then answers about the test images."""
    images = TrainingImages(task=own, part=parts.train, encoder=shown_by, seed=0)
    network = own.network(shown_by).train()
    optimizer, losses = torch.optim.AdamW(network.parameters(), 3e-3), []
    for batch in images.batches(0, num_steps, lambda: None):
        normalisation = shown_by.normalisation(parts.train.index.name)
        loss = own.loss(network(as_input(batch.images, normalisation)), batch.targets, batch.known)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.inference_mode():
        return losses, own.answer(network.eval(), ShownPart(parts.test, shown_by, num_threads=1), is_final=True)


def test_jsrt_by_its_files_learns_heart_clavicles_and_lungs_of_the_other_fold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsrt(tmp_path / "raw", num_cases=8)
    index = built(jsrt.SOURCE, tmp_path, monkeypatch)
    own = task("segmentation", batch="own-b000", structures=list(jsrt.STRUCTURES), mask_px=64, val_share=0.25)
    parts = divide(index, own.params)
    assert {name: len(part) > 0 for name, part in parts} == {"train": True, "val": True, "test": True}
    assert len(parts.test) == 4
    truth = own.truth(parts.test, is_training=False)
    # 2048 pixels of .175 mm are 64 pixels of 5.6 mm.
    np.testing.assert_allclose(truth["pixel_mm"], 5.6)
    losses, answers = fine_tuned(own, parts, encoder(1), num_steps=60)
    assert losses[-1] < 0.6 * losses[0]
    scores = own.scores(truth, answers, parts.test)
    assert estimate(scores["dice/right_lung"].measure, 4) > 0.7
    assert estimate(scores["hd95_mm/right_lung"].measure, 4) == pytest.approx(
        0.35 * estimate(scores["hd95_px_at_1024/right_lung"].measure, 4)
    )


def test_drive_by_its_files_learns_in_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_drive(tmp_path / "raw", num_images=4)
    index = built(drive.SOURCE, tmp_path, monkeypatch)
    assert index.channels == 3
    names = ["vessels", "field_of_view"]
    own = task("segmentation", batch="own-b000", structures=names, mask_px=64, val_share=0.25)
    parts = divide(index, own.params)
    losses, answers = fine_tuned(own, parts, encoder(3), num_steps=60)
    assert losses[-1] < 0.6 * losses[0]
    scores = own.scores(own.truth(parts.test, is_training=False), answers, parts.test)
    assert estimate(scores["dice/field_of_view"].measure, 4) > 0.9


def test_landmarks_are_learned_by_heat_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACE_SCRATCH", str(tmp_path / "scratch"))
    index = build(tmp_path)
    own = task("landmarks", val_share=0.2)
    parts = divide(index, own.params)
    losses, answers = fine_tuned(own, parts, encoder(1), num_steps=40)
    assert losses[-1] < losses[0] - 0.5
    scores = own.scores(own.truth(parts.test, is_training=False), answers, parts.test)
    assert estimate(scores["error_px_at_1024"].measure, parts.test.num_patients) < 100


@pytest.mark.parametrize("kind", ["segmentation", "landmarks"])
def test_the_stage_trains_measures_and_draws_a_task_of_structures_and_one_of_landmarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("ACE_SCRATCH", str(tmp_path / "scratch"))
    build(tmp_path, grid=GRID)
    write_model(tmp_path / "models/trained", seed=0)
    training = dict(read_params(ROOT / f"configs/tasks/{COMMON}.yaml")[kind]["training"])
    training |= {"epochs": 30, "batch_size": 4, "base_lr": 0.2, "warmup_epochs": 1, "num_workers": 1}
    own = task(kind, training=training, shots=[3, 6], fractions=[], num_examples=1)
    table = run_stage(tmp_path, tmp_path / "out", own)
    assert list(table["trained"]["full"]) == ["6shot", "3shot"]
    for scores in table["trained"]["full"].values():
        assert scores[own.headline]["n"] == table["measured"]["num_patients"]
    if kind == "segmentation":
        assert table["trained"]["full"]["6shot"]["dice/heart"]["value"] > 0.6
    else:
        found = table["trained"]["full"]["6shot"]["error_px_at_1024"]
        assert found["value"] < 200
    page = (tmp_path / "out/finetuned/page.html").read_text(encoding="utf-8")
    assert page.count("<img") == 2 * 3, "best, median and worst, each beside what is laid over it"
