"""The key figures as a small table for the terminal."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ace.evaluation.measured import MEASURED
from ace.evaluation.params import RESERVED
from ace.properties.base import gain_key
from ace.properties.registry import PROPERTIES
from shards.core.errors import ConfigError

ROWS = {key: figure for item in PROPERTIES for key, figure in item.figures.items() if figure.summary}
"""Figures in the order of the table."""
PROTOCOL = Path("data/evidence/protocol.json")


def summary_table(path: Path, protocol: Path = PROTOCOL) -> str:
    """Write each key figure with its interval, beside the other encoders' and chance, as aligned text.

    Args:
        path: metrics/properties.json.
        protocol: The section `evaluate` of the same evaluation, which says whose patients were measured; may be absent.

    Raises:
        ConfigError: the metrics are not there.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: not found; `dvc repro` writes it")
    figures = json.loads(path.read_text(encoding="utf-8"))
    encoders = encoders_of(figures)
    unknown = figures.get(MEASURED, {}).get("batches_without_patients", ())
    one = measured_one(figures.get(MEASURED, {}))
    blank = [""] * len(encoders)
    lines = [["property", "measure", *(f"{name} [interval]" for name in encoders), "chance"]]
    for key, row in ROWS.items():
        trained, number = figures[encoders[0]].get(key), row.number
        if trained is None:
            continue
        if trained["value"] is None:
            lines.append([row.group, f"not measured: {trained['reason']}", *blank, ""])
            continue
        chance = number.format(trained["chance"]) if trained.get("chance") is not None else ""
        cells = [_interval(figures[encoder][key], number) for encoder in encoders]
        lines.append(
            [row.group, row.summary.format(num_candidates=trained.get("num_candidates"), one=one), *cells, chance]
        )
        for other, figure in figures.get("baselines", {}).get(key, {}).items():
            first = [f"  {other.replace('_', ' ')}, for comparison", _interval(figure, number)]
            lines.append(["", *first, *blank[1:], ""])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    doubt = [f"patients of {', '.join(unknown)} are unknown: each image counts as one, and figures may be too good"]
    return "\n".join([*table, *_cohort_line(figures, protocol, one), *(doubt if unknown else [])])


def encoders_of(figures: Mapping[str, Any]) -> list[str]:
    """Name the encoders in metrics/properties.json: those that stand before the first one's gains, in order."""
    first, *others = [name for name in figures if name not in RESERVED]
    return [first, *(name for name in others if gain_key(name) in figures)]


def measured_one(measured: Mapping[str, Any]) -> str:
    """Whom a figure counts, by the section `measured`: `patient`, or `image` where nobody knows the patients."""
    return "image" if measured.get("batch") in measured.get("batches_without_patients", ()) else "patient"


def _interval(figure: Mapping[str, Any], number: str) -> str:
    if figure["value"] is None:
        return "not measured"
    value, low, high = (number.format(figure[key]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _cohort_line(figures: Mapping[str, Any], protocol: Path, one: str) -> list[str]:
    if not protocol.is_file():
        return []
    values = json.loads(protocol.read_text(encoding="utf-8"))
    num_measured = figures[MEASURED]["num_patients"]
    return [f"measured on {num_measured} {values['split']} {one}s of {values['batch']}"]
