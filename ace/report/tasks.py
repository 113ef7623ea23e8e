"""Read what tasks came to: the figures of every encoder that `python -m ace finetune TASK` writes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from shards.core.errors import ConfigError

FIGURES = Path("metrics/finetune")
"""Folder of the figures, a file a task."""
MEASURED, DIFFERENCE = "measured", "gain_over_"
"""Section that says whom the figures are of, and the beginning of those of what the first encoder gains."""
ENDS = ("low", "high")
NUMBERS = ("value", *ENDS, "chance")
Use = tuple[str, str]
"""Method by which an encoder is used (`full`, `linear`, `knn`), and how much is trained on (`25pct`, `5shot`)."""
Figure = Mapping[str, Any]
Uses = Mapping[Use, Mapping[str, Figure]]
"""Use → name → figure."""


@dataclass(frozen=True, kw_only=True)
class TaskMeasured:
    """Says whose images the figures of a task are of.

    Attributes:
        batch: The shard set.
        split: Whose patients: `test`, or `val` to choose settings by.
        num_images: Images measured.
        num_patients: Their patients.
        num_seeds: Seeds that figures are means over.
        num_reads: How often the images were measured, with other settings each time; None where that is not recorded.
        num_training_images: Amount, and the least and the largest number of images that a seed draws for it; empty
            where that is not recorded.
        accept_shared_images: Whether encoders that were pretrained on measured images may take part; None where that
            is not recorded.
    """

    batch: str
    split: str
    num_images: int
    num_patients: int
    num_seeds: int
    num_reads: int | None
    num_training_images: tuple[tuple[str, int, int], ...]
    accept_shared_images: bool | None


@dataclass(frozen=True, kw_only=True)
class TaskFigures:
    """Holds the figures of a task.

    Attributes:
        name: The task, as its file in configs/tasks is named.
        headline: Name of the figure of which there are differences; of one encoder, of its first figure.
        first: The encoder whose differences from the others there are; None where nobody took any.
        uses: Encoder → use → name → figure.
        differences: Encoder → use → name → figure of the first encoder minus that of this one, over the same patients.
        measured: Encoder → whose images its figures are of.
        is_apart: Whether the encoders are of two files, so that nobody says that their images are the same.
    """

    name: str
    headline: str
    first: str | None
    uses: Mapping[str, Uses]
    differences: Mapping[str, Uses]
    measured: Mapping[str, TaskMeasured]
    is_apart: bool = False


def figures_path(task: str, root: Path) -> Path:
    """Return the file of a task's figures in a project."""
    return root / FIGURES / f"{task}.json"


def read_task(path: Path) -> TaskFigures:
    """Read the figures of the task that the file is named after.

    What is recorded as not a number is a figure that is not there.

    Raises:
        ConfigError: there is no such file, or it is none that `finetune` wrote.
    """
    task, remedy = path.stem, f"`dvc repro finetune@{path.stem}` writes it"
    if not path.is_file():
        raise ConfigError(
            f"{path}: not found; {remedy}. `dvc repro` does so before the report once the report depends on it: "
            "`python -m ace encoder list` writes that into dvc.yaml"
        )
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        uses = {name: _uses(own) for name, own in told.items() if _is_encoder(name, own)}
        differences = {
            name.removeprefix(DIFFERENCE): _uses(own) for name, own in told.items() if name.startswith(DIFFERENCE)
        }
        measured = _measured(told[MEASURED])
        every = [*differences.values(), *uses.values()]
        names = [name for own in every for figures in own.values() for name in figures]
        return TaskFigures(
            name=task,
            headline=names[0],
            first=next(iter(uses)) if differences else None,
            uses=uses,
            differences=differences,
            measured=dict.fromkeys(uses, measured),
        )
    except (AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}: found no figures of a task ({type(error).__name__}: {error}); expected encoders with their "
            f"figures, and '{MEASURED}', as `python -m ace finetune {task}` writes them; {remedy} anew"
        ) from None


def task_of_two(task: TaskFigures, first: str, second: str) -> TaskFigures | None:
    """Take two encoders out of a task, with the difference of the first from the second where one was taken.

    Returns:
        Their figures; None if the task has neither.
    """
    both = [name for name in (first, second) if name in task.uses]
    differences: dict[str, Uses] = {}
    if task.first == first and second in task.differences:
        differences[second] = task.differences[second]
    elif task.first == second and first in task.differences:
        differences[second] = {
            use: {name: _negated(figure) for name, figure in own.items()}
            for use, own in task.differences[first].items()
        }
    return _with(task, {name: task.uses[name] for name in both}, first, differences) if both else None


@dataclass(frozen=True)
class Place:
    """Says where one of two encoders that were measured apart has its figures.

    Attributes:
        given: What the page calls it.
        folder: Its tasks, which may not be there.
        encoder: Its name in them.
    """

    given: str
    folder: Path
    encoder: str


def tasks_apart(first: Place, second: Place) -> list[TaskFigures]:
    """Set the tasks that both folders have side by side, one encoder of each; nobody took their differences."""
    found = []
    for path in sorted(first.folder.glob("*.json")):
        if not (second.folder / path.name).is_file():
            continue
        pair = [(place, read_task(place.folder / path.name)) for place in (first, second)]
        own = {place.given: task.uses[place.encoder] for place, task in pair if place.encoder in task.uses}
        measured = {place.given: task.measured[place.encoder] for place, task in pair if place.given in own}
        if own and len({task.headline for _, task in pair}) == 1:
            found.append(replace(pair[0][1], first=None, uses=own, differences={}, measured=measured, is_apart=True))
    return found


def _with(task: TaskFigures, uses: Mapping[str, Uses], first: str, differences: Mapping[str, Uses]) -> TaskFigures:
    measured = {name: task.measured[name] for name in uses}
    told = first if differences else None
    return replace(task, first=told, uses=uses, differences=differences, measured=measured)


def _is_encoder(name: str, section: Any) -> bool:
    return isinstance(section, Mapping) and name != MEASURED and not name.startswith(DIFFERENCE)


def _uses(section: Mapping[str, Any]) -> Uses:
    return {
        (method, amount): {name: _figure(figure) for name, figure in figures.items()}
        for method, amounts in section.items()
        for amount, figures in amounts.items()
    }


def _figure(told: Mapping[str, Any]) -> Figure:
    """Leave out numbers that are none, and an interval that lacks an end."""
    figure = {key: number for key, number in told.items() if key not in NUMBERS or _is_number(number)}
    if "value" not in figure:
        return {"value": None, "reason": str(told.get("reason") or "it is not a number")}
    if not all(end in figure for end in ENDS):
        return {key: number for key, number in figure.items() if key not in ENDS}
    return figure


def _is_number(found: Any) -> bool:
    return found is not None and isfinite(found)


def _negated(figure: Figure) -> Figure:
    """Turn a difference round; 0 stays 0, without a sign."""
    opposite = {"value": "value", "low": "high", "high": "low"}
    numbers = {key: 0.0 - figure[other] for key, other in opposite.items() if figure.get(other) is not None}
    return {**figure, **numbers}


def _measured(told: Mapping[str, Any]) -> TaskMeasured:
    reads, shared = told.get("num_reads"), told.get("accept_shared_images")
    if shared is not None and not isinstance(shared, bool):
        raise ValueError(f"accept_shared_images is {shared!r:.40}, and not true or false")
    drawn = dict(told.get("num_training_images", {}))
    return TaskMeasured(
        batch=str(told["batch"]),
        split=str(told["split"]),
        num_images=_count(told["num_images"]),
        num_patients=_count(told["num_patients"]),
        num_seeds=_count(told["num_seeds"]),
        num_reads=None if reads is None else _count(reads),
        num_training_images=tuple(
            (str(amount), _count(least), _count(most)) for amount, (least, most) in drawn.items()
        ),
        accept_shared_images=shared,
    )


def _count(found: Any) -> int:
    """Return a count as it is told; a text or a part of one would be shown as another number.

    Raises:
        ValueError: it is none.
    """
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise ValueError(f"{found!r:.40} is no count")
    return found
