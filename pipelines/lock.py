"""dvc.lock, read as plain YAML, and the provenance tags it gives every asset."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from posixpath import normpath
from typing import Any

from dagster import AssetKey
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    INPUT_DATA_VERSION_TAG_PREFIX,
    INPUT_EVENT_POINTER_TAG_PREFIX,
    NULL_EVENT_POINTER,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipelines.graph import Graph, Stage, code_version
from shards.errors import ConfigError

LOCK_NAME = "dvc.lock"
SETTLE_S = 0.05
NUM_READINGS = 100


@dataclass(frozen=True)
class RecordedOut:
    """An out as its stage left it."""

    md5: str
    num_bytes: int | None
    num_files: int | None


@dataclass(frozen=True)
class Record:
    """What dvc.lock says about the last run of one stage."""

    cmd: str
    params: Mapping[str, Mapping[str, Any]]
    inputs: Mapping[str, str]
    """md5 of the dependencies that are another stage's outs."""
    files: Mapping[str, str]
    """md5 of every other dependency."""
    outs: Mapping[str, RecordedOut]


def asset_key(path: str) -> AssetKey:
    """The key of an out: its path split at `/`."""
    return AssetKey(path.split("/"))


def is_reported(tags: Mapping[str, str], latest: Mapping[str, str]) -> bool:
    """Whether a materialization's tags `latest` say what `tags` of `provenance` say, no input more or fewer."""
    prefixes = (INPUT_DATA_VERSION_TAG_PREFIX, INPUT_EVENT_POINTER_TAG_PREFIX)
    return tags == {key: value for key, value in latest.items() if key in tags or key.startswith(prefixes)}


def provenance(record: Record) -> dict[str, dict[str, str]]:
    """The tags by which Dagster judges staleness, for each out: the same for a run and for a runless report.

    An out's md5 is its data version, the inputs' md5s are the input data versions, `code_version` covers the rest.
    The tag names are Dagster's internals: pinned, and held by a test.
    """
    shared = {
        CODE_VERSION_TAG: code_version(record.cmd, record.params, record.files),
        DATA_VERSION_IS_USER_PROVIDED_TAG: "true",
    }
    for path, md5 in record.inputs.items():
        shared[get_input_data_version_tag(asset_key(path))] = md5
        shared[get_input_event_pointer_tag(asset_key(path))] = NULL_EVENT_POINTER
    return {path: {**shared, DATA_VERSION_TAG: out.md5} for path, out in record.outs.items()}


def read_lock(root: Path, graph: Graph) -> dict[str, Record]:
    """The records of dvc.lock by stage name, for stages that the graph has and that ever ran.

    DVC writes the file in place, so a reading may be half a file: only two equal readings in a row count.

    Raises:
        ConfigError: the file is not a lock file.
    """
    path = root / LOCK_NAME
    previous: str | None = None
    for _ in range(NUM_READINGS):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if text == previous:
            return _parse(text, graph)
        previous = text
        time.sleep(SETTLE_S)
    raise ConfigError(f"{path}: changed {NUM_READINGS} times while it was read; is something rewriting it in a loop?")


def _parse(text: str, graph: Graph) -> dict[str, Record]:
    try:
        entries: dict[str, Any] = (YAML(typ="safe").load(text) or {}).get("stages", {})
        return {stage.name: _record(entries[stage.name], stage) for stage in graph.stages if stage.name in entries}
    except (YAMLError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{LOCK_NAME}: not a DVC lock file ({error}); restore it with `git checkout`") from error


def _record(entry: Mapping[str, Any], stage: Stage) -> Record:
    """What the stage still declares: DVC, too, ignores a recorded dependency or parameter that it no longer has."""
    md5s = {normpath(item["path"]): item["md5"] for item in entry.get("deps", [])}
    params = entry.get("params", {})
    return Record(
        cmd="\n".join(entry["cmd"]) if isinstance(entry["cmd"], list) else entry["cmd"],
        params={
            file: {key: params[file][key] for key in keys if key in params.get(file, {})}
            for file, keys in stage.params.items()
        },
        inputs={path: md5s[path] for path in stage.inputs if path in md5s},
        files={path: md5s[path] for path in stage.files if path in md5s},
        outs={
            normpath(item["path"]): RecordedOut(item["md5"], item.get("size"), item.get("nfiles"))
            for item in entry.get("outs", [])
        },
    )
