"""Whole steps against a run written plainly in float64, and the teacher's average over several of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ace.data.batches import PairBatch, ViewBatch
from ace.engine.schedules import cosine, linear_warmup, warmup_cosine
from ace.pretrain.params import PretrainParams
from ace.pretrain.pretrain import build_state
from ace.pretrain.state import TrainState
from shards.core.grid import Scale
from tests.ace.pretrain.conftest import demo_values, tiny_grid, tiny_params
from tests.ace.pretrain.synthetic import pair_batch, step_of, view_batch
from tests.oracles.training import ReferenceRun

GRID = tiny_grid(
    n=9, t=4, min_overlap=0.3, scales=[{"k": k, "l": l, "weight": 1.0} for k, l in ((1, 1), (2, 2), (1, 2), (2, 1))]
)
VIT = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "class_token": False}
EPOCHS, STEPS_PER_EPOCH = 4, 1


def params_of(*, removal: float = 0.0, **changes: Any) -> PretrainParams:
    """Every schedule moves within the few steps: warm-ups, decay, momentum, temperature, frozen last layer."""
    backbone = {**demo_values("pretrain")["backbone"], "name": "vit_tiny_patch16_224", "model_args": VIT}
    values: dict[str, Any] = {
        "epochs": EPOCHS,
        "warmup_epochs": 2,
        "batch_size": 3,
        "base_lr": 0.2,
        "min_lr": 1e-3,
        "weight_decay": 0.1,
        "weight_decay_end": 0.6,
        "momentum": 0.7,
        "momentum_end": 0.9,
        "backbone": {**backbone, "drop_path": 0.0, "token_activation": "identity"},
        "local_head": {"form": "mlp", "hidden_dim": 8},
        "composer": "mlp",
        "decomposer": "mlp",
        "loss_weights": {"global": 0.3, "decomposition": 0.7, "composition": 0.9, "removal": removal},
    }
    values["global_loss"] = {
        **demo_values("pretrain")["global_loss"],
        "teacher_temperature_start": 0.08,
        "teacher_temperature_warmup_epochs": 2,
        "frozen_last_layer_epochs": 1,
    }
    return tiny_params(**{**values, **changes})


def take_step(state: TrainState, batch: PairBatch | ViewBatch, params: PretrainParams) -> float:
    outcome = step_of(state, params, GRID.t, steps_per_epoch=STEPS_PER_EPOCH)(batch)
    return float(outcome.values["loss"])


def batches_of(objective: str, rng: np.random.Generator) -> list[PairBatch | ViewBatch]:
    """One a step, on the CPU and of float64 pixels, with erased tokens."""
    spec, values = GRID.spec, {"size": 3, "share_erased": 0.3}
    batches: list[PairBatch | ViewBatch]
    if objective == "dino":
        batches = [view_batch(spec, rng, **values) for _ in range(EPOCHS)]
    elif objective == "ace":
        batches = [pair_batch(spec, Scale(k, l, 1.0), rng, **values) for k, l in ((2, 2), (2, 1), (1, 2), (1, 1))]
    else:
        views = [view_batch(spec, rng, num_views=3, num_teacher_views=2, **values) for _ in range(2)]
        pairs = [pair_batch(spec, Scale(k, k, 1.0), rng, **values) for k in (1, 2)]
        batches = [views[0], *pairs, views[1]]
    return [
        replace(batch.to(torch.device("cpu")), mean=batch.mean.cpu().double(), std=batch.std.cpu().double())
        for batch in batches
    ]


@pytest.mark.parametrize("clip_norm", [0.05, 1e6], ids=["clipped", "not clipped"])
@pytest.mark.parametrize("objective", ["ace", "dino", "ace_v2"])
@pytest.mark.parametrize("removal", [0.0, 0.6], ids=["the paper's", "removal"])
def test_steps_end_in_the_weights_of_a_run_written_plainly(objective: str, clip_norm: float, removal: float) -> None:
    params = params_of(objective=objective, clip_norm=clip_norm, removal=removal)
    torch.manual_seed(0)
    state = build_state(params, GRID, torch.device("cpu"))
    # In float64, but for the losses' own float32: Adam divides by gradients that may be nothing but rounding.
    for module in (state.student, state.teacher):
        module.double()
    reference = ReferenceRun(
        state.student,
        state.teacher,
        state.center,
        params,
        t=GRID.t,
        num_steps=EPOCHS * STEPS_PER_EPOCH,
        steps_per_epoch=STEPS_PER_EPOCH,
    )
    start = {name: parameter.detach().clone() for name, parameter in state.student.named_parameters()}
    for batch in batches_of(objective, np.random.default_rng(1)):
        assert take_step(state, batch, params) == pytest.approx(reference.step(batch), rel=1e-5)
        assert (reference.grad_norm > clip_norm) == (clip_norm < 1)
    for ours, theirs in ((state.student, reference.student), (state.teacher, reference.teacher)):
        expected = dict(theirs.named_parameters())
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter, expected[name], atol=2e-6, rtol=0, msg=name)
    torch.testing.assert_close(state.center.double(), reference.center, atol=1e-6, rtol=1e-5)
    still = {name for name, p in state.student.named_parameters() if (p - start[name]).abs().max() < 1e-4}
    unused = {name for name in start if objective == "ace_v2" and ("1x2" in name or "2x1" in name)}
    assert still == {name for name in unused if name.endswith("bias")}, "all others learned, or at least decayed"


BACKBONES = {
    "Swin, integer buffers": (
        "swin_tiny_patch4_window7_224",
        {"embed_dim": 6, "depths": [1, 1, 1], "num_heads": [1, 2, 4], "window_size": 4},
        tiny_grid(n=8, t=4, cell_px=16),
    ),
    "ResNet, running statistics": (
        "resnet18",
        {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]},
        tiny_grid(n=4, t=2, cell_px=32),
    ),
}


@pytest.mark.parametrize(("name", "model_args", "grid"), BACKBONES.values(), ids=BACKBONES)
def test_the_teacher_after_several_updates_is_the_weighted_history_of_the_student_with_its_buffers(
    name: str, model_args: dict[str, Any], grid: Any
) -> None:
    backbone = {**demo_values("pretrain")["backbone"], "name": name, "model_args": model_args}
    torch.manual_seed(0)
    state = build_state(params_of(backbone=backbone), grid, torch.device("cpu"))
    student, teacher = state.student.train(), state.teacher
    history = [{key: value.detach().double().clone() for key, value in teacher.named_parameters()}]
    before = {key: buffer.clone() for key, buffer in teacher.named_buffers()}
    momenta = [0.5, 0.9, 0.0, 0.996, 0.3]
    for number, momentum in enumerate(momenta):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            student.backbone(torch.randn(4, 1, grid.spec.crop_px, grid.spec.crop_px))
            for buffer in student.buffers():
                if not buffer.is_floating_point() and buffer.ndim:
                    buffer.copy_(buffer.roll(number, 0))
        history.append({key: value.detach().double().clone() for key, value in student.named_parameters()})
        teacher.update(student, momentum)
    # Written out: the student of update i weighs (1 - m_i) times the momenta after it.
    shares = [(1 - m) * np.prod(momenta[i + 1 :]) for i, m in enumerate(momenta)]
    shares = [np.prod(momenta), *shares]
    assert sum(shares) == pytest.approx(1)
    for key, parameter in teacher.named_parameters():
        expected = sum(share * weights[key] for share, weights in zip(shares, history, strict=True))
        torch.testing.assert_close(parameter.double(), expected, atol=1e-6, rtol=0, msg=key)
    theirs, copied = dict(student.named_buffers()), dict(teacher.named_buffers())
    assert any(not buffer.is_floating_point() for buffer in copied.values())
    assert any(not torch.equal(buffer, before[key]) for key, buffer in copied.items())
    assert all(torch.equal(buffer, theirs[key]) for key, buffer in copied.items())


@pytest.mark.parametrize("num_steps", [1, 2, 3, 50])
@pytest.mark.parametrize("num_warmup_steps", [0, 1, 20])
def test_schedules_at_their_ends(num_steps: int, num_warmup_steps: int) -> None:
    """At the first step, the last of the warm-up, the first after it, and the last; past the end they stay."""
    assert cosine(0.7, 0.2, 0, num_steps) == pytest.approx(0.7)
    if num_steps > 1:
        assert cosine(0.7, 0.2, num_steps - 1, num_steps) == pytest.approx(0.2)
        assert cosine(0.7, 0.2, num_steps + 5, num_steps) == pytest.approx(0.2)
    if num_warmup_steps < num_steps - 1:
        assert warmup_cosine(0.7, 0.2, num_steps - 1, num_steps, num_warmup_steps) == pytest.approx(0.2)
        assert warmup_cosine(0.7, 0.2, num_warmup_steps, num_steps, num_warmup_steps) == pytest.approx(0.7)
        if num_warmup_steps:
            first = warmup_cosine(0.7, 0.2, 0, num_steps, num_warmup_steps)
            assert first == pytest.approx(0.7 / num_warmup_steps)
            assert warmup_cosine(0.7, 0.2, num_warmup_steps - 1, num_steps, num_warmup_steps) == pytest.approx(0.7)
    if num_warmup_steps:
        assert linear_warmup(0.07, 0.04, 0, num_warmup_steps) == pytest.approx(0.07)
    assert linear_warmup(0.07, 0.04, num_warmup_steps, num_warmup_steps) == pytest.approx(0.04)
    assert linear_warmup(0.07, 0.04, num_steps + num_warmup_steps, num_warmup_steps) == pytest.approx(0.04)
