"""The page of a task: its table, and of every encoder the images that it answers best, middling and worst.

One file that needs no network. It shows patients' images, so it lies among the data, never in git.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Float

from ace.downstream.base import Task
from ace.downstream.params import TaskParams
from ace.drawing.pictures import data_uri
from ace.drawing.words import encoder_name, with_interval
from shards.core.canvas import Canvas
from shards.runtime.atomic import write_text

PICTURE_PX = 256


@dataclass(frozen=True)
class Example:
    """Shows an image beside what is true of it and what was answered.

    Attributes:
        title: `best`, `median` or `worst`.
        key: The image's key in the shard set.
        image: Its canvas, grey or RGB levels.
        answer: What `Task.shown_answer` returns.
    """

    title: str
    key: str
    image: Canvas
    answer: Mapping[str, Any]

    @property
    def pictures(self) -> list[str]:
        """Return the image, and what is laid over it, as data URIs."""
        shown = [self.image, *([self.answer["overlay"]] if "overlay" in self.answer else [])]
        return [data_uri(pixels, kind="jpeg", max_px=PICTURE_PX) for pixels in shown]


def choose_examples(losses: Float[np.ndarray, " images"], num_examples: int) -> list[tuple[str, int]]:
    """Choose some images with the least, the middle and the greatest losses, each image once."""
    order = np.argsort(losses, kind="stable").tolist()
    num = min(num_examples, max(1, len(order) // 3))
    start = (len(order) - num) // 2
    groups = {"best": order[:num], "median": order[start : start + num], "worst": order[::-1][:num]}
    chosen = {image: title for title, images in reversed(groups.items()) for image in images}
    return [(title, image) for title, images in groups.items() for image in images if chosen[image] == title]


def write_page(
    path: Path,
    name: str,
    task: Task[TaskParams],
    table: Mapping[str, Any],
    facts: Mapping[str, Any],
    examples: Mapping[str, Sequence[Example]],
) -> None:
    """Write the page.

    Args:
        path: The HTML file.
        name: Name of the task, the page's title.
        task: Parameters of the task, as its file and common.yaml give them.
        table: What `tabulate` returns.
        facts: Whose figures they are.
        examples: Encoder → examples.
    """
    rows = [
        {
            "encoder": encoder_name(encoder).replace("_", " "),
            "use": f"{method}, {amount}",
            "cells": [with_interval(figure, "{:.3f}") for figure in _by_name(scores, columns(table))],
        }
        for encoder, methods in table.items()
        for method, amounts in methods.items()
        for amount, scores in amounts.items()
    ]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    values = {"name": name, "task": task, "columns": columns(table), "rows": rows, "facts": facts}
    write_text(path, environment.get_template("page.html").render(**values, examples=examples))


def columns(table: Mapping[str, Any]) -> list[str]:
    """Name the figures of the first use."""
    first = next(iter(next(iter(next(iter(table.values())).values())).values()))
    return list(first)


def _by_name(scores: Mapping[str, Any], names: Sequence[str]) -> list[Mapping[str, Any]]:
    return [scores.get(name, {"value": None}) for name in names]
