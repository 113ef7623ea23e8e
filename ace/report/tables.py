"""The figures of metrics/properties.json as the page's cards and tables show them."""

from collections.abc import Mapping, Sequence
from typing import Any

from ace.drawing.words import Words, with_interval
from ace.properties.base import Figure, Property, gain_key
from ace.properties.registry import PROPERTIES

BETTER, WORSE, ALIKE = "better than", "worse than", "not distinguishable from"
"""Words for the interval of a difference: it lies above 0, below 0, or holds it."""
FIGURES = {key: figure for item in PROPERTIES for key, figure in item.figures.items()}
"""Names and formats of all figures, by their keys."""


def headline_card(
    item: Property, properties: Mapping[str, Any], encoders: Sequence[str], words: Words
) -> dict[str, Any]:
    """Draw one property: every encoder's mark on a line, and what the intervals show of the first one's figure."""
    key, first = str(item.headline), encoders[0]
    trained, number = properties[first][key], FIGURES[key].number
    card: dict[str, Any] = {"title": item.title, "question": words.fill(item.question), "anchor": item.name}
    card["first"] = first
    if trained["value"] is None:
        return card | {"reason": trained["reason"]}
    others = {name: properties[name][key] for name in encoders[1:]}
    marks = {"chance": {"value": trained["chance"]}, **others, first: trained}
    for name, figure in properties.get("baselines", {}).get(key, {}).items():
        marks[name.replace("_", " ")] = figure
    top = max(float(figure.get("high", figure["value"])) for figure in marks.values())
    low = min(0.0, *(float(figure.get("low", figure["value"])) for figure in marks.values()))
    span = (max(1.0, top) if key == "decompositionality" else top * 1.05) - low or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low) / span, 2)

    return card | {
        "unit": words.fill(item.unit, num_candidates=trained.get("num_candidates")),
        "value": with_interval(trained, number)[0],
        "interval": with_interval(trained, number)[1],
        "n": trained["n"],
        "chance": number.format(trained["chance"]),
        "over_chance": _over_chance(trained, is_error=item.is_error),
        "gains": [_gain(key, name, properties[gain_key(name)], words) for name in others],
        "marks": [
            {
                "name": name,
                "text": with_interval(figure, number),
                "at": place(figure["value"]),
                "from": place(figure.get("low", figure["value"])),
                "to": place(figure.get("high", figure["value"])),
            }
            for name, figure in marks.items()
        ],
    }


def figure_rows(properties: Mapping[str, Any], encoders: Sequence[str], words: Words) -> list[dict[str, Any]]:
    """Return every figure with its chance, of every encoder, and what the first one gained over each of the others."""
    gains = [key for key in map(gain_key, encoders[1:]) if key in properties]
    rows = []
    for key, trained in properties[encoders[0]].items():
        if trained["value"] is None:
            continue
        label, number = _name_and_number(key, words)
        chance = trained.get("chance")
        rows.append(
            {
                "name": label,
                "cells": [with_interval(properties[name][key], number) for name in encoders],
                "gains": [with_interval(properties[gain][key], number) for gain in gains],
                "chance": "" if chance is None else number.format(chance),
                "n": trained["n"],
                "facts": facts_of(trained),
            }
        )
        for other, figure in properties.get("baselines", {}).get(key, {}).items():
            label = f"… {other.replace('_', ' ')}, without any encoder"
            cells = [with_interval(figure, number), *[("", "")] * (len(encoders) - 1)]
            rows.append({"name": label, "cells": cells, "gains": [], "chance": "", "n": figure["n"], "facts": ""})
    return rows


def facts_of(figure: Mapping[str, Any]) -> str:
    """Write the counts behind a figure, as `32 candidates, 60 draws`."""
    counts = {key.removeprefix("num_"): value for key, value in figure.items() if key.startswith("num_")}
    return ", ".join(f"{value} {name}" for name, value in counts.items())


def verdict_of(gain: Mapping[str, Any]) -> str:
    """Say what the interval of a gain shows."""
    if gain["low"] > 0:
        return BETTER
    return WORSE if gain["high"] < 0 else ALIKE


def _gain(key: str, name: str, gains: Mapping[str, Any], words: Words) -> dict[str, Any]:
    """Tell what training gained over another encoder.

    Where it is better, the property's other figures that do not say so are named.
    """
    family = key.partition("_")[0]
    verdicts = {
        other: verdict_of(gain)
        for other, gain in gains.items()
        if other.partition("_")[0] == family and gain["value"] is not None
    }
    verdict = verdicts[key]
    doubts = [
        {"figure": _name_and_number(other, words)[0].partition(": ")[2], "verdict": found}
        for other, found in verdicts.items()
        if verdict == BETTER != found
    ]
    text = with_interval(gains[key], FIGURES[key].number)
    return {"over": name, "text": text, "verdict": verdict, "doubts": doubts}


def _over_chance(figure: Mapping[str, Any], *, is_error: bool) -> str:
    low, high = (figure[end] - figure["chance"] for end in ("low", "high"))
    return verdict_of({"low": -high, "high": -low} if is_error else {"low": low, "high": high})


def _name_and_number(key: str, words: Words) -> tuple[str, str]:
    """Return what a figure is called, and how its numbers are written."""
    name = key.replace("_", " ").replace(" ", ": ", 1).capitalize()
    figure = FIGURES.get(key, Figure(title=name, number="{:.1%}"))
    return words.fill(figure.title), figure.number
