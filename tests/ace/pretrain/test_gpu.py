"""On one accelerator (make test-gpu): training, going on, half precision and DDP do what they do on the CPU."""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import ace
from ace.engine.ranks import Ranks
from ace.engine.stop import EXIT_CODE
from ace.models.params import Precision
from ace.models.precision import accelerator_settings
from tests.ace.inference.models import write_model
from tests.ace.pretrain.conftest import ROOT, tiny_params
from tests.ace.pretrain.runs import finish, kill_all, logged_rows, saved_steps, signal_when, start_run, weights
from tests.ace.pretrain.steps import batch_with_gaps, fresh_state, record, step_on, without_removal
from tests.ace.pretrain.test_precision import batch_of_equal_crops, state_of_similar_tokens
from tests.ace.pretrain.test_step import CONVOLUTIONS
from tests.support.datasets import smooth_image

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
NUM_STEPS = 18
STILL: dict[str, Any] = {"backbone": {**tiny_params().backbone.model_dump(), "drop_path": 0.0}}
"""Without stochastic depth, which an accelerator draws otherwise than the CPU."""


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "model/metrics.jsonl").read_text().splitlines()]


def trained(shards: Path, out: Path, device: str = DEVICE, **params: Any) -> Path:
    out.mkdir()
    finish(start_run(shards, out, on_device=device, **STILL, **params))
    return out


def relative_difference(found: Path, expected: Path) -> float:
    """Of all weights together: a weight without a gradient moves by Adam's share of what is rounding alone."""
    ours, theirs = (
        torch.cat([value.flatten().double() for value in weights(out / "model").values()]) for out in (found, expected)
    )
    return float((ours - theirs).norm() / theirs.norm())


@pytest.fixture(scope="module")
def finished(noise_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run on the accelerator."""
    return trained(noise_shards, tmp_path_factory.mktemp("gpu") / "finished")


def test_a_run_on_the_accelerator_has_the_losses_and_nearly_the_weights_of_one_on_the_cpu(
    finished: Path, noise_shards: Path, tmp_path: Path
) -> None:
    on_cpu = trained(noise_shards, tmp_path / "cpu", "cpu")
    losses = [[row["loss"] for row in rows_of(out)] for out in (finished, on_cpu)]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    assert relative_difference(finished, on_cpu) < 0.01
    assert json.loads((finished / "model/config.json").read_text())["device"] == DEVICE


def test_a_run_that_requires_an_accelerator_names_it_first(noise_shards: Path, tmp_path: Path) -> None:
    (said,) = finish(start_run(noise_shards, tmp_path, on_device=DEVICE, device=DEVICE, epochs=2))
    name = torch.cuda.get_device_name(0)
    assert said.splitlines()[1] == f"pretrain: on cuda:0 ({name}), in fp32, by 1 process(es)"


def test_a_stopped_run_goes_on_and_ends_with_nearly_the_same_weights(
    finished: Path, noise_shards: Path, tmp_path: Path
) -> None:
    processes = start_run(noise_shards, tmp_path, on_device=DEVICE, **STILL)
    try:
        signal_when(processes, lambda: len(logged_rows(tmp_path)) >= 5, signal.SIGTERM)
        finish(processes, EXIT_CODE)
    finally:
        kill_all(processes)
    assert 5 <= saved_steps(tmp_path)[-1] < NUM_STEPS
    (said,) = finish(start_run(noise_shards, tmp_path, on_device=DEVICE, **STILL))
    assert "resuming after step" in said
    assert relative_difference(tmp_path, finished) < 1e-3


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_a_run_in_lower_precision_stays_near_the_full_one(
    precision: str, finished: Path, noise_shards: Path, tmp_path: Path
) -> None:
    found = trained(noise_shards, tmp_path / precision, precision=precision)
    losses = [[row["loss"] for row in rows_of(out) if row["loss"] is not None] for out in (found, finished)]
    assert losses[0][-1] == pytest.approx(losses[1][-1], rel=0.1)
    assert losses[0][-1] < losses[0][0]
    assert {value.dtype for value in weights(found / "model").values()} == {torch.float32}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_tokens_that_are_alike_find_themselves_in_every_precision(precision: str) -> None:
    ranks = Ranks(0, 1, torch.device(DEVICE))
    state = state_of_similar_tokens(precision, ranks)
    batch = batch_of_equal_crops().to(ranks.device)
    values = step_on(state, batch, ranks, precision=precision, **without_removal()).values
    assert values["accuracy_decomposition"] == 1.0
    assert values["accuracy_composition"] == 1.0


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_convolutions_make_nearly_the_step_of_the_cpu_however_their_kernels_lie(precision: Precision) -> None:
    ranks = Ranks(0, 1, torch.device(DEVICE))
    changes = {"backbone": CONVOLUTIONS["backbone"] | {"drop_path": 0.0}}
    state, expected = (
        fresh_state(ranks, precision=precision, **changes),
        step_on(fresh_state(**changes), batch_with_gaps(), **changes),
    )
    kernels = [weight for weight in state.student.parameters() if weight.ndim == 4 and min(weight.shape) > 1]
    assert all(kernel.is_contiguous() == (precision == "fp32") for kernel in kernels)
    with accelerator_settings(precision, ranks.device, has_one_shape=True):
        found = step_on(state, batch_with_gaps().to(ranks.device), ranks, precision=precision, **changes)
    assert found.is_finite or found.is_overflow
    assert float(found.values["loss"]) == pytest.approx(float(expected.values["loss"]), rel=0.02)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_embeddings_in_the_precision_of_the_training_are_near_those_of_the_cpu(
    precision: Precision, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "ace", "convnext", precision=precision)
    images = [smooth_image(64, 64, seed) for seed in range(5)]
    model = ace.load(folder, device=DEVICE)
    assert model.encoder.precision == precision
    found, expected = model.embed(images), ace.load(folder, device="cpu").embed(images)
    assert found.embedding.dtype == found.tokens.dtype == torch.float32
    torch.testing.assert_close(found.embedding, expected.embedding, rtol=0, atol=2e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_that_is_not_logged_waits_for_the_accelerator_once(precision: str) -> None:
    ranks = Ranks(0, 1, torch.device(DEVICE))
    state, batch = fresh_state(ranks, precision=precision), batch_with_gaps().to(ranks.device)
    step_on(state, batch, ranks, precision=precision)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            step_on(state, batch, ranks, precision=precision, is_logged=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) <= 1, [str(wait.message) for wait in waits]


def test_two_processes_on_one_accelerator_are_refused(noise_shards: Path, tmp_path: Path) -> None:
    if torch.cuda.device_count() > 1:
        pytest.skip("NOT TESTED: this machine has several accelerators")
    for said in finish(start_run(noise_shards, tmp_path, num_ranks=2, on_device=DEVICE), 2):
        assert "LOCAL_RANK is 1 and this machine shows 1 accelerator(s)" in said


WRAPPED = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from ace.engine.ranks import Ranks
from tests.ace.pretrain.conftest import tiny_params
from tests.ace.pretrain.steps import GRID, batch_with_gaps, fresh_state, record, settings
from tests.ace.pretrain.synthetic import step_of
device, backend, out = torch.device(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group(backend)
ranks = Ranks(0, 1, device)
state = fresh_state(ranks)
learner = DistributedDataParallel(state.student, device_ids=[0] if backend == "nccl" else None,
                                  gradient_as_bucket_view=True).train()
step = step_of(state, tiny_params(**settings()), GRID.t, learner=learner, ranks=ranks)
outcome = step(batch_with_gaps().to(device))
torch.save(record(state, outcome), out)
dist.destroy_process_group()
"""


def test_a_step_through_ddp_and_nccl_is_the_step_without(tmp_path: Path) -> None:
    """In a group of one process, as many as one accelerator allows."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    backend = "nccl" if DEVICE == "cuda" else "gloo"
    command = [sys.executable, "-c", WRAPPED, DEVICE, backend, str(tmp_path / "step.pt")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "step.pt", weights_only=True, map_location="cpu")
    ranks = Ranks(0, 1, torch.device(DEVICE))
    state = fresh_state(ranks)
    expected = record(state, step_on(state, batch_with_gaps().to(ranks.device), ranks))
    for group in ("gradients", "student", "teacher"):
        assert found[group].keys() == expected[group].keys()
        for name, value in expected[group].items():
            torch.testing.assert_close(found[group][name], value.cpu(), rtol=1e-4, atol=1e-5, msg=name)
