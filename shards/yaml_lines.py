"""Lines added to YAML files that people write: every other byte, comments and order included, stays as it is."""

import re
from collections.abc import Mapping
from io import StringIO
from typing import Any

from ruamel.yaml import YAML

from shards.errors import ConfigError

SHARDS = "data/shards/"
_DEP_LINE = re.compile(r"\s*- (?P<quote>[\"']?)data/shards/(?P<batch>[A-Za-z0-9_-]+)(?P=quote)\s*(#.*)?")


def add_item(text: str, section: str, name: str, item: Mapping[str, Any]) -> str:
    """`text` with one more item at the end of a top-level block mapping.

    Raises:
        ConfigError: the section is not there, or is written in braces.
    """
    document = YAML().load(text)
    mapping = document.get(section) if isinstance(document, Mapping) else None
    if not isinstance(mapping, Mapping) or not mapping or mapping.fa.flow_style():  # type: ignore[attr-defined]
        raise ConfigError(f"{section}: expected a mapping with one item a line (not in braces), to add '{name}' to")
    lines = text.splitlines()
    indent = " " * mapping.lc.key(next(iter(mapping)))[1]  # type: ignore[attr-defined]
    later = [document.lc.key(key)[0] for key in document if document.lc.key(key)[0] > document.lc.key(section)[0]]
    end = min(later, default=len(lines))
    while not lines[end - 1].strip() or lines[end - 1].startswith("#"):
        end -= 1
    return _joined([*lines[:end], *(indent + line for line in _block(name, item)), *lines[end:]])


def consumers(text: str) -> dict[str, list[str]]:
    """Stages of a dvc.yaml that read every batch by name → the batches they read.

    A stage that reads one batch through a template (`data/shards/${evaluate.batch}`) is none of them.
    """
    found = {}
    for name, stage in YAML().load(text)["stages"].items():
        deps = [dep for dep in stage.get("deps", ()) if isinstance(dep, str) and _DEP_LINE.fullmatch(f"- {dep}")]
        if deps:
            found[str(name)] = [dep.removeprefix(SHARDS) for dep in deps]
    return found


def add_deps(text: str, batch: str) -> str:
    """A dvc.yaml in which every consumer depends on `data/shards/<batch>` too; unchanged where it already does.

    Raises:
        ConfigError: no stage reads shards by name, or its deps are not written one a line.
    """
    found = consumers(text)
    if not found:
        raise ConfigError(f"dvc.yaml: no stage has a line '- {SHARDS}NAME' in its deps; expected pretrain to have one")
    stages, lines = YAML().load(text)["stages"], text.splitlines()
    places = []
    for stage, batches in found.items():
        deps = stages[stage]["deps"]
        line = deps.lc.item(deps.index(SHARDS + batches[-1]))[0]
        if not _DEP_LINE.fullmatch(lines[line]):
            raise ConfigError(f"dvc.yaml: {stage}.deps: expected one dep a line; add '- {SHARDS}{batch}' by hand")
        if batch not in batches:
            places.append(line)
    for line in sorted(places, reverse=True):
        indent = len(lines[line]) - len(lines[line].lstrip())
        lines.insert(line + 1, f"{' ' * indent}- {SHARDS}{batch}")
    return _joined(lines)


def _block(name: str, item: Mapping[str, Any]) -> list[str]:
    yaml = YAML(typ="safe", pure=True)  # writes null, where the round-trip dumper leaves the value out
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = StringIO()
    yaml.dump({name: dict(item)}, stream)
    return stream.getvalue().splitlines()


def _joined(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
