"""`python -m ace embed --ray`: on a cluster the same bytes as on one machine, whatever ends on the way."""

import os
import pickle
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ace.__main__ import build_parser
from ace.inference import parquet
from ace.inference.cluster import (
    ClusterDevice,
    EmbeddingCluster,
    Part,
    WritePart,
    _Embedder,
    _Processes,
    _processes,
    _Work,
)
from ace.inference.embedder import EmbeddingModel, load_model
from ace.inference.parquet import write_embeddings
from ace.inference.sources import FolderImages, open_folder, open_shards
from shards.build.stage import build_shards
from shards.cli import run_command
from shards.core.errors import ConfigError, UserError, WorkerError
from shards.reading.reader import ShardIndex
from shards.runtime.scratch import SCRATCH_VARIABLE
from tests.ace.inference.dying import die_at, write_part
from tests.ace.inference.models import write_model
from tests.support.checkout import ROOT
from tests.support.datasets import Here, folder_bytes, grid_params, shard_params, smooth_image, write_phantom
from tests.support.ray_cluster import ray_cluster

NUM_IMAGES, BROKEN = 40, ("003.png", "016.png", "017.png", "032.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images; of the four that cannot be read, two fill a batch of two, and one is first of a part of 32."""
    root = tmp_path_factory.mktemp("images")
    for number in range(NUM_IMAGES):
        Image.fromarray(smooth_image(40, 30, number)).save(root / f"{number:03}.png")
    for name in BROKEN:
        (root / name).write_bytes((root / name).read_bytes()[:60])
    return root


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    source = write_phantom(root / "phantom", num_patients=9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SCRATCH_VARIABLE, str(root / "scratch"))
        build_shards("a-b000", source, grid_params(), shard_params(), root / "a-b000", execution=Here())
    return root / "a-b000"


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(SCRATCH_VARIABLE, str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def embed(*arguments: str | Path) -> int:
    return run_command(build_parser(), ["embed", *map(str, arguments)])


@dataclass(frozen=True)
class Sent(EmbeddingCluster):
    """A cluster that is this process: what goes to a machine is pickled. It ends as a killed run does, where told."""

    address: str = "local"
    device: ClusterDevice = "cpu"
    num_threads: int | None = 1
    stop_after: int = 1000
    written: list[str] = field(default_factory=list)

    def embed(self, model: EmbeddingModel, parts: Sequence[Part], write: WritePart, marker: Path) -> None:
        work = pickle.dumps(_Work(model=model, write=write, marker=marker, processes=_Processes(1, 1, 0), versions={}))
        for part in parts:
            if not part.path.is_file():
                if len(self.written) == self.stop_after:
                    raise KeyboardInterrupt
                _Embedder(work).embed(part.name, pickle.dumps(part))
                self.written.append(part.name)


def written(
    model: EmbeddingModel, root: Path, out: Path, cluster: EmbeddingCluster | None, **changes: Any
) -> dict[str, bytes]:
    """The files of one run, without the name of the first."""
    options = {"batch_size": 2, "num_threads": 1, "with_tokens": False, **changes}
    source = open_folder(root, is_hashed=False, max_pixels=1e6)
    write_embeddings(model, source, out / "e.parquet", cluster=cluster, **options)
    return folder_bytes(out)


@pytest.mark.parametrize("with_tokens", [False, True])
@pytest.mark.parametrize("rows_per_group", [3, 1000])
def test_parts_joined_are_the_bytes_of_a_run_without_them(
    with_tokens: bool,
    rows_per_group: int,
    folder: Path,
    model: EmbeddingModel,
    tmp_path: Path,
    scratch: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", rows_per_group)
    monkeypatch.setattr(parquet, "TOKEN_ROWS_PER_GROUP", rows_per_group)
    cluster = Sent()
    here = written(model, folder, tmp_path / "here", None, with_tokens=with_tokens)
    assert written(model, folder, tmp_path / "there", cluster, with_tokens=with_tokens) == here
    assert here["e.errors.csv"].decode().count("\n") == 1 + len(BROKEN)
    assert cluster.written == ["images 1 to 32 of 40", "images 33 to 40 of 40"]
    assert not list(scratch.rglob("*.npy"))


def test_a_killed_run_goes_on_after_its_finished_parts_and_changed_images_are_read_again(
    folder: Path, model: EmbeddingModel, tmp_path: Path, scratch: Path
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for path in folder.iterdir():
        (root / path.name).write_bytes(path.read_bytes())

    def stopped(cluster: Sent, **changes: Any) -> Sent:
        with pytest.raises(KeyboardInterrupt):
            written(model, root, tmp_path / "there", cluster, **changes)
        return cluster

    assert stopped(Sent(stop_after=1)).written == ["images 1 to 32 of 40"]
    assert stopped(Sent(stop_after=0)).written == []
    assert stopped(Sent(stop_after=1), batch_size=1).written == ["images 1 to 16 of 40"]
    Image.fromarray(smooth_image(40, 31, 77)).save(root / "001.png")
    assert stopped(Sent(stop_after=1)).written == ["images 1 to 32 of 40"]
    last = Sent()
    assert written(model, root, tmp_path / "there", last) == written(model, root, tmp_path / "here", None)
    assert last.written == ["images 33 to 40 of 40"]


def test_parts_without_token_maps_serve_no_run_that_wants_them(
    folder: Path, model: EmbeddingModel, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        written(model, folder, tmp_path / "killed", Sent(stop_after=1))
    again = written(model, folder, tmp_path / "again", Sent(), with_tokens=True)
    assert again == written(model, folder, tmp_path / "alone", None, with_tokens=True)


def test_another_process_at_the_same_work_is_named(folder: Path, model: EmbeddingModel, tmp_path: Path) -> None:
    class Meanwhile(Sent):
        def embed(self, *arguments: object) -> None:
            written(model, folder, tmp_path / "there", Sent())

    with pytest.raises(ConfigError, match="another process is at work on this embed"):
        written(model, folder, tmp_path / "there", Meanwhile())


def test_the_parts_of_a_shard_set_may_be_sent(shard_set: Path, model: EmbeddingModel, tmp_path: Path) -> None:
    images = open_shards(ShardIndex.open(shard_set), "all")
    sent = pickle.loads(pickle.dumps(images.part(3, 6)))
    assert list(sent.keys) == list(images.keys[3:6])
    assert np.array_equal(sent.read(2), images.read(5))
    assert images.part(0, 3).fingerprint() != images.part(0, 4).fingerprint() == images.part(0, 4).fingerprint()


def work_of(model: EmbeddingModel, marker: Path, processes: _Processes, **versions: str) -> _Work:
    return _Work(model=model, write=write_part, marker=marker, processes=processes, versions=versions)


def sent_work(model: EmbeddingModel, marker: Path, **versions: str) -> _Embedder:
    return _Embedder(pickle.dumps(work_of(model, marker, _Processes(1, 1, 0), **versions)))


def test_a_machine_that_is_not_as_expected_is_named_with_the_part_and_writes_nothing(
    folder: Path, shard_set: Path, model: EmbeddingModel, tmp_path: Path
) -> None:
    out, marker = tmp_path / "out", tmp_path / "out" / "marker"
    images = open_folder(folder, is_hashed=False, max_pixels=1e6)
    gone = replace(images, root=tmp_path / "not mounted")
    moved = tmp_path / "moved"
    shard_set.rename(moved)
    part = Part("images 1 to 40 of 40", images, out / "0.npy")
    shards = Part("images 1 to 2 of 2", open_shards(ShardIndex.open(moved), "all").part(0, 2), out / "1.npy")
    sent = pickle.dumps(shards)
    moved.rename(shard_set)

    def refused(embedder: _Embedder, pickled: bytes) -> str:
        with pytest.raises(UserError) as found:
            embedder.embed("the part", pickled)
        return str(found.value)

    host = f"the part, on {platform.node()}: "
    assert refused(sent_work(model, marker), pickle.dumps(part)).startswith(f"{host}{marker} is not there; expected")
    assert not out.exists()
    out.mkdir()
    marker.touch()
    other = refused(sent_work(model, marker, torch="0.1"), pickle.dumps(part))
    assert re.search(r"torch [\d.]+\S* is installed there, and 0\.1 where the command was given; install", other)
    assert f"{host}{gone.root}: none of the images is there" in refused(
        sent_work(model, marker), pickle.dumps(replace(part, images=gone))
    )
    assert refused(sent_work(model, marker), sent).startswith(f"{host}{moved}")
    if not torch.cuda.is_available():
        blind = _Embedder(pickle.dumps(work_of(model, marker, _Processes(1, 1, 1))))
        assert refused(blind, pickle.dumps(part)).startswith(f"{host}device 'cuda': ")
    assert [path.name for path in out.iterdir()] == ["marker"]
    assert "the same command goes on" in other


def test_an_error_of_the_program_names_the_part(model: EmbeddingModel, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "marker").touch()
    part = Part(
        "images 1 to 2 of 2",
        FolderImages(root=folder, paths=["000.png"], keys=["000.png"], key_kind="relative path", max_pixels=1e6),
        tmp_path,
    )
    with pytest.raises(IsADirectoryError) as found:  # the part's path is a folder
        sent_work(model, tmp_path / "marker").embed(part.name, pickle.dumps(part))
    assert found.value.__notes__ == [f"while it embedded images 1 to 2 of 2, on {platform.node()}"]


def test_a_process_computes_with_its_own_cores_alone(model: EmbeddingModel, tmp_path: Path) -> None:
    """The last bits on a CPU depend on the number of threads, whatever the environment of a machine says of it."""
    before = torch.get_num_threads()
    try:
        for number in (3, 2):
            (tmp_path / "marker").touch()
            work_of(model, tmp_path / "marker", _Processes(1, number, 0)).opened()
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)


@pytest.mark.gpu
def test_an_encoder_that_was_sent_to_a_gpu_is_the_one_that_is_loaded_there(tmp_path: Path) -> None:
    (tmp_path / "marker").touch()
    for precision in ("fp32", "bf16"):
        folder = write_model(tmp_path / precision, "convnext", precision=precision)
        sent = load_model(folder, which="teacher", device="cpu", normalisation=None)
        there = work_of(sent, tmp_path / "marker", _Processes(1, 1, 1)).opened().model
        here = load_model(folder, which="teacher", device="cuda", normalisation=None)
        assert (there.encoder.device, there.encoder.precision) == (here.encoder.device, here.encoder.precision)
        canvases = [np.full((here.preprocessing.crop_px,) * 2, level, np.uint8) for level in (3, 90)]
        one, other = (one.embed_canvases(canvases, torch.float16) for one in (there, here))
        assert torch.equal(one.embedding, other.embedding)
        assert one.tokens is not None
        assert torch.equal(one.tokens, other.tokens)


CPUS, BOTH = ({"CPU": 8.0},), ({"CPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 4.0, "GPU": 2.0})


@pytest.mark.parametrize(
    ("machines", "device", "num_threads", "expected"),
    [
        (CPUS, "auto", None, (8, 1, 0)),
        (CPUS, "auto", 3, (2, 3, 0)),
        (BOTH, "auto", None, (6, 2, 1)),
        (BOTH, "cuda", 4, (5, 4, 1)),
        (BOTH, "cpu", None, (28, 1, 0)),
        (CPUS, "cuda", None, "a process needs 1 cores .* and 1 GPUs .* have 8 cores and 0 GPUs"),
        (CPUS, "cpu", 9, r"a process needs 9 cores \(--num-threads\) and 0 GPUs"),
        ((), "auto", None, "have nothing"),
    ],
)
def test_a_process_has_a_gpu_and_its_share_of_cores_or_cores_alone(
    machines: tuple[dict[str, float], ...], device: Any, num_threads: int | None, expected: Any
) -> None:
    nodes = [{"Alive": True, "Resources": has} for has in machines]
    nodes.append({"Alive": False, "Resources": {"CPU": 100.0, "GPU": 100.0}})
    cluster = EmbeddingCluster("auto", device, num_threads)
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=expected):
            _processes(nodes, cluster)
    else:
        assert _processes(nodes, cluster) == _Processes(*expected)


def test_one_gpu_of_a_machine_cannot_be_chosen_for_a_cluster(
    folder: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "e.parquet"
    assert embed(folder, "--model", model_dir, "--out", out, "--ray", "auto", "--device", "cuda:1") == 2
    assert "--device cuda:1: with --ray each process has one GPU of its own" in capsys.readouterr().err


def test_a_cluster_that_is_not_there_is_named_and_nothing_is_left(
    folder: Path, model_dir: Path, tmp_path: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray")
    assert embed(folder, "--model", model_dir, "--out", tmp_path / "e.parquet", "--ray", "nowhere") == 2
    assert "--ray nowhere: no Ray cluster there" in capsys.readouterr().err
    assert not (tmp_path / "e.parquet").exists()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Ray cluster on loopback with two cores, whose processes start in a folder of their own."""
    pytest.importorskip("ray")
    with ray_cluster(tmp_path_factory.mktemp("cluster") / "elsewhere") as found:
        yield found


@pytest.mark.slow
def test_a_cluster_that_starts_elsewhere_gives_the_same_bytes(
    folder: Path, shard_set: Path, model_dir: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, path in {"in": folder, "set": shard_set, "model": model_dir}.items():
        Path(name).symlink_to(path)

    def run(out: str, *ray: str) -> dict[str, bytes]:
        common = ["--model", "model", "--batch-size", "2", "--tokens", "--device", "cpu", *ray]
        assert embed("in", "--out", f"{out}/folder.parquet", *common) == 0
        assert embed("set", "--companions", f"{out}/companions", *common) == 0
        return folder_bytes(tmp_path / out)

    there = run("there", "--ray", address)
    assert there == run("here")
    assert len([name for name in there if name.endswith(".tar")]) > 2


@pytest.mark.slow
def test_a_part_whose_process_is_killed_is_begun_again_and_given_up_the_third_time(
    folder: Path, model: EmbeddingModel, address: str, tmp_path: Path
) -> None:
    images = open_folder(folder, is_hashed=False, max_pixels=1e6)
    cluster = EmbeddingCluster(address, "auto", None)

    def run(name: str, cluster: EmbeddingCluster, numbers: Sequence[int] = range(4), **dying: Any) -> dict[str, bytes]:
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        (out / "marker").touch()
        sent = [Part(f"part {i}", images.part(10 * i, 10 * i + 10), out / f"{i}.npy") for i in numbers]
        cluster.embed(model, sent, partial(die_at, **dying) if dying else write_part, out / "marker")
        return folder_bytes(out)

    whole = run("whole", Sent())
    assert run("hurt", cluster, at="2.npy", once=tmp_path / "died") == whole
    assert (tmp_path / "died").exists()
    with pytest.raises(WorkerError, match=r"^part 1: 3 processes of the cluster ended at it \(.+\); expected"):
        run("lost", cluster, [1], at="1.npy")
    assert not (tmp_path / "lost" / "1.npy").exists()
    assert run("lost", Sent()) == whole, "what the processes left half written is gone, and the rest is used"


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on_with_the_same_bytes(
    shard_set: Path, model_dir: Path, address: str, tmp_path: Path
) -> None:
    options = ["--model", str(model_dir), "--batch-size", "1", "--device", "cpu"]
    out = tmp_path / "there"
    command = [sys.executable, "-m", "ace", "embed", str(shard_set), "--companions", str(out), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([*command, "--ray", address], env=environment) as process:
        deadline = time.monotonic() + 300
        while not list(out.glob("*.tar")):
            assert process.poll() is None, "the run ended before the kill"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.kill()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert embed(shard_set, "--companions", out, *options, "--ray", address) == 0
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert embed(shard_set, "--companions", tmp_path / "here", *options) == 0
    assert folder_bytes(out) == folder_bytes(tmp_path / "here")
