"""The figures of metrics/properties.json as the page's cards and tables show them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ace.evaluation.names import CORRESPONDENCE, PROBE

ERASED_LENGTH = "removal_erased_length"
CHANGE_OUTSIDE = "removal_change_outside"
GAINS = {"untrained": "gain", "imagenet": "gain_over_imagenet"}
"""Where the metrics keep what training gained over another encoder."""
FILLS = {
    "black": "black",
    "mean": "the image's mean {tone}",
    "white": "white",
    "noise": "noise",
    "tissue": "another {one}'s tissue",
}
"""What takes the place of a removed square, by the names of `evaluate.decomposition.fills`."""
BETTER, WORSE, ALIKE = "better than", "worse than", "not distinguishable from"
"""What an interval shows of a difference: it lies above 0, below 0, or holds it."""
NOTHING = ("\N{EN DASH}", "")
"""A figure that was not measured."""


@dataclass(frozen=True)
class Words:
    """Words that the page uses for what was measured.

    Attributes:
        one: `patient`, or `image` where nobody knows the patients and each image stands for one.
        tone: `grey` or `colour`.
    """

    one: str
    tone: str

    @property
    def many(self) -> str:
        """The plural of `one`."""
        return f"{self.one}s"

    def fill(self, text: str, **values: Any) -> str:
        """Put the words, and other values, into a text's braces."""
        return text.format(one=self.one, many=self.many, tone=self.tone, **values)


@dataclass(frozen=True)
class Headline:
    """One of the three properties at the top of the page."""

    key: str
    title: str
    question: str
    unit: str
    number: str
    anchor: str
    is_error: bool = False
    """Whether less is better."""


HEADLINES = (
    Headline(
        "compositionality",
        "Compositionality",
        "Is the whole the mean of its parts?",
        "cosine to its own parts minus cosine to another region's",
        "{:.3f}",
        "composition",
    ),
    Headline(
        "decompositionality",
        "Decompositionality",
        "Does removing a part remove its embedding?",
        "top-1 accuracy among {batch} {many}' regions",
        "{:.1%}",
        "decomposition",
    ),
    Headline(
        CORRESPONDENCE,
        "Correspondence",
        "Is the same anatomy found in another {one}?",
        "mean error in px of a 1024-px canvas; less is better",
        "{:.1f}",
        "correspondence",
        is_error=True,
    ),
)
LABELS = Headline(
    PROBE,
    "Labels",
    "Can what is labelled be read off the embedding?",
    "mean AUROC of a linear probe",
    "{:.3f}",
    "labels",
)
"""A property that the page has a section for, and no card: a set without labels has none."""
FIGURES = {
    "compositionality": ("Compositionality: cosine, true minus mismatched", "{:.3f}"),
    "compositionality_auc": ("Compositionality: AUC, true against mismatched", "{:.3f}"),
    "decompositionality": ("Decompositionality: top-1", "{:.1%}"),
    "decompositionality_same_position": ("Decompositionality: top-1, all regions at the same position", "{:.1%}"),
    "decompositionality_mean": ("Decompositionality: top-1, filled with the image's mean {tone}", "{:.1%}"),
    "decompositionality_white": ("Decompositionality: top-1, filled with white", "{:.1%}"),
    "decompositionality_noise": ("Decompositionality: top-1, filled with noise", "{:.1%}"),
    "decompositionality_tissue": ("Decompositionality: top-1, filled with another {one}'s tissue", "{:.1%}"),
    ERASED_LENGTH: ("Removal: length of erased tokens over that of the others; less is better", "{:.3f}"),
    CHANGE_OUTSIDE: ("Removal: share of the change that falls outside; less is better", "{:.1%}"),
    CORRESPONDENCE: ("Correspondence: mean error, px at 1024; less is better", "{:.1f}"),
    PROBE: ("Labels: AUROC of a linear probe, mean over labels", "{:.3f}"),
}


def headline_card(
    headline: Headline, properties: Mapping[str, Any], encoders: Sequence[str], words: Words
) -> dict[str, Any]:
    """One property with every encoder's mark on a line, and what the intervals show of the trained encoder's figure."""
    trained = properties["trained"][headline.key]
    card: dict[str, Any] = {"title": headline.title, "question": words.fill(headline.question)}
    card["anchor"] = headline.anchor
    if trained["value"] is None:
        return card | {"reason": trained["reason"]}
    others = {name: properties[name][headline.key] for name in encoders if name != "trained"}
    marks = {"chance": {"value": trained["chance"]}, **others, "trained": trained}
    for name, figure in properties.get("baselines", {}).get(headline.key, {}).items():
        marks[name.replace("_", " ")] = figure
    top = max(float(figure.get("high", figure["value"])) for figure in marks.values())
    low = min(0.0, *(float(figure.get("low", figure["value"])) for figure in marks.values()))
    span = (max(1.0, top) if headline.key == "decompositionality" else top * 1.05) - low or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low) / span, 2)

    return card | {
        "unit": words.fill(headline.unit, batch=trained.get("batch")),
        "value": with_interval(trained, headline.number)[0],
        "interval": with_interval(trained, headline.number)[1],
        "n": trained["n"],
        "chance": headline.number.format(trained["chance"]),
        "over_chance": _over_chance(trained, is_error=headline.is_error),
        "gains": [_gain(headline, name, properties[GAINS[name]], words) for name in others],
        "marks": [
            {
                "name": name,
                "text": with_interval(figure, headline.number),
                "at": place(figure["value"]),
                "from": place(figure.get("low", figure["value"])),
                "to": place(figure.get("high", figure["value"])),
            }
            for name, figure in marks.items()
        ],
    }


def figure_rows(properties: Mapping[str, Any], encoders: Sequence[str], words: Words) -> list[dict[str, Any]]:
    """Every figure with its chance, of every encoder, and what training gained over each of the others."""
    gains = [GAINS[name] for name in encoders if name != "trained"]
    rows = []
    for key, trained in properties["trained"].items():
        if trained["value"] is None:
            continue
        name, number = _name_and_number(key, words)
        chance = trained.get("chance")
        rows.append(
            {
                "name": name,
                "cells": [with_interval(properties[column][key], number) for column in (*encoders, *gains)],
                "chance": "" if chance is None else number.format(chance),
                "n": trained["n"],
                "facts": ", ".join(f"{v} {k.removeprefix('num_')}" for k, v in trained.items() if k.startswith("num_")),
            }
        )
    for name, figure in properties.get("baselines", {}).get(CORRESPONDENCE, {}).items():
        label = f"… {name.replace('_', ' ')}, without any encoder"
        blank = [("", "")] * (len(encoders) + len(gains) - 1)
        cells = [with_interval(figure, "{:.1f}"), *blank]
        rows.append({"name": label, "cells": cells, "chance": "", "n": figure["n"], "facts": ""})
    return rows


def fill_rows(
    properties: Mapping[str, Any], fills: Sequence[str], encoders: Sequence[str], words: Words
) -> list[dict[str, Any]]:
    """Top-1 of every encoder for each fill of the removed square, with the length of its bar in percent."""
    rows = []
    for fill in fills:
        key = "decompositionality" if fill == "black" else f"decompositionality_{fill}"
        figures = {name: properties[name][key] for name in encoders}
        cells = [
            {"encoder": name, "text": with_interval(figure, "{:.1%}"), "bar": round(100 * (figure["value"] or 0), 1)}
            for name, figure in figures.items()
        ]
        rows.append({"name": words.fill(FILLS[fill]), "cells": cells})
    return rows


def label_rows(properties: Mapping[str, Any], encoders: Sequence[str]) -> list[dict[str, Any]]:
    """The probe's figure of every label and encoder, what training gained, and images with and without the label."""
    columns = [*encoders, *(GAINS[name] for name in encoders if name != "trained")]
    return [
        {
            "name": label.replace("_", " "),
            "cells": [with_interval(figures[column], LABELS.number) for column in columns],
            "images": f"{figures['trained']['num_with']} of "
            f"{figures['trained']['num_with'] + figures['trained']['num_without']}",
        }
        for label, figures in properties.get("labels", {}).items()
    ]


def with_interval(figure: Mapping[str, Any], number: str) -> tuple[str, str]:
    """The figure and its interval, which is empty if it has none; a dash if it was not measured."""
    if figure["value"] is None:
        return NOTHING
    names = [name for name in ("value", "low", "high") if name in figure]
    value, *ends = (number.format(figure[name]).replace("-", "\N{MINUS SIGN}") for name in names)
    return value, f"[{', '.join(ends)}]" if ends else ""


def _gain(headline: Headline, name: str, gains: Mapping[str, Any], words: Words) -> dict[str, Any]:
    """What training gained over an encoder; where it is better, the property's other figures that do not say so too."""
    family = headline.key.partition("_")[0]
    verdicts = {
        key: _verdict(gain)
        for key, gain in gains.items()
        if key.partition("_")[0] == family and gain["value"] is not None
    }
    verdict = verdicts[headline.key]
    doubts = [
        {"figure": _name_and_number(key, words)[0].partition(": ")[2], "verdict": found}
        for key, found in verdicts.items()
        if verdict == BETTER != found
    ]
    text = with_interval(gains[headline.key], headline.number)
    return {"over": name, "text": text, "verdict": verdict, "doubts": doubts}


def _verdict(gain: Mapping[str, Any]) -> str:
    if gain["low"] > 0:
        return BETTER
    return WORSE if gain["high"] < 0 else ALIKE


def _over_chance(figure: Mapping[str, Any], *, is_error: bool) -> str:
    low, high = (figure[end] - figure["chance"] for end in ("low", "high"))
    return _verdict({"low": -high, "high": -low} if is_error else {"low": low, "high": high})


def _name_and_number(key: str, words: Words) -> tuple[str, str]:
    """What a figure is called, and how its numbers are written."""
    name, number = FIGURES.get(key, (key.replace("_", " ").replace(" ", ": ", 1).capitalize(), "{:.1%}"))
    return words.fill(name), number
