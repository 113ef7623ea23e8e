"""The README's commands are real: each names a target or parses, and what the README shows runs in a clone."""

import re
import shlex
import shutil
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from dvc.cli.parser import get_main_parser
from PIL import Image

import ace.__main__
import shards.__main__
from tests.support.checkout import MAKE, ROOT, clone_checkout, commit, git, run

PARSERS = {"ace": ace.__main__.build_parser, "shards": shards.__main__.build_parser}
README, OPERATIONS = ROOT / "README.md", ROOT / "docs/operations.md"
DOCUMENTS = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(document: Path) -> list[str]:
    """Lines of indented or fenced code that start with a program of ours, comments cut, and those in tables."""
    text = document.read_text(encoding="utf-8")
    lines = re.findall(r"^(?: {4}|\t)?((?:make|python -m|dvc|dagster) .*)$", text, re.M)
    cells = re.findall(r"`((?:dvc|python -m) [^`]+)`", "\n".join(re.findall(r"^\|.*", text, re.M)))
    return [line.split(" #")[0].split("  ")[0].strip() for line in lines] + cells


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_of_the_documents_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for command in commands(document):
        words = shlex.split(command)
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= targets, command  # NAME=VALUE is a variable
        elif words[:2] == ["python", "-m"] and words[2] in PARSERS:
            PARSERS[words[2]]().parse_args(words[3:])
        elif words[0] == "dvc":
            get_main_parser().parse_args(words[1:])


def test_the_readme_begins_with_the_two_commands() -> None:
    assert commands(README)[:2] == ["make demo", "make test"]


def test_a_newcomer_activates_the_environment_before_the_first_command_that_needs_it() -> None:
    text = README.read_text(encoding="utf-8")
    first = min(text.index(command) for command in commands(README) if not command.startswith("make "))
    assert text.index("source .venv/bin/activate") < first


@pytest.fixture(scope="module")
def finished_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A fresh clone after its first `make demo`, and what that printed; copied, never changed."""
    clone = clone_checkout(tmp_path_factory.mktemp("demo") / "clone")
    return clone, make_demo(clone)


@pytest.fixture
def demo(finished_demo: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to change."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site-cache"))
    return Path(shutil.copytree(finished_demo[0], tmp_path / "clone", symlinks=True))


def make_demo(clone: Path) -> str:
    return run(clone, *MAKE, "demo")


def store_commands() -> list[str]:
    """The commands of the page on operations that keep results in a store and take them from it, in their order."""
    (block,) = re.findall(
        r"^To take the recorded results instead.*\n\n((?: {4}.*\n)+)", OPERATIONS.read_text(encoding="utf-8"), re.M
    )
    return [line.split(" #")[0].strip() for line in block.splitlines()]


def section(title: str) -> str:
    """The code block that follows a heading of the README."""
    (block,) = re.findall(rf"^## {title}\n((?: {{4}}.*\n)+)", README.read_text(encoding="utf-8"), re.M)
    return textwrap.dedent(block)


@pytest.mark.slow
def test_make_demo_runs_in_a_fresh_clone_and_a_second_one_does_nothing(finished_demo: tuple[Path, str]) -> None:
    clone, first = finished_demo
    assert "decompositionality" in first
    assert str(clone / "reports/report.html") in first
    assert (clone / "reports/report.html").stat().st_size < 15e6
    assert (clone / "reports/explorer.html").stat().st_size < 20e6
    second = make_demo(clone)
    assert "up to date" in second
    assert "Running stage" not in second


@pytest.mark.slow
def test_the_everyday_commands_run_one_after_the_other(demo: Path) -> None:
    everyday = [line.split(" #")[0].strip() for line in section("Everyday commands").splitlines()]
    printed = {line: run(demo, *shlex.split(line)) for line in everyday if not line.startswith("make ")}
    assert "up to date" in printed["dvc repro"]
    assert "Ran experiment" in printed["dvc exp run -S pretrain.base_lr=4e-3"]
    assert "metrics/properties.json" in printed["dvc metrics diff"]
    assert "pretrain.base_lr: 0.004 → 0.05" in printed["python -m ace config use smoke"]
    assert "decompositionality" in printed["python -m ace summary"]


@pytest.mark.slow
def test_a_push_gives_another_clone_the_results_without_running_anything(demo: Path, tmp_path: Path) -> None:
    add, push, pull = store_commands()
    add = add.replace("/path/to/a/folder", str(tmp_path / "store"))
    commit(demo)
    for line in (add, push):
        run(demo, *shlex.split(line))
    other = tmp_path / "other"
    git(tmp_path, "clone", "--quiet", str(demo), str(other))
    for line in (add, pull):
        run(other, *shlex.split(line))
    assert (other / "reports/report.html").read_bytes() == (demo / "reports/report.html").read_bytes()
    assert "up to date" in run(other, "dvc", "status")


@pytest.mark.slow
def test_own_images_become_a_batch_and_the_batches_before_it_stay(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_delivery(tmp_path / "delivery", seed=0)
    phantom, clinic = demo / "data/shards/phantom-b000", demo / "data/shards/clinic-b000"
    before = stamps(phantom)
    printed = run(demo, "bash", "-ec", section("Your own images").replace("/path/to", str(tmp_path / "delivery")))
    assert re.findall(r"Running stage '(.*)'", printed)[0] == "shard@clinic-b000"
    assert stamps(phantom) == before
    assert {path.name.split("-")[0] for path in clinic.glob("*.tar")} >= {"train", "test"}
    assert "up to date" in run(demo, "dvc", "status")
    manifests = (demo / "data/manifests").rename(tmp_path / "manifests")  # as in a clone elsewhere
    assert "Running stage" not in run(demo, "dvc", "repro", "--allow-missing")
    monkeypatch.setenv("ACE_ID_KEY_FILE", str(tmp_path / "ace-id.key"))
    manifests.rename(demo / "data/manifests")
    assert "up to date" in run(demo, "dvc", "status")

    write_delivery(tmp_path / "next", seed=1)
    before = stamps(phantom), stamps(clinic)
    run(demo, sys.executable, "-m", "shards", "register", "clinic-b001", str(tmp_path / "next/images"))
    assert re.findall(r"Running stage '(.*)'", run(demo, "dvc", "repro", "shard")) == ["shard@clinic-b001"]
    assert (stamps(phantom), stamps(clinic)) == before


def write_delivery(folder: Path, seed: int) -> None:
    """60 small grey images of 30 patients, and their labels."""
    (folder / "images").mkdir(parents=True)
    generator = np.random.default_rng(seed)
    rows = ["path,patient,effusion"]
    for number in range(60):
        pixels = generator.integers(0, 256, (96, 80), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number:02}.png")
        rows.append(f"{number:02}.png,patient-{number // 2},{number % 2}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file each name is and when it was written."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}
