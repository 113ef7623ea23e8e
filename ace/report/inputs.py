"""Read the files that the other stages left, once, for the report."""

import io
import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from platform import machine, python_version, system
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from ace.models.folder import CONFIG
from ace.models.model_config import ImportedConfig, TrainedConfig, read_config
from ace.report.tasks import TaskFigures, figures_path, read_task
from shards.core.errors import ConfigError
from shards.reading.reader import ShardIndex

PAGE_IS_OF = ("models/ace", "data/evidence", "metrics/properties.json")
"""Outs that the page shows, beside the shard sets and the figures of tasks."""
PARAMS_WIDTH = 120
"""Characters of a line of params.yaml on the page."""
VERSIONS = ("torch", "torchvision", "timm", "numpy", "pillow", "webdataset", "dvc")
Arrays = Mapping[str, Any]


@dataclass(frozen=True)
class ReportInputs:
    """A project's folder with everything that the stages before `report` wrote.

    Attributes:
        root: The folder.
        tasks: Names of the tasks whose figures the page shows.
    """

    root: Path
    tasks: tuple[str, ...] = ()

    @cached_property
    def batches(self) -> list[ShardIndex]:
        """The shard sets that the model was configured with, and the one that was measured, by name.

        Raises:
            IndexFormatError: one is missing or damaged.
        """
        names = sorted({*self.model_config.mixes, self.protocol["batch"]})
        return [self._opened(name) for name in names]

    @cached_property
    def measured(self) -> ShardIndex:
        """The shard set that the evidence is of."""
        return self._opened(self.protocol["batch"])

    def _opened(self, name: str) -> ShardIndex:
        return ShardIndex.open(self.root / "data/shards" / name).without_excluded(self.root)

    @property
    def trained_on(self) -> list[ShardIndex]:
        """The shard sets that the training drew from."""
        mixes = self.model_config.mixes
        return [index for index in self.batches if index.name in mixes and mixes[index.name].weight > 0]

    @property
    def virtual(self) -> list[str]:
        """The names of those shard sets whose images were rendered from the built-in phantom."""
        return [index.name for index in self.batches if index.dataset.kind == "phantom"]

    @cached_property
    def properties(self) -> dict[str, Any]:
        """metrics/properties.json."""
        return self._json("metrics/properties.json", "dvc repro evaluate")

    @cached_property
    def task_figures(self) -> list[TaskFigures]:
        """The figures of each task, in the order of the tasks.

        Raises:
            ConfigError: its figures are not there or damaged.
        """
        return [read_task(figures_path(name, self.root)) for name in self.tasks]

    @property
    def task_batches(self) -> set[str]:
        """The names of the shard sets that tasks were trained and measured on."""
        return {facts.batch for task in self.task_figures for facts in task.measured.values()}

    @property
    def encoders(self) -> list[str]:
        """The encoders that were measured; gains are those of the first one."""
        return list(self.protocol["encoders"])

    @cached_property
    def model_config(self) -> TrainedConfig:
        """config.json of the model.

        Raises:
            ConfigError: it is not there or damaged, or others trained the model, so that there is no training to report
                on.
        """
        config = read_config(self._file(f"models/ace/{CONFIG}", "dvc repro pretrain").parent)
        if isinstance(config, ImportedConfig):
            raise ConfigError(
                f"{self.root / 'models/ace'}: found an imported model, but the report describes a training; "
                "`python -m ace summary` prints what `python -m ace evaluate` measured of it"
            )
        return config

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """The section `evaluate` as it was when the evidence was made."""
        return self._json("data/evidence/protocol.json", "dvc repro evaluate")

    @cached_property
    def log(self) -> list[dict[str, float]]:
        """Logged rows of the training, oldest first."""
        text = (self.root / "models/ace/metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    @cached_property
    def phantom(self) -> dict[str, Any] | None:
        """dataset.json of the built-in dataset, if the model or the evidence has to do with it."""
        if not self.virtual:
            return None
        path = self.root / "data/phantom/dataset.json"
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None

    def evidence(self, name: str) -> Arrays:
        """Return one file of arrays that `evaluate` kept.

        Raises:
            ConfigError: it is not there.
        """
        with np.load(self._file(f"data/evidence/{name}.npz", "dvc repro evaluate"), allow_pickle=False) as arrays:
            return dict(arrays)

    @cached_property
    def params_text(self) -> str:
        """params.yaml, or nothing: its values, but for those of data that this model has nothing to do with.

        Its comments are left out, for they are on whatever data the configuration was first made for.
        """
        path = self.root / "params.yaml"
        if not path.is_file():
            return ""
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        if not self.virtual:
            values.pop("phantom", None)
        names = {index.name for index in self.batches} | self.task_batches
        for section in {"batches", "mix"} & values.keys():
            values[section] = {name: item for name, item in values[section].items() if name in names}
        writer, text = YAML(), io.StringIO()
        writer.width = PARAMS_WIDTH
        writer.dump(values, text)
        return text.getvalue()

    @cached_property
    def locked_outs(self) -> list[tuple[str, str, str, int]]:
        """(stage, path, md5, bytes) of every out in dvc.lock that model, evidence and tasks are or come from."""
        path = self.root / "dvc.lock"
        lock = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        stages = (lock or {}).get("stages", {})
        tasks = (figures_path(name, Path()).as_posix() for name in self.tasks)
        shards = (f"data/shards/{index.name}" for index in self.batches)
        sources = _sources(stages, [*PAGE_IS_OF, *tasks, *shards])
        return [
            (stage, out["path"], out["md5"], int(out.get("size", 0)))
            for stage, record in stages.items()
            for out in record.get("outs", [])
            if stage in sources and "md5" in out
        ]

    @cached_property
    def commit(self) -> str:
        """The git commit checked out as the report is drawn, and whether tracked files differ from it."""
        head = self._git("rev-parse", "HEAD")
        if head is None:
            return "not a git checkout"
        changed = self._git("status", "--porcelain", "--untracked-files=no")
        return f"{head} with uncommitted changes" if changed else head

    @cached_property
    def versions(self) -> dict[str, str]:
        """Return the versions of what ran, by name."""
        return {
            "python": python_version(),
            **{name: version(name) for name in VERSIONS},
            "machine": f"{system()} {machine()}",
        }

    def _json(self, name: str, command: str) -> dict[str, Any]:
        return dict(json.loads(self._file(name, command).read_text(encoding="utf-8")))

    def _file(self, name: str, command: str) -> Path:
        path = self.root / name
        if not path.is_file():
            raise ConfigError(f"{path}: not found; run `{command}`")
        return path

    def _git(self, *arguments: str) -> str | None:
        command = ["git", "-C", str(self.root), *arguments]
        try:
            result = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return result.stdout.strip()


def _sources(stages: Mapping[str, Any], paths: Iterable[str]) -> set[str]:
    """Return the stages of dvc.lock that made the paths, and those that made what these stages read."""
    made_by = {PurePosixPath(out["path"]): name for name, record in stages.items() for out in record.get("outs", [])}
    found: set[str] = set()
    left = [PurePosixPath(path) for path in paths]
    while left:
        path = left.pop()
        for name in {made_by[out] for out in (path, *path.parents) if out in made_by} - found:
            found.add(name)
            left += [PurePosixPath(dep["path"]) for dep in stages[name].get("deps", [])]
    return found
