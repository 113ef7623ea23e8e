"""The key figures as a small table for the terminal."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ace.evaluation.measured import MEASURED
from ace.evaluation.names import CORRESPONDENCE, PROBE
from shards.errors import ConfigError

ROWS = {
    "compositionality": ("compositionality", "cosine, true − mismatched", "{:.3f}"),
    "compositionality_auc": ("", "AUC", "{:.3f}"),
    "decompositionality": ("decompositionality", "top-1 of {batch}, region set to black", "{:.1%}"),
    "decompositionality_same_position": ("", "  black, same position", "{:.1%}"),
    "decompositionality_mean": ("", "  set to the image's mean level", "{:.1%}"),
    "decompositionality_white": ("", "  set to white", "{:.1%}"),
    "decompositionality_noise": ("", "  set to noise", "{:.1%}"),
    "decompositionality_tissue": ("", "  set to another {one}'s tissue", "{:.1%}"),
    "removal_erased_length": ("removal", "length of erased tokens over others, less is better", "{:.3f}"),
    "removal_change_outside": ("", "share of the change outside, less is better", "{:.3f}"),
    CORRESPONDENCE: ("correspondence", "error in px of 1024, less is better", "{:.1f}"),
    PROBE: ("linear probe", "AUROC, mean over labels", "{:.3f}"),
}
ENCODERS = ("trained", "untrained", "imagenet")
"""Columns, where the metrics have them."""
PROTOCOL = Path("data/evidence/protocol.json")


def summary_table(path: Path, protocol: Path = PROTOCOL) -> str:
    """Each key figure with its interval, beside the other encoders' and chance, as aligned text.

    Args:
        path: metrics/properties.json.
        protocol: The section `evaluate` of the same evaluation, which says whose patients were measured; may be absent.

    Raises:
        ConfigError: the metrics are not there.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: not found; `dvc repro` writes it")
    figures = json.loads(path.read_text(encoding="utf-8"))
    encoders = [name for name in ENCODERS if name in figures]
    unknown = figures.get(MEASURED, {}).get("batches_without_patients", ())
    one = measured_one(figures.get(MEASURED, {}))
    blank = [""] * len(encoders)
    lines = [["property", "measure", *(f"{name} [interval]" for name in encoders), "chance"]]
    for key, (name, measure, number) in ROWS.items():
        trained = figures["trained"].get(key)
        if trained is None:
            continue
        if trained["value"] is None:
            lines.append([name, f"not measured: {trained['reason']}", *blank, ""])
            continue
        chance = number.format(trained["chance"]) if trained.get("chance") is not None else ""
        cells = [_interval(figures[encoder][key], number) for encoder in encoders]
        lines.append([name, measure.format(batch=trained.get("batch"), one=one), *cells, chance])
        if key == CORRESPONDENCE:
            for other, figure in figures.get("baselines", {}).get(key, {}).items():
                first = [f"  {other.replace('_', ' ')}, for comparison", _interval(figure, "{:.1f}")]
                lines.append(["", *first, *blank[1:], ""])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    doubt = [f"patients of {', '.join(unknown)} are unknown: each image counts as one, and figures may be too good"]
    return "\n".join([*table, *_cohort_line(figures["trained"], protocol, one), *(doubt if unknown else [])])


def measured_one(measured: Mapping[str, Any]) -> str:
    """Whom a figure counts, by the section `measured`: `patient`, or `image` where nobody knows the patients."""
    return "image" if measured.get("batch") in measured.get("batches_without_patients", ()) else "patient"


def _interval(figure: Mapping[str, Any], number: str) -> str:
    if figure["value"] is None:
        return "not measured"
    value, low, high = (number.format(figure[key]) for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _cohort_line(trained: Mapping[str, Any], protocol: Path, one: str) -> list[str]:
    if not protocol.is_file():
        return []
    values = json.loads(protocol.read_text(encoding="utf-8"))
    num_measured = trained["compositionality"]["n"]
    return [f"measured on {num_measured} {values.get('split', 'test')} {one}s of {values['batch']}"]
