"""Say what a model was made from: data, params, code, environment, as its commit and its files have it."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ace.inference.folder import RECORD, read_record
from ace.models.folder import CONFIG, WEIGHTS
from ace.operations import history
from ace.operations.clone import git
from ace.operations.dvc_objects import MODELS
from ace.operations.errors import OperationsError
from ace.operations.events import Event
from ace.operations.history import Version
from ace.operations.model_files import (
    RecordedModel,
    find_files,
    first_difference,
    read_config_of,
    read_lock,
    recording_commit,
)
from ace.operations.registry import Registry
from ace.operations.retraining_state import retraining_of
from ace.operations.tags import read_events
from ace.zoo.shipped import ZOO, published_of
from shards.core.errors import ConfigError
from shards.format.layout import BATCHES, sha256_of

_ENVIRONMENT = ("versions", "device", "num_processes", "steps", "start_from", "commit", "code", "source")
"""What a model's config.json says of how it was made."""
_SHARDS = "shards"
_HARDWARE = "hardware"
NOT_RECORDED = "not recorded"
"""Stands for the machine of a training that nobody wrote down, as of a model of an earlier release."""
NOT_TRAINED_HERE = "not trained here"
"""Stands for the machine of an imported model."""


def trace(registry: Registry, version: Version) -> dict[str, Any]:
    """Trace a version back to the files that it was made from.

    Args:
        registry: The registry.
        version: The version.

    Returns:
        As JSON has it: `version`, `registered`, `commit`, `model` with the sha256 of each file, `stages` from the first
        to the one that made the model, each with its params and the md5 of each input, `batches` with the hashes of
        their files and manifests and the legal basis that their delivery came with, `shards`: each shard set that it
        saw, with the sha256 of each tar of training images, `environment`, `continues`: the version that it started
        from, None if it is none, and `hardware`: the machine of its training, as `TrainedConfig` has it. For a model of
        an earlier release it is the machine on which its retraining began, and `NOT_RECORDED` if a person trained it or
        until the retraining has ended; for an imported model it is `NOT_TRAINED_HERE`.

    Raises:
        OperationsError: the commit or the model's bytes are not there.
    """
    return _trace_version(registry.root, registry.events(), version, _environment(registry.files(version)))


def trace_folder(root: Path, folder: Path) -> dict[str, Any]:
    """Trace a folder back to the files that its model was made from: the folder of a model, or of an export.

    An export and a published model name the sha256 of the weights that they were made of. These are looked for among
    the registered versions, in `models/` of the clone and among the shipped models.

    Args:
        root: A clone.
        folder: The folder, which may lie elsewhere.

    Returns:
        As `trace`, and in `origin` how the model was found, a sentence a step. The commit of a model that is no version
        is the first one whose dvc.lock records it. `version`, `registered`, `commit` and `model` are None where they
        are not known here, and there are no stages and batches then.

    Raises:
        OperationsError: it is neither the folder of a model nor an export that says which model it is of.
        ConfigError: its config.json or record is damaged.
    """
    if read_record(folder) is None and not weights_of(folder):
        raise OperationsError(
            f"{folder}: neither {WEIGHTS['teacher']} of a model nor {RECORD} of an export. An export of an earlier "
            "release names the sha256 of its weights in README.md, configs/metadata.json or the properties of the ONNX "
            "file; export the model again"
        )
    events, origin, at = read_events(root), list[str](), folder
    while (source := weights_named_by(at)) is not None:
        how, sha256 = source
        version = _version_with(events, {sha256})
        if version is not None:
            origin.append(f"{how} {version.name}")
            return {"origin": origin} | _trace_version(root, events, version, _environment_of(root, version))
        earlier = next((path for path in _model_folders(root) if _is_source(path, sha256)), None)
        if earlier is None:
            origin.append(
                f"{how} a model that is not here: no registered version, no folder in {MODELS} of the clone and no "
                f"shipped model has weights with the sha256 {sha256}; to trace it further, bring its folder to {MODELS}"
            )
            break
        origin.append(f"{how} {earlier.name}")
        at = earlier
    record = read_record(at)
    if record is not None:
        return {"origin": origin} | _trace_unknown(events, {"commit": record.commit})
    return {"origin": origin} | _trace_model(root, events, at, origin)


def _is_source(folder: Path, sha256: str) -> bool:
    """Tell whether a model has some weights and was not itself made of the same, as one that is published whole."""
    return sha256 in weights_of(folder) and (weights_named_by(folder) or ("", ""))[1] != sha256


def weights_named_by(folder: Path) -> tuple[str, str] | None:
    """Return how a folder was made of the weights of a model, and their sha256; None if it is of no other model.

    Raises:
        ConfigError: the record of an export is damaged.
    """
    record = read_record(folder)
    if record is not None:
        return f"exported from the {record.network} of", record.model_sha256
    published = published_of(folder)
    if published is None or "model_sha256" not in published.measured:
        return None
    return "published from the teacher of", str(published.measured["model_sha256"])


def weights_of(folder: Path) -> set[str]:
    """Return the sha256 of each file of weights in the folder of a model."""
    return {sha256_of(path) for name in WEIGHTS.values() if (path := folder / name).is_file()}


def _model_folders(root: Path) -> list[Path]:
    """Return the folders of models in the work tree of a clone, and of the shipped models."""
    return [path.parent for folder in (root / MODELS, ZOO) for path in sorted(folder.glob(f"*/{CONFIG}"))]


def _version_with(
    events: Sequence[Event], sha256s: Collection[str], files: Mapping[str, str] | None = None
) -> Version | None:
    """Return the last version that has a file with one of some sums, but rather one with just these files."""
    found = (version for version in history.versions(events).values() if set(version.files.values()) & set(sha256s))
    return max(found, key=lambda version: (version.files == files, version.number), default=None)


def _trace_version(
    root: Path, events: Sequence[Event], version: Version, environment: Mapping[str, Any]
) -> dict[str, Any]:
    event = version.event
    before = [other for other in events if other.sequence < event.sequence]
    began = retraining_of(events, event)
    return {
        "version": version.name,
        "registered": {"time": event.time.isoformat(), "who": event.who, "automatic": event.automatic},
        "commit": version.commit,
        "model": {"path": version.model.path, "md5": version.model.md5, "sha256": dict(version.files)},
        **_made_from(root, version.commit, version.model.path, before),
        **_surroundings(environment, before),
        "hardware": _hardware(environment, began),
    }


def _trace_model(root: Path, events: Sequence[Event], folder: Path, origin: list[str]) -> dict[str, Any]:
    """Trace a folder of a model by its own bytes; `origin` gets how it was found."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    sha256 = {name: sha256_of(path) for name, path in files.items()}
    environment, version = _environment(files), _version_with(events, weights_of(folder), sha256)
    if version is not None:
        difference = first_difference(folder, version.files)
        origin.append(f"the weights of {version.name}{'' if difference is None else f', but {difference}'}")
        return _trace_version(root, events, version, environment)
    recorded = recording_commit(root, folder)
    if recorded is None:
        origin.append("no version and no commit's dvc.lock has these files")
        return _trace_unknown(events, environment)
    commit, model = recorded
    origin.append(f"{model.path}, which is no version; commit {commit} recorded it first")
    return {
        **_trace_unknown(events, environment),
        "commit": commit,
        "model": {"path": model.path, "md5": model.md5, "sha256": sha256},
        **_made_from(root, commit, model.path, events),
    }


def _trace_unknown(events: Sequence[Event], environment: Mapping[str, Any]) -> dict[str, Any]:
    """Say what a model's own record says, where no version and no commit is known."""
    return {
        "version": None,
        "registered": None,
        "commit": None,
        "model": None,
        "stages": [],
        "batches": {},
        **_surroundings(environment, events),
        "hardware": _hardware(environment, None),
    }


def _made_from(root: Path, commit: str, path: str, events: Sequence[Event]) -> dict[str, Any]:
    """Follow the dvc.lock of a commit from a model back to all that it was made from.

    Args:
        root: The clone.
        commit: The commit.
        path: The model.
        events: Events that may be about deliveries of its batches.
    """
    stages = read_lock(root, commit)
    producers = {out["path"]: name for name, stage in stages.items() for out in stage.get("outs", ())}
    names = list(dict.fromkeys(_upstream(producers[path], stages, producers)))
    deliveries = history.deliveries(events)
    return {
        "stages": [_stage(name, stages[name], producers) for name in names],
        "batches": dict(_batches(root, commit, (stages[name] for name in names), deliveries)),
    }


def _hardware(environment: Mapping[str, Any], began: Event | None) -> Any:
    """Return the machine that a model itself names, else the one on which its retraining began, or why there is none.

    Args:
        environment: What its config.json says of how it was made.
        began: The event by which its retraining began; None for none.
    """
    if "source" in environment:
        return NOT_TRAINED_HERE
    return environment.get(_HARDWARE) or (began and began.facts.get("hardware")) or NOT_RECORDED


def _surroundings(environment: Mapping[str, Any], events: Sequence[Event]) -> dict[str, Any]:
    started = _version_with(events, (environment.get("start_from") or {}).values())
    return {
        "shards": environment.get(_SHARDS, []),
        "environment": {name: value for name, value in environment.items() if name not in (_SHARDS, _HARDWARE)},
        "continues": None if started is None else started.name,
    }


def is_made_from(stages: Mapping[str, Any], path: str, md5: str, model: RecordedModel) -> bool:
    """Tell whether dvc.lock records these bytes of an out as made from these bytes of a model, and from no others.

    Args:
        stages: The stages of dvc.lock.
        path: The out.
        md5: Its bytes.
        model: The model.
    """
    makers = {out["path"]: (out["md5"], stage) for stage in stages.values() for out in stage.get("outs", ())}

    def models(path: str, md5: str) -> Iterator[str | None]:
        """Yield which bytes of the model were read, and None where an input is another one than its stage wrote."""
        if path == model.path:
            yield md5
        elif path in makers:
            made, stage = makers[path]
            yield from [None] if made != md5 else ()
            for dep in stage.get("deps", ()):
                yield from models(dep["path"], dep["md5"])

    return set(models(path, md5)) == {model.md5}


def _environment(files: Mapping[str, Path]) -> dict[str, Any]:
    """Return what a model's config.json says of how it was made, or why this release cannot read it."""
    try:
        config = read_config_of(files).to_json()
    except ConfigError as error:
        return {"not_read": str(error)}
    return {name: config[name] for name in (*_ENVIRONMENT, _SHARDS, _HARDWARE) if name in config}


def _environment_of(root: Path, version: Version) -> dict[str, Any]:
    """Return likewise what a version says, or that its bytes are not here."""
    try:
        return _environment(find_files(root, version.model))
    except OperationsError as error:
        return {"not_read": str(error)}


def _upstream(name: str, stages: Mapping[str, Any], producers: Mapping[str, str]) -> Iterator[str]:
    for dep in stages[name].get("deps", ()):
        if dep["path"] in producers:
            yield from _upstream(producers[dep["path"]], stages, producers)
    yield name


def _stage(name: str, stage: Mapping[str, Any], producers: Mapping[str, str]) -> dict[str, Any]:
    deps = stage.get("deps", ())
    return {
        "stage": name,
        "cmd": stage.get("cmd"),
        "params": stage.get("params", {}),
        "data": {dep["path"]: dep["md5"] for dep in deps if dep["path"] in producers},
        "files": {dep["path"]: dep["md5"] for dep in deps if dep["path"] not in producers},
    }


def _batches(
    root: Path, commit: str, stages: Iterator[Mapping[str, Any]], deliveries: Mapping[str, Event]
) -> Iterator[tuple[str, dict[str, Any]]]:
    prefix = f"{BATCHES.as_posix()}/"
    for path in sorted({dep["path"] for stage in stages for dep in stage.get("deps", ())}):
        if path.startswith(prefix):
            text = git(root, "show", f"{commit}:{path}")
            source = YAML(typ="safe", pure=True).load(text)["source"]
            name = path.removeprefix(prefix).removesuffix(".yaml")
            yield (
                name,
                {
                    "file_sha256": hashlib.sha256(text.encode()).hexdigest(),
                    "source": source["kind"],
                    "manifest": source["dep"],
                    "manifest_sha256": source.get("dep_sha256"),
                    "legal_basis": deliveries[name].facts.get("legal_basis") if name in deliveries else None,
                },
            )


def trace_text(traced: Mapping[str, Any]) -> str:
    """Write a lineage for people: one line a fact."""
    model, registered = traced["model"], traced["registered"]
    lines = list(traced.get("origin", ()))
    if model is not None:
        lines.append(f"{traced['version'] or 'no version'}: {model['path']}, md5 {model['md5']}")
    if registered is not None:
        lines.append(f"registered {registered['time']} by {registered['who']}")
    if traced["commit"] is not None:
        lines.append(f"commit {traced['commit']}")
    if traced["continues"] is not None:
        lines.append(f"continues {traced['continues']}")
    for stage in traced["stages"]:
        lines += ["", f"stage {stage['stage']}"]
        for section in ("data", "files"):
            lines += [f"  {path}  md5 {md5}" for path, md5 in stage[section].items()]
        for file, values in stage["params"].items():
            lines += [f"  {file}: {key} = {json.dumps(value)}" for key, value in values.items()]
    lines += ["", "batches"] if traced["batches"] else []
    for name, batch in traced["batches"].items():
        hashed = batch["manifest_sha256"] or "none: a stage makes the images"
        lines += [f"  {name}  {batch['source']}  sha256 {batch['file_sha256']}"]
        lines += [f"    manifest {batch['manifest']}  sha256 {hashed}"]
        lines += [f"    legal basis: {batch['legal_basis']}"] if batch["legal_basis"] else []
    lines += ["", "shards that it saw"] if traced["shards"] else []
    for seen in traced["shards"]:
        lines.append(f"  {seen['batch']}  {seen['num_images']} images  index sha256 {seen['fingerprint']}")
        lines += [f"    {tar['name']}  sha256 {tar['sha256']}" for tar in seen["shards"]]
    lines += ["", "environment"]
    lines += [f"  {name} = {json.dumps(value)}" for name, value in traced["environment"].items()]
    hardware = traced["hardware"]
    lines += ["", "hardware"]
    if isinstance(hardware, str):
        lines.append(f"  {hardware}")
    else:
        lines += [f"  {name} = {json.dumps(value)}" for name, value in hardware.items()]
    if model is not None:
        lines += ["", "files of the model", *(f"  {name}  sha256 {sha256}" for name, sha256 in model["sha256"].items())]
    return "\n".join(lines)
