"""`make` installs what a user needs, and what tests need where tests are asked for."""

import os
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.support.checkout import ROOT

USER, DEV = "-e '.[dicom,export]'", "-e '.[dev]'"


def installed(venv: Path, target: str) -> list[str]:
    """What `make` would install for a target, in order."""
    command = ["make", "--dry-run", f"VENV={venv}", target]
    printed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [line.partition("constraints.txt ")[2] for line in printed.splitlines() if "pip install" in line]


@pytest.mark.parametrize("target", ["setup", "demo", "real", "dev", "bench"])
def test_a_user_gets_nothing_that_only_tests_need(target: str, tmp_path: Path) -> None:
    assert installed(tmp_path, target) == [USER]
    (tmp_path / ".installed").touch()
    assert installed(tmp_path, target) == []


@pytest.mark.parametrize("target", ["setup-dev", "test", "fuzz", "test-slow", "test-gpu", "check"])
def test_tests_add_the_rest_to_what_is_there(target: str, tmp_path: Path) -> None:
    assert installed(tmp_path, target) == [USER, DEV]
    (tmp_path / ".installed").touch()
    assert installed(tmp_path, target) == [DEV]
    (tmp_path / ".installed-dev").touch()
    assert installed(tmp_path, target) == []


def test_a_folder_that_is_called_as_a_package_is_does_not_hide_it(tmp_path: Path) -> None:
    """As in the folder above a clone."""
    for name in ("ace", "shards", "pipelines"):
        (tmp_path / name).mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", "import ace, shards.core.grid, pipelines.graph; print(ace.load.__name__)"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout == "load\n"


def test_pytest_passes_over_no_folder_of_tests(pytestconfig: pytest.Config) -> None:
    """By itself it passes over `build`, `dist` and others, which are folders of programs elsewhere."""
    folders = {name for path in (ROOT / "tests").rglob("test_*.py") for name in path.relative_to(ROOT).parts[:-1]}
    patterns = pytestconfig.getini("norecursedirs")
    assert {name for name in folders if any(fnmatch(name, pattern) for pattern in patterns)} == set()
