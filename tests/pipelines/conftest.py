import os
import shutil
import sys
from pathlib import Path

import pytest
from dagster import DagsterInstance

from tests.pipelines.toy import build_toy


@pytest.fixture(scope="session")
def finished_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy repository as it stands after its first `dvc repro`; copied, never changed."""
    root = tmp_path_factory.mktemp("toy") / "repository"
    with pytest.MonkeyPatch.context() as patch:
        _toy_environment(patch, root.parent)
        build_toy(root)
    return root


@pytest.fixture
def toy(finished_toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to change."""
    _toy_environment(monkeypatch, tmp_path)
    return Path(shutil.copytree(finished_toy, tmp_path / "toy", symlinks=True))


@pytest.fixture
def instance():
    with DagsterInstance.ephemeral() as instance:
        yield instance


def _toy_environment(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("TOY_LOG", str(folder / "log.txt"))
    patch.setenv("DVC_SITE_CACHE_DIR", str(folder / "site-cache"))
    patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
