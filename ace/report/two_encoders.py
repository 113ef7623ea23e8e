"""Draw a page of two encoders alone: of one project, over the same patients, or of two files of metrics."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ace.drawing.words import Words, encoder_name
from ace.evaluation.measured import MEASURED
from ace.properties.base import gain_key
from ace.report.comparison import compare_encoders, markdown_table
from ace.report.page import FOLDER, SIGNS, environment_of
from ace.report.summary import encoders_of, measured_one
from ace.report.tables import figure_rows
from ace.report.task_tables import task_markdown, task_table
from ace.report.tasks import FIGURES, Place, TaskFigures, tasks_apart
from shards.core.errors import ConfigError
from shards.runtime.atomic import write_text

CANDIDATES = "num_candidates"
"""Key of the number of candidates that an answer is chosen from; shares of right answers among different numbers are
not to be compared."""


def write_comparison(
    figures: Mapping[str, Any],
    measured: Mapping[str, Mapping[str, Any]],
    out: Path,
    tasks: Sequence[TaskFigures] = (),
) -> str:
    """Draw a page of two encoders alone, and return its tables in Markdown, for the terminal.

    Args:
        figures: As in metrics/properties.json, of these two; without gains if they were measured apart.
        measured: Encoder → the section `measured` of its metrics.
        out: The HTML file.
        tasks: Figures of tasks, of these two.
    """
    compared = list(measured)
    first = next(iter(measured.values()))
    words = Words(one=measured_one(first))
    comparison = compare_encoders(figures, compared, words)
    is_paired = gain_key(compared[1]) in figures
    tables = [task_table(task, compared, number, is_drawn=False) for number, task in enumerate(tasks)]
    context = {
        "title": " and ".join(encoder_name(name) for name in compared),
        "style": (FOLDER / "style.css").read_text(encoding="utf-8"),
        "words": words,
        "comparison": comparison,
        "compared": compared,
        "told": dict.fromkeys(compared, ""),
        "anchors": [],
        "signs": SIGNS,
        "encoders": compared,
        "figures": figure_rows(figures, compared, words),
        "has_gains": is_paired,
        "tasks": tables,
        "cohorts": measured,
        "unknown": sorted({name for own in measured.values() for name in own.get("batches_without_patients", ())}),
    }
    write_text(out, environment_of(compared).get_template("compare.html").render(context))
    return "\n".join([markdown_table(comparison), *map(task_markdown, tables)])


def read_apart(first: str, second: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take one encoder each out of two files of metrics.

    Args:
        first: A file of metrics, or a folder with `properties.json`, as `studies/phantom`; `:NAME` behind it says which
            encoder, by default its first one.
        second: Likewise.

    Returns:
        Metrics of the two under the names given, with the figures that both have, among as many candidates, and no
        gains; and of each the section that says whom it was measured on.

    Raises:
        ConfigError: there is no such file or encoder, or both are the same.
    """
    if first == second:
        raise ConfigError(f"--compare {first} {second}: expected two different ones")
    figures, measured = {}, {}
    for given in (first, second):
        path, name = _place(given)
        if not path.is_file():
            raise ConfigError(
                f"--compare {given}: neither an encoder of params.yaml nor a file of metrics; expected two of "
                "`encoders`, or two files or folders of studies, as studies/phantom:paper"
            )
        found = json.loads(path.read_text(encoding="utf-8"))
        name = name or encoders_of(found)[0]
        if name not in encoders_of(found):
            raise ConfigError(f"{path}: has no encoder '{name}'; it has {', '.join(encoders_of(found))}")
        figures[given], measured[given] = found[name], found[MEASURED]
    in_both = [key for key in figures[first] if key in figures[second]]
    numbers = {key: {own[key][CANDIDATES] for own in figures.values() if CANDIDATES in own[key]} for key in in_both}
    shared = [key for key in in_both if len(numbers[key]) <= 1]
    return {name: {key: own[key] for key in shared} for name, own in figures.items()}, measured


def read_tasks_apart(first: str, second: str) -> list[TaskFigures]:
    """Take the same two encoders out of the tasks that lie beside both files of metrics, in a folder `finetune`.

    Args:
        first: As `read_apart` takes it, and has found it.
        second: Likewise.

    Raises:
        ConfigError: a file of a task is damaged.
    """
    places = []
    for given in (first, second):
        path, name = _place(given)
        name = name or encoders_of(json.loads(path.read_text(encoding="utf-8")))[0]
        places.append(Place(given, path.parent / FIGURES.name, name))
    return tasks_apart(*places)


def _place(given: str) -> tuple[Path, str]:
    """Return the file of metrics that was given, and the name of the encoder behind it, if there is one."""
    place, _, name = given.partition(":")
    return Path(place) / "properties.json" if Path(place).is_dir() else Path(place), name
