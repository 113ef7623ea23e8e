"""The page of a task: its table, and of every encoder the images that it answers best, middling and worst.

One file that needs no network. It shows patients' images, so it lies among the data, never in git.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ace.downstream.base import Task
from ace.downstream.examples import Example
from ace.downstream.params import TaskParams
from ace.drawing.words import encoder_name, with_interval
from shards.runtime.atomic import write_text


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
    """Name the figures that any use has, in their order."""
    uses = [scores for methods in table.values() for amounts in methods.values() for scores in amounts.values()]
    return list(dict.fromkeys(name for scores in uses for name in scores))


def _by_name(scores: Mapping[str, Any], names: Sequence[str]) -> list[Mapping[str, Any]]:
    return [scores.get(name, {"value": None}) for name in names]
