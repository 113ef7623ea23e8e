"""The folder of a run's checkpoints: each whole or absent, with its hash; the newest few and the best are kept."""

import json
import pickle
import sys
from collections.abc import Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from shards.core.errors import ConfigError
from shards.format.layout import sha256_of
from shards.runtime.atomic import atomic_path, write_text


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint is told by the note that lies beside its file.

    Attributes:
        step: Finished steps.
        sha256: Of the file.
        fingerprint: Of the run that wrote it.
        score: The probe's figure at this step, higher is better; None without one.
    """

    step: int
    sha256: str
    fingerprint: str
    score: float | None


class CheckpointFolder:
    """`step-00000120.pt` with `step-00000120.json`, which is written last: a file without its note does not count."""

    def __init__(self, folder: Path, *, num_kept: int) -> None:
        """Use `folder`, which need not exist; `num_kept` newest checkpoints stay, and the best."""
        self.folder, self.num_kept = folder, num_kept

    def all(self) -> list[Checkpoint]:
        """Oldest first."""
        notes = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.folder.glob("step-*.json"))]
        return [Checkpoint(**note) for note in notes]

    def ranked(self) -> list[Checkpoint]:
        """List checkpoints with a score, the highest first, and the earlier of two equal ones before the later."""
        scored = [checkpoint for checkpoint in self.all() if checkpoint.score is not None]
        return sorted(scored, key=lambda checkpoint: checkpoint.score or 0.0, reverse=True)

    def path(self, step: int) -> Path:
        """Return the file of one step."""
        return self.folder / f"step-{step:08d}.pt"

    def save(self, values: dict[str, Any], fingerprint: str, score: float | None) -> None:
        """Write the state after `values["step"]` steps, then remove what need not be kept.

        Raises:
            NoSpaceError: the disk is full; the checkpoints before it are whole.
            ConfigError: it cannot be written for another reason; likewise.
        """
        step = int(values["step"])
        path = self.path(step)
        self._note(step).unlink(missing_ok=True)
        try:
            with atomic_path(path) as temporary:
                with temporary.open("wb") as file:  # of Python: torch's own does not say that a disk is full
                    torch.save(values, file)
                sha256 = sha256_of(temporary)
            write_text(
                self._note(step),
                json.dumps(asdict(Checkpoint(step=step, sha256=sha256, fingerprint=fingerprint, score=score))) + "\n",
            )
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                f"{path}: could not be written: {error}; make the folder writable, then start the same "
                "command: it goes on at the checkpoint before"
            ) from None
        self._prune()

    def find_newest(self, fingerprints: Set[str]) -> Checkpoint | None:
        """Find the newest checkpoint whose file is as it was written, to go on from; None if there is none.

        Damaged ones after it are named on standard error and removed: the run repeats their steps, and checkpoints that
        do not count must not take the place of those it writes until then.

        Raises:
            ConfigError: a checkpoint belongs to another run, or all of them are damaged.
        """
        checkpoints = self.all()
        for checkpoint in reversed(checkpoints):
            path = self.path(checkpoint.step)
            if checkpoint.fingerprint not in fingerprints:
                raise ConfigError(
                    f"{path}: written by the run {checkpoint.fingerprint}, expected {' or '.join(sorted(fingerprints))}"
                    "; it belongs to another configuration or other data: move it away, or choose another run directory"
                )
            if self._is_whole(checkpoint):
                for damaged in checkpoints:
                    if damaged.step > checkpoint.step:
                        self._remove(damaged.step)
                return checkpoint
        if checkpoints:
            raise ConfigError(
                f"{self.folder}: all {len(checkpoints)} checkpoints are damaged; restore one from a backup, or delete "
                "the folder to begin at step 0"
            )
        return None

    def find_best(self) -> Checkpoint | None:
        """Find the first of `ranked` whose file is as it was written; None if there is none."""
        return next((checkpoint for checkpoint in self.ranked() if self._is_whole(checkpoint)), None)

    def load(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Load the state of a checkpoint that was found whole.

        Raises:
            ConfigError: this process cannot read it.
        """
        path = self.path(checkpoint.step)
        try:
            values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise ConfigError(
                f"{path}: not readable here: {error}; the run directory, or ACE_SCRATCH, must be one that all "
                "processes of a training see"
            ) from None
        return values

    def _is_whole(self, checkpoint: Checkpoint) -> bool:
        path = self.path(checkpoint.step)
        found = sha256_of(path) if path.is_file() else "no file"
        if found != checkpoint.sha256:
            print(f"{path}: damaged (sha256 {found}, written as {checkpoint.sha256}); not used", file=sys.stderr)
        return found == checkpoint.sha256

    def _note(self, step: int) -> Path:
        return self.path(step).with_suffix(".json")

    def _prune(self) -> None:
        best = self.ranked()[:1]
        for checkpoint in self.all()[: -self.num_kept]:
            if checkpoint not in best:
                self._remove(checkpoint.step)
        # What a killed process left: files without a note, and half-written ones under temporary names.
        noted = {self.path(checkpoint.step) for checkpoint in self.all()}
        for path in {*self.folder.glob("step-*.pt"), *self.folder.glob(".step-*.tmp")} - noted:
            path.unlink()

    def _remove(self, step: int) -> None:
        # The note first: what is left after a kill is a file that does not count.
        self._note(step).unlink()
        self.path(step).unlink(missing_ok=True)
