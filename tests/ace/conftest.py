"""A copy of the project's own files, in which a test's commands run."""

import shutil
from pathlib import Path

import pytest

from tests.support.checkout import ROOT, copy_project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy_project(tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path
