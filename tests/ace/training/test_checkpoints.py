"""The folder of checkpoints: what is kept, what counts, what is refused."""

from pathlib import Path

import pytest
import torch

from ace.training.checkpoints import CheckpointFolder
from shards.errors import ConfigError


def steps(folder: CheckpointFolder) -> list[int]:
    return [checkpoint.step for checkpoint in folder.all()]


def save(folder: CheckpointFolder, step: int, score: float | None = None) -> None:
    folder.save({"step": step, "weights": torch.full((3,), float(step))}, "run", score)


def test_the_newest_are_kept_and_the_best_beside_them(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, num_kept=2)
    for step, score in [(1, 0.5), (2, 0.9), (3, None), (4, 0.9), (5, 0.7), (6, None)]:
        save(folder, step, score)
    assert steps(folder) == [2, 5, 6]
    assert len(list(tmp_path.iterdir())) == 6
    best = folder.best()
    assert best is not None
    assert (best.step, best.score) == (2, 0.9)
    save(folder, 7, 0.95)
    save(folder, 8)
    assert steps(folder) == [7, 8]


def test_the_newest_whole_one_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = CheckpointFolder(tmp_path, num_kept=3)
    for step in (1, 2, 3):
        save(folder, step)
    folder.path(3).write_bytes(folder.path(3).read_bytes()[:-1])
    folder.path(4).write_bytes(b"cut short by a kill, so without a note")
    values = folder.load_newest({"run"})
    assert values is not None
    assert values["weights"].tolist() == [2.0] * 3
    assert "step-00000003.pt: damaged" in capsys.readouterr().err
    save(folder, 4)
    assert steps(folder) == [2, 3, 4]


def test_an_empty_folder_has_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path / "none", num_kept=1).load_newest({"run"}) is None


def test_a_checkpoint_of_another_run_and_a_folder_of_damage_are_refused(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, num_kept=1)
    save(folder, 1)
    with pytest.raises(ConfigError, match="written by the run run, expected other"):
        folder.load_newest({"other"})
    folder.path(1).unlink()
    with pytest.raises(ConfigError, match="all 1 checkpoints are damaged"):
        folder.load_newest({"run"})
