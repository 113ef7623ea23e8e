"""The files of a public dataset, found wherever its mirrors put them."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from shards.errors import SourceError
from shards.progress import progress
from shards.records import File, locate


def list_files(root: Path, num_expected: int) -> list[str]:
    """Paths of all files below `root`, relative with `/`; hidden files and folders are passed over.

    Args:
        root: The dataset's folder.
        num_expected: For the progress bar: as many as the whole dataset has.

    Raises:
        SourceError: there is no such folder, or a symbolic link leads out of it.
    """
    if not root.is_dir():
        raise SourceError(f"{root}: no such folder; expected the one that holds the dataset")
    return list(progress(_walk(root, ""), total=num_expected, description="files found", unit="file"))


def _walk(root: Path, prefix: str) -> Iterator[str]:
    folders = []
    with os.scandir(root / prefix) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = prefix + entry.name
            if entry.is_symlink():
                locate(root, File(path), f"{root}: {path}")
            if entry.is_dir(follow_symlinks=False):
                folders.append(f"{path}/")
            elif entry.is_file():
                yield path
    for folder in folders:
        yield from _walk(root, folder)


def index_files(root: Path, paths: Iterable[str], name: re.Pattern[str]) -> dict[str, str]:
    """What the pattern's first group finds in a path → the path; paths in which it finds nothing are left out.

    Raises:
        SourceError: two files have one name, as where a mirror was unpacked beside the original.
    """
    index: dict[str, str] = {}
    for path in paths:
        if found := name.search(path):
            if found[1] in index:
                raise SourceError(
                    f"{root}: {found[1]} is there twice, as {index[found[1]]} and {path}; keep one copy of the dataset"
                )
            index[found[1]] = path
    return index


def find_table(root: Path, paths: Iterable[str], name: re.Pattern[str]) -> Path | None:
    """The one file whose name matches the whole pattern, at any depth; None where there is none.

    Raises:
        SourceError: there are several.
    """
    found = sorted(path for path in paths if name.fullmatch(path.rpartition("/")[2]))
    if len(found) > 1:
        raise SourceError(f"{root}: {len(found)} files of one kind, {', '.join(found)}; keep one of them")
    return root / found[0] if found else None
