"""The files of a dataset's folder, found by what their paths look like, wherever the archives were unpacked."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from shards.errors import SourceError
from shards.records import File, locate
from shards.sources.base import SourceInfo

Row = TypeVar("Row")
_LEAVINGS = "__MACOSX"
"""The folder in which macOS archives keep a shadow of every file, under the same name."""


def list_files(root: Path) -> list[str]:
    """All files below a folder, relative with `/`, sorted; hidden ones and macOS's leavings are passed over.

    Linked folders are not entered.

    Raises:
        SourceError: there is no such folder, or a linked file lies outside of it.
    """
    if not root.is_dir():
        raise SourceError(f"{root}: no such folder; expected the folder that the dataset was unpacked in")
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name != _LEAVINGS]
        prefix = Path(folder).relative_to(root).as_posix()
        for name in names:
            if not name.startswith("."):
                path = name if prefix == "." else f"{prefix}/{name}"
                if (Path(folder) / name).is_symlink():
                    locate(root, File(path), path)
                found.append(path)
    return sorted(found)


def match_files(paths: Iterable[str], pattern: str) -> dict[re.Match[str], str]:
    """Match → path of the files whose last folders and name fit; case does not matter.

    Args:
        paths: Relative, with `/`.
        pattern: A regular expression for whole path parts, from some folder down to the file's name.
    """
    expression = re.compile(rf"(?:.*/)?{pattern}", re.IGNORECASE)
    matches = ((expression.fullmatch(path), path) for path in paths)
    return {match: path for match, path in matches if match}


def index_files(paths: Iterable[str], pattern: str) -> dict[str, str]:
    """The pattern's group `name` → path.

    Raises:
        SourceError: two files have one name, as where an archive was unpacked twice.
    """
    index: dict[str, str] = {}
    for match, path in match_files(paths, pattern).items():
        name = match["name"]
        if name in index:
            raise SourceError(
                f"{index[name]} and {path}: two files for {name}; expected one, so register one of the two folders"
            )
        index[name] = path
    return index


def no_images(info: SourceInfo, root: Path) -> SourceError:
    """The error of a folder that holds no image of the dataset; names the layout that was looked for."""
    layout = "\n".join(f"    {line}" for line in info.layout.splitlines())
    return SourceError(f"{root}: no image of {info.name} found; expected below it\n{layout}")


def read_rows(read: Callable[[], list[Row]], warnings: list[str]) -> list[Row]:
    """The rows of a list whose form is known at second hand alone: one in another form is a warning and no row."""
    try:
        return read()
    except SourceError as error:
        warnings.append(f"{error}; what the file says stays unknown")
        return []


def warn_of(info: SourceInfo, counts: dict[str, int]) -> tuple[str, ...]:
    """One line for each thing that was met at all: what → how often."""
    return tuple(f"{info.name}: {number:,} {what}" for what, number in counts.items() if number)
