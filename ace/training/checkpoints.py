"""The folder of a run's checkpoints: each whole or absent, with its hash; the newest few and the best are kept."""

import json
import sys
from collections.abc import Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from shards.atomic import atomic_path, write_text
from shards.errors import ConfigError
from shards.format import sha256_of


@dataclass(frozen=True)
class Checkpoint:
    """What the note beside a checkpoint says.

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

    def best(self) -> Checkpoint | None:
        """The highest score, the earlier of two equal ones; None if no checkpoint has one."""
        scored = [checkpoint for checkpoint in self.all() if checkpoint.score is not None]
        return max(scored, key=lambda checkpoint: checkpoint.score or 0.0, default=None)

    def path(self, step: int) -> Path:
        """The file of one step."""
        return self.folder / f"step-{step:08d}.pt"

    def save(self, values: dict[str, Any], fingerprint: str, score: float | None) -> None:
        """Write the state after `values["step"]` steps, then remove what need not be kept."""
        step = int(values["step"])
        path = self.path(step)
        self._note(step).unlink(missing_ok=True)
        with atomic_path(path) as temporary:
            torch.save(values, temporary)
            sha256 = sha256_of(temporary)
        write_text(self._note(step), json.dumps(asdict(Checkpoint(step, sha256, fingerprint, score))) + "\n")
        self._prune()

    def load_newest(self, fingerprints: Set[str]) -> dict[str, Any] | None:
        """The newest state whose file is as it was written; None if there is none to go on from.

        A damaged one is named on standard error, and the one before it is taken: from there the run repeats its steps.

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
            found = sha256_of(path) if path.is_file() else "no file"
            if found == checkpoint.sha256:
                values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
                return values
            print(
                f"{path}: damaged (sha256 {found}, written as {checkpoint.sha256}); trying the one before",
                file=sys.stderr,
            )
        if checkpoints:
            raise ConfigError(
                f"{self.folder}: all {len(checkpoints)} checkpoints are damaged; restore one from a backup, or delete "
                "the folder to begin at step 0"
            )
        return None

    def _note(self, step: int) -> Path:
        return self.path(step).with_suffix(".json")

    def _prune(self) -> None:
        checkpoints, best = self.all(), self.best()
        for checkpoint in checkpoints[: -self.num_kept]:
            if checkpoint != best:
                # The note first: what is left after a kill is a file that does not count, removed below.
                self._note(checkpoint.step).unlink()
                self.path(checkpoint.step).unlink(missing_ok=True)
        noted = {self.path(checkpoint.step) for checkpoint in self.all()}
        for path in set(self.folder.glob("step-*.pt")) - noted:
            path.unlink()
