import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from dagster import AssetKey
from dagster._core.definitions.data_version import DataProvenance, DataVersion

from pipelines.graph import DagsterMeta, Graph, Out, Stage, code_version, load_graph
from pipelines.lock import StageRecord, asset_key, is_up_to_date, provenance, read_lock
from shards.core.errors import ConfigError
from tests.pipelines.toy import dvc, edit, git

LOCK = """
schema: '2.0'
stages:
  shard@own:
    cmd: [make it, so]
    deps:
    - {path: data/raw, hash: md5, md5: aa.dir, size: 5, nfiles: 2}
    - {path: code.py, hash: md5, md5: bb, size: 7}
    params: {params.yaml: {shard: {rate: 1e-4}}}
    outs:
    - {path: data/shards/own-b.1, hash: md5, md5: cc.dir, size: 1000000, nfiles: 3}
"""

STAGE = Stage(
    name="shard@own",
    cmd="make",
    description="",
    meta=DagsterMeta(),
    params={"params.yaml": {"shard": None}},
    inputs=("data/raw",),
    files={"code.py": None},
    outs=(Out("data/shards/own-b.1", "data"),),
)
GRAPH = Graph((STAGE,))


@pytest.fixture(scope="module")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository after `dvc init`; copied, never changed."""
    root = tmp_path_factory.mktemp("repository")
    dvc(root, "init", "--quiet", "--no-scm")
    return root


@pytest.fixture
def repository(initialised: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(initialised, tmp_path / "repository"))


@pytest.fixture
def lock(repository: Path) -> Path:
    (repository / "dvc.lock").write_text(LOCK)
    return repository


def test_dagster_reads_the_tags_as_data_version_code_version_and_inputs(lock: Path) -> None:
    record = read_lock(lock, GRAPH)["shard@own"]
    tags = provenance(record)["data/shards/own-b.1"]
    read = DataProvenance.from_tags(tags)
    assert read is not None
    assert tags["dagster/data_version"] == "cc.dir"
    assert read.input_data_versions == {AssetKey(["data", "raw"]): DataVersion("aa.dir")}
    assert read.has_input_asset(AssetKey(["data", "raw"]))
    assert read.code_version == code_version(
        "make it\nso", {"params.yaml": {"shard": {"rate": 0.0001}}}, {"code.py": "bb"}
    )


def test_an_asset_key_gives_back_its_path() -> None:
    path = "data/shards/own-b.1"
    assert asset_key(path).to_user_string() == path


def test_a_repository_that_never_ran_has_no_records(repository: Path) -> None:
    assert read_lock(repository, GRAPH) == {}


WRITER = """
import sys
from pathlib import Path
from dvc.repo import Repo

text = sys.stdin.readline().replace("|", chr(10))
with Repo().lock:
    for part in (text[: len(text) // 2], text):
        Path("dvc.lock").write_text(part)
        print("written", flush=True)
        sys.stdin.readline()
"""


@contextmanager
def half_written(root: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process that wrote the first half of dvc.lock, under DVC's own lock, and waits for a line to write it all."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        try:
            print(LOCK.replace("\n", "|"), file=writer.stdin, flush=True)
            assert writer.stdout.readline() == "written\n"
            yield writer
        finally:
            writer.communicate("\n\n")


@pytest.mark.slow
def test_a_lock_file_that_dvc_is_writing_is_read_once_it_is_whole(lock: Path) -> None:
    with ThreadPoolExecutor() as pool, half_written(lock):
        reading = pool.submit(read_lock, lock, GRAPH, wait=True)
        with pytest.raises(TimeoutError):
            reading.result(timeout=4)  # DVC itself gives up after three
    assert set(reading.result()) == {"shard@own"}


@pytest.mark.slow
def test_a_sensor_does_not_wait_for_a_dvc_that_is_at_work(lock: Path) -> None:
    with half_written(lock), pytest.raises(ConfigError, match="another dvc is at work"):
        read_lock(lock, GRAPH)


def test_a_lock_file_that_git_is_writing_is_read_again(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git knows nothing of DVC's lock: the file is half there, then whole without the newest record, then all there."""
    texts = iter(["schema: '2.0'\n", LOCK])
    (lock / "dvc.lock").write_text("stages: [")

    def sleep(seconds: float) -> None:
        if seconds:
            (lock / "dvc.lock").write_text(next(texts))

    monkeypatch.setattr("pipelines.lock.time", SimpleNamespace(sleep=sleep))
    assert set(read_lock(lock, GRAPH, just_run=["shard@own"])) == {"shard@own"}
    assert next(texts, None) is None


@pytest.fixture
def _read_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.lock.PAUSE_S", 0.001)


@pytest.mark.usefixtures("_read_again_at_once")
def test_a_stage_is_up_to_date_only_with_its_outs_and_its_inputs_as_they_are_now(toy: Path) -> None:
    graph = load_graph(toy)
    records = read_lock(toy, graph)

    def out_of_date(records: Mapping[str, StageRecord]) -> list[str]:
        return [stage.name for stage in graph.stages if not is_up_to_date(toy, stage, records)]

    assert out_of_date(records) == []
    raw = records["raw"]
    again = replace(raw, outs={path: replace(out, md5="0.dir") for path, out in raw.outs.items()})
    assert out_of_date({**records, "raw": again}) == ["shard@raw-b000"]
    shutil.rmtree(toy / "data/shards/own")
    assert out_of_date(records) == ["shard@own"]


def test_a_stage_that_has_just_run_must_have_its_record(repository: Path) -> None:
    with pytest.raises(ConfigError, match=r"no record of shard@own.*run the stage again"):
        read_lock(repository, GRAPH, just_run=["shard@own"])


@pytest.mark.usefixtures("_read_again_at_once")
@pytest.mark.parametrize("text", ["stages: [", "stages: {shard@own: {deps: []}}", "just words"])
def test_a_damaged_lock_file_says_how_to_restore_it(repository: Path, text: str) -> None:
    (repository / "dvc.lock").write_text(text)
    with pytest.raises(ConfigError, match=r"keep a copy of it, then `git checkout dvc.lock` and `dvc repro`"):
        read_lock(repository, GRAPH)


def test_the_advice_about_a_damaged_lock_file_loses_no_finished_work(toy: Path) -> None:
    edit(toy / "params.yaml", "rate: 1.0e-3", "rate: 1.0e-2")
    dvc(toy, "repro")
    finished, log = read_lock(toy, load_graph(toy)), (toy.parent / "log.txt").read_text()
    (toy / "dvc.lock").write_text((toy / "dvc.lock").read_text()[:300])
    git(toy, "checkout", "--quiet", "dvc.lock")
    dvc(toy, "repro")
    assert read_lock(toy, load_graph(toy)) == finished
    assert (toy.parent / "log.txt").read_text() == log
