"""Whoever uses the key that the repository publishes is told that its pseudonyms hide nobody."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shards.__main__ import build_parser
from shards.cli import run_command
from shards.core.identity import KEY_FILE_VARIABLE, create_key, read_id_key
from shards.delivery.published_key import PUBLISHED_FINGERPRINT
from tests.support.checkout import copy_project
from tests.support.datasets import write_folder

REPOSITORY = Path(__file__).parents[3]
KEY = REPOSITORY / "configs/key_for_public_images"
WARNING = "warning: the identity key is the published one (configs/key_for_public_images)"

Command = Callable[..., str]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A command of `python -m shards` in a project of its own; returns what it says on stderr."""
    copy_project(tmp_path)
    write_folder(tmp_path / "own", [f"{number:02}.png" for number in range(12)])
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        assert run_command(build_parser(), [*arguments]) == 0
        return capsys.readouterr().err

    return run


def test_the_fingerprint_is_that_of_the_key_in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(KEY))
    assert read_id_key().fingerprint == PUBLISHED_FINGERPRINT


def test_registering_and_sharding_under_a_copy_of_the_published_key_warn_once(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.key").write_text(f"  {KEY.read_text(encoding='ascii').strip().upper()}\n\n", encoding="ascii")
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "mine.key"))
    registered = command("register", "a-b000", "own")
    assert registered.count(WARNING) == 1
    assert "fit for public images only" in registered
    assert "python -m shards key new PATH" in registered
    assert command("shard", "--batch", "a-b000", "--num-workers", "1").count(WARNING) == 1


def test_a_key_of_ones_own_is_not_warned_of(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_key(tmp_path / "keys" / "key_for_public_images")
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "keys" / "key_for_public_images"))
    said = command("register", "a-b000", "own") + command("shard", "--batch", "a-b000", "--num-workers", "1")
    assert "published" not in said
