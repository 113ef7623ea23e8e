"""The folder of checkpoints: what is kept, what counts, what is refused."""

import resource
from pathlib import Path

import pytest
import torch

from ace.engine.checkpoints import CheckpointFolder
from shards.core.errors import ConfigError, NoSpaceError


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
    best = folder.find_best()
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
    newest = folder.find_newest({"run"})
    assert newest is not None
    assert folder.load(newest)["weights"].tolist() == [2.0] * 3
    assert "step-00000003.pt: damaged" in capsys.readouterr().err
    save(folder, 4)
    assert steps(folder) == [1, 2, 4]


def test_a_damaged_checkpoint_does_not_push_out_those_written_after_going_back(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, num_kept=2)
    for step in (10, 20):
        save(folder, step)
    folder.path(20).write_bytes(b"damaged")
    assert folder.find_newest({"run"}) is not None
    for step in (12, 14):
        save(folder, step)
    newest = folder.find_newest({"run"})
    assert newest is not None
    assert (newest.step, steps(folder)) == (14, [12, 14])


def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, num_kept=1)
    for name in (".step-00000003.pt.4194304.tmp", ".step-00000003.json.4194304.tmp", "step-00000003.pt"):
        (tmp_path / name).write_bytes(b"cut short")
    save(folder, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005.json", "step-00000005.pt"]


def test_the_best_is_one_whose_file_is_whole(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, num_kept=3)
    assert folder.find_best() is None
    for step, score in [(1, 0.6), (2, 0.9), (3, None)]:
        save(folder, step, score)
    folder.path(2).write_bytes(b"damaged")
    best = folder.find_best()
    assert best is not None
    assert (best.step, best.score) == (1, 0.6)


def test_a_checkpoint_that_cannot_be_written_or_read_is_named(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, num_kept=3)
    folder.path(2).mkdir()
    with pytest.raises(ConfigError, match=r"step-00000002\.pt: could not be written"):
        save(folder, 2)
    assert steps(folder) == []
    folder.path(2).rmdir()
    save(folder, 1)
    (newest,) = folder.all()
    folder.path(1).unlink()
    with pytest.raises(ConfigError, match=r"step-00000001\.pt: not readable here"):
        folder.load(newest)


@pytest.mark.parametrize("num_bytes", [100, 1_000, 100_000])
def test_a_checkpoint_that_fills_the_disk_says_so_and_leaves_those_before_it(num_bytes: int, tmp_path: Path) -> None:
    """No file may grow over so many bytes: the write fails as on a full disk, early or late in the file."""
    folder = CheckpointFolder(tmp_path, num_kept=3)
    save(folder, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        with pytest.raises(NoSpaceError, match=rf"^{tmp_path} \(.* free\): File too large, more is needed; what was"):
            folder.save({"step": 2, "weights": {str(n): torch.ones(1000) for n in range(40)}}, "run", None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001.json", "step-00000001.pt"]


def test_an_empty_folder_has_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path / "none", num_kept=1).find_newest({"run"}) is None


def test_a_checkpoint_of_another_run_and_a_folder_of_damage_are_refused(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, num_kept=1)
    save(folder, 1)
    with pytest.raises(ConfigError, match="written by the run run, expected other"):
        folder.find_newest({"other"})
    folder.path(1).unlink()
    with pytest.raises(ConfigError, match="all 1 checkpoints are damaged"):
        folder.find_newest({"run"})
