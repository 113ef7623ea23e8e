"""Change the batches of a project, in the two files that name them: params.yaml and dvc.yaml.

Only one command writes them at a time.
"""

import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from shards.core.config import DEFAULT_PARAMS, read_params
from shards.core.errors import ConfigError, SourceError
from shards.core.params import RegisteredSourceParams, parse_names
from shards.core.records import files_of
from shards.delivery.batches import batch_path, format_batch, read_batches, root_path, set_settings
from shards.delivery.keep_list import keys_of, path_of_list, sha256_of_list
from shards.delivery.manifest import iterate_manifest, key_of
from shards.delivery.yaml_lines import (
    PHANTOM,
    PHANTOM_STAGE,
    SHARDS,
    drop_deps,
    drop_stage,
    keep_items,
    set_dep,
    set_value,
)
from shards.format.exclusion import exclusion_dep
from shards.runtime.atomic import clear_when_full, write_private_text, write_text
from shards.runtime.text import count_of


@dataclass(frozen=True)
class Project:
    """The two files that a batch is entered in; batches/NAME.yaml and data/manifests lie beside them."""

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


def check_tasks(params: Path, values: Mapping[str, Any], batches: Collection[str]) -> None:
    """Check that no task of the section `finetune` is trained on batches that are to be taken out.

    Args:
        params: The params file.
        values: Its content.
        batches: Names of the batches.

    Raises:
        ConfigError: naming the tasks.
    """
    tasks = [task for task, batch in (values.get("finetune") or {}).items() if batch in batches]
    if tasks:
        raise ConfigError(
            f"{params}: finetune has {', '.join(tasks)}, of a batch that would be taken out; first take that out of "
            "the section, or name another batch there"
        )


def remove_batch(name: str, project: Project | None = None) -> None:
    """Take a batch out of the project: its items of `batches` and `mix`, and what the stages read of it.

    Its file, images, manifest and shards stay on the disk, so that registering it again brings it back. Where
    `evaluate.batch` names it, the batch that is left takes its place if there is only one.

    Args:
        name: Name of the batch.
        project: The project's params.yaml and dvc.yaml; None: those of the working directory.

    Raises:
        ConfigError: there is no such batch, no other one, or several others to measure on instead; or a task is
            trained on it.
    """
    project = project or Project()
    with project.editing():
        values = read_params(project.params)
        batches = parse_names(values.get("batches"), f"{project.params}: batches")
        if name not in batches:
            raise ConfigError(
                f"{project.params}: has no batch '{name}'; expected one of its batches: {', '.join(batches)}"
            )
        if not project.dvc.is_file():
            raise ConfigError(f"{project.dvc}: no such file; run from the project's root or pass --dvc FILE")
        left = [other for other in batches if other != name]
        if not left:
            raise ConfigError(
                f"batch {name} is the project's only one and cannot be taken out; `python -m shards register NAME "
                "FOLDER --only` puts a new batch in its place"
            )
        check_tasks(project.params, values, {name})
        mixed = list(values.get("mix") or {})
        if mixed == [name]:
            raise ConfigError(
                f"batch {name} is the only one that is trained on; first give another one a weight above 0 (mix in "
                f"{project.params})"
            )
        params_text = keep_items(project.params.read_text(encoding="utf-8"), "batches", left)
        if name in mixed:
            params_text = keep_items(params_text, "mix", [other for other in mixed if other != name])
        if (values.get("evaluate") or {}).get("batch") == name:
            if len(left) > 1:
                raise ConfigError(
                    f"batch {name} is the one that the evaluation measures on (evaluate.batch in {project.params}); "
                    f"first set evaluate.batch to one of {', '.join(left)}"
                )
            params_text = set_value(params_text, "evaluate", "batch", left[0])
        gone = {SHARDS + name, batches[name]} - {batches[other] for other in left}
        dvc_text = drop_deps(project.dvc.read_text(encoding="utf-8"), gone)
        dvc_text = set_dep(dvc_text, exclusion_dep(name), name, wanted=False)
        if PHANTOM in gone:
            dvc_text = drop_stage(dvc_text, PHANTOM_STAGE)
        with clear_when_full(project.root):  # in this order, so that a kill between the two leaves a graph that runs
            write_text(project.dvc, dvc_text)
            write_text(project.params, params_text)
    if (values.get("evaluate") or {}).get("batch") == name:
        print(f"the evaluation now measures on {left[0]} (evaluate.batch)", file=sys.stderr)
    print(
        f"taken out of {project.params} and {project.dvc}: {name}; its images, manifest and shards stay on the disk. "
        "Now run `dvc repro`",
        file=sys.stderr,
    )


def keep_images(name: str, keys: Sequence[str], project: Project | None = None) -> None:
    """Put images on a batch's keep list; without keys, take the list as somebody has edited it.

    Args:
        name: Name of the batch.
        keys: Keys of its images, as quality.parquet, quality.png and the private list of quarantined files have them.
        project: The project's params.yaml and dvc.yaml; None: those of the working directory.

    Raises:
        ConfigError: there is no such batch, or it is the phantom.
        SourceError: its manifest is missing or damaged, or none of its images has a key of the list.
    """
    project = project or Project()
    with project.editing():
        batch = read_batches(project.params, read_params(project.params), [name])[name]
        source = batch.source
        if not isinstance(source, RegisteredSourceParams):
            raise ConfigError(f"batch {name} is of the phantom, which has no manifest; expected a registered batch")
        path = project.root / path_of_list(name, source)
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        text += "\n" if text and not text.endswith("\n") else ""
        text += "".join(f"{key}\n" for key in dict.fromkeys(keys) if key not in keys_of(text))
        _check_keys(keys_of(text), project.root / source.dep, path)
        kept = batch.model_copy(update={"source": source.model_copy(update={"keep_sha256": sha256_of_list(text)})})
        with clear_when_full(project.root):
            write_private_text(path, text)
            write_text(batch_path(name, project.root), format_batch(name, kept))
    print(f"{path} keeps {count_of(len(keys_of(text)), 'image')} of {name}. Now run `dvc repro`", file=sys.stderr)


def _check_keys(keys: frozenset[str], manifest: Path, path: Path) -> None:
    header, entries = iterate_manifest(manifest)
    unknown = sorted(keys - {key_of(entry.record, header) for _, entry in entries})
    if unknown:
        raise SourceError(
            f"{path}: {len(unknown)} of {len(keys)} keys belong to no image of {manifest}, first {unknown[0]!r}; "
            "expected keys as in quality.parquet of the batch's shards"
        )


def apply_settings(names: Sequence[str], project: Project | None = None) -> None:
    """Give batches the sections `grid` and `shard` of params.yaml, with which their shards will be built anew.

    Args:
        names: Names of the batches; an empty list stands for all.
        project: The project's params.yaml and dvc.yaml; None: those of the working directory.

    Raises:
        ConfigError: there is no such batch, or a section is wrong.
    """
    project = project or Project()
    with project.editing():
        values = read_params(project.params)
        known = parse_names(values.get("batches"), f"{project.params}: batches")
        with clear_when_full(project.root):
            changes = set_settings(project.params, values, names or list(known))
    for line in changes or ["the batches have these settings already"]:
        print(line, file=sys.stderr)
    if changes:
        print("Now run `dvc repro`", file=sys.stderr)


def relocate_batch(name: str, root: Path, project: Project | None = None) -> None:
    """Say where a batch's images are now; its shards stay as they are.

    Args:
        name: Name of the batch.
        root: The folder to which the paths of its manifest are relative.
        project: The project's params.yaml and dvc.yaml; None: those of the working directory.

    Raises:
        ConfigError: there is no such batch, or it is the phantom.
        SourceError: its manifest is missing or damaged, or files of it are not in the folder or of another size.
    """
    project = project or Project()
    with project.editing():
        source = read_batches(project.params, read_params(project.params), [name])[name].source
        if not isinstance(source, RegisteredSourceParams):
            raise ConfigError(
                f"batch {name} is of the phantom, whose images the stage `phantom` makes; expected a registered batch"
            )
        _, entries = iterate_manifest(project.root / source.dep)
        files = [file for _, entry in entries for file in files_of(entry.record)]
        if not root.is_dir():
            raise SourceError(f"{root}: no such folder; expected the one that has the images of {name} now")
        misfits = [file.path for file in files if not _has_size(root / file.path, file.num_bytes)]
        if misfits:
            raise SourceError(
                f"{root}: {len(misfits)} of the {len(files)} files of {name} are missing or of another size; expected "
                "all of them, at the same paths below this folder as when the batch was registered"
            )
        with clear_when_full(project.root):
            write_private_text(root_path(name, project.root), portable(root, project.root) + "\n")
    print(f"the images of {name} are in {root} now; nothing has to be built again", file=sys.stderr)


def portable(path: Path, project: Path) -> str:
    """Make a path relative to the project where it lies in it, so that a copy finds it, and else absolute."""
    resolved, home = path.resolve(), project.resolve()
    return resolved.relative_to(home).as_posix() if resolved.is_relative_to(home) else str(resolved)


def _has_size(path: Path, num_bytes: int | None) -> bool:
    try:
        return path.stat().st_size == num_bytes
    except OSError:
        return False
