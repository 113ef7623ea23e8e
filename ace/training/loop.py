"""The training loop: batches in, steps, rows of the log, checkpoints, and an orderly end when one is asked for."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ace.data.batches import PairBatch, StepSampler, build_loader
from ace.training.checkpoints import CheckpointFolder
from ace.training.log import RunLog
from ace.training.params import PretrainParams
from ace.training.ranks import Ranks
from ace.training.state import TrainState
from ace.training.step import StepOutcome, train_step
from ace.training.stop import StoppedError, StopRequest, deaf_children
from shards.errors import ShardError
from shards.progress import progress_bar


class NonfiniteError(ShardError):
    """Loss or gradient became infinite or NaN, and the run may not go on without the step."""


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
        log: None on all ranks but the first.
        checkpoints: Written by the first rank.
        fingerprint: Of the run.
    """

    state: TrainState
    learner: nn.Module
    sampler: StepSampler
    params: PretrainParams
    t: int
    ranks: Ranks
    log: RunLog | None
    checkpoints: CheckpointFolder
    fingerprint: str

    def run(self, request: StopRequest) -> None:
        """Run the remaining steps.

        Raises:
            StoppedError: a rank was asked to end; the state is saved.
            NonfiniteError: loss or gradient was not finite.
        """
        state, num_steps, num_skipped = self.state, self.sampler.num_steps, 0
        self.learner.train()
        batches = self._batches()
        saved, window = time.monotonic(), Window(time.monotonic())
        bar = progress_bar(
            total=num_steps,
            initial=state.step,
            description="pretrain",
            unit="step",
            is_shown=self.ranks.is_first,
        )
        with bar:
            while state.step < num_steps:
                asked = time.monotonic()
                batch = next(batches).to(self.ranks.device)
                window.waited += time.monotonic() - asked
                outcome = train_step(
                    state,
                    self.learner,
                    batch,
                    self.params,
                    t=self.t,
                    steps_per_epoch=self.sampler.steps_per_epoch,
                    ranks=self.ranks,
                    is_stop_wanted=request.reason is not None,
                )
                window.images += len(batch) * self.ranks.world_size
                num_skipped = 0 if outcome.is_finite else num_skipped + 1
                step, is_last = state.step - 1, state.step == num_steps
                if step % self.params.log_every_steps == 0 or is_last:
                    row = self._row(step, outcome, window)
                    bar.set_postfix_str(progress_text(row), refresh=False)
                    window = Window(time.monotonic())
                is_due = time.monotonic() - saved >= self.params.checkpoint_every_s
                if is_due or is_last or outcome.is_stop_wanted:
                    self._save()
                    saved = time.monotonic()
                bar.update()
                if outcome.is_stop_wanted and not is_last:
                    raise StoppedError(
                        f"{request.reason or 'another process asked to end'}: saved after step {state.step} of "
                        f"{num_steps}; the same command goes on from there"
                    )

    def _batches(self) -> Iterator[PairBatch]:
        is_pinned = self.ranks.device.type == "cuda"
        with deaf_children():
            return iter(build_loader(self.sampler, num_workers=self.params.num_workers, is_pinned=is_pinned))

    def _row(self, step: int, outcome: StepOutcome, window: Window) -> Mapping[str, float]:
        row = {
            "step": step,
            "epoch": step // self.sampler.steps_per_epoch,
            "images": self.state.step * self.params.batch_size,
            **{name: float(value) for name, value in outcome.values.items()},
            **window.rates(),
        }
        if self.log is not None:
            self.log.add(row)
        return row

    def _save(self) -> None:
        if self.ranks.is_first:
            self.checkpoints.save(self.state.to_dict(), self.fingerprint, score=None)


def progress_text(row: Mapping[str, Any]) -> str:
    """What stands behind the bar."""
    return f"loss {row['loss']:.3f}, {row['images_per_s']:.3g} images/s, data wait {row['data_wait_share']:.0%}"
