import subprocess
from pathlib import Path
from threading import Thread

import pytest

from shards.core.errors import ConfigError
from shards.runtime.scratch import SCRATCH_VARIABLE, unfinished_work


def test_work_lies_where_the_variable_says_apart_by_stage_and_fingerprint(scratch: Path) -> None:
    with unfinished_work("phantom", "ab12") as folder:
        assert folder == scratch / "phantom" / "ab12"
        assert folder.is_dir()


def test_finished_work_is_gone_and_interrupted_work_is_there_again() -> None:
    def work(*, is_finished: bool) -> Path:
        with unfinished_work("phantom", "ab12") as folder:
            (folder / "part").write_text("half")
            if not is_finished:
                raise KeyboardInterrupt
        return folder

    with pytest.raises(KeyboardInterrupt):
        work(is_finished=False)
    with unfinished_work("phantom", "ab12") as folder:
        assert (folder / "part").read_text() == "half"
    assert not work(is_finished=True).exists()


def test_work_refused_before_it_began_leaves_nothing(scratch: Path) -> None:
    with pytest.raises(ConfigError), unfinished_work("phantom", "ab12"):
        raise ConfigError("no")
    assert list((scratch / "phantom").iterdir()) == []


def test_work_at_hand_elsewhere_is_refused_by_name_of_its_lock() -> None:
    with (
        unfinished_work("shard/a-b000", "ab12"),
        pytest.raises(ConfigError, match=r"another process is at work on this .* and holds .*/shard-a-b000-ab12\.lock"),
        unfinished_work("shard/a-b000", "ab12"),
    ):
        pass


def test_a_process_that_waits_gets_a_folder_though_the_one_before_removed_it(scratch: Path) -> None:
    places: list[bool] = []

    def wait() -> None:
        with unfinished_work("phantom", "ab12", wait=True) as folder:
            places.append(folder.is_dir())

    with unfinished_work("phantom", "ab12"):
        waiting = Thread(target=wait)
        waiting.start()
        waiting.join(0.2)
        assert not places
    waiting.join(30)
    assert places == [True]


def test_a_relative_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SCRATCH_VARIABLE, "somewhere")
    with pytest.raises(ConfigError, match="absolute"), unfinished_work("phantom", "ab12"):
        pass


def test_without_the_variable_all_worktrees_share_the_place_below_gits_common_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SCRATCH_VARIABLE)
    subprocess.run(["git", "init", "-q", tmp_path / "repo"], check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "x"], check=True, cwd=tmp_path / "repo")
    subprocess.run(["git", "worktree", "add", "-q", tmp_path / "tree"], check=True, cwd=tmp_path / "repo")
    places = []
    for folder in ("repo", "tree"):
        monkeypatch.chdir(tmp_path / folder)
        with unfinished_work("phantom", "ab12") as place:
            places.append(place)
    assert places[0] == places[1] == tmp_path / "repo" / ".git" / "ace-scratch" / "phantom" / "ab12"


def test_outside_of_git_the_variable_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SCRATCH_VARIABLE)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=SCRATCH_VARIABLE), unfinished_work("phantom", "ab12"):
        pass


def test_work_of_other_fingerprints_is_named_and_own_work_is_not(
    scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with unfinished_work("phantom", "own"):
        assert capsys.readouterr().err == ""
    other = scratch / "phantom" / "other"
    other.mkdir()
    with unfinished_work("phantom", "own") as own:
        message = capsys.readouterr().err
    assert str(other) in message
    assert str(own) not in message
