"""Train encoder and head on labels, on the shared engine: its state, its step, and the validation that ends it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import AdamW

from ace.downstream.base import Arrays, Task
from ace.downstream.images import LabelledBatch, TrainingImages, as_input
from ace.downstream.params import TaskParams
from ace.downstream.shown import ShownPart
from ace.embed.encoder import Encoder
from ace.engine.checkpoints import CheckpointFolder
from ace.engine.loop import CHECKPOINTS, Journal, finish_training, load_newest
from ace.engine.optimizer import build_optimizer, load_optimizer, set_schedule
from ace.engine.ranks import Ranks
from ace.engine.run import RunFolder, RunIdentity
from ace.engine.schedules import cosine, warmup_cosine
from ace.engine.stop import StopRequest
from ace.engine.training import Hooks, StepOutcome, Training, seed_of
from ace.models.backbone import build_backbone
from ace.models.folder import WHITENING
from ace.models.precision import accelerator_settings, in_precision, placed
from shards.core.errors import ConfigError

SCORE = "val_score"
NOT_DECISIVE = {
    "device",
    "num_workers",
    "log_every_steps",
    "checkpoint_every_s",
    "keep_checkpoints",
    "on_nonfinite",
    "max_skipped_steps",
}
"""Fields of `training` that may change without changing what a training ends with."""


def with_drop_path(encoder: Encoder, drop_path: float) -> Encoder:
    """Return the encoder with another stochastic depth, which shows in training alone."""
    config = encoder.config
    if config is None or config.backbone.drop_path == drop_path:
        return encoder
    # timm has a module for it only where there is some: it cannot be set afterwards.
    backbone = build_backbone(config.backbone.model_copy(update={"drop_path": drop_path}), config.params.grid)
    state = encoder.backbone.state_dict()
    if WHITENING in state:
        backbone.whiten(state[WHITENING])
    backbone.load_state_dict(state)
    return replace(encoder, backbone=placed(backbone, encoder.precision, encoder.device).eval())


@dataclass(kw_only=True)
class FinetuneState:
    """Holds network, optimiser, loss scale and the number of finished steps; all else follows from the seed."""

    network: nn.Module
    optimizer: AdamW
    scaler: GradScaler
    step: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return tensors and plain values, which `torch.save` writes without code."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_dict(self, values: dict[str, Any]) -> None:
        """Take what `to_dict` gave.

        Raises:
            ConfigError: the tensors or the optimiser's groups are those of other code.
        """
        try:
            self.network.load_state_dict(values["network"])
            load_optimizer(self.optimizer, values["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ConfigError(
                f"the checkpoint was written by code with other networks or parameter groups: {error}; go on with that "
                "code, or begin a new run"
            ) from None
        self.scaler.load_state_dict(values["scaler"])
        self.step = int(values["step"])

    def tensors(self) -> dict[str, Tensor]:
        """Return the network's tensors by name."""
        return self.network.state_dict()


@dataclass(frozen=True)
class FinetuneStep:
    """Takes one optimiser step.

    Attributes:
        state: Changed in place.
        task: Whose loss it is.
        images: What is trained on.
    """

    state: FinetuneState
    task: Task[TaskParams]
    images: TrainingImages

    def __call__(self, batch: LabelledBatch, *, is_logged: bool, is_stop_wanted: bool) -> StepOutcome:
        """Take the step; arguments as the engine says."""
        del is_logged
        state, params, encoder = self.state, self.task.params.training, self.images.encoder
        num_steps = params.epochs * self.images.steps_per_epoch
        num_warmup_steps = round(params.warmup_epochs * self.images.steps_per_epoch)
        lr = warmup_cosine(params.lr, params.min_lr, state.step, num_steps, num_warmup_steps)
        weight_decay = cosine(params.weight_decay, params.weight_decay_end, state.step, num_steps)
        set_schedule(state.optimizer, lr=lr, weight_decay=weight_decay)
        torch.manual_seed(seed_of(self.images.seed, state.step, 0))
        normalisation = encoder.normalisation(self.images.part.index.name)
        state.optimizer.zero_grad(set_to_none=True)
        losses, num_known = [], batch.known.sum().clamp_min(1)
        for part in batch.split(params.num_micro_batches):
            with in_precision(params.precision, encoder.device):
                outputs = state.network(as_input(part.images, normalisation))
            # A loss is a mean over what is known, so that of the batch weighs each part by what it knows.
            share = part.known.sum() / num_known
            loss = self.task.loss(outputs.float(), part.targets, part.known) * share
            state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        state.scaler.unscale_(state.optimizer)
        norm = nn.utils.clip_grad_norm_(state.network.parameters(), params.clip_norm)
        loss, grad_norm = torch.stack([torch.stack(losses).sum(), norm]).tolist()
        is_finite = math.isfinite(loss) and math.isfinite(grad_norm)
        is_overflow = math.isfinite(loss) and not is_finite and state.scaler.is_enabled()
        if is_finite:
            state.scaler.step(state.optimizer)
        if state.scaler.is_enabled():
            state.scaler.update()
        state.step += 1
        values = {"loss": loss, "lr": lr, "weight_decay": weight_decay, "grad_norm": grad_norm}
        return StepOutcome(
            values=values,
            local_loss=torch.tensor(loss),
            is_finite=is_finite,
            is_overflow=is_overflow,
            is_stop_wanted=is_stop_wanted,
        )


class Validation(Hooks):
    """Scores the network on the validation images, and ends training when that has not grown for long.

    What it knows of earlier looks follows from the rows that it is shown, so that a resumed run ends where an
    uninterrupted one does.
    """

    score = SCORE

    def __init__(
        self, state: FinetuneState, task: Task[TaskParams], shown: ShownPart, truth: Arrays, steps_per_epoch: int
    ) -> None:
        """Watch a network.

        Args:
            state: Its state.
            task: Scores it.
            shown: The validation images.
            truth: What is known of them.
            steps_per_epoch: Optimiser steps.
        """
        self._state, self._task, self._shown, self._truth = state, task, shown, truth
        self._every = task.params.training.validate_every_epochs * steps_per_epoch
        self._num_steps = task.params.training.epochs * steps_per_epoch
        self._best, self._looks_since = -math.inf, 0

    def is_measured_after(self, num_steps: int) -> bool:
        """Tell whether it is time for a look: every so many epochs, and at the end."""
        return num_steps % self._every == 0 or num_steps == self._num_steps

    def measure(self) -> dict[str, float]:
        """Return the score."""
        answers = ask(self._task, self._state.network, self._shown, is_final=False)
        return {SCORE: self._task.validation_score(self._truth, answers)}

    def warnings(self, row: Mapping[str, float]) -> list[str]:
        """Count the looks since the best one; nothing is warned of."""
        if SCORE in row:
            is_better = row[SCORE] > self._best
            self._best = max(self._best, row[SCORE])
            self._looks_since = 0 if is_better else self._looks_since + 1
        return []

    def is_over(self) -> bool:
        """Tell whether there were as many looks without a better score as patience allows."""
        return self._looks_since >= self._task.params.training.patience


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Holds a trained network at its best step.

    Attributes:
        network: In evaluation mode.
        step: Finished steps at which validation scored it highest.
        score: That score.
        num_steps: Steps that were taken in all.
    """

    network: nn.Module
    step: int
    score: float
    num_steps: int


def train(
    task: Task[TaskParams],
    images: TrainingImages,
    shown: ShownPart,
    truth: Arrays,
    identity: RunIdentity,
    run: RunFolder,
    request: StopRequest,
    loggers: Sequence[str] = (),
) -> Trained:
    """Train a network of the images' encoder, whose weights it changes, or go on with a run that was interrupted.

    Args:
        task: What is learned.
        images: What is trained on, and the encoder.
        shown: The validation images.
        truth: What is known of them.
        identity: All that decides the result.
        run: Folder of checkpoints and rows.
        request: Ends the run early, with its state saved.
        loggers: Names of more loggers (ace.journal.loggers).

    Raises:
        ConfigError: the checkpoints are damaged.
        NonfiniteError: loss or gradient was not finite.
        StoppedError: asked to end; the state is saved.
    """
    params, encoder = task.params.training, images.encoder
    ranks = Ranks(0, 1, encoder.device)
    torch.manual_seed(images.seed)
    network = task.network(encoder).train()
    scaler = GradScaler(encoder.device.type, enabled=params.precision == "fp16")
    state = FinetuneState(network=network, optimizer=build_optimizer(network, params), scaler=scaler)
    with accelerator_settings(params.precision, encoder.device, has_one_shape=True):
        if (saved := load_newest(run, params, ranks)) is not None:
            state.load_dict(saved)
        num_steps = params.epochs * images.steps_per_epoch
        training = Training(
            state=state,
            step=FinetuneStep(state, task, images),
            batches=lambda while_waiting: images.batches(state.step, num_steps, while_waiting),
            num_steps=num_steps,
            steps_per_epoch=images.steps_per_epoch,
            hooks=Validation(state, task, shown, truth, images.steps_per_epoch),
        )
        finish_training(training, params, identity, run, ranks, Journal(run.path / "live", loggers), request)
    checkpoints = CheckpointFolder(run.path / CHECKPOINTS, num_kept=params.keep_checkpoints)
    best = checkpoints.find_best()
    if best is None or best.score is None:
        raise ConfigError(f"{run.path}: no checkpoint with a score is whole; delete the folder to begin at step 0")
    network.load_state_dict(checkpoints.load(best)["network"])
    return Trained(network=network, step=best.step, score=best.score, num_steps=state.step)


def ask(task: Task[TaskParams], network: nn.Module, shown: ShownPart, *, is_final: bool) -> Arrays:
    """Ask a network about a part, in evaluation mode; it comes back in the mode that it was in."""
    was_training = network.training
    try:
        with torch.no_grad(), in_precision(task.params.training.precision, shown.encoder.device):
            return task.answer(network.eval(), shown, is_final=is_final)
    finally:
        network.train(was_training)
