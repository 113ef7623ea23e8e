from pathlib import Path

import pytest

from shards.core.identity import KEY_FILE_VARIABLE, create_key
from shards.runtime.scratch import SCRATCH_VARIABLE


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Unfinished work of every test stays in its own folder, and nobody's key is used by chance."""
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "scratch"))
    monkeypatch.delenv(KEY_FILE_VARIABLE, raising=False)
    return tmp_path / "scratch"


@pytest.fixture
def id_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A secret key in the environment; returns its fingerprint."""
    path = tmp_path / "keys" / "id.key"
    fingerprint = create_key(path)
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(path))
    return fingerprint
