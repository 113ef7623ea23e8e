"""dvc.lock, read as plain YAML, and the provenance tags it gives every asset."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from posixpath import normpath
from typing import Any

from dagster import AssetKey
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    DEFAULT_DATA_VERSION,
    INPUT_DATA_VERSION_TAG_PREFIX,
    INPUT_EVENT_POINTER_TAG_PREFIX,
    NULL_EVENT_POINTER,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ace.operations.clone import git
from ace.operations.errors import OperationsError
from pipelines.graph import LOCK_NAME, Graph, Stage, code_version, deliveries_in, held_repository
from shards.core.errors import ConfigError

COMMIT = "ace/commit"
"""Tag of a run or a materialization: the commit that the repository was at."""
PAUSE_S = 0.2
NUM_READINGS = 10


@dataclass(frozen=True)
class RecordedOut:
    """An out as its stage left it."""

    md5: str
    num_bytes: int | None
    num_files: int | None


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """A record holds what dvc.lock says about the last run of one stage."""

    cmd: str
    params: Mapping[str, Mapping[str, Any]]
    inputs: Mapping[str, str]
    """md5 of the dependencies that are another stage's outs."""
    files: Mapping[str, str]
    """md5 of every other dependency."""
    outs: Mapping[str, RecordedOut]


def asset_key(path: str) -> AssetKey:
    """Return the key of an out: its path split at `/`."""
    return AssetKey(path.split("/"))


def is_reported(tags: Mapping[str, str], latest: Mapping[str, str]) -> bool:
    """Tell whether a materialization's tags `latest` say what `tags` of `provenance` say, no input more or fewer."""
    prefixes = (INPUT_DATA_VERSION_TAG_PREFIX, INPUT_EVENT_POINTER_TAG_PREFIX)
    return tags == {key: value for key, value in latest.items() if key in tags or key.startswith(prefixes)}


def provenance(record: StageRecord) -> dict[str, dict[str, str]]:
    """Return the tags by which Dagster judges staleness, for each out: the same for a run and for a runless report.

    An out's md5 is its data version, the inputs' md5s are the input data versions, `code_version` covers the rest.
    Deliveries are among the rest, and have the version that Dagster gives to all that it knows no version of.
    The tag names are Dagster's internals: pinned, and held by a test.
    """
    shared = {
        CODE_VERSION_TAG: code_version(record.cmd, record.params, record.files),
        DATA_VERSION_IS_USER_PROVIDED_TAG: "true",
    }
    deliveries = dict.fromkeys(deliveries_in(record.files), DEFAULT_DATA_VERSION.value)
    for path, md5 in {**record.inputs, **deliveries}.items():
        shared[get_input_data_version_tag(asset_key(path))] = md5
        shared[get_input_event_pointer_tag(asset_key(path))] = NULL_EVENT_POINTER
    return {path: {**shared, DATA_VERSION_TAG: out.md5} for path, out in record.outs.items()}


def commit_tag(root: Path) -> dict[str, str]:
    """Return the tag of the commit that a repository is at now; none if git has none.

    What differs from the commit is in the code version of `provenance`; the tag says where to begin to look.
    """
    try:
        return {COMMIT: git(root, "rev-parse", "HEAD").strip()}
    except OperationsError:
        return {}


def read_lock(
    root: Path, graph: Graph, *, just_run: Collection[str] = (), wait: bool = False
) -> dict[str, StageRecord]:
    """Read the records of dvc.lock by stage name, for stages that the graph has and that ever ran.

    DVC writes the file in place, so it is read under DVC's own lock. Git does not know that lock: a reading that is
    damaged, or lacks what must be there, is repeated for some seconds.

    Args:
        root: of the DVC repository.
        graph: whose stages are looked for.
        just_run: names of stages that must have a record.
        wait: Wait for another dvc for as long as it takes.

    Raises:
        ConfigError: another dvc is at work, the file is not a lock file, or a stage that has just run is not in it.
    """
    for number in range(NUM_READINGS):
        time.sleep(PAUSE_S if number else 0)
        text = _read(root, wait=wait)
        try:
            records = _parse(text, graph)
        except (YAMLError, KeyError, AttributeError, TypeError) as error:
            problem = (
                f"{LOCK_NAME}: not a DVC lock file ({error}); keep a copy of it, then `git checkout {LOCK_NAME}` and "
                "`dvc repro`: DVC's run cache gives back what was done since that commit"
            )
            continue
        missing = [name for name in just_run if name not in records]
        if not missing:
            return records
        problem = (
            f"{LOCK_NAME}: no record of {', '.join(missing)}, which dvc has just run; something else replaced the file "
            "(git checkout, git stash): run the stage again, DVC's run cache has its result"
        )
    raise ConfigError(problem)


def is_up_to_date(root: Path, stage: Stage, records: Mapping[str, StageRecord]) -> bool:
    """Tell whether dvc.lock records the stage as it is now, with its present inputs, and its outs are there."""
    record = records.get(stage.name)
    if record is None or code_version(record.cmd, record.params, record.files) != stage.code_version:
        return False
    made = {path: out.md5 for other in records.values() for path, out in other.outs.items()}
    return all(record.inputs.get(path) == made.get(path) for path in stage.inputs) and all(
        (root / out.path).exists() for out in stage.outs
    )


def _read(root: Path, *, wait: bool) -> str:
    path = root / LOCK_NAME
    with held_repository(root, wait=wait):
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _parse(text: str, graph: Graph) -> dict[str, StageRecord]:
    entries = _entries(text)
    return {stage.name: _record(entries[stage.name], stage) for stage in graph.stages if stage.name in entries}


@lru_cache(maxsize=1)
def _entries(text: str) -> Mapping[str, Any]:
    """Parse the file, once as long as it stays the same: of hundreds of batches this takes a second."""
    entries: dict[str, Any] = (YAML(typ="safe").load(text) or {}).get("stages", {})
    return entries


def _record(entry: Mapping[str, Any], stage: Stage) -> StageRecord:
    """Return the part of a record that the stage still declares; DVC, too, ignores the rest."""
    md5s = {normpath(item["path"]): item["md5"] for item in entry.get("deps", [])}
    params = entry.get("params", {})
    return StageRecord(
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
