"""The training loop: batches in, steps, rows of the log, checkpoints, and an orderly end when one is asked for."""

import sys
import time
from collections.abc import Generator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn
from tqdm import tqdm

from ace.data.batches import PairBatch, ViewBatch
from ace.data.loader import StepSampler, build_loader
from ace.journal.log import RunLog
from ace.training.checkpoints import CheckpointFolder
from ace.training.memory import peak_memory_bytes
from ace.training.monitors import CollapseWatch
from ace.training.nonfinite import dump_batch
from ace.training.params import PretrainParams
from ace.training.probe import ProbePlan, run_probe
from ace.training.ranks import Ranks
from ace.training.run import RunFolder
from ace.training.state import TrainState
from ace.training.step import StepOutcome, train_step
from ace.training.stop import StoppedAloneError, StoppedError, StopRequest, deaf_children
from shards.errors import ShardError
from shards.runtime.progress import progress_bar

SCORE = "probe_knn_auroc"
"""By which the best checkpoint is chosen: the loss says little about the encoder."""
MAX_DUMPS = 20
OTHERS_REASON = "another process was asked to end"
ALONE_AFTER_S = 10.0
"""How long one of several processes that is asked to end still waits for the batch that the others have."""


class NonfiniteError(ShardError):
    """Loss or gradient became infinite or NaN, and the run may not go on without the step."""


class DivergedError(ShardError):
    """The processes of a training have different networks, so that none of them is the run's."""


@dataclass
class Window:
    """Time and samples since the last logged row."""

    started: float
    waited: float = 0.0
    images: int = 0

    def rates(self) -> dict[str, float]:
        """Samples a second, and the share of the time in which the step waited for data."""
        elapsed = time.monotonic() - self.started
        return {"images_per_s": self.images / elapsed, "data_wait_share": self.waited / elapsed}


@dataclass
class TrainingLoop:
    """One rank's part of a run.

    Attributes:
        state: Networks, optimiser, step.
        learner: The student as `Ranks.averaging` wraps it.
        sampler: Which samples the remaining steps have on this rank.
        params: Section `pretrain`.
        t: Tokens per crop side.
        ranks: All processes of the run.
        log: None on all ranks but the first, as the plan of the probe is.
        probe_plan: What the probe looks at; None without one.
        watch: Warns of collapse.
        checkpoints: Written by the first rank.
        run: Where dumps of batches go.
        fingerprint: Of the run.
    """

    state: TrainState
    learner: nn.Module
    sampler: StepSampler
    params: PretrainParams
    t: int
    ranks: Ranks
    log: RunLog | None
    probe_plan: ProbePlan | None
    watch: CollapseWatch
    checkpoints: CheckpointFolder
    run: RunFolder
    fingerprint: str

    def __post_init__(self) -> None:
        self._saved_step = self.state.step
        self._asked_at: float | None = None

    def finish(self, request: StopRequest) -> None:
        """Run the remaining steps.

        Raises:
            StoppedError: a rank was asked to end; the state is saved.
            StoppedAloneError: this rank was asked to end while it waited for data; the first rank's state is saved.
            NonfiniteError: loss or gradient was not finite.
            DivergedError: the processes' networks differ.
        """
        state, num_steps, num_skipped = self.state, self.sampler.num_steps, 0
        if self.ranks.is_true_of_any(request.reason is not None) and state.step < num_steps:
            raise StoppedError(
                f"{request.reason or OTHERS_REASON}: at step {state.step} of {num_steps}, before the first step "
                "of this process; the same command goes on from there"
            )
        self.learner.train()
        saved, window = time.monotonic(), Window(time.monotonic())
        bar = progress_bar(
            total=num_steps, initial=state.step, description="pretrain", unit="step", show=self.ranks.is_first
        )
        with bar, closing(self._batches(request)) as batches:
            while state.step < num_steps:
                asked = time.monotonic()
                batch = next(batches).to(self.ranks.device)
                window.waited += time.monotonic() - asked
                batch = batch.augmented(self.params.augment)
                is_last, is_probed = state.step + 1 == num_steps, self._is_probe_due(state.step + 1)
                is_logged = state.step % self.params.log_every_steps == 0 or is_last or is_probed
                outcome = train_step(
                    state,
                    self.learner,
                    batch,
                    self.params,
                    t=self.t,
                    steps_per_epoch=self.sampler.steps_per_epoch,
                    ranks=self.ranks,
                    is_logged=is_logged,
                    is_stop_wanted=request.reason is not None,
                )
                window.images += len(batch) * self.ranks.world_size
                num_skipped = 0 if outcome.is_finite else num_skipped + 1
                if not outcome.is_finite:
                    self._answer_nonfinite(batch, outcome, num_skipped)
                if is_logged:
                    self._check_equal_networks()
                probed = self._probe() if is_probed else {}
                if is_logged:
                    row = self._row(outcome, window) | probed
                    self._log(row)
                    bar.set_postfix_str(progress_text(row), refresh=False)
                    window = Window(time.monotonic())
                is_due = time.monotonic() - saved >= self.params.checkpoint_every_s
                if is_due or is_last or is_probed or outcome.is_stop_wanted:
                    self._save(probed.get(SCORE))
                    saved = time.monotonic()
                bar.update()
                if outcome.is_stop_wanted and not is_last:
                    # Once one process ends, torchrun gives the others seconds: the first may still be saving.
                    self.ranks.is_true_of_any(True)
                    raise StoppedError(
                        f"{request.reason or OTHERS_REASON}: saved after step {state.step} of "
                        f"{num_steps}; the same command goes on from there"
                    )

    def _batches(self, request: StopRequest) -> Generator[PairBatch | ViewBatch, None, None]:
        is_pinned, num_workers = self.ranks.device.type == "cuda", self.params.num_workers
        heed = partial(self._end_without_batch, request)
        with deaf_children() if num_workers else nullcontext():
            return iter(build_loader(self.sampler, num_workers=num_workers, is_pinned=is_pinned, while_waiting=heed))

    def _end_without_batch(self, request: StopRequest) -> None:
        """End between two steps, where no batch comes, if that is asked for.

        Of several processes each first waits a while, since the others may have begun the step: they hear of it there.
        """
        if request.reason is None:
            return
        has_others = self.ranks.world_size > 1
        self._asked_at = time.monotonic() if self._asked_at is None else self._asked_at
        if has_others and time.monotonic() - self._asked_at < ALONE_AFTER_S:
            return
        if self._saved_step < self.state.step:
            self._save(None)
        where = f"after step {self.state.step} of {self.sampler.num_steps}"
        if has_others:
            raise StoppedAloneError(
                f"{request.reason}: {where} no batch came; the same command goes on at the last checkpoint"
            )
        raise StoppedError(
            f"{request.reason}: saved {where}, as no batch came for the next; the same command goes on from there"
        )

    def _save(self, score: float | None) -> None:
        """Write a checkpoint, on the first rank."""
        if self.ranks.is_first:
            self.checkpoints.save(self.state.to_dict(), self.fingerprint, score)
        self._saved_step = self.state.step

    def _check_equal_networks(self) -> None:
        state = self.state
        tensors = {
            **{f"student.{name}": value for name, value in state.student.state_dict().items()},
            **{f"teacher.{name}": value for name, value in state.teacher.state_dict().items()},
            "center": state.center,
        }
        if names := self.ranks.differing(tensors):
            raise DivergedError(
                f"step {state.step - 1}: {len(names)} of {len(tensors)} tensors differ between the processes, as "
                f"{names[0]}; expected them equal to the bit. Look for a faulty accelerator or for machines with other "
                "ones than the first; the same command goes on at the last checkpoint, of the first process"
            )

    def _row(self, outcome: StepOutcome, window: Window) -> dict[str, float]:
        step = self.state.step - 1
        return {
            "step": step,
            "epoch": step // self.sampler.steps_per_epoch,
            "images": self.state.step * self.params.batch_size,
            **{name: float(value) for name, value in outcome.values.items()},
            **window.rates(),
            "peak_memory_gb": peak_memory_bytes(self.ranks.device) / 1e9,
        }

    def _log(self, row: Mapping[str, float]) -> None:
        if self.log is None:
            return
        self.log.add(row)
        for warning in self.watch.check(row):
            tqdm.write(f"warning: {warning}", file=sys.stderr)

    def _is_probe_due(self, num_steps: int) -> bool:
        """Whether the probe looks at the teacher after so many steps: every so many epochs, and at the end."""
        every = self.params.probe.every_epochs * self.sampler.steps_per_epoch
        return every > 0 and (num_steps % every == 0 or num_steps == self.sampler.num_steps)

    def _probe(self) -> dict[str, float]:
        """The probe's figures, on the first rank; the others go on and wait in their next sum."""
        if self.probe_plan is None:
            return {}
        return run_probe(
            self.state.teacher.backbone,
            self.probe_plan,
            self.params.probe,
            in_channels=self.params.backbone.in_channels,
            precision=self.params.precision,
            device=self.ranks.device,
        )

    def _answer_nonfinite(self, batch: PairBatch | ViewBatch, outcome: StepOutcome, num_skipped: int) -> None:
        """Save the batch for inspection, then end the run or say that the step was left out."""
        params, step = self.params, self.state.step - 1
        is_end = num_skipped >= params.max_skipped_steps or (params.on_nonfinite == "stop" and not outcome.is_overflow)
        folder = self.run.path / "nonfinite"
        # Of a long run with many such steps, the first ones tell enough.
        is_dumped = is_end or (not outcome.is_overflow and len(list(folder.glob("step-*"))) < MAX_DUMPS)
        what = (
            f"step {step}: loss {float(outcome.values['loss']):g}, gradient norm {float(outcome.values['grad_norm']):g}"
        )
        if is_dumped:
            values = {name: float(value) for name, value in outcome.values.items()}
            values["local_loss"] = float(outcome.local_loss)
            what += f"; the batch is in {dump_batch(folder, step, self.ranks.rank, batch, values, reason=what)}"
        if is_end:
            remedy = (
                "To leave such steps out, set pretrain.on_nonfinite to skip and start the same command: it goes on at "
                "the last checkpoint"
                if num_skipped < params.max_skipped_steps
                else f"It was the last of {num_skipped} in a row, as many as pretrain.max_skipped_steps leaves out"
            )
            raise NonfiniteError(
                f"{what}. Look at its crops; if the images are healthy, lower base_lr, lengthen warmup_epochs, or use "
                f"fp32 or bf16. {remedy}"
            )
        if self.ranks.is_first:
            answer = "the loss scale was lowered" if outcome.is_overflow else "left out"
            tqdm.write(f"warning: {what}; {answer}", file=sys.stderr)


def progress_text(row: Mapping[str, Any]) -> str:
    """What stands behind the bar."""
    return (
        f"loss {row['loss']:.3f}, {row['images_per_s']:.3g} images/s, data wait {row['data_wait_share']:.0%}, "
        f"{row['peak_memory_gb']:.1f} GB"
    )
