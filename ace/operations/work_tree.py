"""The tracked files of the service's clone that a delivery changes: params.yaml, dvc.yaml, dvc.lock, its batch file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ace.operations.clone import Clone
from shards.delivery.batches import batch_path, read_batches
from shards.delivery.mixing import Texts, mix_item, with_training, without_batch
from shards.delivery.project import Project
from shards.delivery.yaml_lines import add_item, set_dep
from shards.format.exclusion import exclusion_dep, exclusion_path
from shards.format.layout import BATCHES, MANIFESTS
from shards.runtime.atomic import write_text

PARAMS, DVC, LOCK = "params.yaml", "dvc.yaml", "dvc.lock"


@dataclass(frozen=True)
class WorkTree:
    """The files, as the last commit has them and as a delivery makes them.

    Attributes:
        project: The project's two files.
        clone: The clone that the project is.
        weight: Share in training of an accepted batch.
    """

    project: Project
    clone: Clone
    weight: float

    @property
    def _lock(self) -> Path:
        return self.project.params.with_name(LOCK)

    def values(self) -> Mapping[str, Any]:
        """Read params.yaml as it is now."""
        values: Mapping[str, Any] = _parsed(self.project.params.read_text(encoding="utf-8"))
        return values

    def write(self, texts: Texts) -> None:
        """Write the two files in an order in which a kill between them leaves a graph that runs."""
        for path, text in ((self.project.dvc, texts.dvc), (self.project.params, texts.params)):
            if path.read_text(encoding="utf-8") != text:
                write_text(path, text)

    def texts(self, name: str) -> dict[str, Texts]:
        """Make the project's two files as they are without a batch, with it registered, excluded in part, and accepted.

        They follow from the last commit alone, so that a killed call is finished by doing the same again.
        """
        committed = Texts(*(self.clone.committed(path) or "" for path in (PARAMS, DVC)))
        values = _parsed(committed.params)
        if name in values["batches"]:
            return {"out": without_batch(committed, name, values), "accepted": committed}
        dep = (MANIFESTS / f"{name}.jsonl").as_posix()
        registered = committed._replace(params=add_item(committed.params, "batches", name, dep))
        excluded = registered._replace(dvc=set_dep(registered.dvc, exclusion_dep(name), name, wanted=True))
        texts = {"out": committed, "registered": registered, "excluded": excluded}
        if batch_path(name, self.clone.root).is_file() and name in self.values()["batches"]:
            batches = read_batches(self.project.params, self.values())
            item, _ = mix_item(name, batches[name], self.weight, values, batches)
            accepted = with_training(registered, name, item)
            is_excluded = exclusion_path(name, self.clone.root).is_file()
            texts["accepted"] = accepted._replace(
                dvc=set_dep(accepted.dvc, exclusion_dep(name), name, wanted=is_excluded)
            )
        return texts

    def check(self, name: str | None) -> None:
        """Refuse to work where tracked files are modified, but for what the delivery under way has changed.

        Raises:
            OperationsError: naming the files.
        """
        own: set[str] = set()
        if name is not None:
            known = self.texts(name).values()
            if self.project.params.read_text(encoding="utf-8") in {texts.params for texts in known}:
                own.add(PARAMS)
            if self.project.dvc.read_text(encoding="utf-8") in {texts.dvc for texts in known}:
                own.add(DVC)
            if self._lock.is_file() and self._lock_differs_by(f"shard@{name}"):
                own.add(LOCK)
            own |= {f"{BATCHES}/{name}.yaml", exclusion_dep(name)}
        self.clone.check_unmodified(own)

    def _lock_differs_by(self, stage: str) -> bool:
        """Tell whether dvc.lock has nothing but this stage that the last commit has not."""
        committed = self.clone.committed(LOCK) or ""
        text = mended_lock(self.clone)
        if text == committed:
            return False
        stages = [_stages(committed), _stages(text)]
        for entries in stages:
            entries.pop(stage, None)
        return stages[0] == stages[1]

    def drop_from_lock(self, stage: str) -> None:
        """Remove a stage's lines from dvc.lock."""
        path = self._lock
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            without = re.sub(rf"^  {re.escape(stage)}:\n(?:   .*\n)*", "", text, flags=re.MULTILINE)
            if without != text:
                write_text(path, without)


def mended_lock(clone: Clone) -> str:
    """Return the text of dvc.lock; one that dvc was killed in the moment of writing becomes that of the last commit.

    This loses nothing: dvc has the results of what was done since. A file that is gone counts as the committed one.
    """
    path, committed = clone.root / LOCK, clone.committed(LOCK) or ""
    text = path.read_text(encoding="utf-8") if path.is_file() else committed
    if is_torn(text, committed):
        if committed:
            write_text(path, committed)
        else:
            path.unlink()  # dvc takes no empty one
        return committed
    return text


def is_torn(text: str, committed: str) -> bool:
    """Tell whether dvc was killed in the moment of writing a dvc.lock with this text, by that of the last commit."""
    return text != committed and (committed.startswith(text) or not text.endswith("\n"))


def _stages(text: str) -> dict[str, Any]:
    """Read the stages of a dvc.lock; an empty one has none."""
    return dict((_parsed(text) or {}).get("stages") or {})


@lru_cache(maxsize=8)
def _parsed(text: str) -> Any:
    """Parse a file of the project, which is asked for again and again, and which nobody changes."""
    return YAML(typ="safe", pure=True).load(text)
