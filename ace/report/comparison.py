"""Set all encoders side by side: one row each, with headline figures and what the first one gains over each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ace.drawing.words import Words, with_interval
from ace.properties.base import gain_key
from ace.properties.registry import PROPERTIES
from ace.report.tables import FIGURES, facts_of, verdict_of


@dataclass(frozen=True, kw_only=True)
class Column:
    """Describe a headline figure and how it was measured.

    Attributes:
        key: Its name in the metrics.
        anchor: Name of its property, whose part of the page has it as its id.
        title: Of its property.
        unit: Of its numbers.
        protocol: Whom it is of, the counts behind it, and what guessing gives.
        is_error: Whether less is better.
    """

    key: str
    anchor: str
    title: str
    unit: str
    protocol: str
    is_error: bool


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Hold one encoder's figure.

    Attributes:
        text: Value and interval, as they are written.
        bar: Its value as a share of the column's largest, in percent.
        gain: What the first encoder gains over it, likewise; None in the first encoder's own row, and where no paired
            difference was taken.
        verdict: What the gain's interval shows: `better than`, `worse than` or `not distinguishable
            from`; None likewise.
    """

    text: tuple[str, str]
    bar: float
    gain: tuple[str, str] | None
    verdict: str | None


@dataclass(frozen=True)
class Comparison:
    """Hold the table: rows are encoders, columns headline figures.

    Attributes:
        columns: Those that were measured.
        rows: Encoder → its cells, in the order of the columns.
    """

    columns: tuple[Column, ...]
    rows: Mapping[str, tuple[Cell, ...]]


def compare_encoders(properties: Mapping[str, Any], encoders: Sequence[str], words: Words) -> Comparison:
    """Arrange metrics as one table.

    Args:
        properties: metrics/properties.json.
        encoders: Names of its encoders; gains are those of the first one.
        words: What the page calls whom it measured.
    """
    first = properties[encoders[0]]
    columns = tuple(
        Column(
            key=item.headline,
            anchor=item.name,
            title=item.title,
            unit=words.fill(item.unit, num_candidates=figure.get("num_candidates")),
            protocol=_protocol(figure, FIGURES[item.headline].number, words),
            is_error=item.is_error,
        )
        for item in PROPERTIES
        if item.headline is not None and (figure := first.get(item.headline, {"value": None}))["value"] is not None
    )
    return Comparison(
        columns, {name: tuple(_cell(properties, encoders, name, c) for c in columns) for name in encoders}
    )


def markdown_table(comparison: Comparison) -> str:
    """Write the table in Markdown, the protocol of each column below it."""
    first = next(iter(comparison.rows))
    lines = [
        ["encoder", *(column.title for column in comparison.columns)],
        ["---", *("---:" for _ in comparison.columns)],
    ]
    for name, cells in comparison.rows.items():
        gains = [f"<br>{first} gains {' '.join(cell.gain)}" if cell.gain else "" for cell in cells]
        lines.append([name, *(f"{' '.join(cell.text)}{gain}" for cell, gain in zip(cells, gains, strict=True))])
    notes = [f"- {column.title}: {column.unit}; {column.protocol}." for column in comparison.columns]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *notes]) + "\n"


def _cell(properties: Mapping[str, Any], encoders: Sequence[str], name: str, column: Column) -> Cell:
    figure, number = properties[name][column.key], FIGURES[column.key].number
    top = max((properties[other][column.key]["value"] or 0.0) for other in encoders)
    bar = round(100 * max(figure["value"] or 0.0, 0.0) / top, 1) if top > 0 else 0.0
    if name == encoders[0] or figure["value"] is None:
        return Cell(text=with_interval(figure, number), bar=bar, gain=None, verdict=None)
    gain = properties.get(gain_key(name), {}).get(column.key, {"value": None})
    if gain["value"] is None:
        return Cell(text=with_interval(figure, number), bar=bar, gain=None, verdict=None)
    return Cell(text=with_interval(figure, number), bar=bar, gain=with_interval(gain, number), verdict=verdict_of(gain))


def _protocol(figure: Mapping[str, Any], number: str, words: Words) -> str:
    parts = [f"{figure['n']} {words.one if figure['n'] == 1 else words.many}", facts_of(figure)]
    chance = figure.get("chance")
    parts.append("" if chance is None else f"chance {number.format(chance)}")
    return ", ".join(part for part in parts if part)
