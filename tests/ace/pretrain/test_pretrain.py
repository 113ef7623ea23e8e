"""The stage as a whole: what it leaves behind, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import ace
from ace.embed.encoder import load_encoder, untrained_encoder
from ace.engine.hardware import hardware
from ace.engine.stop import StopRequest
from ace.journal.log import open_log
from ace.models.folder import WHITENING
from ace.pretrain.pretrain import SCORE, pretrain
from ace.pretrain.whitening import fit_whitening
from shards.core.errors import ConfigError
from shards.format.exclusion import exclusion_path, format_exclusion, list_path, parse_list
from shards.reading.lineage import TRAINING_IMAGES
from shards.reading.reader import ShardIndex
from tests.ace.pretrain.conftest import BATCH, ROOT, demo_values, tiny_grid, tiny_mix, tiny_params
from tests.ace.pretrain.runs import finish, logged_rows, signal_when, start_run
from tests.support.servers import FlakyServer


@pytest.fixture(scope="module")
def finished(noise_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    finish(start_run(noise_shards, out))
    return out


def test_a_finished_run_leaves_model_metrics_and_no_scratch(finished: Path) -> None:
    model = finished / "model"
    assert sorted(path.name for path in model.iterdir()) == [
        "README.md",
        "config.json",
        "heads.safetensors",
        "metrics.jsonl",
        "student_backbone.safetensors",
        "teacher_backbone.safetensors",
        "training_datasets.json",
        "training_images.csv",
    ]
    rows = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    wanted = {"loss", "loss_global", "loss_decomposition", "loss_composition", "lr", "momentum", "images_per_s"}
    assert wanted | {"data_wait_share", "feature_std", "effective_rank", "teacher_entropy"} <= set(rows[0])
    config = json.loads((model / "config.json").read_text())
    assert config["format_version"] == 4
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    assert config["commit"].removesuffix("-dirty") == subprocess.run(git, capture_output=True, text=True).stdout.strip()
    assert len(config["code"]) == 64
    assert config["hardware"] == hardware().model_dump(mode="json")
    assert config["shards"][0]["batch"] == BATCH
    assert all(len(shard["sha256"]) == 64 for shard in config["shards"][0]["shards"])
    assert json.loads((finished / "metrics/metrics.json").read_text())["step"] == rows[-1]["step"]
    assert not list((finished / "scratch").glob("pretrain/*/checkpoints/*"))


@pytest.mark.slow
@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_training_is_the_same_wherever_crops_are_augmented(
    noise_shards: Path, tmp_path: Path, num_micro_batches: int
) -> None:
    losses = {}
    augment = demo_values("pretrain")["augment"]
    # What is erased is carried out on the batch either way, and the removal term needs it.
    kept = ("where", "erase")
    off = {name: step if name in kept else step | {"probability": 0.0} for name, step in augment.items()}
    for name, values in (("device", augment), ("host", augment | {"where": "host"}), ("off", off)):
        (tmp_path / name).mkdir()
        changes = {"augment": values, "epochs": 1, "warmup_epochs": 0, "num_micro_batches": num_micro_batches}
        finish(start_run(noise_shards, tmp_path / name, checkpoint_every_s=3600, whitening=None, **changes))
        lines = (tmp_path / name / "model/metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(line)["loss"] for line in lines]
    assert losses["device"] == pytest.approx(losses["host"], rel=1e-4)
    assert losses["off"] != pytest.approx(losses["host"], rel=1e-4)


def test_a_log_with_a_last_line_cut_by_a_kill_goes_on_behind_the_whole_ones(tmp_path: Path) -> None:
    rows = tmp_path / "metrics.jsonl"
    rows.write_text('{"step": 0, "loss": 2.0}\n{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    with open_log(rows, tmp_path / "live") as log:
        log.resume(2)
        log.add({"step": 2, "loss": 0.5})
        assert [row["loss"] for row in log.rows()] == [2.0, 1.0, 0.5]


def test_a_second_process_on_the_same_run_is_refused(noise_shards: Path, tmp_path: Path) -> None:
    first = start_run(noise_shards, tmp_path)
    try:
        signal_when(first, lambda: len(logged_rows(tmp_path)) > 0, signal.SIGSTOP)
        (second,) = start_run(noise_shards, tmp_path)
        _, stderr = second.communicate(timeout=120)
    finally:
        os.killpg(first[0].pid, signal.SIGCONT)
    assert "another process is at work on this" in stderr
    finish(first)


def test_trained_and_untrained_encoders_share_the_architecture(finished: Path) -> None:
    trained, untrained = load_encoder(finished / "model"), untrained_encoder(finished / "model", seed=0)
    image = torch.rand(2, 1, 16, 16, device=trained.device)
    assert trained.backbone(image).shape == untrained.backbone(image).shape == (2, 2, 2, 32)
    assert not torch.equal(trained.backbone(image), untrained.backbone(image))
    again = untrained_encoder(finished / "model", seed=0)
    assert torch.equal(again.backbone(image), untrained.backbone(image))
    assert trained.normalisation(BATCH) == ((0.5,), (0.25,))
    with pytest.raises(ConfigError, match="trained with"):
        trained.normalisation("other")


@pytest.mark.slow
def test_a_run_with_a_probe_ends_with_its_best_teacher_too(
    labelled_shards: Path, finished: Path, tmp_path: Path
) -> None:
    probe = {**demo_values("pretrain")["probe"], "every_epochs": 1, "k": 5, "min_positives": 3}
    options = {"epochs": 3, "probe": probe, "keep_checkpoints": 1}
    finish(start_run(labelled_shards, tmp_path, run_dir=tmp_path / "run", **options))
    model = tmp_path / "model"
    best = json.loads((model / "config.json").read_text())["best"]
    rows = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    scores = {row["step"] + 1: row["probe_knn_auroc"] for row in rows if "probe_knn_auroc" in row}
    assert len(scores) == 3
    assert best == {
        "step": max(scores, key=scores.__getitem__),
        "score": max(scores.values()),
        "metric": SCORE,
    }
    saved = torch.load(tmp_path / f"run/checkpoints/step-{best['step']:08d}.pt", weights_only=True)["teacher"]
    encoder = load_encoder(model, "best", device="cpu")
    loaded = encoder.backbone.state_dict()
    whitening = loaded.pop(WHITENING)
    encoder.backbone.whitening = torch.nn.Identity()
    members = [(ShardIndex.open(labelled_shards / BATCH), tiny_mix()[BATCH])]
    own = fit_whitening({"best": encoder.backbone}, members, encoder.spec, tiny_params(epochs=3), torch.device("cpu"))
    assert torch.allclose(whitening, own["best"], atol=1e-5)
    assert all(torch.equal(value, saved[f"backbone.{name}"]) for name, value in loaded.items())
    assert ace.load(model, which="best", device="cpu").fingerprint != ace.load(model, device="cpu").fingerprint
    assert f"after step {best['step']}, when the probe" in (model / "README.md").read_text()
    with pytest.raises(ConfigError, match="has no best teacher"):
        load_encoder(finished / "model", "best")


def test_a_run_whose_weights_overflow_stops_with_the_batch_and_can_skip_later(
    noise_shards: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    broken = {"run_dir": run_dir, "base_lr": 1e30, "warmup_epochs": 0, "max_skipped_steps": 3}
    (error,) = finish(start_run(noise_shards, tmp_path, **broken), 2)
    assert "step 1: loss nan" in error
    assert "set pretrain.on_nonfinite to skip and start the same command" in error
    (error,) = finish(start_run(noise_shards, tmp_path, **broken, on_nonfinite="skip"), 2)
    assert "resuming after step 1" in error
    assert "the last of 3 in a row" in error
    assert sorted(path.name for path in (run_dir / "nonfinite").iterdir()) == [
        f"step-{step:08d}-rank0" for step in (1, 2, 3)
    ]
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] is None for row in rows] == [False, True, True]


def test_another_grid_than_the_shards_is_refused_before_any_work(noise_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was built with the grid"):
        pretrain(
            tiny_params(),
            tiny_grid(n=10),
            tiny_mix(),
            shards_root=noise_shards,
            out=tmp_path / "model",
            metrics_dir=tmp_path / "metrics",
            request=StopRequest(None),
        )


def test_sets_of_several_kinds_of_pictures_are_refused_before_any_work(noise_shards: Path, tmp_path: Path) -> None:
    for name in (BATCH, "eyes-b000"):
        shutil.copytree(noise_shards / BATCH, tmp_path / "shards" / name)
    path = tmp_path / "shards/eyes-b000/index.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"dataset": values["dataset"] | {"kind": "idrid"}}))
    out = {"out": tmp_path / "model", "metrics_dir": tmp_path / "metrics"}
    mix = tiny_mix() | {"eyes-b000": tiny_mix()[BATCH]}
    with pytest.raises(ConfigError, match=r"fundus photographs, grey.*pretrain\.accept_mixed_images: true"):
        pretrain(tiny_params(), tiny_grid(), mix, shards_root=tmp_path / "shards", **out, request=StopRequest(None))


def test_an_excluded_image_is_no_training_image(
    noise_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACE_SCRATCH", str(tmp_path / "scratch"))
    index = ShardIndex.open(noise_shards / BATCH)
    keys = index.keys(index.select("train"))
    excluded = parse_list(f"{keys[0]}\n")
    for path, text in (
        (list_path(BATCH, tmp_path), f"{keys[0]}\n"),
        (exclusion_path(BATCH, tmp_path), format_exclusion(BATCH, excluded)),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    out = {"out": tmp_path / "model", "metrics_dir": tmp_path / "metrics", "project": tmp_path}
    params = tiny_params(epochs=1, warmup_epochs=0)
    pretrain(params, tiny_grid(), tiny_mix(), shards_root=noise_shards, **out, request=StopRequest(None))
    rows = (tmp_path / "model" / TRAINING_IMAGES).read_text().splitlines()[1:]
    assert sorted(row.split(",")[1] for row in rows) == sorted(keys[1:])
    assert json.loads((tmp_path / "model/config.json").read_text())["shards"][0]["num_images"] == len(keys) - 1


def test_a_missing_model_and_an_unknown_format_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not found"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"format_version": 99}')
    with pytest.raises(ConfigError, match="format_version 99"):
        load_encoder(tmp_path)


def test_shards_on_a_server_train_the_same_weights_as_local_ones(
    noise_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACE_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("ACE_SHARD_CACHE", str(tmp_path / "cache"))
    server = FlakyServer(noise_shards)
    server.faults["train-000000.tar"] = ["503"]
    try:
        for name, shards in (("local", noise_shards), ("remote", server.url)):
            out = {"out": tmp_path / name, "metrics_dir": tmp_path / "metrics"}
            params = tiny_params(epochs=1, warmup_epochs=0)
            pretrain(params, tiny_grid(), tiny_mix(), shards_root=shards, **out, request=StopRequest(None))
    finally:
        server.close()
    local, remote = (load_file(tmp_path / name / "teacher_backbone.safetensors") for name in ("local", "remote"))
    assert local.keys() == remote.keys()
    assert all(torch.equal(local[key], remote[key]) for key in local)
