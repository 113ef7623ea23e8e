"""One step: the same over processes and micro-batches as on the whole batch at once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ace.models.backbone import build_backbone
from ace.training.objective import count_valid
from ace.training.step import seed_of
from shards.errors import ConfigError
from tests.ace.models.test_backbone import grid, params
from tests.ace.training.conftest import ROOT, tiny_params
from tests.ace.training.steps import GRID, batch_with_gaps, fresh_state, record, step_on

MONITORS = {"feature_std", "effective_rank", "rank_fraction", "teacher_entropy"}
"""Measured on the first rank's last micro-batch, so other for another division."""


def recorded(**changes: Any) -> dict[str, Any]:
    state = fresh_state(**changes)
    return record(state, step_on(state, batch_with_gaps(), **changes))


def assert_same(found: dict[str, Any], expected: dict[str, Any], *, tolerance: float = 1e-5) -> None:
    for group in ("gradients", "student", "teacher"):
        assert found[group].keys() == expected[group].keys()
        for name, value in expected[group].items():
            torch.testing.assert_close(found[group][name], value, rtol=tolerance, atol=tolerance, msg=f"{group} {name}")
    torch.testing.assert_close(found["center"], expected["center"])
    for name in expected["terms"].keys() - MONITORS:
        if not name.startswith("accuracy"):  # a share of matches: samples with more of them count more in a whole batch
            torch.testing.assert_close(found["terms"][name], expected["terms"][name], rtol=1e-4, atol=1e-6)


def run_processes(folder: Path, num_processes: int, changes: dict[str, Any]) -> list[dict[str, Any]]:
    """What each process of torchrun recorded; none of them checks shapes, which a compiler cannot look through."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["GLOO_SOCKET_IFNAME"] = "lo"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1", f"--nproc-per-node={num_processes}"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    command += ["-m", "tests.ace.training.steps", str(folder), json.dumps(changes)]
    finished = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(num_processes)]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_processes(tmp_path_factory.mktemp("two"), 2, {})


def test_the_halves_of_the_batch_differ_in_what_counts() -> None:
    first, second = batch_with_gaps().split(2)
    assert (count_valid(first, GRID.t), count_valid(second, GRID.t)) == (3, 1)


def test_two_processes_make_the_step_of_one_on_the_concatenated_batch(two_processes: list[dict[str, Any]]) -> None:
    assert_same(two_processes[0], recorded())


def test_both_processes_have_the_same_networks_to_the_last_bit(two_processes: list[dict[str, Any]]) -> None:
    first, second = two_processes
    for group in ("gradients", "student", "teacher"):
        assert all(torch.equal(first[group][name], second[group][name]) for name in first[group])
    assert torch.equal(first["center"], second["center"])


@pytest.mark.parametrize("num_micro_batches", [2, 4, 8])
def test_accumulated_gradients_are_those_of_the_large_batch(num_micro_batches: int) -> None:
    assert_same(recorded(num_micro_batches=num_micro_batches), recorded())


def test_activations_computed_again_change_no_value() -> None:
    assert_same(recorded(checkpoint_activations=True), recorded())


def test_a_backbone_without_activation_checkpointing_says_so() -> None:
    with torch.device("meta"):
        model = build_backbone(params("cspresnet50"), grid(8, 32))
    with pytest.raises(ConfigError, match="CspNet has no activation checkpointing"):
        model.checkpoint_activations()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_gives_nearly_the_same_gradient_and_fp32_weights(precision: str) -> None:
    state, expected = fresh_state(precision=precision), recorded()
    state.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=precision == "fp16")
    found = record(state, step_on(state, batch_with_gaps(), precision=precision))
    gradients = [
        torch.cat([side["gradients"][name].flatten() for name in expected["gradients"]]) for side in (found, expected)
    ]
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.98
    assert gradients[0].norm() == pytest.approx(gradients[1].norm().item(), rel=0.1)
    assert {value.dtype for value in found["student"].values()} == {torch.float32}
    assert found["terms"]["loss"] == pytest.approx(expected["terms"]["loss"].item(), rel=0.02)
    assert ("loss_scale" in found["terms"]) == (precision == "fp16")


def test_a_loss_scale_that_overflows_is_lowered_and_the_step_left_out() -> None:
    state = fresh_state(precision="fp16")
    before = {name: value.clone() for name, value in state.student.state_dict().items()}
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    outcome = step_on(state, batch_with_gaps(), precision="fp16")
    assert outcome.is_overflow
    assert not outcome.is_finite
    assert state.scaler.get_scale() == 2.0**39
    assert all(torch.equal(value, before[name]) for name, value in state.student.state_dict().items())
    assert state.step == 1


def test_a_nonfinite_loss_changes_nothing_but_the_number_of_the_step() -> None:
    state = fresh_state()
    with torch.no_grad():
        state.student.backbone.model.patch_embed.proj.bias[0] = float("nan")
    networks = (state.student, state.teacher)
    before = [{name: value.clone() for name, value in network.state_dict().items()} for network in networks]
    center = state.center.clone()
    outcome = step_on(state, batch_with_gaps())
    assert not outcome.is_finite
    assert not outcome.is_overflow
    assert torch.equal(state.center, center)
    for network, values in zip(networks, before, strict=True):
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, values[name], equal_nan=True, rtol=0, atol=0)
    assert state.step == 1


def test_random_draws_differ_between_steps_and_ranks_and_repeat_for_the_same() -> None:
    seeds = {(step, rank): seed_of(0, step, rank) for step in range(50) for rank in range(4)}
    assert len(set(seeds.values())) == 200
    assert seed_of(0, 3, 1) == seeds[3, 1]
    assert seed_of(1, 3, 1) != seeds[3, 1]


def test_stochastic_depth_follows_from_the_step_whatever_was_drawn_before() -> None:
    changes = {"backbone": tiny_params().backbone.model_dump() | {"drop_path": 0.5}}
    losses = []
    for num_burned in (0, 17):
        state = fresh_state(**changes)
        torch.rand(num_burned)
        losses.append(step_on(state, batch_with_gaps(), **changes).local_loss)
    assert losses[0] == losses[1]
    assert losses[0] != step_on(fresh_state(), batch_with_gaps()).local_loss


@pytest.mark.slow
def test_a_compiled_backbone_makes_the_same_step(tmp_path: Path) -> None:
    (found,) = run_processes(tmp_path, 1, {"compile": True})
    assert_same(found, recorded(), tolerance=1e-4)
