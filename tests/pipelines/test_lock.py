from pathlib import Path

import pytest
from dagster import AssetKey
from dagster._core.definitions.data_version import DataProvenance, DataVersion

from pipelines.graph import DagsterMeta, Graph, Out, Stage, code_version
from pipelines.lock import asset_key, provenance, read_lock
from shards.errors import ConfigError

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


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    (tmp_path / "dvc.lock").write_text(LOCK)
    return tmp_path


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


def test_a_repository_that_never_ran_has_no_records(tmp_path: Path) -> None:
    assert read_lock(tmp_path, GRAPH) == {}


def test_half_a_lock_file_is_never_taken_for_a_whole_one(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([LOCK[:40], LOCK[:150], LOCK, LOCK])
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: next(readings))
    assert set(read_lock(lock, GRAPH)) == {"shard@own"}
    assert next(readings, None) is None


@pytest.mark.parametrize("text", ["stages: [", "stages: {shard@own: {deps: []}}", "just words"])
def test_a_damaged_lock_file_says_how_to_restore_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "dvc.lock").write_text(text)
    with pytest.raises(ConfigError, match="git checkout"):
        read_lock(tmp_path, GRAPH)
