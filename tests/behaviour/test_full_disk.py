"""Every command on a disk that is really full: it says which one, and leaves nothing that is half written.

The disks are small file systems in memory, mounted in a process that has its own view of the mounts: they go with it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shards.build.stage import build_shards
from shards.core.identity import create_key
from shards.runtime.scratch import SCRATCH_VARIABLE
from tests.ace.inference.models import write_model
from tests.ace.operations.test_publishing import make_published
from tests.ace.pretrain.conftest import build_noise_shards, tiny_grid, tiny_mix, tiny_params
from tests.support.checkout import ROOT, copy_project
from tests.support.datasets import Here, grid_params, shard_params, write_folder, write_phantom, write_project

COMMANDS = """
import contextlib, importlib, io, json, os, shutil, subprocess, sys
from pathlib import Path

disk, answers = Path(sys.argv[1]), []


def main():
    for case in json.loads(sys.argv[2]):
        said = io.StringIO()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={case['size']}", "none", disk], check=True)
        shutil.copytree(case["copied"], disk, dirs_exist_ok=True) if case["copied"] else None
        (disk / "fill").write_bytes(bytes(case["fill"])) if case["fill"] else None
        os.environ["ACE_SCRATCH"] = case["scratch"]
        module, *arguments = case["command"]
        from shards.cli import run_command
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            try:
                code = run_command(importlib.import_module(f"{module}.__main__").build_parser(), arguments)
            except Exception as error:
                code = f"traceback: {error!r}"
        left = {str(path.relative_to(disk)): path.stat().st_size for path in disk.rglob("*") if path.is_file()}
        answers.append({"code": code, "said": said.getvalue(), "left": left})
        subprocess.run(["umount", disk], check=True)
    print("answers", json.dumps(answers))


if __name__ == "__main__":
    main()
"""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A command and the disk that it fills.

    Attributes:
        size: Size of the disk, as `mount` takes it; a file takes whole pages of 4 KiB.
        command: Package and arguments.
        copied: A folder whose files are on the disk before.
        fill: Bytes that are taken before.
        scratch: Where unfinished work lies.
    """

    size: str
    command: list[str]
    copied: str = ""
    fill: int = 0
    scratch: str


@dataclass(frozen=True)
class Disk:
    """Runs commands beside a small disk."""

    place: Path
    scratch: Path
    own_mounts: tuple[str, ...]

    def run(self, size: str, *command: str | Path, **settings: Any) -> dict[str, Any]:
        """Exit code, what was said, and the files that are left on the disk with their sizes."""
        (answer,) = self.run_all((size, command), **settings)
        return answer

    def run_all(self, *cases: tuple[str, Sequence[str | Path]], **settings: Any) -> list[dict[str, Any]]:
        """The same of several commands, each with a disk of its size, one after the other in one process."""
        settings = {"scratch": str(self.scratch), **settings}
        commands = [
            Case(size=size, command=[str(part) for part in command], **settings).__dict__ for size, command in cases
        ]
        script = self.place.with_name("commands.py")
        script.write_text(COMMANDS)
        self.place.mkdir(exist_ok=True)
        done = subprocess.run(
            [*self.own_mounts, sys.executable, str(script), str(self.place), json.dumps(commands)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout.rpartition("answers ")[2]))


@pytest.fixture(scope="module")
def own_mounts() -> tuple[str, ...]:
    """The command before a command that gives it its own mounts: as root, or as root of a user's own name space."""
    for flags in ("-m", "-rm"):
        try:
            found = subprocess.run(["unshare", flags, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
        except FileNotFoundError:
            break
        if found.returncode == 0:
            return "unshare", flags
    pytest.skip("needs a system where `unshare -rm` may mount a file system")


@pytest.fixture
def disk(tmp_path: Path, own_mounts: tuple[str, ...]) -> Disk:
    return Disk(tmp_path / "disk", tmp_path / "scratch", own_mounts)


def check_said(answer: dict[str, Any], pattern: str, left: tuple[str, ...] = ()) -> None:
    """One line that tells it, the code of a user's mistake, and none but the files that were there before."""
    last = answer["said"].splitlines()[-1]
    assert answer["code"] == 2, answer
    assert re.fullmatch(f"error: {pattern}", last), last
    assert tuple(sorted(answer["left"])) == left


def full(place: Path, needed: str = "more is") -> str:
    return (
        rf"{re.escape(str(place))} \([\d.]+ kB free\): No space left on device, {needed} needed; what was finished is "
        "kept, nothing is half written: make room there and give the same command again"
    )


@pytest.fixture
def params(tmp_path: Path) -> Path:
    """A project's params.yaml with a drawn batch `a`."""
    return write_project(tmp_path, "a", write_phantom(tmp_path / "phantom"), grid_params(), shard_params())


def test_a_build_names_the_disk_of_the_set_and_not_that_of_unfinished_work(disk: Disk, params: Path) -> None:
    build = ("shards", "build", "--batch", "a", "--params", params, "--num-workers", "1", "--out")
    needed = r"[\d.]+ kB free, 30 images need about 48\.4 kB; make room there, or"
    answer = disk.run("40k", *build, disk.place / "set")
    check_said(answer, rf"{disk.place}: {needed} choose an --out on another disk")
    answer = disk.run("128k", *build, disk.place.parent / "set", scratch=str(disk.place), fill=90_000)
    unfinished = tuple(sorted(answer["left"]))
    check_said(answer, rf"{disk.place}/shard/a/\w+: {needed} set ACE_SCRATCH to a folder on another disk", unfinished)
    assert not [name for name in unfinished if name.endswith((".tar", ".tmp"))]


@pytest.mark.slow
def test_a_build_whose_set_does_not_fit_after_all_keeps_its_tars_elsewhere(disk: Disk, params: Path) -> None:
    """Tars come with reports, which nothing is known of before."""
    build = ("shards", "build", "--batch", "a", "--params", params, "--num-workers", "1", "--out", disk.place / "set")
    answer = disk.run("80k", *build)
    check_said(answer, full(disk.place))
    assert len(list(disk.scratch.rglob("*.tar.json"))) > 5
    assert disk.run("4m", *build)["code"] == 0


@pytest.mark.slow
def test_a_phantom_names_the_disk_that_it_is_copied_to(disk: Disk, tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    render = ("shards", "phantom", "--params", tmp_path / "params.yaml", "--num-patients", "1", "--size", "64")
    command = (*render, "--images-per-patient", "1", "--num-workers", "1", "--out", disk.place / "phantom")
    refused = rf"{disk.place}: 8\.2 kB free, the files of phantom need about [\d.]+ kB; make room there, or choose .*"
    check_said(disk.run("8k", *command), refused)
    # It waits in the scratch folder. Of many small files each takes a page, which is more than all their bytes.
    waiting = next(disk.scratch.glob("phantom/*/dataset"))
    num_bytes = sum(path.stat().st_size for path in waiting.rglob("*") if path.is_file())
    answer = disk.run(f"{-(-num_bytes // 4096) * 4}k", *command)
    check_said(answer, full(disk.place, r"about [\d.]+ kB are"))
    assert (waiting / "labels.csv").is_file()


@pytest.mark.slow
def test_a_phantom_names_the_disk_of_unfinished_work(disk: Disk, tmp_path: Path) -> None:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    render = ("shards", "phantom", "--params", tmp_path / "params.yaml", "--num-patients", "1", "--size", "64")
    answer = disk.run("40k", *render, "--out", tmp_path / "phantom", scratch=str(disk.place))
    assert re.search(full(disk.place), answer["said"])
    assert not (tmp_path / "phantom").exists()
    assert not [name for name in answer["left"] if name.endswith(".tmp")]


def test_registering_leaves_the_project_as_it_was(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    project.mkdir()
    copy_project(project)
    create_key(tmp_path / "keys" / "id.key")
    monkeypatch.setenv("ACE_ID_KEY_FILE", str(tmp_path / "keys" / "id.key"))
    write_folder(tmp_path / "own", [f"p{number}/a.png" for number in range(9)])
    register = ("shards", "register", "own-b000", tmp_path / "own")
    options = ("--params", disk.place / "params.yaml", "--dvc", disk.place / "dvc.yaml")
    files = [path for path in project.rglob("*") if path.is_file()]
    num_pages = sum(-(-path.stat().st_size // 4096) for path in files)
    answer = disk.run(f"{4 * num_pages}k", *register, *options, copied=str(project))
    sizes = {path.relative_to(project).as_posix(): path.stat().st_size for path in files}
    assert {name: size for name, size in answer["left"].items() if not name.endswith(".lock")} == sizes
    check_said(answer, full(disk.place / "data" / "manifests", r"about [\d.]+ kB are"), tuple(sorted(answer["left"])))


def test_a_key_that_cannot_be_written_leaves_no_file_that_looks_like_one(disk: Disk) -> None:
    answer = disk.run("4k", "shards", "key", "new", disk.place / "id.key", fill=4096)
    check_said(answer, full(disk.place), ("fill",))


@pytest.fixture(scope="module")
def of_a_model(tmp_path_factory: pytest.TempPathFactory, own_mounts: tuple[str, ...]) -> tuple[Disk, dict[str, Any]]:
    """What commands with a network answered, by name: in one process, which takes seconds to import torch."""
    root = tmp_path_factory.mktemp("model")
    disk, model = Disk(root / "disk", root / "scratch", own_mounts), write_model(root / "model")
    for number in (7, 8):
        write_folder(root / f"{number}", [f"{name}.png" for name in range(number)])
    pages = -(-(model / "teacher_backbone.safetensors").stat().st_size // 4096)
    export = ("ace", "export", "--model", model, "--format", "timm", "--out", disk.place / "timm")
    embed = ("ace", "embed", "--model", model, "--tokens", "--out", disk.place / "e.parquet")
    cases = {
        "refused export": ("8k", export),
        # Room for the weights, and none for what safetensors and the card add to them.
        "export": (f"{4 * pages}k", export),
        "refused embeddings": ("4k", (*embed, root / "8")),  # 8 × (16 × 4 + 16 tokens × 16 × 2) bytes
        # Seven times 576 bytes of values fit into a page, and Parquet's footer does not any more.
        "embeddings": ("4k", (*embed, root / "7")),
    }
    return disk, dict(zip(cases, disk.run_all(*cases.values()), strict=True))


@pytest.mark.slow
def test_an_export_that_does_not_fit_is_refused_before_it_begins(of_a_model: tuple[Disk, dict[str, Any]]) -> None:
    disk, answers = of_a_model
    pattern = rf"{disk.place}: 8\.2 kB free, the files of timm need about [\d.]+ kB; make room there, or choose .*"
    check_said(answers["refused export"], pattern)


@pytest.mark.slow
def test_an_export_that_fills_the_disk_leaves_nothing(of_a_model: tuple[Disk, dict[str, Any]]) -> None:
    disk, answers = of_a_model
    check_said(answers["export"], full(disk.place, r"about [\d.]+ kB are"))


def test_embeddings_that_do_not_fit_are_refused_before_any_is_computed(
    of_a_model: tuple[Disk, dict[str, Any]],
) -> None:
    disk, answers = of_a_model
    needed = r"4\.1 kB free, 8 embeddings need about 4\.6 kB; make room there, or choose .*"
    check_said(answers["refused embeddings"], rf"{disk.place}: {needed}")
    assert "embed:" not in answers["refused embeddings"]["said"]


def test_embeddings_that_fill_the_disk_leave_no_half_file(of_a_model: tuple[Disk, dict[str, Any]]) -> None:
    disk, answers = of_a_model
    check_said(answers["embeddings"], full(disk.place, r"about 4\.0 kB are"))


@pytest.mark.slow
def test_a_training_that_fills_the_disk_says_so_and_goes_on_where_there_is_room(disk: Disk, tmp_path: Path) -> None:
    shards = build_noise_shards(tmp_path, num_images=16, splits={"train": 0.8, "val": 0.1, "test": 0.1})
    sections = {
        "grid": tiny_grid().model_dump(mode="json"),
        "mix": {name: item.model_dump(mode="json") for name, item in tiny_mix().items()},
        "pretrain": tiny_params(epochs=2).model_dump(mode="json", by_alias=True),
    }
    (tmp_path / "params.yaml").write_text(json.dumps(sections))
    train = ("ace", "pretrain", "--params", tmp_path / "params.yaml", "--shards", shards)
    places = ("--out", tmp_path / "model", "--metrics", tmp_path / "metrics")
    answer = disk.run("200k", *train, *places, scratch=str(disk.place))
    assert answer["code"] == 2, answer
    checkpoints = rf"{re.escape(str(disk.place))}/pretrain/\w+/checkpoints"
    assert re.match(rf"error: {checkpoints} \(.* free\): No space left on", answer["said"].splitlines()[-1])
    assert not [name for name in answer["left"] if name.endswith(".pt")]
    assert not (tmp_path / "model").exists()
    assert disk.run("8m", *train, *places, scratch=str(disk.place))["code"] == 0
    assert (tmp_path / "model/config.json").is_file()


PUBLISHING = """
import subprocess, sys
from pathlib import Path
from ace.operations.clone import Clone
from ace.operations.publishing import publish
from shards.core.errors import UserError

disk = Path(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=True)
(disk / "fill").write_bytes(bytes(60_000))
for _ in range(2):
    try:
        print(*publish(Clone(Path(sys.argv[1])), pauses_s=()), sep="\\n")
    except UserError as error:
        print(f"{type(error).__name__}: {error}")
    (disk / "fill").unlink(missing_ok=True)
"""


@pytest.mark.slow
def test_publishing_to_a_full_disk_pushes_no_commit_and_is_finished_once_there_is_room(
    tmp_path: Path, own_mounts: tuple[str, ...]
) -> None:
    made = make_published(tmp_path, remote="../../remote")
    command = [*own_mounts, sys.executable, "-c", PUBLISHING, str(made.root), str(made.remote)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    first, *others = [line for line in done.stdout.splitlines() if not line.startswith("committed")]
    assert re.match(
        r"OutOfReachError: DVC's remote cannot be reached: it did not take \d files; is its disk full\?", first
    ), done.stdout
    assert others[0].endswith("and all are at DVC's remote")
    assert others[1].startswith("commits: ")
    assert made.at_origin["refs/heads/service"] == made.head


def test_a_picture_that_fills_the_disk_leaves_nothing(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SCRATCH_VARIABLE, str(disk.scratch))
    source = write_phantom(tmp_path / "phantom", num_patients=2)
    build_shards("a", source, grid_params(), shard_params(), tmp_path / "set", execution=Here())
    check_said(disk.run("4k", "shards", "show", tmp_path / "set", "--out", disk.place / "a.png"), full(disk.place))


def test_output_to_a_full_disk_is_an_error_without_a_traceback() -> None:
    command = [sys.executable, "-m", "ace", "models"]
    with Path("/dev/full").open("w") as output:
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"error: this command writes to a full disk: No space left on device, .*\n", done.stderr)
