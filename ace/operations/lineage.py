"""Say what a version was made from: data, params, code, environment, as its commit and its files have it."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ace.operations import history
from ace.operations.clone import git
from ace.operations.events import Event
from ace.operations.history import Version
from ace.operations.model_files import RecordedModel, read_config_of, read_lock
from ace.operations.registry import Registry
from ace.operations.retraining_state import retraining_of
from shards.core.errors import ConfigError
from shards.format.layout import BATCHES

_ENVIRONMENT = ("versions", "device", "num_processes", "steps", "start_from", "commit", "code", "source")
"""What a model's config.json says of how it was made."""


def trace(registry: Registry, version: Version) -> dict[str, Any]:
    """Trace a version back to the files that it was made from.

    Args:
        registry: The registry.
        version: The version.

    Returns:
        As JSON has it: `version`, `registered`, `commit`, `model` with the sha256 of each file, `stages` from the first
        to the one that made the model, each with its params and the md5 of each input, `batches` with the hashes of
        their files and manifests and the legal basis that their delivery came with, `environment`, and `hardware`: the
        machine on which its retraining began, None for a model that a person trained and until the retraining has
        ended.

    Raises:
        OperationsError: the commit or the model's bytes are not there.
    """
    stages = read_lock(registry.root, version.commit)
    producers = {out["path"]: name for name, stage in stages.items() for out in stage.get("outs", ())}
    names = list(dict.fromkeys(_upstream(producers[version.model.path], stages, producers)))
    event, events = version.event, registry.events()
    before = [other for other in events if other.sequence < event.sequence]
    began = retraining_of(events, event)
    return {
        "version": version.name,
        "registered": {"time": event.time.isoformat(), "who": event.who, "automatic": event.automatic},
        "commit": version.commit,
        "model": {"path": version.model.path, "md5": version.model.md5, "sha256": dict(version.files)},
        "stages": [_stage(name, stages[name], producers) for name in names],
        "batches": dict(_batches(registry, version, (stages[name] for name in names), history.deliveries(before))),
        "environment": _environment(registry.files(version)),
        "hardware": None if began is None else began.facts.get("hardware"),
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
    return {name: config[name] for name in _ENVIRONMENT if name in config}


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
    registry: Registry, version: Version, stages: Iterator[Mapping[str, Any]], deliveries: Mapping[str, Event]
) -> Iterator[tuple[str, dict[str, Any]]]:
    prefix = f"{BATCHES.as_posix()}/"
    for path in sorted({dep["path"] for stage in stages for dep in stage.get("deps", ())}):
        if path.startswith(prefix):
            text = git(registry.root, "show", f"{version.commit}:{path}")
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
    lines = [
        f"{traced['version']}: {model['path']}, md5 {model['md5']}",
        f"registered {registered['time']} by {registered['who']}",
        f"commit {traced['commit']}",
    ]
    for stage in traced["stages"]:
        lines += ["", f"stage {stage['stage']}"]
        for section in ("data", "files"):
            lines += [f"  {path}  md5 {md5}" for path, md5 in stage[section].items()]
        for file, values in stage["params"].items():
            lines += [f"  {file}: {key} = {json.dumps(value)}" for key, value in values.items()]
    lines += ["", "batches"]
    for name, batch in traced["batches"].items():
        hashed = batch["manifest_sha256"] or "none: a stage makes the images"
        lines += [f"  {name}  {batch['source']}  sha256 {batch['file_sha256']}"]
        lines += [f"    manifest {batch['manifest']}  sha256 {hashed}"]
        lines += [f"    legal basis: {batch['legal_basis']}"] if batch["legal_basis"] else []
    lines += ["", "environment"]
    lines += [f"  {name} = {json.dumps(value)}" for name, value in traced["environment"].items()]
    if traced["hardware"] is not None:
        lines += ["", "hardware"]
        lines += [f"  {name} = {json.dumps(value)}" for name, value in traced["hardware"].items()]
    lines += ["", "files of the model"]
    return "\n".join(lines + [f"  {name}  sha256 {sha256}" for name, sha256 in model["sha256"].items()])
