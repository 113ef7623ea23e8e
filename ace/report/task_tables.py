"""Arrange the figures of a task as the page shows them: encoders below one another, uses of labels side by side."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import nan
from textwrap import fill
from typing import Any

from ace.drawing.plots import interval_chart
from ace.drawing.words import NOTHING, encoder_name, with_interval
from ace.report.comparison import Cell
from ace.report.tables import ALIKE, BETTER, WORSE, verdict_of
from ace.report.tasks import Figure, TaskFigures, TaskMeasured, Use

OPPOSITE = {BETTER: WORSE, WORSE: BETTER, ALIKE: ALIKE}
PANELS, TITLE_WIDTH, NAME_WIDTH = 4, 22, 24
"""Panels of one picture, and letters of a line of a panel's title and of an encoder's name in it."""
PANEL_PX, MARGIN_PX = 165, 130
"""Width of a panel, and of the names beside the first one, at which a picture is as large as the page's small text."""


@dataclass(frozen=True, kw_only=True)
class FigureWords:
    """Says what the page calls a figure of tasks.

    Attributes:
        title: Name of the figure in headings and tables.
        number: Format of its numbers.
        is_error: Whether less is better; None where this page does not know.
        text: What it is, as the end of a sentence.
    """

    title: str
    number: str = "{:.3f}"
    is_error: bool | None = False
    text: str = ""


WORDS = {
    "auroc": FigureWords(
        title="AUROC", text="how often an image with the label is given more than one without it; guessing gives 0.5"
    ),
    "auprc": FigureWords(title="average precision", text="the area under precision over recall"),
    "calibration_error": FigureWords(
        title="calibration error",
        is_error=True,
        text="how far the given probabilities are from the share that is true; resampling makes such gaps larger, so "
        "that its interval may lie above it",
    ),
    "accuracy": FigureWords(
        title="accuracy", number="{:.1%}", text="the share of images that are given the right class"
    ),
    "kappa": FigureWords(
        title="quadratic kappa",
        text="agreement of grades beyond chance, where a miss counts by its square; 1 is the most",
    ),
    "pointing_game": FigureWords(
        title="pointing game",
        number="{:.1%}",
        text="how often the hottest pixel of the network's map (Grad-CAM) lies in the truth",
    ),
    "dice": FigureWords(
        title="Dice", text="twice the overlap with the truth over the sum of both areas; 1 is the most"
    ),
    "dice_where_present": FigureWords(title="Dice where present", text="Dice over the images that have the structure"),
    "dice_over_set": FigureWords(title="Dice over the set", text="Dice of all pixels of all images together"),
    "iou": FigureWords(title="IoU", text="the overlap with the truth over the union; 1 is the most"),
    "iou_over_set": FigureWords(title="IoU over the set", text="IoU of all pixels of all images together"),
    "hd95_px_at_1024": FigureWords(
        title="HD95, px",
        number="{:.1f}",
        is_error=True,
        text="the distance of the outlines (95th percentile), in px of a 1024-px canvas",
    ),
    "hd95_mm": FigureWords(
        title="HD95, mm",
        number="{:.2f}",
        is_error=True,
        text="the distance of the outlines (95th percentile), in mm at the detector",
    ),
    "found": FigureWords(
        title="landmarks found", number="{:.1%}", text="the share that is found within the task’s radius"
    ),
    "error_px_at_1024": FigureWords(
        title="landmark error, px",
        number="{:.1f}",
        is_error=True,
        text="the mean distance of a landmark from the truth, in px of a 1024-px canvas",
    ),
    "error_mm": FigureWords(
        title="landmark error, mm",
        number="{:.2f}",
        is_error=True,
        text="the mean distance of a landmark from the truth, in mm at the detector",
    ),
}
"""Figure, without the `/` behind which stands what it is of → what the page calls it."""
OVERLAP_OF_MAP = re.compile(r"(iou|iobb)_at_([\d_]+)pct")
MAPS = {
    "iou": ("IoU", "of the pixels with at least so much of the map's largest value: those in the truth over either"),
    "iobb": ("IoBB", "of these pixels, the share that lies in the truth"),
}
METHODS = {
    "full": ("trained in full", "encoder and head are trained together"),
    "linear": ("linear probe", "a logistic regression reads the frozen encoder’s embedding of the image"),
    "knn": (
        "nearest neighbours",
        "the nearest training images vote (kNN), by the frozen encoder’s embedding",
    ),
}
"""Method → what the page calls it, and what it does."""
FULL_OF = {
    "dice": "encoder and a UPerNet decoder are trained together to draw masks",
    "found": "encoder and a UPerNet decoder are trained together to draw a heat map for each landmark",
}
"""Headline → what training in full does where masks or landmarks are learned."""
SINGULAR = {"labels": "label", "structures": "structure", "images": "image", "outlines": "outline"}


@dataclass(frozen=True, kw_only=True)
class TaskColumn:
    """Describe a column: one figure of one use.

    Attributes:
        use: The use.
        figure: Name of the figure.
        words: What the page calls it.
        protocol: Whom it is of, the counts behind it, and what guessing gives; empty where that is not the same for
            all encoders.
    """

    use: Use
    figure: str
    words: FigureWords
    protocol: str

    @property
    def amount(self) -> str:
        """Say how much is trained on."""
        return amount_words(self.use[1])

    @property
    def direction(self) -> str:
        """Say which way is better."""
        return "" if self.words.is_error is None else f"{'less' if self.words.is_error else 'more'} is better"


@dataclass(frozen=True, kw_only=True)
class TaskTable:
    """Hold what the page shows of a task.

    Attributes:
        name: The task, as its file in configs/tasks is named.
        anchor: The `id` of its section, which links of the page lead to.
        first: The encoder whose differences from the others stand in the cells; None where there are none.
        headline: What the page calls the figure of which there are differences.
        groups: Words above the columns, and how many columns each is above.
        columns: The headline of every use; of a single use all means.
        rows: Encoder → its cells, in the order of the columns; None for one that the task does not have.
        tally: Encoder → verdict → number of columns in which the first encoder is so.
        methods: What each method is called, and what it does.
        told: What each figure is called, and what it is.
        every: All figures of all uses: the use, and its rows for the page.
        measured: Whose images: encoders, and what is known of them; one pair where that is the same of all.
        is_apart: Whether the encoders are of two files.
        pictures: Figures with their intervals, and the width of each in px.
    """

    name: str
    anchor: str
    first: str | None
    headline: str
    groups: Sequence[tuple[str, int]]
    columns: Sequence[TaskColumn]
    rows: Mapping[str, tuple[Cell, ...] | None]
    tally: Mapping[str, Mapping[str, int]]
    methods: Sequence[tuple[str, str]]
    told: Sequence[tuple[str, str]]
    every: Sequence[tuple[str, list[dict[str, Any]]]]
    measured: Sequence[tuple[tuple[str, ...], TaskMeasured]]
    is_apart: bool
    pictures: Sequence[tuple[str, int]]

    @property
    def judged(self) -> int:
        """Count the uses of which there are differences."""
        return max((sum(counts.values()) for counts in self.tally.values()), default=0)

    @property
    def is_of_same_images(self) -> bool:
        """Tell whether all encoders were measured on the same images: not of two files, though both may say alike."""
        return len(self.measured) == 1 and not self.is_apart

    @property
    def is_recorded(self) -> bool:
        """Tell whether the figures say on how many images the encoders were trained, and on whose they may be."""
        return all(facts.accept_shared_images is not None for _, facts in self.measured)

    @property
    def is_of_one_use(self) -> bool:
        """Tell whether all columns are of one use."""
        return len({column.use for column in self.columns}) == 1


def task_table(task: TaskFigures, encoders: Sequence[str], number: int = 0, *, is_drawn: bool = True) -> TaskTable:
    """Arrange a task.

    Args:
        task: Figures of the task.
        encoders: Names of the page's encoders, in its order; others that the task has come behind them.
        number: Position of the task on the page.
        is_drawn: Whether intervals are drawn too.
    """
    names = list(dict.fromkeys((*encoders, *task.uses)))
    uses = list(dict.fromkeys(use for own in task.uses.values() for use in own))
    means = list(
        dict.fromkeys(
            name for own in task.uses.values() for figures in own.values() for name in figures if "/" not in name
        )
    )
    shown = [task.headline, *(name for name in means if name != task.headline)] if len(uses) == 1 else [task.headline]
    columns = tuple(
        TaskColumn(use=use, figure=name, words=words_of(name), protocol=_protocol_of_all(task, use, name))
        for use in uses
        for name in shown
    )
    rows = {
        name: tuple(_cell(task, name, column) for column in columns) if name in task.uses else None for name in names
    }
    methods = dict.fromkeys(method for method, _ in uses)
    anchor = f"task-{number}"
    return TaskTable(
        name=task.name,
        anchor=anchor,
        first=task.first,
        headline=words_of(task.headline).title,
        groups=_groups(uses, columns),
        columns=columns,
        rows=rows,
        tally={
            name: dict(Counter(cell.verdict for cell in cells if cell.verdict is not None))
            for name, cells in rows.items()
            if cells is not None and name in task.differences
        },
        methods=[_method(method, task.headline) for method in methods],
        told=[(words.title, words.text) for words in map(words_of, means) if words.text],
        every=[(_use_words(use), _figure_rows(task, use, names)) for use in uses],
        measured=[
            (tuple(name for name in task.measured if task.measured[name] == facts), facts)
            for facts in dict.fromkeys(task.measured.values())
        ],
        is_apart=task.is_apart,
        pictures=_pictures(task, encoders, columns, anchor) if is_drawn else (),
    )


def words_of(figure: str) -> FigureWords:
    """Return what the page calls a figure; one that it does not know is called as it is, and is not judged."""
    name, _, of = figure.partition("/")
    if found := OVERLAP_OF_MAP.fullmatch(name):
        title, text = MAPS[found[1]]
        words = FigureWords(title=f"{title} of the map at {found[2].replace('_', '.')} %", text=text)
    else:
        words = WORDS.get(name, FigureWords(title=name.replace("_", " "), is_error=None))
    return (
        FigureWords(title=f"{words.title}: {of}", number=words.number, is_error=words.is_error, text=words.text)
        if of
        else words
    )


def amount_words(amount: str) -> str:
    """Say how much is trained on."""
    if share := re.fullmatch(r"(\d+(?:_\d+)?)pct", amount):
        return f"{share[1].replace('_', '.')} % of the training patients"
    if shots := re.fullmatch(r"(\d+)shot", amount):
        return f"{shots[1]} training image{'' if shots[1] == '1' else 's'} a class"
    return amount


def task_markdown(table: TaskTable) -> str:
    """Write a task's table in Markdown, for the terminal."""
    heads = [f"{_use_words(column.use)}: {column.words.title}" for column in table.columns]
    lines = [["encoder", *heads], ["---", *("---:" for _ in heads)]]
    for name, cells in table.rows.items():
        gains = [f"<br>{table.first} minus it {' '.join(cell.gain)}" if cell.gain else "" for cell in cells or ()]
        told = [f"{' '.join(cell.text)}{gain}" for cell, gain in zip(cells or (), gains, strict=True)]
        lines.append([name, *(told or [NOTHING[0]] * len(heads))])
    return "\n".join([f"task {table.name}:", "", *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"


def _cell(task: TaskFigures, name: str, column: TaskColumn) -> Cell:
    figure, words = _find(task.uses[name], column), column.words
    others = [_find(own, column)["value"] or 0.0 for own in task.uses.values()]
    top = max(others)
    bar = round(100 * max(figure["value"] or 0.0, 0.0) / top, 1) if top > 0 else 0.0
    if figure["value"] is None:
        return Cell(text=(NOTHING[0], str(figure["reason"])), bar=0.0, gain=None, verdict=None)
    difference = _find(task.differences.get(name, {}), column)
    gain = None if difference["value"] is None else with_interval(difference, words.number)
    return Cell(text=with_interval(figure, words.number), bar=bar, gain=gain, verdict=_verdict(difference, words))


def _find(uses: Mapping[Use, Mapping[str, Figure]], column: TaskColumn) -> Figure:
    return uses.get(column.use, {}).get(column.figure, {"value": None, "reason": "not measured"})


def _verdict(difference: Figure, words: FigureWords) -> str | None:
    """Say what the interval of a difference shows, where it has one and the figure a direction."""
    if words.is_error is None or "low" not in difference:
        return None
    verdict = verdict_of(difference)
    return OPPOSITE[verdict] if words.is_error else verdict


def _protocol_of_all(task: TaskFigures, use: Use, name: str) -> str:
    found = [own[use][name] for own in task.uses.values() if name in own.get(use, {})]
    told = {_protocol(figure, words_of(name)) for figure in found if figure["value"] is not None}
    return told.pop() if len(told) == 1 else ""


def _protocol(figure: Figure, words: FigureWords) -> str:
    counts = [_counted("patients", figure["n"]) if "n" in figure else "", _facts(figure)]
    if "chance" in figure:
        counts.append(f"chance {words.number.format(figure['chance'])}")
    return ", ".join(part for part in counts if part)


def _facts(figure: Figure) -> str:
    facts = {key.removeprefix("num_"): value for key, value in figure.items() if key.startswith("num_")}
    return ", ".join(
        f"mean of {value} {key}" if key in ("labels", "structures") and value != 1 else _counted(key, value)
        for key, value in facts.items()
    )


def _counted(noun: str, number: Any) -> str:
    one = {**SINGULAR, "patients": "patient"}.get(noun, noun)
    return f"{number} {one if number == 1 else noun.replace('_', ' ')}"


def _method(method: str, headline: str) -> tuple[str, str]:
    title, text = METHODS.get(method, (method, ""))
    return title, FULL_OF.get(headline, text) if method == "full" else text


def _use_words(use: Use) -> str:
    method, amount = use
    return f"{METHODS.get(method, (method, ''))[0]}, {amount_words(amount)}"


def _groups(uses: Sequence[Use], columns: Sequence[TaskColumn]) -> list[tuple[str, int]]:
    """Head the columns: of a single use with it, of several with their method."""
    if len(uses) == 1:
        return [(_use_words(uses[0]), len(columns))]
    methods = [column.use[0] for column in columns]
    return [(METHODS.get(method, (method, ""))[0], len(list(own))) for method, own in groupby(methods)]


def _figure_rows(task: TaskFigures, use: Use, names: Sequence[str]) -> list[dict[str, Any]]:
    figures = dict.fromkeys(name for own in task.uses.values() for name in own.get(use, {}))
    rows = []
    for name in figures:
        words = words_of(name)
        cells = [
            with_interval(task.uses.get(encoder, {}).get(use, {}).get(name, {"value": None}), words.number)
            for encoder in names
        ]
        rows.append({"name": words.title, "cells": cells, "protocol": _protocol_of_all(task, use, name)})
    return rows


def _pictures(
    task: TaskFigures, encoders: Sequence[str], columns: Sequence[TaskColumn], anchor: str
) -> list[tuple[str, int]]:
    """Draw the page's encoders in its order and colours, some columns a picture."""
    known = [c for c in columns if any(_find(task.uses.get(name, {}), c)["value"] is not None for name in encoders)]
    pictures = []
    for start in range(0, len(known), PANELS):
        shown = known[start : start + PANELS]
        panels = {
            _panel_title(column, columns): [_interval(task, name, column) for name in encoders] for column in shown
        }
        svg = interval_chart(panels, [_short(encoder_name(name)) for name in encoders])
        pictures.append((_with_ids(svg, f"{anchor}-{start}"), MARGIN_PX + PANEL_PX * len(panels)))
    return pictures


def _panel_title(column: TaskColumn, columns: Sequence[TaskColumn]) -> str:
    """Name a column; a dollar sign would begin a formula."""
    is_of_one_use = len({other.use for other in columns}) == 1
    title = column.words.title if is_of_one_use else f"{column.words.title}, {_use_words(column.use)}"
    return fill(title, TITLE_WIDTH).replace("$", r"\$")


def _interval(task: TaskFigures, name: str, column: TaskColumn) -> tuple[float, float, float]:
    figure = _find(task.uses.get(name, {}), column)
    value, low, high = (figure.get(end) for end in ("value", "low", "high"))
    if value is None:
        return nan, nan, nan
    return value, value if low is None else low, value if high is None else high


def _short(name: str) -> str:
    return name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 1]}\N{HORIZONTAL ELLIPSIS}"


def _with_ids(svg: str, prefix: str) -> str:
    """Set apart the ids of a picture, of which the page has several of one kind."""
    return re.sub(r'((?:\sid|href)="#?|url\(#)(?=\w)', rf"\1{prefix}-", svg)
