"""Edit single lines of YAML files that people write; every other byte, comments and order included, stays as it is."""

import re
import textwrap
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from shards.core.config import parse_yaml
from shards.core.errors import ConfigError

SHARDS = "data/shards/"
PHANTOM, PHANTOM_STAGE = "data/phantom", "phantom"
"""The built-in dataset, and the stage that renders it."""
TEMPLATES = (SHARDS + "${evaluate.batch}", SHARDS + "${item}")
"""Shards that are measured, and those of a task."""
_SCALAR = re.compile(r"""\"[^"]*\"|'[^']*'|[^\s#,}\]]+""")
_COMMENT = re.compile(r"(?<=\s)#.*")
_WIDTH = 120
_BATCH = re.compile(r"data/shards/[A-Za-z0-9_-]+")


def add_item(text: str, section: str, name: str, item: Mapping[str, Any] | str) -> str:
    """Add an item at the end of a top-level block mapping of a text.

    Raises:
        ConfigError: the section is not there, or is written in braces.
    """
    document = _parsed(text)
    mapping = _block_mapping(document, section, name)
    lines = text.splitlines()
    indent = " " * mapping.lc.key(next(iter(mapping)))[1]
    end = _end_of_section(document, section, lines)
    while not lines[end - 1].strip() or lines[end - 1].startswith("#"):
        end -= 1
    return _joined([*lines[:end], *(indent + line for line in _block(name, item)), *lines[end:]])


def enter_item(text: str, section: str, name: str, item: Mapping[str, Any]) -> str:
    """Add an item at the end of a top-level mapping of a text, which may be empty or not there yet.

    Raises:
        ConfigError: the section is written in braces and has items.
    """
    found = parse_yaml(text).get(section)
    if found:
        return add_item(text, section, name, item)
    indented = "\n".join(f"  {line}" for line in _block(name, item))
    head = re.compile(rf"^{section}:[ \t]*(?:\{{\}})?", re.MULTILINE)
    if head.search(text):
        lines = text.splitlines()
        row = next(row for row, line in enumerate(lines) if head.match(line))
        lines[row : row + 1] = [head.sub(f"{section}:", lines[row]), indented]
        return _joined(lines)
    return f"{text.rstrip()}\n{section}:\n{indented}\n"


def keep_items(text: str, section: str, names: Collection[str]) -> str:
    """Remove all but the named items, of which there is at least one, from a top-level block mapping of a text.

    The lines of the other items go, with the comments inside them; comments between items stay.

    Raises:
        ConfigError: the section is not there, is written in braces, or its items share values by anchors.
    """
    document = _parsed(text)
    mapping = _block_mapping(document, section, ", ".join(names))
    lines = text.splitlines()
    rows = sorted((*mapping.lc.key(key), key) for key in mapping)
    ends = [*(row for row, *_ in rows[1:]), _end_of_section(document, section, lines)]
    for (row, column, name), end in reversed(list(zip(rows, ends, strict=True))):
        if name in names:
            continue
        while end > row + 1 and _is_between_items(lines[end - 1], column):
            end -= 1
        del lines[row:end]
    before, after = parse_yaml(text), _loaded(_joined(lines))
    kept = {name: value for name, value in before[section].items() if name in names}
    if after != {**before, section: kept}:
        raise ConfigError(
            f"{section}: the items beside '{', '.join(names)}' cannot be taken out line by line; do so by hand"
        )
    return _joined(lines)


def set_value(text: str, section: str, key: str, value: str) -> str:
    """Write another word as the value `section.key` of a text; a comment behind it stays.

    Raises:
        ConfigError: there is no such key, or its value is not a single word on the key's line.
    """
    before = parse_yaml(text)
    if not isinstance(before, Mapping) or not isinstance(before.get(section), Mapping) or key not in before[section]:
        raise ConfigError(f"{section}.{key}: not found; expected it in the file, to set it to '{value}'")
    if before[section][key] == value:
        return text
    lines = text.splitlines()
    row, column = _parsed(text)[section].lc.value(key)
    found = _SCALAR.match(lines[row], column)
    if found:
        word = value if YAML(typ="safe", pure=True).load(value) == value else f'"{value}"'
        lines[row] = lines[row][:column] + word + lines[row][found.end() :]
    if _loaded(_joined(lines)) != {**before, section: {**before[section], key: value}}:
        raise ConfigError(f"{section}.{key}: expected one word on the line of its key; set it to '{value}' by hand")
    return _joined(lines)


def set_or_add(text: str, section: str, key: str, value: str | None, *, after: str) -> str:
    """Write a word as the value `section.key` of a text, or none; a key that is not there is added below another one.

    Raises:
        ConfigError: there is no such section, it has no key `after`, or the value is not a single word on the key's
            line.
    """
    before = parse_yaml(text)
    if not isinstance(before, Mapping) or not isinstance(before.get(section), Mapping) or after not in before[section]:
        raise ConfigError(f"{section}.{after}: not found; expected it in the file, to write {section}.{key} below it")
    if key in before[section] and before[section][key] == value:
        return text
    mapping, lines = _parsed(text)[section], text.splitlines()
    row, column = mapping.lc.key(key if key in mapping else after)
    word = "" if value is None else f" {value if YAML(typ='safe', pure=True).load(value) == value else repr(value)}"
    if key in mapping:
        lines[row] = re.sub(r":[^#]*?(\s+#.*)?$", lambda found: f":{word}{found[1] or ''}", lines[row], count=1)
    else:
        lines.insert(row + 1, f"{' ' * column}{key}:{word}")
    if _loaded(_joined(lines)) != {**before, section: {**before[section], key: value}}:
        raise ConfigError(f"{section}.{key}: expected one word on the line of its key; set it to '{value}' by hand")
    return _joined(lines)


def consumers(text: str) -> dict[str, list[str]]:
    """Map the stages of a dvc.yaml that read every batch by name to the batches they read.

    A stage that reads one batch through a template (`data/shards/${evaluate.batch}`) is none of them.
    """
    found = {}
    for name, stage in _parsed(text)["stages"].items():
        deps = [dep for dep in _deps(stage) if isinstance(dep, str) and _BATCH.fullmatch(dep)]
        if deps:
            found[str(name)] = [dep.removeprefix(SHARDS) for dep in deps]
    return found


def add_deps(text: str, batch: str) -> str:
    """Make every consumer in a dvc.yaml depend on `data/shards/<batch>` too.

    Raises:
        ConfigError: no stage reads shards by name, or its deps on shards are not written one a line.
    """
    found = consumers(text)
    if not found:
        raise ConfigError(f"dvc.yaml: no stage has a line '- {SHARDS}NAME' in its deps; expected pretrain to have one")
    stages, lines = _parsed(text)["stages"], text.splitlines()
    rows = {}  # stages may share a list by an anchor
    for stage, batches in found.items():
        dep = SHARDS + batches[-1]
        row = _row_of(_deps(stages[stage]), dep, lines, stage)
        if batch not in batches:
            rows[row] = dep
    for row, dep in sorted(rows.items(), reverse=True):
        lines.insert(row + 1, _like(lines[row], dep, SHARDS + batch))
    return _joined(lines)


def drop_deps(text: str, paths: Collection[str]) -> str:
    """Remove paths from the deps of all consumers of shards in a dvc.yaml.

    Raises:
        ConfigError: a dep that has to go does not stand on a line of its own, or would leave a consumer without any
            batch.
    """
    stages, lines = _parsed(text)["stages"], text.splitlines()
    unwanted = set()
    for stage, batches in consumers(text).items():
        if all(SHARDS + batch in paths for batch in batches):
            raise ConfigError(f"dvc.yaml: stage {stage} would read no batch at all; keep at least one in its deps")
        deps = _deps(stages[stage])
        unwanted |= {_row_of(deps, dep, lines, stage) for dep in deps if dep in paths}
    for row in sorted(unwanted, reverse=True):
        del lines[row]
    return _joined(lines)


def drop_stage(text: str, name: str) -> str:
    """Return a dvc.yaml without one stage; unchanged where there is none of the name.

    Raises:
        ConfigError: the stage shares lines or values with others, by braces or anchors.
    """
    document, before = _parsed(text), parse_yaml(text)
    stages = document["stages"]
    if name not in stages:
        return text
    lines = text.splitlines()
    row, column = stages.lc.key(name)
    later = [stages.lc.key(key)[0] for key in stages if stages.lc.key(key)[0] > row]
    end = min(later, default=_end_of_section(document, "stages", lines))
    while end > row + 1 and end < len(lines) and lines[end - 1].strip() and _is_between_items(lines[end - 1], column):
        end -= 1
    del lines[row:end]
    left = {key: stage for key, stage in before["stages"].items() if key != name}
    if _loaded(_joined(lines)) != {**before, "stages": left}:
        raise ConfigError(f"dvc.yaml: the stage {name} cannot be taken out line by line; do so by hand")
    return _joined(lines)


def set_dep(text: str, path: str, batch: str, *, wanted: bool) -> str:
    """Make the stages of a dvc.yaml that read a batch's shards depend on a path beside them, or no stage.

    A stage that reads one batch through a template (`TEMPLATES`) depends on it whichever batch that is.

    Raises:
        ConfigError: deps of such a stage are not written one a line.
    """
    stages, lines = _parsed(text)["stages"], text.splitlines()
    edits: dict[int, str | None] = {}
    for stage, body in stages.items():
        deps = _deps(body)
        names = [dep for dep in deps if dep in (SHARDS + batch, *TEMPLATES)]
        if path in deps and not (wanted and names):
            edits[_row_of(deps, path, lines, stage)] = None
        elif wanted and names and path not in deps:
            row = _row_of(deps, names[-1], lines, stage)
            edits[row] = _like(lines[row], names[-1], path)
    for row, new in sorted(edits.items(), reverse=True):
        if new is None:
            del lines[row]
        else:
            lines.insert(row + 1, new)
    return _joined(lines)


def set_deps(text: str, stage: str, prefixes: tuple[str, ...], paths: Sequence[str]) -> str:
    """Make a stage of a dvc.yaml depend on these paths and no others that begin like them; unchanged if it does.

    Args:
        text: The file.
        stage: Name of the stage; one that is not there depends on nothing.
        prefixes: How the paths begin, each with one of these.
        paths: All of them, maybe none. Where the stage has depended on none so far, they become the first
            that begin a line. A comment behind earlier ones comes to stand above them.

    Raises:
        ConfigError: they share lines with other deps, or the deps are not written as a list of lines in brackets.
    """
    before = parse_yaml(text)
    deps = _deps(_parsed(text)["stages"].get(stage, {}))
    found = [dep for dep in deps if dep.startswith(prefixes)]
    if stage not in before["stages"] or set(found) == set(paths):
        return text
    lines = text.splitlines()
    own = [int(deps.lc.item(number)[0]) for number in range(len(deps))]
    rows = sorted({row for row, dep in zip(own, deps, strict=True) if dep in found})
    if own:
        row = rows[0] if rows else next((row for row in own if "[" not in lines[row]), own[0])
        margin = lines[row][: len(lines[row]) - len(lines[row].lstrip())]
        listed = ", ".join(paths) + "," if paths else ""
        wrapped = textwrap.wrap(listed, _WIDTH - len(margin), break_on_hyphens=False)
        comments = [comment[0] for earlier in rows if (comment := _COMMENT.search(lines[earlier]))]
        for earlier in reversed(rows):
            del lines[earlier]
        lines[row:row] = [margin + line for line in (*comments, *wrapped)]
    wanted = [dep for dep in deps if dep not in found]
    after = _loaded(_joined(lines))
    if after is None or sorted(_deps(after["stages"][stage])) != sorted([*wanted, *paths]):
        raise ConfigError(
            f"dvc.yaml: {stage}.deps: expected the paths {'…, '.join(prefixes)}… on lines of their own in brackets, "
            f"each with a comma behind it, to write {', '.join(paths) or 'none'} there; write them there by hand"
        )
    return _joined(lines)


def _deps(stage: Mapping[str, Any]) -> Any:
    """Return the deps of a stage of a dvc.yaml, or of each item of a foreach stage."""
    return stage.get("do", stage).get("deps", ())


def _row_of(deps: Any, dep: str, lines: list[str], stage: str) -> int:
    """Return the row of a dep that stands on a line of its own: behind a hyphen, or in brackets before a comma.

    Raises:
        ConfigError: it shares its line.
    """
    row = int(deps.lc.item(list(deps).index(dep))[0])
    path = re.escape(dep)
    if not re.fullmatch(rf"""\s*(- (["']?){path}\2|(["']?){path}\3,)\s*(#.*)?""", lines[row]):
        raise ConfigError(f"dvc.yaml: {stage}.deps: expected one dep a line, as '- {dep}'; write it so by hand")
    return row


def _like(line: str, dep: str, new: str) -> str:
    """Return the line of a dep, written for another path, without its comment."""
    return re.sub(r"\s+#.*", "", line).replace(dep, new).replace(f"'{new}'", new).replace(f'"{new}"', new)


def _block_mapping(document: Any, section: str, name: str) -> Any:
    """Return the mapping of a section, with the positions of its items.

    Raises:
        ConfigError: it is not there, empty, or written in braces.
    """
    mapping = document.get(section) if isinstance(document, Mapping) else None
    if not isinstance(mapping, Mapping) or not mapping or mapping.fa.flow_style():  # type: ignore[attr-defined]
        raise ConfigError(f"{section}: expected a mapping with one item a line (not in braces), to add '{name}' to")
    return mapping


def _end_of_section(document: Any, section: str, lines: list[str]) -> int:
    """Return the row of the next section's key, or the number of lines."""
    later = [document.lc.key(key)[0] for key in document if document.lc.key(key)[0] > document.lc.key(section)[0]]
    return min(later, default=len(lines))


def _is_between_items(line: str, column: int) -> bool:
    """Tell whether a line is empty, or a comment that is not indented deeper than the items."""
    stripped = line.lstrip()
    return not stripped or (stripped.startswith("#") and len(line) - len(stripped) <= column)


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """Parse a text with the positions of its keys; several edits look into the same text, so nobody changes this."""
    return YAML().load(text)


def _loaded(text: str) -> Any:
    """Load the values of an edited text; None where the edit broke it."""
    try:
        return parse_yaml(text)
    except YAMLError:
        return None


def _block(name: str, item: Mapping[str, Any] | str) -> list[str]:
    yaml = YAML(typ="safe", pure=True)  # writes null, where the round-trip dumper leaves the value out
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = StringIO()
    yaml.dump({name: item if isinstance(item, str) else dict(item)}, stream)
    return stream.getvalue().splitlines()


def _joined(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"
