"""The kinds of tasks, one line each, and the files of tasks under configs/tasks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ace.downstream.base import Task
from ace.downstream.classification import Classification
from ace.downstream.landmarks import Landmarks
from ace.downstream.params import TaskParams
from ace.downstream.segmentation import Segmentation
from shards.core.config import laid_over, read_params
from shards.core.errors import ConfigError

TASKS: tuple[type[Task[Any]], ...] = (Classification, Segmentation, Landmarks)
FOLDER, COMMON = Path("configs/tasks"), "common"
"""Folder of the task files, and the name of the file that holds the defaults of each kind of task."""


def read_task(name: str, project: Path = Path(), batch: str | None = None) -> Task[TaskParams]:
    """Read configs/tasks/NAME.yaml, laid over what configs/tasks/common.yaml has for its kind of task.

    Args:
        name: Name of the task.
        project: The folder of params.yaml.
        batch: Another shard set than the file's.

    Raises:
        ConfigError: there is no such task, or the file is wrong.
    """
    folder = project / FOLDER
    known = sorted(path.stem for path in folder.glob("*.yaml") if path.stem != COMMON)
    if name not in known:
        raise ConfigError(f"task '{name}' is not in {folder}; there are: {', '.join(known) or 'none'}")
    own = read_params(folder / f"{name}.yaml")
    values = laid_over(read_params(folder / f"{COMMON}.yaml").get(str(own.get("kind")), {}), own)
    return task_of(values if batch is None else {**values, "batch": batch}, f"{folder / name}.yaml")


def task_of(values: Mapping[str, Any], where: str) -> Task[TaskParams]:
    """Make a task of the values of its file; `where` opens every message.

    Raises:
        ConfigError: there is no such kind of task, or a value is wrong.
    """
    kinds = {task.kind: task for task in TASKS}
    kind = values.get("kind")
    if kind not in kinds:
        raise ConfigError(f"{where}: kind is {kind!r}; expected one of {', '.join(kinds)}")
    task: Task[TaskParams] = kinds[kind](kinds[kind].params_type.from_params(values, where))
    return task
