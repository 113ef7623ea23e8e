"""The training loop: batches in, steps, rows of the log, checkpoints, and an orderly end when one is asked for."""

import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from tqdm import tqdm

from ace.engine.checkpoints import CheckpointFolder
from ace.engine.memory import peak_memory_bytes
from ace.engine.nonfinite import dump_batch
from ace.engine.params import TrainingParams
from ace.engine.ranks import Ranks
from ace.engine.run import RunFolder, RunIdentity
from ace.engine.stop import StoppedAloneError, StoppedError, StopRequest, deaf_children
from ace.engine.training import Samples, StepOutcome, Training
from ace.journal.log import RunLog, open_log
from shards.core.errors import UserError
from shards.runtime.progress import progress_bar

CHECKPOINTS, ROWS, DUMPS = "checkpoints", "metrics.jsonl", "nonfinite"
"""Names of a run's checkpoints, rows and other files in its folder."""
MAX_DUMPS = 20
OTHERS_REASON = "another process was asked to end"
ALONE_AFTER_S = 10.0
"""Seconds that one of several processes, asked to end, still waits for the batch that the others have."""


class NonfiniteError(UserError):
    """Loss or gradient became infinite or NaN, and the run may not go on without the step."""


class DivergedError(UserError):
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


@dataclass(frozen=True)
class Journal:
    """Tell where a run's rows go besides its own folder.

    Attributes:
        metrics_dir: Folder that DVCLive writes to.
        loggers: Names of more loggers (ace.journal.loggers).
    """

    metrics_dir: Path
    loggers: Sequence[str] = ()


def load_newest(run: RunFolder, params: TrainingParams, ranks: Ranks) -> dict[str, Any] | None:
    """Load the state that a run goes on from, the same on every rank; None for a run without a checkpoint.

    Raises:
        ConfigError: a checkpoint belongs to another run, cannot be read, or all are damaged.
    """
    checkpoints = CheckpointFolder(run.path / CHECKPOINTS, num_kept=params.keep_checkpoints)
    # The first decides for all: processes that start at different steps would train past each other.
    newest = ranks.from_first(lambda: checkpoints.find_newest(run.fingerprints))
    if newest is not None and ranks.is_first:
        print(f"resuming after step {newest.step} from {checkpoints.path(newest.step)}", file=sys.stderr)
    return ranks.together(lambda: None if newest is None else checkpoints.load(newest))


def finish_training(
    training: Training[Samples],
    params: TrainingParams,
    identity: RunIdentity,
    run: RunFolder,
    ranks: Ranks,
    journal: Journal,
    request: StopRequest,
) -> None:
    """Take all steps that are left.

    Args:
        training: What is trained, at the step that it begins or goes on with.
        params: The section of params.yaml that the training belongs to.
        identity: Everything that decides what the run ends with.
        run: Folder of checkpoints, rows and dumps.
        ranks: All processes of the run.
        journal: Where rows go.
        request: Ends the run early, with its state saved.

    Raises:
        NonfiniteError: loss or gradient was not finite.
        DivergedError: processes had different networks.
        StoppedError: asked to end; the state is saved.
    """
    checkpoints = CheckpointFolder(run.path / CHECKPOINTS, num_kept=params.keep_checkpoints)
    with ExitStack() as stack:

        def open_for_first() -> RunLog | None:
            if not ranks.is_first:
                return None
            log = stack.enter_context(open_log(run.path / ROWS, journal.metrics_dir, loggers=journal.loggers))
            log.resume(training.state.step)
            for row in log.rows():
                training.hooks.warnings(row)  # what they warned of has been said
            return log

        log = ranks.together(open_for_first)
        TrainingLoop(
            training=training, params=params, identity=identity, run=run, ranks=ranks, log=log, checkpoints=checkpoints
        ).finish(request)


@dataclass(kw_only=True)
class TrainingLoop(Generic[Samples]):
    """One rank's part of a run.

    Attributes:
        training: What is trained.
        params: The section of params.yaml that the training belongs to.
        identity: Everything that decides what the run ends with.
        run: Where dumps of batches go.
        ranks: All processes of the run.
        log: None on all ranks but the first.
        checkpoints: Written by the first rank.
    """

    training: Training[Samples]
    params: TrainingParams
    identity: RunIdentity
    run: RunFolder
    ranks: Ranks
    log: RunLog | None
    checkpoints: CheckpointFolder

    def __post_init__(self) -> None:
        self._saved_step = self.training.state.step
        self._asked_at: float | None = None

    def finish(self, request: StopRequest) -> None:
        """Run the remaining steps.

        Raises:
            StoppedError: a rank was asked to end; the state is saved.
            StoppedAloneError: this rank was asked to end while it waited for data; the first rank's state is saved.
            NonfiniteError: loss or gradient was not finite.
            DivergedError: the processes' networks differ.
        """
        training, state, hooks = self.training, self.training.state, self.training.hooks
        num_steps, num_skipped = training.num_steps, 0
        if self.ranks.is_true_of_any(request.reason is not None) and state.step < num_steps:
            raise StoppedError(
                f"{request.reason or OTHERS_REASON}: stopped at step {state.step} of {num_steps}, before this process "
                "made a step; the same command goes on from there"
            )
        saved, window = time.monotonic(), Window(time.monotonic())
        bar = progress_bar(
            total=num_steps,
            initial=state.step,
            description=self.identity.stage,
            unit="step",
            show=self.ranks.is_first,
        )
        with bar, closing(self._batches(request)) as batches:
            while state.step < num_steps and not hooks.is_over():
                asked = time.monotonic()
                batch = next(batches).to(self.ranks.device)
                window.waited += time.monotonic() - asked
                batch = training.augment(batch)
                is_last, is_measured = state.step + 1 == num_steps, hooks.is_measured_after(state.step + 1)
                is_logged = state.step % self.params.log_every_steps == 0 or is_last or is_measured
                outcome = training.step(batch, is_logged=is_logged, is_stop_wanted=request.reason is not None)
                window.images += len(batch) * self.ranks.world_size
                num_skipped = 0 if outcome.is_finite else num_skipped + 1
                if not outcome.is_finite:
                    self._answer_nonfinite(batch, outcome, num_skipped)
                if is_logged:
                    self._check_equal_networks()
                measured = hooks.measure() if is_measured else {}
                if is_logged:
                    row = self._row(outcome, window) | measured
                    self._log(row)
                    bar.set_postfix_str(progress_text(row), refresh=False)
                    window = Window(time.monotonic())
                is_due = time.monotonic() - saved >= self.params.checkpoint_every_s
                if is_due or is_last or is_measured or outcome.is_stop_wanted:
                    self._save(None if hooks.score is None else measured.get(hooks.score))
                    saved = time.monotonic()
                bar.update()
                if outcome.is_stop_wanted and not is_last:
                    # Once one process ends, torchrun gives the others seconds: the first may still be saving.
                    self.ranks.is_true_of_any(True)
                    raise StoppedError(
                        f"{request.reason or OTHERS_REASON}: saved after step {state.step} of "
                        f"{num_steps}; the same command goes on from there"
                    )

    def _batches(self, request: StopRequest) -> Generator[Samples, None, None]:
        with deaf_children() if self.params.num_workers else nullcontext():
            return self.training.batches(lambda: self._end_without_batch(request))

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
        step = self.training.state.step
        if self._saved_step < step:
            self._save(None)
        where = f"after step {step} of {self.training.num_steps}"
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
            self.checkpoints.save(self.training.state.to_dict(), self.identity.fingerprint, score)
        self._saved_step = self.training.state.step

    def _check_equal_networks(self) -> None:
        tensors = self.training.state.tensors()
        if names := self.ranks.differing(tensors):
            raise DivergedError(
                f"step {self.training.state.step - 1}: {len(names)} of {len(tensors)} tensors differ between the "
                f"processes, as {names[0]}; expected the same bits in all of them. Look for a faulty accelerator, or "
                "for machines with different accelerators; the same command goes on at the first process's last "
                "checkpoint"
            )

    def _row(self, outcome: StepOutcome, window: Window) -> dict[str, float]:
        step = self.training.state.step - 1
        return {
            "step": step,
            "epoch": step // self.training.steps_per_epoch,
            "images": (step + 1) * self.params.batch_size,
            **{name: float(value) for name, value in outcome.values.items()},
            **window.rates(),
            "peak_memory_gb": peak_memory_bytes(self.ranks.device) / 1e9,
        }

    def _log(self, row: Mapping[str, float]) -> None:
        if self.log is None:
            return
        self.log.add(row)
        for warning in self.training.hooks.warnings(row):
            tqdm.write(f"warning: {warning}", file=sys.stderr)

    def _answer_nonfinite(self, batch: Samples, outcome: StepOutcome, num_skipped: int) -> None:
        """Save the batch for inspection, then end the run or say that the step was left out."""
        params, step = self.params, self.training.state.step - 1
        section = self.identity.section or self.identity.stage
        is_end = num_skipped >= params.max_skipped_steps or (params.on_nonfinite == "stop" and not outcome.is_overflow)
        folder = self.run.path / DUMPS
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
                f"To leave such steps out, set {section}.on_nonfinite to skip and start the same command: it goes on "
                "at the last checkpoint"
                if num_skipped < params.max_skipped_steps
                else f"It was the last of {num_skipped} in a row, as many as {section}.max_skipped_steps leaves out"
            )
            raise NonfiniteError(
                f"{what}. Look at its crops; if the images are healthy, lower base_lr, lengthen warmup_epochs, or use "
                f"fp32 or bf16. {remedy}"
            )
        if self.ranks.is_first:
            answer = "the loss scale was lowered" if outcome.is_overflow else "left out"
            tqdm.write(f"warning: {what}; {answer}", file=sys.stderr)


def progress_text(row: Mapping[str, Any]) -> str:
    """Return the text that stands behind the progress bar."""
    return (
        f"loss {row['loss']:.3f}, {row['images_per_s']:.3g} images/s, data wait {row['data_wait_share']:.0%}, "
        f"{row['peak_memory_gb']:.1f} GB"
    )
