"""The tables of docs/datasets.md: what the sources say of their datasets, in Markdown."""

from collections.abc import Iterable

from shards.sources.base import SourceInfo

FAMILIES = {"chest": "chest X-ray", "fundus": "fundus photograph", "own": ""}
"""Family → how the modality of its datasets begins; each belongs to the first that fits."""


def family_of(info: SourceInfo) -> str:
    """Return the family of a dataset, as `fundus`."""
    return next(family for family, modality in FAMILIES.items() if info.modality.startswith(modality))


def render_markdown(infos: Iterable[SourceInfo]) -> str:
    """Write datasets as a table, a line a dataset, with its title linked to its first page."""
    head = "| kind | dataset | images | patients | tasks | licence | what to put where |\n|---|---|---|---|---|---|---|"
    return "\n".join([head, *(_markdown_row(info) for info in infos)])


def _markdown_row(info: SourceInfo) -> str:
    page = info.pages[0]
    title = f"[{info.title}]({page})" if page.startswith("http") else info.title
    layout = "<br>".join(_code(line) for line in info.layout.splitlines())
    counts = [_number(info.num_images), _number(info.num_patients)]
    cells = [f"`{info.name}`", title, *counts, ", ".join(info.tasks), info.licence, layout]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _code(line: str) -> str:
    return f"`` {line} ``" if "`" in line else f"`{line}`"


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
