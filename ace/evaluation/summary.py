"""The key figures as a small table for the terminal."""

import json
from pathlib import Path
from typing import Any

from shards.errors import ConfigError

CORRESPONDENCE = "correspondence_px_at_1024"
ROWS = {
    "compositionality": ("compositionality", "cosine, true − mismatched", "{:.3f}"),
    "compositionality_auc": ("", "AUC", "{:.3f}"),
    "decompositionality": ("decompositionality", "top-1 of {batch}", "{:.1%}"),
    "decompositionality_same_position": ("", "top-1 of {batch}, same position", "{:.1%}"),
    CORRESPONDENCE: ("correspondence", "error in px of 1024, less is better", "{:.1f}"),
}


def summary_table(path: Path) -> str:
    """Each key figure with its interval, beside the untrained encoder's and chance, as aligned text.

    Args:
        path: metrics/properties.json.

    Raises:
        ConfigError: it is not there.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: not found; `dvc repro` writes it")
    figures = json.loads(path.read_text(encoding="utf-8"))
    lines = [("property", "measure", "trained [interval]", "untrained [interval]", "chance")]
    for key, (name, measure, number) in ROWS.items():
        trained, untrained = figures["trained"][key], figures["untrained"][key]
        if trained["value"] is None:
            lines.append((name, f"not measured: {trained['reason']}", "", "", ""))
            continue
        measure = measure.format(batch=trained.get("batch"))
        chance = number.format(trained["chance"])
        lines.append((name, measure, _interval(trained, number), _interval(untrained, number), chance))
    for name, figure in figures.get("baselines", {}).get(CORRESPONDENCE, {}).items():
        lines.append(("", f"  {name.replace('_', ' ')}, for comparison", _interval(figure, "{:.1f}"), "", ""))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _interval(figure: dict[str, Any], number: str) -> str:
    value, low, high = (number.format(figure[key]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
