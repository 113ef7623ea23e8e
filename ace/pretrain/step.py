"""One optimiser step: schedules, micro-batches, gradients averaged over ranks, clipping, teacher, centre."""

import math
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ace.data.batches import PairBatch, ViewBatch
from ace.engine.optimizer import set_schedule
from ace.engine.ranks import Ranks
from ace.engine.schedules import cosine, linear_warmup, warmup_cosine
from ace.engine.training import StepOutcome, seed_of
from ace.losses.consistency import update_center
from ace.losses.removal import RemovalSums
from ace.models.networks import TeacherOutputs
from ace.pretrain.monitors import center_norm, effective_rank, feature_std, mean_entropy, rank_fraction
from ace.pretrain.objective import BatchTotals, Objective, StepContext, StepResult
from ace.pretrain.params import PretrainParams
from ace.pretrain.state import TrainState


@dataclass(frozen=True, kw_only=True)
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
        """Return the values for step `step`, the first being 0."""
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


@dataclass(frozen=True, kw_only=True)
class PretrainStep:
    """Takes one optimiser step on the student and one average step of the teacher; built once a run.

    Equal, but for rounding and stochastic depth, to a step of a single process on all ranks' batches at once.

    Attributes:
        state: Changed in place.
        learner: The student as `Ranks.averaging` wraps it.
        params: Section `pretrain`.
        objective: The loss.
        steps_per_epoch: Optimiser steps.
        ranks: Whom to agree with.
    """

    state: TrainState
    learner: nn.Module
    params: PretrainParams
    objective: Objective
    steps_per_epoch: int
    ranks: Ranks

    def __call__(
        self, batch: PairBatch | ViewBatch, *, is_logged: bool = True, is_stop_wanted: bool = False
    ) -> StepOutcome:
        """Take the step; every rank calls it with its own batch.

        Args:
            batch: This rank's samples, on its device.
            is_logged: Whether to measure what only the log wants: accuracies and monitors.
            is_stop_wanted: Whether this rank asks for the end after this step.
        """
        state, params, ranks, objective = self.state, self.params, self.ranks, self.objective
        schedule = Schedule.at(params, state.step, self.steps_per_epoch)
        set_schedule(state.optimizer, lr=schedule.lr, weight_decay=schedule.weight_decay)
        torch.manual_seed(seed_of(params.seed, state.step, ranks.rank))
        # What a term is divided by has to be known before any micro-batch's backward pass. Removal is divided by what
        # the teacher gives for all of them, which is kept for that; without it each is taught when its turn comes.
        micro_batches: Sequence[PairBatch | ViewBatch] = batch.split(params.num_micro_batches)
        taught: deque[TeacherOutputs] = deque()
        if objective.is_whole:
            taught.extend(objective.teach(state.teacher, part) for part in micro_batches)
        own = objective.totals(batch, taught, params.num_micro_batches)
        # Filled in where it lies: a value made on the host would be waited for.
        stop = torch.full_like(own.num_valid, float(is_stop_wanted))
        agreed = ranks.sum(torch.stack([own.num_valid, own.teacher_energy, stop]))
        context = StepContext(
            center=state.center,
            teacher_temperature=schedule.teacher_temperature,
            scales=state.student,
            totals=BatchTotals(*(agreed[:2] / ranks.world_size)),
            share=1 / len(micro_batches),
            is_measured=is_logged,
        )
        state.optimizer.zero_grad(set_to_none=True)
        results, last_taught = self._forward_backward(micro_batches, taught, context)
        center_sums, terms, removal = _added_up(results, ranks)
        grad_norm = self._clipped(schedule)
        # The one wait of a step for the device: whether it counts has to be known here.
        loss, norm, num_stops = torch.stack([terms["loss"], grad_norm, agreed[2]]).tolist()
        is_loss_finite = math.isfinite(loss)
        is_finite = is_loss_finite and math.isfinite(norm)
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
        if removal is not None:
            values |= {name: value for name, value in removal.ratios.items() if torch.isfinite(value)}
        if is_logged:
            values |= _monitored(last_taught, state.center, schedule.teacher_temperature)
        if is_logged and state.scaler.is_enabled():
            values["loss_scale"] = state.scaler.get_scale()
        local_loss = torch.stack([result.loss for result in results]).sum()
        return StepOutcome(
            values=values,
            local_loss=local_loss,
            is_finite=is_finite,
            is_overflow=is_overflow,
            is_stop_wanted=num_stops > 0,
        )

    def _forward_backward(
        self, micro_batches: Sequence[PairBatch | ViewBatch], taught: deque[TeacherOutputs], context: StepContext
    ) -> tuple[list[StepResult], TeacherOutputs]:
        """Return each micro-batch's part of the loss, without its graph, and what the teacher gave for the last one.

        Of the others the teacher's outputs are gone after their backward pass; `taught`, if it holds them, is emptied.
        """
        results: list[StepResult] = []
        for number, micro_batch in enumerate(micro_batches, start=1):
            outputs = taught.popleft() if taught else self.objective.teach(self.state.teacher, micro_batch)
            is_averaged = self.ranks.world_size == 1 or number == len(micro_batches)
            with nullcontext() if is_averaged else self.learner.no_sync():  # type: ignore[operator]
                result = self.objective.loss(self.learner, micro_batch, outputs, context)
                self.state.scaler.scale(result.loss).backward()  # type: ignore[no-untyped-call]
            results.append(replace(result, loss=result.loss.detach()))
        return results, outputs

    def _clipped(self, schedule: Schedule) -> Tensor:
        """Clip the true gradient in place; its norm before, equal on every rank."""
        state = self.state
        head = state.student.global_head
        if head is not None and schedule.is_last_layer_frozen:
            head.last_layer.weight.grad = None
        if state.scaler.is_enabled():
            state.scaler.unscale_(state.optimizer)
        return torch.nn.utils.clip_grad_norm_(state.student.parameters(), self.params.clip_norm)


def _added_up(
    results: list[StepResult], ranks: Ranks
) -> tuple[tuple[Tensor, Tensor] | None, dict[str, Tensor], RemovalSums | None]:
    """Reduce the centre's sum and count, the named terms and the monitors' sums over micro-batches and ranks.

    One reduction serves for all.
    """
    names = list(results[0].terms)
    parts = [torch.stack([torch.stack([result.terms[name].float() for name in names]) for result in results]).sum(0)]
    centers = [result.center_sum for result in results if result.center_sum is not None]
    if centers:
        parts.append(torch.stack([count for _, count in centers]).sum(0)[None])
        parts.append(torch.stack([total for total, _ in centers]).sum(0))
    removals = [result.removal_sums for result in results if result.removal_sums is not None]
    if removals:
        parts.append(torch.stack(removals).sum(0))
    added = list(torch.split(ranks.sum(torch.cat(parts)), [len(part) for part in parts]))
    terms = dict(zip(names, added.pop(0) / ranks.world_size, strict=True))
    removal = RemovalSums.of(added.pop()) if removals else None
    return (added[1], added[0][0]) if centers else None, terms, removal


def _monitored(teacher: TeacherOutputs, center: Tensor, temperature: float) -> dict[str, Tensor]:
    features = teacher.features.float()
    rank = effective_rank(features)
    values = {
        "feature_std": feature_std(features),
        "effective_rank": rank,
        "rank_fraction": rank_fraction(rank, features),
    }
    if teacher.fine_logits is not None:
        values["center_norm"] = center_norm(center)
        values["teacher_entropy"] = mean_entropy((teacher.fine_logits.float() - center) / temperature)
    return values
