"""`make dev`, with a program in the place of Dagster's that says what it was given."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.checkout import ROOT

DAGSTER = """#!/bin/sh
echo "home $DAGSTER_HOME"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What `make dev` needs of a checkout, as installed."""
    root = tmp_path / "a checkout"
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "pipelines/dagster.yaml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    program = root / ".venv" / "bin" / "dagster"
    program.parent.mkdir(parents=True)
    program.write_text(DAGSTER)
    program.chmod(0o755)
    (root / ".venv" / ".installed").touch()
    return root


def make_dev(root: Path, *arguments: str, home: Path | None = None) -> str:
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}  # of the make that runs these tests, which would announce its folders
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    environment |= {"DAGSTER_HOME": str(home)} if home else {}
    command = ["make", "dev", *arguments]
    return subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True, text=True).stdout


def test_the_home_that_another_project_exports_is_left_alone(checkout: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "dagster.yaml").write_text("another project's\n")
    assert make_dev(checkout, home=other) == f"home {checkout}/.dagster\n"
    assert (other / "dagster.yaml").read_text() == "another project's\n"
    settings = (checkout / ".dagster/dagster.yaml").read_text()
    assert settings == (ROOT / "pipelines/dagster.yaml").read_text()


def test_settings_of_ones_own_are_kept_and_named(checkout: Path) -> None:
    make_dev(checkout)
    (checkout / ".dagster/dagster.yaml").write_text("one's own\n")
    said = make_dev(checkout)
    assert "differs from pipelines/dagster.yaml and is left as it is" in said
    assert (checkout / ".dagster/dagster.yaml").read_text() == "one's own\n"


def test_a_home_given_to_make_is_used(checkout: Path, tmp_path: Path) -> None:
    assert make_dev(checkout, f"DAGSTER_HOME={tmp_path}/there") == f"home {tmp_path}/there\n"
    assert (tmp_path / "there" / "dagster.yaml").exists()
