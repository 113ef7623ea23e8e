"""The stage as a whole: what it leaves behind, and that a killed run ends as an uninterrupted one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ace.models.encoder import load_encoder, untrained_encoder
from ace.training import pretrain as pretrain_module
from ace.training.log import open_log
from ace.training.pretrain import pretrain
from shards.errors import ConfigError
from tests.ace.training.conftest import BATCH, ROOT, tiny_batches, tiny_grid, tiny_params

RUN = """
import sys
from pathlib import Path
from ace.training.pretrain import pretrain
from tests.ace.training.conftest import tiny_batches, tiny_grid, tiny_params
out = Path(sys.argv[2])
params = tiny_params(num_workers=int(sys.argv[3]), checkpoint_every_s=float(sys.argv[4]))
pretrain(params, tiny_grid(), tiny_batches(), shards_root=Path(sys.argv[1]), out=out / "model",
         metrics_dir=out / "metrics")
"""


def start_run(shards: Path, out: Path, num_workers: int = 0, checkpoint_every_s: float = 0) -> "subprocess.Popen[str]":
    environment = {**os.environ, "ACE_SCRATCH": str(out / "scratch"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # Equal to the last bit is promised on the CPU.
    environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, "-c", RUN, str(shards), str(out), str(num_workers), str(checkpoint_every_s)]
    return subprocess.Popen(command, env=environment, cwd=out, stderr=subprocess.PIPE, text=True)


def weights(model: Path) -> dict[str, torch.Tensor]:
    files = ("teacher_backbone", "student_backbone", "heads")
    return {f"{name}/{key}": value for name in files for key, value in load_file(model / f"{name}.safetensors").items()}


@pytest.fixture(scope="module")
def finished(noise_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    process = start_run(noise_shards, out)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
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
    ]
    rows = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(len(rows)))
    wanted = {"loss", "loss_global", "loss_decomposition", "loss_composition", "lr", "momentum", "images_per_s"}
    assert wanted | {"data_wait_share", "feature_std", "effective_rank", "teacher_entropy"} <= set(rows[0])
    config = json.loads((model / "config.json").read_text())
    assert config["format_version"] == 3
    assert config["shards"][0]["batch"] == BATCH
    assert all(len(shard["sha256"]) == 64 for shard in config["shards"][0]["shards"])
    assert json.loads((finished / "metrics/metrics.json").read_text())["step"] == rows[-1]["step"]
    assert not list((finished / "scratch").glob("pretrain/*/state.pt"))


@pytest.mark.parametrize(("num_workers", "checkpoint_every_s"), [(0, 0.0), (1, 0.0), (0, 0.05)])
def test_a_run_killed_at_any_moment_ends_with_the_same_weights(
    finished: Path, noise_shards: Path, tmp_path: Path, num_workers: int, checkpoint_every_s: float
) -> None:
    scratch = tmp_path / "scratch/pretrain"
    for rows_before_kill in (3, 11):
        process = start_run(noise_shards, tmp_path, num_workers, checkpoint_every_s)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            logs = [path.with_name("metrics.jsonl") for path in scratch.glob("*/state.pt")]
            if logs and len(logs[0].read_text().splitlines()) >= rows_before_kill:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.01)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
    process = start_run(noise_shards, tmp_path, num_workers, checkpoint_every_s)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "resuming after step" in stderr
    expected, found = weights(finished / "model"), weights(tmp_path / "model")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    logged = [json.loads(line)["step"] for line in (tmp_path / "model/metrics.jsonl").read_text().splitlines()]
    assert logged == list(range(len(logged)))


def test_work_begun_with_other_code_is_other_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("ace", "shards"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "asset"))
    monkeypatch.setattr(pretrain_module, "__file__", str(tmp_path / "ace/training/pretrain.py"))

    def fingerprint() -> str:
        return pretrain_module._fingerprint(tiny_params(), tiny_grid(), tiny_batches(), {})

    before = fingerprint()
    (tmp_path / "ace/report/page.py").write_text("")
    assert fingerprint() == before, "the report trains nothing"
    with (tmp_path / "ace/losses/matching.py").open("a") as file:
        file.write("\n")
    assert fingerprint() != before


def test_a_log_with_a_last_line_cut_by_a_kill_goes_on_behind_the_whole_ones(tmp_path: Path) -> None:
    rows = tmp_path / "metrics.jsonl"
    rows.write_text('{"step": 0, "loss": 2.0}\n{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    with open_log(rows, tmp_path / "live") as log:
        log.resume(2)
        log.add({"step": 2, "loss": 0.5})
        assert [row["loss"] for row in log.rows()] == [2.0, 1.0, 0.5]


def test_a_second_process_on_the_same_run_is_refused(noise_shards: Path, tmp_path: Path) -> None:
    first = start_run(noise_shards, tmp_path)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "scratch/pretrain").glob("*/metrics.jsonl")) and time.monotonic() < deadline:
        assert first.poll() is None
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        second = start_run(noise_shards, tmp_path)
        _, stderr = second.communicate(timeout=120)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    _, first_stderr = first.communicate(timeout=300)
    assert "under way in another process" in stderr
    assert first.returncode == 0, first_stderr


def test_trained_and_untrained_encoders_share_the_architecture(finished: Path) -> None:
    trained, untrained = load_encoder(finished / "model"), untrained_encoder(finished / "model", seed=0)
    image = torch.rand(2, 1, 16, 16, device=trained.device)
    assert trained.backbone(image).shape == untrained.backbone(image).shape == (2, 2, 2, 32)
    assert not torch.equal(trained.backbone(image), untrained.backbone(image))
    again = untrained_encoder(finished / "model", seed=0)
    assert torch.equal(again.backbone(image), untrained.backbone(image))
    assert trained.normalisation(BATCH) == (0.5, 0.25)
    with pytest.raises(ConfigError, match="trained with"):
        trained.normalisation("other")


def test_another_grid_than_the_shards_is_refused_before_any_work(noise_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was built with the grid"):
        pretrain(
            tiny_params(),
            tiny_grid(n=10),
            tiny_batches(),
            shards_root=noise_shards,
            out=tmp_path / "model",
            metrics_dir=tmp_path / "metrics",
        )


def test_a_missing_model_and_an_unknown_format_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not found"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text('{"format_version": 99}')
    with pytest.raises(ConfigError, match="format_version 99"):
        load_encoder(tmp_path)
