"""The README's commands are real: each names a target or parses, and the first ones run in a fresh clone."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import ace.__main__
import shards.__main__

ROOT = Path(__file__).parents[1]
PARSERS = {"ace": ace.__main__.build_parser, "shards": shards.__main__.build_parser}
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(document: Path) -> list[str]:
    """Lines of indented or fenced code that start with a program of ours, comments cut."""
    lines = re.findall(r"^(?: {4}|\t)?((?:make|python -m|dvc|dagster) .*)$", document.read_text(encoding="utf-8"), re.M)
    return [line.split(" #")[0].split("  ")[0].strip() for line in lines]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_of_the_documents_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for command in commands(document):
        words = shlex.split(command)
        if words[0] == "make":
            assert set(words[1:]) <= targets, command
        elif words[:2] == ["python", "-m"] and words[2] in PARSERS:
            PARSERS[words[2]]().parse_args(words[3:])


def test_the_readme_begins_with_the_two_commands() -> None:
    assert commands(ROOT / "README.md")[:2] == ["make demo", "make test"]


def test_links_of_the_documents_lead_to_files() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


@pytest.mark.slow
def test_make_demo_runs_in_a_fresh_clone_and_a_second_one_does_nothing(tmp_path: Path) -> None:
    clone, venv = tmp_path / "clone", Path(sys.prefix)
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    environment = {**os.environ, "PATH": f"{venv / 'bin'}:{os.environ['PATH']}"}
    use = [sys.executable, "-m", "ace", "config", "use", "smoke"]
    subprocess.run(use, cwd=clone, env=environment, check=True, capture_output=True)
    # The environment of the running tests instead of a new one: -o takes the installation as done.
    make = ["make", "-o", f"{venv}/.installed", f"VENV={venv}", "demo"]
    first = subprocess.run(make, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr[-3000:]
    assert "decompositionality" in first.stdout
    assert str(clone / "reports/report.html") in first.stdout
    second = subprocess.run(make, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr[-3000:]
    assert "up to date" in second.stdout
    assert "Running stage" not in second.stdout
