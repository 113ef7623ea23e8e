"""One optimiser step: schedules, micro-batches, gradients averaged over ranks, clipping, teacher, centre."""

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ace.data.batches import PairBatch, ViewBatch
from ace.losses.consistency import update_center
from ace.models.networks import TeacherOutputs
from ace.training.monitors import center_norm, effective_rank, feature_std, mean_entropy, rank_fraction
from ace.training.objective import StepResult, compute_loss, count_valid
from ace.training.optimizer import set_schedule
from ace.training.params import PretrainParams
from ace.training.ranks import Ranks
from ace.training.schedules import cosine, linear_warmup, warmup_cosine
from ace.training.state import TrainState

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Schedule:
    """The values of one step.

    Attributes:
        lr: Learning rate.
        weight_decay: Of matrices and kernels.
        momentum: Of the teacher.
        teacher_temperature: Of the global term.
        is_last_layer_frozen: Whether the global head's last layer gets no gradient.
    """

    lr: float
    weight_decay: float
    momentum: float
    teacher_temperature: float
    is_last_layer_frozen: bool

    @classmethod
    def at(cls, params: PretrainParams, step: int, steps_per_epoch: int) -> "Schedule":
        """Of step `step`, the first being 0."""
        num_steps, loss = params.epochs * steps_per_epoch, params.global_loss
        warmup_steps = round(params.warmup_epochs * steps_per_epoch)
        temperature_steps = round(loss.teacher_temperature_warmup_epochs * steps_per_epoch)
        return cls(
            lr=warmup_cosine(params.lr, params.min_lr, step, num_steps, warmup_steps),
            weight_decay=cosine(params.weight_decay, params.weight_decay_end, step, num_steps),
            momentum=cosine(params.momentum, params.momentum_end, step, num_steps),
            teacher_temperature=linear_warmup(
                loss.teacher_temperature_start, loss.teacher_temperature, step, temperature_steps
            ),
            is_last_layer_frozen=step < loss.frozen_last_layer_epochs * steps_per_epoch,
        )


@dataclass(frozen=True)
class StepOutcome:
    """What a step did.

    Attributes:
        values: What to log, over all ranks: the named parts of the loss, schedules and the gradient's norm.
        local_loss: This rank's loss.
        is_finite: Whether loss and gradient were; if not, nothing was changed but the step's number.
        is_overflow: Whether they were not because the loss scale of fp16 was too large; it has been lowered.
        is_stop_wanted: Whether any rank asked for the end.
    """

    values: dict[str, Any]
    local_loss: Tensor
    is_finite: bool
    is_overflow: bool
    is_stop_wanted: bool


def train_step(
    state: TrainState,
    learner: nn.Module,
    batch: PairBatch | ViewBatch,
    params: PretrainParams,
    *,
    t: int,
    steps_per_epoch: int,
    ranks: Ranks,
    is_logged: bool = True,
    is_stop_wanted: bool = False,
) -> StepOutcome:
    """One optimiser step on the student, one average step of the teacher; every rank calls it with its own batch.

    Equal, but for rounding and stochastic depth, to a step of a single process on all ranks' batches at once.

    Args:
        state: Changed in place.
        learner: The student as `Ranks.averaging` wraps it.
        batch: This rank's samples, on its device.
        params: Section `pretrain`.
        t: Tokens per crop side.
        steps_per_epoch: Optimiser steps.
        ranks: Whom to agree with.
        is_logged: Whether to measure what only the log wants: accuracies and monitors.
        is_stop_wanted: Whether this rank asks for the end after this step.
    """
    step = state.step
    schedule = Schedule.at(params, step, steps_per_epoch)
    set_schedule(state.optimizer, lr=schedule.lr, weight_decay=schedule.weight_decay)
    torch.manual_seed(seed_of(params.seed, step, ranks.rank))
    # Known before any micro-batch runs: each divides its part of the global term by the whole batch's count.
    num_valid = count_valid(batch, t)
    agreed = ranks.sum(torch.stack([num_valid, num_valid.new_tensor(float(is_stop_wanted))]))
    state.optimizer.zero_grad(set_to_none=True)
    num_valid = agreed[0] / ranks.world_size
    results = _forward_backward(state, learner, batch, params, t, schedule, num_valid, ranks, is_logged)
    center_sums, terms = _added_up(results, ranks)
    grad_norm, is_scaled_finite = _clipped(state, params, schedule)
    is_loss_finite = bool(torch.isfinite(terms["loss"]))
    is_finite = is_loss_finite and is_scaled_finite
    if is_finite:
        state.scaler.step(state.optimizer)
        state.teacher.update(state.student, schedule.momentum)
        if center_sums is not None:
            state.center = update_center(state.center, *center_sums, momentum=params.global_loss.center_momentum)
    is_overflow = not is_finite and is_loss_finite and state.scaler.is_enabled() and state.scaler.get_scale() > 1.0
    if state.scaler.is_enabled():
        state.scaler.update()
    state.step += 1
    values: dict[str, Any] = {
        **terms,
        "lr": schedule.lr,
        "weight_decay": schedule.weight_decay,
        "momentum": schedule.momentum,
        "grad_norm": grad_norm,
    }
    if is_logged:
        values |= _monitored(results[-1].teacher, state.center, schedule.teacher_temperature)
    if state.scaler.is_enabled():
        values["loss_scale"] = state.scaler.get_scale()
    local_loss = torch.stack([result.loss.detach() for result in results]).sum()
    return StepOutcome(values, local_loss, is_finite, is_overflow, bool(agreed[1] > 0))


def seed_of(seed: int, step: int, rank: int) -> int:
    """Seed of a step's random draws (stochastic depth) on one rank."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}/{rank}".encode()).digest()[:8], "big") >> 1


def _forward_backward(
    state: TrainState,
    learner: nn.Module,
    batch: PairBatch | ViewBatch,
    params: PretrainParams,
    t: int,
    schedule: Schedule,
    num_valid: Tensor,
    ranks: Ranks,
    is_logged: bool,
) -> list[StepResult]:
    dtype = DTYPES[params.precision]
    micro_batches: Sequence[PairBatch | ViewBatch] = batch.split(params.num_micro_batches)
    results = []
    for number, micro_batch in enumerate(micro_batches, start=1):
        is_averaged = ranks.world_size == 1 or number == len(micro_batches)
        with nullcontext() if is_averaged else learner.no_sync():  # type: ignore[operator]
            with torch.autocast(ranks.device.type, dtype, enabled=dtype is not None):
                result = compute_loss(
                    learner,
                    state.teacher,
                    micro_batch,
                    state.center,
                    params,
                    t=t,
                    teacher_temperature=schedule.teacher_temperature,
                    logit_scales=state.student,
                    num_valid=num_valid,
                    share=1 / len(micro_batches),
                    is_measured=is_logged,
                )
            state.scaler.scale(result.loss).backward()  # type: ignore[no-untyped-call]
        results.append(result)
    return results


def _added_up(results: list[StepResult], ranks: Ranks) -> tuple[tuple[Tensor, Tensor] | None, dict[str, Tensor]]:
    """The centre's sum and count, and the named terms, over micro-batches and ranks: one reduction for all."""
    names = list(results[0].terms)
    terms = torch.stack([torch.stack([result.terms[name].float() for name in names]) for result in results]).sum(0)
    sums = [result.center_sum for result in results if result.center_sum is not None]
    if not sums:
        return None, dict(zip(names, ranks.sum(terms) / ranks.world_size, strict=True))
    logit_sum = torch.stack([total for total, _ in sums]).sum(0)
    count = torch.stack([number for _, number in sums]).sum(0)
    reduced = ranks.sum(torch.cat([terms, count[None], logit_sum]))
    means = reduced[: len(names)] / ranks.world_size
    return (reduced[len(names) + 1 :], reduced[len(names)]), dict(zip(names, means, strict=True))


def _clipped(state: TrainState, params: PretrainParams, schedule: Schedule) -> tuple[Tensor, bool]:
    """Clip the true gradient in place; its norm before, equal on every rank, and whether it is finite."""
    head = state.student.global_head
    if head is not None and schedule.is_last_layer_frozen:
        head.last_layer.weight.grad = None
    if state.scaler.is_enabled():
        state.scaler.unscale_(state.optimizer)
    grad_norm = torch.nn.utils.clip_grad_norm_(state.student.parameters(), params.clip_norm)
    return grad_norm, bool(torch.isfinite(grad_norm))


def _monitored(teacher: TeacherOutputs, center: Tensor, temperature: float) -> dict[str, Tensor]:
    features = teacher.features.float()
    values = {
        "feature_std": feature_std(features),
        "effective_rank": effective_rank(features),
        "rank_fraction": rank_fraction(features),
    }
    if teacher.fine_logits is not None:
        values["center_norm"] = center_norm(center)
        values["teacher_entropy"] = mean_entropy((teacher.fine_logits.float() - center) / temperature)
    return values
