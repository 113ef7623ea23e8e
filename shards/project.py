"""The project's two files that name batches, params.yaml and dvc.yaml: one writer at a time, and a batch taken out."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from shards.atomic import clear_when_full, write_text
from shards.config import DEFAULT_PARAMS, read_params
from shards.errors import ConfigError
from shards.params import parse_batches
from shards.yaml_lines import SHARDS, drop_deps, keep_items, set_value


@dataclass(frozen=True)
class Project:
    """The two files that a batch is entered in; manifests lie in data/manifests beside them."""

    params: Path = DEFAULT_PARAMS
    dvc: Path = Path("dvc.yaml")

    @property
    def root(self) -> Path:
        """The project's folder."""
        return self.params.parent

    @contextmanager
    def editing(self) -> Iterator[None]:
        """Let one process at a time read the two files, change them and write them; the others wait and say so.

        The lock is the kernel's, so that it ends with its process, however that ends.
        """
        lock = FileLock(self.params.with_name(f".{self.params.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting for another command that changes {self.params} …", file=sys.stderr)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def remove_batch(name: str, project: Project | None = None) -> None:
    """Take a batch out of the project: its item of `batches`, and what the stages read of it.

    Its images, manifest and shards stay on the disk, so that registering it again brings it back. Where
    `evaluate.batch` names it, the batch that is left takes its place if there is only one.

    Args:
        name: Of the batch.
        project: Where params.yaml and dvc.yaml are.

    Raises:
        ConfigError: there is no such batch, no other one, or several others to measure on instead.
    """
    project = project or Project()
    with project.editing():
        values = read_params(project.params)
        batches = parse_batches(values.get("batches"), f"{project.params}: batches")
        if name not in batches:
            raise ConfigError(f"no batch {name}: {project.params} has {', '.join(batches)}")
        if not project.dvc.is_file():
            raise ConfigError(f"{project.dvc}: no such file; run from the project's root or pass --dvc FILE")
        left = [other for other in batches if other != name]
        if not left:
            raise ConfigError(
                f"batch {name} is the only one, and a project without any batch has nothing to do; expected another "
                "one beside it: `python -m shards register NAME FOLDER --only` puts a new one in its place"
            )
        params_text = keep_items(project.params.read_text(encoding="utf-8"), "batches", left)
        if (values.get("evaluate") or {}).get("batch") == name:
            if len(left) > 1:
                raise ConfigError(
                    f"batch {name} is what the evaluation measures on (evaluate.batch in {project.params}), and "
                    f"{', '.join(left)} would stay; write the one to measure on instead to evaluate.batch first"
                )
            params_text = set_value(params_text, "evaluate", "batch", left[0])
        gone = {SHARDS + name, batches[name].source.dep} - {batches[other].source.dep for other in left}
        dvc_text = drop_deps(project.dvc.read_text(encoding="utf-8"), gone)
        with clear_when_full(project.root):  # in this order, so that a kill between the two leaves a graph that runs
            write_text(project.dvc, dvc_text)
            write_text(project.params, params_text)
    if (values.get("evaluate") or {}).get("batch") == name:
        print(f"evaluate.batch is {left[0]} now", file=sys.stderr)
    print(
        f"taken out of {project.params} and {project.dvc}: {name}; its images, manifest and shards stay on the disk. "
        "Now run `dvc repro`",
        file=sys.stderr,
    )
