"""Tars built by processes that die, on disks that fill up, and on a Ray cluster: the same bytes, or a clear word."""

import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from shards.__main__ import build_parser
from shards.build.job import BuildJob
from shards.build.stage import build_shards, build_tars
from shards.build.summary import TarSummary
from shards.build.tar_builder import TarBuilder
from shards.build.tar_files import TarFiles
from shards.cli import run_command
from shards.core.errors import ConfigError, NoSpaceError, SourceError, WorkerError
from shards.core.params import PhantomSourceParams, SourceParams
from shards.reading.reader import ShardIndex
from shards.runtime.execution import Execution, Item, Processes, RayCluster
from tests.shards.runtime.dying import DyingEncoder, StillbornEncoder
from tests.support.datasets import (
    Here,
    folder_bytes,
    folder_params,
    grid_params,
    shard_params,
    write_folder,
    write_phantom,
    write_project,
)
from tests.support.ray_cluster import ray_cluster


def job_of(source: PhantomSourceParams) -> BuildJob:
    return BuildJob(batch="a", source=source, grid=grid_params(), params=shard_params())


def built(source: PhantomSourceParams, scratch: Path, execution: Execution, **dying: object) -> dict[str, TarSummary]:
    """Build all tars with an encoder that dies where it is told; return their summaries."""
    scratch.mkdir()
    job = job_of(source)
    dying["tests_pid"] = os.getpid()
    encoder = DyingEncoder(**vars(job.encoder), **dying)
    plan = job.plan(scratch)
    builder = TarBuilder(manifest=plan.manifest, header=plan.header, encoder=encoder, scratch=scratch)
    build_tars(plan, builder, execution, scratch / "out")
    summaries = {shard.name: builder.files(shard).read_summary(check_tar=True) for shard in plan.shards}
    assert None not in summaries.values()
    return {name: summary for name, summary in summaries.items() if summary}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> PhantomSourceParams:
    """Raw images that no test changes."""
    return write_phantom(tmp_path_factory.mktemp("raw") / "phantom")


@pytest.fixture(scope="module")
def whole(phantom: PhantomSourceParams, tmp_path_factory: pytest.TempPathFactory) -> dict[str, TarSummary]:
    """The summaries of its tars, where no process ended."""
    return built(phantom, tmp_path_factory.mktemp("built") / "whole", Processes(1))


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_image_that_ends_its_process_is_quarantined_and_nothing_else_is_lost(
    num_workers: int, phantom: PhantomSourceParams, whole: dict[str, TarSummary], tmp_path: Path
) -> None:
    hurt = built(phantom, tmp_path / "hurt", Processes(num_workers), key="p0005-i2")
    (name,) = (name for name in whole if whole[name].sha256 != hurt[name].sha256)
    (item,) = hurt[name].quarantined
    assert item.image.display_name == "images/p0005-i2.png"
    assert "ends the process that reads it" in item.reason
    keys = [sample.image.key for sample in whole[name].samples]
    assert [sample.image.key for sample in hurt[name].samples] == [key for key in keys if key != "p0005-i2"]


@pytest.mark.slow
def test_a_process_killed_from_outside_costs_no_image(
    phantom: PhantomSourceParams, whole: dict[str, TarSummary], tmp_path: Path
) -> None:
    assert built(phantom, tmp_path / "hurt", Processes(2), key="p0005-i2", once=tmp_path / "died") == whole


def test_an_image_is_given_up_when_it_ends_a_second_process(tmp_path: Path) -> None:
    files = TarFiles(tmp_path, "a.tar")
    given_up = []
    for num_begun in (3, 2, 3):
        files.begun.write_bytes(num_begun * b".")
        files.note_crash()
        given_up.append(files.given_up())
    assert given_up == [set(), set(), {2}]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_processes_that_cannot_start_end_the_build_and_blame_no_image(
    num_workers: int, tmp_path: Path, scratch: Path
) -> None:
    source = write_phantom(tmp_path / "phantom")
    scratch.mkdir()
    job = job_of(source)
    plan, encoder = job.plan(scratch), StillbornEncoder(**vars(job.encoder))
    builder = TarBuilder(manifest=plan.manifest, header=plan.header, encoder=encoder, scratch=scratch)
    with pytest.raises(WorkerError, match="ended before they read an image; expected free memory"):
        build_tars(plan, builder, Processes(num_workers), tmp_path / "out")
    assert not list(scratch.rglob("*.crashes"))


@dataclass(frozen=True)
class Elsewhere:
    """One process that starts in another folder."""

    folder: Path

    def run(
        self, function: Callable[[Item], None], items: Sequence[Item], on_poll: Callable[[], None]
    ) -> Iterator[tuple[Item, bool]]:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context, initializer=os.chdir, initargs=(self.folder,)) as pool:
            for item, _ in zip(items, pool.map(function, items), strict=True):
                yield item, False


def relative_source(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> SourceParams:
    """A source in a project's folder, which becomes the current one; its paths are relative, as in params.yaml."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    if kind == "phantom":
        return write_phantom(Path("phantom"))
    write_folder(Path("images"), [f"{name}.png" for name in "abcdef"])
    return folder_params(Path("images"), Path("manifests/a.jsonl"))


@pytest.mark.parametrize("kind", ["phantom", "folder"])
def test_the_folder_that_processes_start_in_does_not_matter(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = relative_source(kind, tmp_path / "project", monkeypatch)
    build_shards("a", source, grid_params(), shard_params(), Path("here"), execution=Here())
    build_shards("a", source, grid_params(), shard_params(), Path("there"), execution=Elsewhere(tmp_path))
    assert folder_bytes(Path("there")) == folder_bytes(Path("here"))


@pytest.mark.parametrize("missing", ["manifest", "images", "scratch"])
def test_a_machine_that_does_not_see_the_files_says_which_and_builds_nothing(missing: str, tmp_path: Path) -> None:
    source = write_phantom(tmp_path / "phantom")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    job = job_of(source)
    plan = job.plan(tmp_path)
    builder = job.builder(plan, scratch)
    gone = {"manifest": plan.manifest, "images": job.root, "scratch": scratch}[missing]
    gone.rename(tmp_path / "gone")
    with pytest.raises(SourceError, match=f"{gone} is not there; expected the manifest, the images and ACE_SCRATCH"):
        builder(plan.shards[0])
    assert not gone.exists()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A Ray cluster on loopback, whose processes start in a folder of their own."""
    pytest.importorskip("ray")
    with ray_cluster(tmp_path / "elsewhere") as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["phantom", "folder"])
def test_the_processes_of_a_cluster_may_start_in_any_folder(
    kind: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = relative_source(kind, tmp_path / "project", monkeypatch)
    build_shards("a", source, grid_params(), shard_params(), Path("here"), execution=Processes(1))
    build_shards("a", source, grid_params(), shard_params(), Path("there"), execution=RayCluster(address))
    assert folder_bytes(Path("there")) == folder_bytes(Path("here"))


@pytest.mark.slow
def test_a_ray_cluster_builds_the_same_bytes_and_survives_the_same_deaths(
    phantom: PhantomSourceParams, whole: dict[str, TarSummary], tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    assert built(phantom, tmp_path / "ray", RayCluster("local")) == whole
    hurt = built(phantom, tmp_path / "hurt", RayCluster("local"), key="p0005-i2")
    assert sum(len(summary.quarantined) for summary in hurt.values()) == 1


def test_a_cluster_that_is_not_there_is_named(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match="--ray nowhere: no Ray cluster there"):
        list(RayCluster("nowhere").run(print, [1], lambda: None))


def test_too_little_room_is_said_before_the_work(tmp_path: Path, scratch: Path) -> None:
    """A grid whose canvases need more than any disk has."""
    source = write_phantom(tmp_path / "phantom", num_patients=2)
    huge = grid_params(n=2_000_000, cell_px=8)
    with pytest.raises(
        NoSpaceError, match=r"[\d.]+ GB free, 3 images need about 537,600\.0 GB; make room there, or choose an --out"
    ):
        build_shards("a", source, huge, shard_params(), tmp_path / "out", execution=Processes(1))
    assert not list(scratch.rglob("*.tar"))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second disk: /dev/shm")
def test_a_set_on_another_disk_needs_room_for_finished_tars_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_phantom(tmp_path / "phantom")
    path = tmp_path / "phantom" / "images" / "p0004-i1.png"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(SourceError, match="1 of 30 images cannot be used"):  # when every tar is finished
        build_shards(
            "a",
            source,
            grid_params(),
            shard_params(max_quarantined_fraction=0.0),
            tmp_path / "out",
            execution=Here(),
        )
    usage = shutil.disk_usage(tmp_path)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        full = Path(other)
        free = {full: 0}
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=free.get(folder, usage.free)))
        with pytest.raises(
            NoSpaceError, match=rf"{full}: 0\.0 kB free, 30 images need about 48\.4 kB; .* choose an --out"
        ):
            build_shards("a", source, grid_params(), shard_params(), full / "out", execution=Here())
        free[full] = usage.free
        build_shards("a", source, grid_params(), shard_params(), full / "out", execution=Here())
        assert len(ShardIndex.open(full / "out").rows) == 29


@pytest.mark.parametrize("max_bytes", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_full_disk_leaves_no_half_file_and_what_was_finished_is_used_again(
    max_bytes: int, tmp_path: Path, scratch: Path
) -> None:
    """No file of the child may grow over `max_bytes`: the write fails as on a full disk."""
    source = write_phantom(tmp_path / "phantom", num_patients=20)
    build_shards("a", source, grid_params(), shard_params(), tmp_path / "whole", execution=Here())
    write_project(tmp_path, "a", source, grid_params(), shard_params())
    command = [sys.executable, "-m", "shards", "build", "--batch", "a", "--num-workers", "1"]
    command += ["--params", str(tmp_path / "params.yaml"), "--out", str(tmp_path / "out")]
    limit = (max_bytes, max_bytes)
    answer = subprocess.run(
        command,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert answer.returncode == 2, answer.stderr
    assert re.search(r"File too large, .* needed; what was finished is kept, nothing is half written: ", answer.stderr)
    assert answer.stderr.endswith(
        "raise the limit on the size of a file (`ulimit -f`) and give the same command again\n"
    )
    assert "Traceback" not in answer.stderr
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.tmp").exists()
    assert not list(scratch.rglob("*.tmp"))
    for summary in scratch.rglob("*.tar.json"):
        files = TarFiles(summary.parent, summary.name.removesuffix(".json"))
        assert files.read_summary(check_tar=True) is not None
    assert run_command(build_parser(), command[3:]) == 0
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "whole")


def test_an_error_of_one_tar_arrives_and_ends_the_others(tmp_path: Path, scratch: Path) -> None:
    source = write_phantom(tmp_path / "phantom")
    job = job_of(source)
    _ = job.manifest  # as the files are now
    path = tmp_path / "phantom" / "images" / "p0005-i2.png"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    scratch.mkdir()
    plan = job.plan(scratch)
    builder = job.builder(plan, scratch)
    with pytest.raises(SourceError, match="1 files are missing or changed since they were listed: images/p0005-i2"):
        build_tars(plan, builder, Processes(2), tmp_path / "out")


def test_a_tar_that_ends_in_an_error_is_not_there(tmp_path: Path) -> None:
    job = job_of(write_phantom(tmp_path / "phantom", num_patients=1))
    plan = job.plan(tmp_path)
    builder, shard = job.builder(plan, tmp_path), plan.shards[0]
    for path in (tmp_path / "phantom" / "images").iterdir():
        path.unlink()
    with pytest.raises(SourceError, match="missing or changed"):
        builder(shard)
    assert not builder.files(shard).tar.exists()


def test_the_index_of_a_set_built_on_two_processes_counts_what_its_tars_hold(tmp_path: Path) -> None:
    source = write_phantom(tmp_path / "phantom")
    build_shards("a", source, grid_params(), shard_params(), tmp_path / "out", execution=Processes(2))
    index = ShardIndex.open(tmp_path / "out")
    assert sum(tar.num_samples for tar in index.shards) == len(index.rows) == 30
    assert json.loads((tmp_path / "out" / "index.json").read_text())["counts"]["images"] == {
        split: len(index.select(split))  # type: ignore[arg-type]
        for split in ("train", "val", "test")
    }
