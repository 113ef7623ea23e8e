"""The files of a model: where DVC has them, whether they are as recorded, and their export to where models serve."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ruamel.yaml import YAML

from ace.models.folder import CONFIG
from ace.models.model_config import ModelConfig, read_config
from ace.operations.clone import git
from ace.operations.durable import sync_folder
from ace.operations.errors import OperationsError
from shards.core.errors import ConfigError
from shards.delivery.yaml_lines import SHARDS
from shards.format.layout import sha256_of
from shards.runtime.atomic import atomic_directory, check_room


@dataclass(frozen=True)
class RecordedModel:
    """A model as dvc.lock records it.

    Attributes:
        path: Its folder in the work tree, as `models/ace`.
        md5: What DVC calls the content of the folder, ending in `.dir`.
    """

    path: str
    md5: str


def read_lock(root: Path, commit: str) -> dict[str, Any]:
    """Read the stages of dvc.lock as it is in a commit.

    Raises:
        OperationsError: the commit has no dvc.lock.
    """
    text = git(root, "show", f"{commit}:dvc.lock")
    return dict(YAML(typ="safe", pure=True).load(text)["stages"])


def recorded_model(root: Path, commit: str, path: str) -> RecordedModel:
    """Find a model in the dvc.lock of a commit.

    Raises:
        OperationsError: no stage there wrote this folder.
    """
    outs = [out for stage in read_lock(root, commit).values() for out in stage.get("outs", ())]
    found = [out["md5"] for out in outs if out["path"] == path]
    if not found:
        raise OperationsError(
            f"{root}: dvc.lock of commit {commit[:12]} records no {path}; make the model first (`dvc repro`) and "
            "commit dvc.lock"
        )
    return RecordedModel(path, found[0])


def recording_commit(root: Path, folder: Path) -> tuple[str, RecordedModel] | None:
    """Find the first commit whose dvc.lock records the bytes of a folder, under whatever path; None if none does.

    Args:
        root: A clone.
        folder: The folder of a model, which may lie elsewhere.
    """
    md5 = f"{_md5(_list_folder(folder))}.dir"
    changed = ("--full-history", "--reverse", "--format=%H", "-S", md5, "HEAD", "--", "dvc.lock")
    for commit in git(root, "log", *changed).split():
        for stage in read_lock(root, commit).values():
            for out in stage.get("outs", ()):
                if out["md5"] == md5:
                    return commit, RecordedModel(out["path"], md5)
    return None


def batches_of_model(root: Path, commit: str, path: str) -> set[str]:
    """Return the names of the batches whose shards the stage read that made a model, by the dvc.lock of a commit."""
    stages = read_lock(root, commit).values()
    makers = [stage for stage in stages if path in {out["path"] for out in stage.get("outs", ())}]
    deps = {dep["path"] for stage in makers for dep in stage.get("deps", ())}
    return {dep.removeprefix(SHARDS) for dep in deps if dep.startswith(SHARDS)}


def find_files(root: Path, model: RecordedModel) -> dict[str, Path]:
    """Find the bytes of a model in DVC's cache or in the work tree, and check each file by its md5.

    Args:
        root: The clone.
        model: The model.

    Returns:
        Name in the model's folder → a file with its bytes.

    Raises:
        OperationsError: they are in neither, or not as recorded.
    """
    cache, folder = _cache(root), root / model.path
    advice = f"is neither in DVC's cache ({cache}) nor in {folder}, or was changed there; fetch it: dvc fetch " + (
        f"--all-commits {model.path}"
    )
    listing = _cached(cache, model.md5)
    text = listing.read_bytes() if listing.is_file() else _list_folder(folder)
    if f"{_md5(text)}.dir" != model.md5:
        raise OperationsError(f"{root}: {model.path} with md5 {model.md5} {advice}")
    files = {}
    for name, md5 in ((entry["relpath"], entry["md5"]) for entry in json.loads(text)):
        candidates = (_cached(cache, md5), folder / name)
        found = next((path for path in candidates if path.is_file() and _md5_of(path) == md5), None)
        if found is None:
            raise OperationsError(f"{root}: {model.path}/{name} with md5 {md5} {advice}")
        files[name] = found
    return files


def read_config_of(files: Mapping[str, Path]) -> ModelConfig:
    """Read config.json of a model whose files may have other names, as in DVC's cache.

    Args:
        files: Name in the model's folder → a file with its bytes.

    Raises:
        ConfigError: it is of a format that this release does not read, or is damaged.
    """
    with TemporaryDirectory() as folder:
        copy = Path(folder) / CONFIG
        shutil.copyfile(files[CONFIG], copy)
        try:
            return read_config(copy.parent)
        except ConfigError as error:
            raise ConfigError(str(error).replace(str(copy), str(files[CONFIG]))) from None


def export(files: Mapping[str, Path], sha256: Mapping[str, str], target: Path) -> None:
    """Copy a model to where models serve: read-only, and there as a whole or not at all.

    Args:
        files: Name in the model's folder → a file with its bytes.
        sha256: Name → sha256 that the copy must have.
        target: The new folder.

    Raises:
        OperationsError: a copy has another sha256.
        NoSpaceError: the disk is full or too small.
    """
    check_room(target.parent, sum(path.stat().st_size for path in files.values()), "the files of the model")
    with atomic_directory(target) as temporary:
        for name, path in files.items():
            copy = temporary / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            copy.chmod(0o444)
            _sync(copy)
        difference = first_difference(temporary, sha256)
        if difference is not None:
            raise OperationsError(f"the copy for {target} is not as recorded: {difference}; nothing was exported")
        for folder in _folders(temporary):
            sync_folder(folder)
    sync_folder(target.parent)


def close(folder: Path) -> None:
    """Make an exported model read-only.

    It is done last: a folder that cannot be written could not be removed after a kill either.
    """
    for inner in _folders(folder):
        inner.chmod(0o555)


def first_difference(folder: Path, sha256: Mapping[str, str]) -> str | None:
    """Say how the files of a folder differ from what they should be, or return None.

    Args:
        folder: The folder.
        sha256: Name → sha256 of each file that it should have, and no other.
    """
    for name, expected in sorted(sha256.items()):
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        found = sha256_of(path)
        if found != expected:
            return f"{name} has the sha256 {found}, recorded is {expected}"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    added = sorted(names - set(sha256))
    return f"{added[0]} was added" if added else None


def _cache(root: Path) -> Path:
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        return Path(repo.cache.local.path)


def _cached(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]


def _list_folder(folder: Path) -> bytes:
    """List a folder as DVC does in its cache: the md5 of the list is what it calls the folder's content."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    entries = [{"md5": _md5_of(path), "relpath": name} for name, path in sorted(files.items())]
    return json.dumps(entries).encode()


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _md5_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _folders(folder: Path) -> list[Path]:
    return [folder, *(path for path in folder.rglob("*") if path.is_dir())]


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
