"""`python -m shards sources`: the datasets that can be registered, and what to put where."""

import argparse
import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from shards.sources.base import SourceInfo
from shards.sources.registry import MODULES, open_source

WIDTH = 100
"""Characters of a line, at most."""
_UNKNOWN = "-"
_INDENT = "    "


@dataclass(frozen=True)
class _Column:
    title: str
    width: int
    is_number: bool = False


_COLUMNS = (
    _Column("KIND", 15),
    _Column("MODALITY", 13),
    _Column("IMAGES", 7, is_number=True),
    _Column("PATIENTS", 8, is_number=True),
    _Column("TASKS", 15),
    _Column("LICENCE", 32),
)


def add_sources_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `sources [KIND] [--json]` to the commands of `python -m shards`."""
    command = commands.add_parser("sources", help="list the datasets that can be added", description=sources.__doc__)
    command.add_argument(
        "kind", nargs="?", metavar="KIND", help="a dataset of the list, to see its citation, licence and web pages too"
    )
    command.add_argument(
        "--json", action="store_true", help="print JSON: a list with one object per dataset; with KIND, one object"
    )
    command.set_defaults(run=sources)


def sources(arguments: argparse.Namespace) -> None:
    """List the datasets that can be registered.

    Each comes with its modality, images, patients, tasks and licence, and with the files that `register` expects.
    """
    if arguments.kind is None:
        infos = [open_source(kind).info for kind in MODULES]
        print(json.dumps([asdict(info) for info in infos], indent=2) if arguments.json else render_table(infos))
    else:
        info = open_source(arguments.kind).info
        print(json.dumps(asdict(info), indent=2) if arguments.json else render_page(info))


def render_table(infos: Iterable[SourceInfo]) -> str:
    """Render one block a dataset, its cells and below them its layout, in lines of at most `WIDTH` characters."""
    head = _join([column.title for column in _COLUMNS])
    blocks = [[*_wrap_cells(_cells(info)), *_wrap_layout(info)] for info in infos]
    foot = [
        f"{_UNKNOWN} means: not published. More on one dataset: python -m shards sources KIND",
        "To register one: python -m shards register NAME FOLDER --source KIND",
    ]
    return "\n\n".join("\n".join(lines) for lines in ([head], *blocks, foot))


def render_page(info: SourceInfo) -> str:
    """Render everything that is known about one dataset, and how to register it."""
    passed_on = "shards may be passed on" if info.is_redistributable else "shards must not be passed on"
    facts = {
        "kind": info.name,
        "modality": info.modality,
        "images": _number(info.num_images),
        "patients": _number(info.num_patients),
        "tasks": ", ".join(info.tasks),
        "licence": f"{info.licence} ({passed_on})",
        "shares images with": ", ".join(_shared_with(info)) or "none known",
        "cite": info.citation,
    }
    indent = max(map(len, facts)) + 2
    lines = [
        line
        for name, value in facts.items()
        for line in textwrap.wrap(f"{name:{indent}}{value}", WIDTH, subsequent_indent=" " * indent, tabsize=1)
    ]
    pages = [f"{_INDENT}{page}" for page in info.pages]
    register = f"python -m shards register NAME FOLDER --source {info.name}"
    use = _INDENT + ("dvc repro" if info.name == "phantom" else register)
    return "\n".join(
        [info.title, "", *lines, "", "get it", *pages, "", "what to put where", *_wrap_layout(info), "", "use it", use]
    )


def _shared_with(info: SourceInfo) -> list[str]:
    """Name the sources that hold some of the same images; a source's own other release is called that."""
    return [f"{kind} (its other release)" if kind == info.name else kind for kind in info.shares_images_with]


def _number(value: int | None) -> str:
    return _UNKNOWN if value is None else f"{value:,}"


def _cells(info: SourceInfo) -> list[str]:
    counts = [_number(info.num_images), _number(info.num_patients)]
    return [info.name, info.modality, *counts, ", ".join(info.tasks), info.licence]


def _join(cells: Sequence[str]) -> str:
    padded = [
        f"{cell:>{column.width}}" if column.is_number else f"{cell:{column.width}}"
        for column, cell in zip(_COLUMNS, cells, strict=True)
    ]
    return "  ".join(padded).rstrip()


def _wrap_cells(cells: Sequence[str]) -> list[str]:
    wrapped = [textwrap.wrap(cell, column.width) for column, cell in zip(_COLUMNS, cells, strict=True)]
    height = max(map(len, wrapped))
    return [_join([lines[row] if row < len(lines) else "" for lines in wrapped]) for row in range(height)]


def _wrap_layout(info: SourceInfo) -> list[str]:
    return [
        line
        for text in info.layout.splitlines()
        for line in textwrap.wrap(
            text, WIDTH, initial_indent=_INDENT, subsequent_indent=2 * _INDENT, break_on_hyphens=False
        )
    ]
