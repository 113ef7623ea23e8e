"""Objects of DVC that hold images of a batch: find them in all history, and remove those that nothing else needs."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ace.gate.params import MODEL
from ace.operations.clone import git
from ace.operations.errors import OperationsError
from ace.operations.events import LOG, Event
from ace.operations.work_tree import LOCK
from shards.core.config import parse_yaml
from shards.delivery.yaml_lines import SHARDS

MODELS = f"{Path(MODEL).parent}/"
"""Folder of models, whose weights are a matter of decision and not of erasure."""
ERASED_OBJECTS = LOG.with_name("erased")
"""Folder of the lists of objects that were erased, one for each withdrawal; tracked by git."""
RUNS = "runs"
"""Folder of DVC's run cache, in its cache and at a remote."""


def made_from(stages: Mapping[str, Any], names: Collection[str], *, through_models: bool) -> dict[str, str]:
    """Follow a dvc.lock from the shards of batches to what is made from them: path → stage, the shards not included.

    Args:
        stages: Stages of the lock file.
        names: Names of the batches.
        through_models: Also by stages that make models; otherwise only what holds the images themselves.
    """
    shard_sets = {SHARDS + name for name in names}
    found: dict[str, str] = {}
    num_found = -1
    while num_found < len(found):
        num_found = len(found)
        for stage, body in stages.items():
            if not {dep["path"] for dep in body.get("deps", ())}.isdisjoint(shard_sets | found.keys()) and (
                through_models or not _makes_model(body)
            ):
                found |= {out["path"]: stage for out in body.get("outs", ())}
    return dict(sorted(found.items()))


def is_list_of_erased(name: str) -> bool:
    """Tell whether a file of the clone lists objects that were erased."""
    return name.startswith(f"{ERASED_OBJECTS}/")


def erased_objects(root: Path, events: Sequence[Event]) -> set[str]:
    """Return the objects that the log says are erased, which nobody asks for any more."""
    names = {name for event in events for name in event.files if is_list_of_erased(name)}
    return {md5 for name in names for md5 in (root / name).read_text(encoding="utf-8").split()}


@dataclass(frozen=True)
class Recorded:
    """Recorded holds the md5 sums that all lock files of a branch's history name.

    Attributes:
        holding: md5 of outs that hold images of some batches.
        others: md5 of all other outs.
    """

    holding: frozenset[str]
    others: frozenset[str]


def read_recorded(root: Path, commit: str, names: Collection[str]) -> Recorded:
    """Read every dvc.lock up to a commit, and the run cache of this machine.

    Several projects may share a cache, and have batches of one name: of the run cache, what made such a shard set
    counts only if it had inputs that this project's lock files name.

    Args:
        root: The clone.
        commit: The last commit that counts.
        names: Names of the batches whose images are meant.
    """
    holding, others, inputs = set[str](), set[str](), set[str]()
    shard_sets = {SHARDS + name for name in names}
    for stages in _locks(root, commit):
        for body in stages.values():
            if any(out["path"] in shard_sets for out in body.get("outs", ())):
                inputs |= {dep["md5"] for dep in body.get("deps", ()) if "md5" in dep}
        paths = shard_sets | made_from(stages, names, through_models=False).keys()
        for out in (out for body in stages.values() for out in body.get("outs", ())):
            (holding if out["path"] in paths else others).add(out["md5"])
    for _, entry in _runs(root):
        is_own = any(dep.get("md5") in inputs for dep in entry["deps"])
        if is_own and any(out["path"] in shard_sets for out in entry["outs"]):
            holding |= {out["md5"] for out in entry["outs"]}
    num_found = -1
    while num_found < len(holding):
        num_found = len(holding)
        for _, entry in _runs(root):
            if any(dep.get("md5") in holding for dep in entry["deps"]) and not _makes_model(entry):
                holding |= {out["md5"] for out in entry["outs"]}
    return Recorded(frozenset(holding), frozenset(others))


def made_since(root: Path, since: datetime) -> set[str]:
    """Return the md5 of all outs that the run cache of this machine has got since a moment."""
    runs = [entry for path, entry in _runs(root) if Path(path).stat().st_mtime >= since.timestamp()]
    return {out["md5"] for entry in runs for out in entry["outs"]}


def recorded_now(root: Path) -> set[str]:
    """Return the md5 of all outs of dvc.lock as it is in the work tree."""
    stages = (parse_yaml((root / LOCK).read_text(encoding="utf-8")) or {}).get("stages") or {}
    return {out["md5"] for body in stages.values() for out in body.get("outs", ())}


@dataclass(frozen=True)
class Stores:
    """DVC's cache on this machine, and its remote if one is named.

    Attributes:
        folders: A file system of DVC's and the folder there, for each.
    """

    folders: list[tuple[Any, str]]

    @classmethod
    def open(cls, root: Path) -> "Stores":
        """Open those of a clone.

        Raises:
            OperationsError: the remote is a folder that is not there, as of a disk that is not mounted.
        """
        from dvc.config import NoRemoteError
        from dvc.repo import Repo

        with Repo(str(root)) as repo:
            folders = [(repo.cache.local.fs, str(Path(repo.cache.local.path).parents[1]))]
            try:
                remote = repo.cloud.get_remote(command="push")
            except NoRemoteError:
                return cls(folders)
            if remote.fs.protocol == "local" and not Path(remote.path).is_dir():
                raise OperationsError(
                    f"DVC's remote cannot be reached: {remote.path} is not there; mount its disk, then give the same "
                    "command again"
                )
            return cls([*folders, (remote.fs, remote.path)])

    @property
    def local(self) -> list[Path]:
        """Those that are folders of this machine."""
        return [Path(folder) for fs, folder in self.folders if fs.protocol == "local"]

    def expand(self, md5s: Collection[str]) -> set[str]:
        """Return the objects of outs: of a folder its list and all files that it names, as far as it is still there."""
        found = set(md5s)
        for md5 in md5s:
            if md5.endswith(".dir"):
                found |= {entry["md5"] for entry in self.listing(md5)}
        return found

    def listing(self, md5: str) -> list[dict[str, str]]:
        """Read the list of a folder; nothing where it is gone."""
        text = self.read(md5)
        return [] if text is None else list(json.loads(text))

    def read(self, md5: str) -> bytes | None:
        """Read an object; None where it is gone."""
        for fs, folder in self.folders:
            path = _path(fs, folder, md5)
            if fs.exists(path):
                with fs.open(path, "rb") as file:
                    return bytes(file.read())
        return None

    def remove(self, objects: Collection[str]) -> int:
        """Remove objects everywhere, and the entries of the run cache that name them; returns how many objects went."""
        num = 0
        for fs, folder in self.folders:
            for path, entry in _entries(fs, folder):
                if any(item.get("md5") in objects for item in (*entry["deps"], *entry["outs"])):
                    fs.remove(path)
            for path in (_path(fs, folder, md5) for md5 in sorted(objects)):
                if fs.exists(path):
                    fs.remove(path)
                    num += 1
        return num

    def left(self, objects: Collection[str]) -> list[str]:
        """Return the objects that are still somewhere."""
        return sorted(md5 for md5 in objects for fs, folder in self.folders if fs.exists(_path(fs, folder, md5)))


def _makes_model(stage: Mapping[str, Any]) -> bool:
    return any(out["path"].startswith(MODELS) for out in stage.get("outs", ()))


def _path(fs: Any, folder: str, md5: str) -> str:
    return str(fs.join(folder, "files", "md5", md5[:2], md5[2:]))


def _locks(root: Path, commit: str) -> Iterator[Mapping[str, Any]]:
    """Yield the stages of each dvc.lock in the history of a commit."""
    # The full history: otherwise git passes over what was merged and then not taken, as by the strategy `ours`.
    for name in git(root, "log", "--full-history", "--format=%H", commit, "--", LOCK).split():
        if git(root, "ls-tree", "--name-only", name, "--", LOCK):
            yield (parse_yaml(git(root, "show", f"{name}:{LOCK}")) or {}).get("stages") or {}


def _runs(root: Path) -> list[tuple[str, Mapping[str, Any]]]:
    """Read the run cache of this machine."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        return _entries(repo.cache.local.fs, str(Path(repo.cache.local.path).parents[1]))


def _entries(fs: Any, folder: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Read the entries of a run cache, by path."""
    runs = fs.join(folder, RUNS)
    found: list[tuple[str, Mapping[str, Any]]] = []
    for path in fs.find(runs) if fs.exists(runs) else ():
        with fs.open(path, "r") as file:
            try:
                entry = YAML(typ="safe", pure=True).load(file) or {}
            except YAMLError:  # a half-written one, which DVC passes over too
                continue
        found.append((path, {"deps": entry.get("deps") or [], "outs": entry.get("outs") or []}))
    return found
