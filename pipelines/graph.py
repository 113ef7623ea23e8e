"""DVC's resolved stage graph as plain dataclasses; the only module that touches DVC's undocumented `Repo.index`."""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from dvc.dependency import ParamsDependency
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo

from shards.core.config import Section
from shards.core.errors import ConfigError
from shards.format.layout import MANIFESTS

GRAPH_NAME = "dvc.yaml"
PARAMS_NAME = "params.yaml"
LOCK_NAME = "dvc.lock"
IGNORE_NAME = ".dvcignore"
SETTLED_NS = 2_000_000_000
"""Age of a file of which time and size tell whether it has changed."""
Values = Mapping[str, Mapping[str, Any]]
"""Params file → key → value; a key that is missing there has none."""
Stamps = Mapping[Path, tuple[int, int, int]]
"""Time in ns, size and inode of files."""


class DagsterMeta(Section):
    """DagsterMeta holds what a stage's `meta: {dagster: …}` in dvc.yaml may say."""

    group: str = "default"
    """Asset group in the UI."""
    pool: str | None = None
    """Dagster concurrency pool; stages of one pool share its slots."""
    jobs: int = 1
    """dvc processes at once for the items of one foreach stage."""


Kind = Literal["data", "metric", "verdict", "plot"]
"""Kinds of outs that DVC tells apart; a verdict is a metric with `type: verdict` in dvc.yaml, as metrics/gate.json."""


@dataclass(frozen=True)
class Out:
    """One output; its path, relative to the repository with `/`, is the asset key."""

    path: str
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage with templates and foreach resolved, and what its inputs are in the work tree now."""

    name: str
    """Name by which DVC addresses it: `pretrain`, `shard@phantom-b000`."""
    cmd: str
    description: str
    meta: DagsterMeta
    params: Mapping[str, Mapping[str, Any]]
    """Values by params file, then tracked key; None where it is missing."""
    inputs: tuple[str, ...]
    """Dependencies that are another stage's outs."""
    files: Mapping[str, str | None]
    """md5 of every other dependency (code, manifests, raw data); None where it is missing."""
    outs: tuple[Out, ...]

    @property
    def word(self) -> str:
        """The name without its foreach item."""
        return self.name.split("@")[0]

    @property
    def deliveries(self) -> tuple[str, ...]:
        """Manifests among the files: each stands for a delivery of raw images."""
        return deliveries_in(self.files)

    @property
    def code_version(self) -> str:
        """Changes whenever something other than an upstream out would make DVC run the stage again."""
        return code_version(self.cmd, self.params, self.files)


@dataclass(frozen=True)
class Graph:
    """All stages of the repository's dvc.yaml."""

    stages: tuple[Stage, ...]

    @property
    def produced(self) -> frozenset[str]:
        """Paths of all outs."""
        return frozenset(out.path for stage in self.stages for out in stage.outs)

    @property
    def families(self) -> list[tuple[str, list[Stage]]]:
        """Stages by word, in the order of dvc.yaml: all items of one foreach stage together."""
        return [(word, list(stages)) for word, stages in groupby(self.stages, key=lambda stage: stage.word)]


_known: dict[Path, tuple[Graph, Stamps]] = {}
"""The graph that was read last, by its root."""


def code_version(cmd: str, params: Mapping[str, Mapping[str, Any]], files: Mapping[str, str | None]) -> str:
    """md5 over a stage's command, parameter values and the md5s of its files that no stage makes."""
    return hashlib.md5(json.dumps([cmd, params, files], sort_keys=True, default=str).encode()).hexdigest()


def deliveries_in(files: Iterable[str]) -> tuple[str, ...]:
    """Return the files that are manifests of deliveries."""
    return tuple(sorted(path for path in files if PurePosixPath(path).parent == PurePosixPath(MANIFESTS)))


def load_graph(root: Path) -> Graph:
    """Read the graph of the DVC repository at `root`, and hash its code dependencies as `dvc status` would.

    What this process, or the one that it was forked from, has read last is given again while the files stay the same.

    Raises:
        ConfigError: dvc.yaml or params.yaml does not resolve, a dependency lies inside another stage's out, or a stage
            tracks a whole params file.
    """
    if (known := _known.get(root)) and stamps(root, known[0]) == known[1]:
        return known[0]
    began_ns = time.time_ns()
    try:
        with Repo(str(root)) as repo:
            stages = _stages(repo)
            produced = {_path(out, repo) for stage in stages for out in stage.outs}
            values = _values(stages)
            graph = Graph(tuple(_stage(stage, repo, produced, values) for stage in stages))
    except DvcException as error:
        raise ConfigError(f"{root}: DVC cannot read the graph: {error}") from error
    _known.clear()
    found = stamps(root, graph)
    # A file can change twice within one step of the clock of its file system, and while it is read.
    if all(time_ns < began_ns - SETTLED_NS for time_ns, *_ in found.values()):
        _known[root] = graph, found
    return graph


def changed_stages(root: Path, names: Sequence[str]) -> list[str]:
    """Name those of the stages that `dvc repro --single-item` would run: DVC's own comparison, in this process.

    It reads dvc.yaml and dvc.lock once; a dvc process reads them once for each name that it is given.

    Args:
        root: of the DVC repository.
        names: as DVC addresses them, in the order in which they would run; one that it does not know is named.

    Raises:
        ConfigError: DVC cannot tell, as when another dvc is at work on an out.
    """
    try:
        with Repo(str(root), _wait_for_lock=True) as repo, lock_repo(repo):
            stages = {stage.name: stage for stage in _stages(repo)}
            changed, remade = [], set[str]()
            for name in names:
                stage = stages.get(name)
                if stage is None or stage.changed() or any(_meets(dep.fs_path, remade) for dep in stage.deps):
                    changed.append(name)
                    remade |= {out.fs_path for out in stage.outs} if stage else set()
            return changed
    except DvcException as error:
        raise ConfigError(f"{root}: DVC cannot tell what has changed: {error}") from error


@contextmanager
def held_repository(root: Path, *, wait: bool) -> Iterator[None]:
    """Hold DVC's lock on the repository at `root`, under which every dvc writes dvc.lock.

    Args:
        root: of the DVC repository.
        wait: Wait for another dvc for as long as it takes, instead of for three seconds.

    Raises:
        ConfigError: another dvc holds the lock.
    """
    with Repo(str(root), _wait_for_lock=wait) as repo:
        try:
            repo.lock.lock()
        except LockError as error:
            raise ConfigError(f"{root}: another dvc is at work in this repository; {LOCK_NAME} was not read") from error
        try:
            yield
        finally:
            repo.lock.unlock()


def stamps(root: Path, graph: Graph) -> Stamps:
    """Time, size and inode of every file that `load_graph` reads: while they stay, so does the graph.

    Args:
        root: of the DVC repository.
        graph: that was loaded from it.
    """
    names = {
        GRAPH_NAME,
        PARAMS_NAME,
        IGNORE_NAME,
        *(name for stage in graph.stages for name in (*stage.params, *stage.files)),
    }
    paths = [root / name for name in names]
    files = [file for path in paths for file in ((path, *path.rglob("*")) if path.is_dir() else (path,))]
    found = {}
    for file in files:
        with suppress(OSError):
            status = file.stat()
            found[file] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return found


def _stages(repo: Any) -> list[Any]:
    return [stage for stage in repo.index.stages if stage.cmd and stage.path_in_repo == GRAPH_NAME]


def _stage(stage: Any, repo: Any, produced: set[str], values: Values) -> Stage:
    deps = {_path(dep, repo): dep for dep in stage.deps if not isinstance(dep, ParamsDependency)}
    for path in deps.keys() - produced:
        for out in produced:
            if path.startswith(f"{out}/") or out.startswith(f"{path}/"):
                raise ConfigError(
                    f"dvc.yaml: stage '{stage.name}' depends on '{path}', but another stage's out is '{out}': "
                    "depend on exactly the out, its record in dvc.lock is compared by md5"
                )
    meta = (stage.meta or {}).get("dagster", {})
    return Stage(
        name=stage.name,
        cmd="\n".join(stage.cmd) if isinstance(stage.cmd, list) else stage.cmd,
        description=stage.desc or "",
        meta=DagsterMeta.from_params(meta, f"dvc.yaml: {stage.name}.meta.dagster"),
        params={dep.def_path: {key: values[dep.def_path].get(key) for key in dep.params} for dep in stage.params},
        inputs=tuple(sorted(deps.keys() & produced)),
        files={path: deps[path].get_hash().value if deps[path].exists else None for path in deps.keys() - produced},
        outs=tuple(Out(_path(out, repo), _kind(out)) for out in stage.outs),
    )


def _meets(path: str, others: AbstractSet[str]) -> bool:
    """Tell whether a path is one of others, or lies in one of them, or one of them in it."""
    return not others.isdisjoint((path, *map(str, Path(path).parents))) or any(
        other.startswith(f"{path}/") for other in others
    )


def _kind(out: Any) -> Kind:
    if out.metric:
        return "verdict" if out.annot.type == "verdict" else "metric"
    return "plot" if out.plot else "data"


def _values(stages: Iterable[Any]) -> Values:
    """Read all that any stage tracks in a params file at once: parsing YAML is most of the work of a graph."""
    first: dict[str, Any] = {}
    keys: dict[str, dict[str, None]] = {}
    for stage in stages:
        for dep in stage.params:
            if not dep.params:
                raise ConfigError(
                    f"dvc.yaml: stage '{stage.name}' tracks the whole of '{dep.def_path}': list the keys it reads"
                )
            first.setdefault(dep.def_path, stage)
            keys.setdefault(dep.def_path, {}).update(dict.fromkeys(dep.params))
    return {path: ParamsDependency(stage, path, list(keys[path])).read_params() for path, stage in first.items()}


def _path(item: Any, repo: Any) -> str:
    path = Path(item.fs_path)
    return path.relative_to(repo.root_dir).as_posix() if path.is_relative_to(repo.root_dir) else path.as_posix()
