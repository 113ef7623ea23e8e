import subprocess
from pathlib import Path

import pytest

from shards.errors import ConfigError
from shards.scratch import SCRATCH_VARIABLE, announce_other_work, scratch_dir


def test_work_lies_where_the_variable_says_apart_by_stage_and_fingerprint(scratch: Path) -> None:
    folder = scratch_dir("phantom", "ab12")
    assert folder == scratch / "phantom" / "ab12"
    assert folder.is_dir()


def test_a_relative_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SCRATCH_VARIABLE, "somewhere")
    with pytest.raises(ConfigError, match="absolute"):
        scratch_dir("phantom", "ab12")


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
        places.append(scratch_dir("phantom", "ab12"))
    assert places[0] == places[1] == tmp_path / "repo" / ".git" / "ace-scratch" / "phantom" / "ab12"


def test_outside_of_git_the_variable_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SCRATCH_VARIABLE)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=SCRATCH_VARIABLE):
        scratch_dir("phantom", "ab12")


def test_work_of_other_fingerprints_is_named_and_own_work_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    own = scratch_dir("phantom", "own")
    announce_other_work(own)
    assert capsys.readouterr().err == ""
    other = scratch_dir("phantom", "other")
    announce_other_work(own)
    assert str(other) in (message := capsys.readouterr().err)
    assert str(own) not in message
