"""The files of a dataset, found by what their paths look like, wherever its mirrors and archives put them."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from shards.core.errors import SourceError
from shards.core.records import File, locate
from shards.runtime.progress import progress_bar

_LEAVINGS = frozenset(
    (
        "__macosx",  # of macOS's archives: a shadow of every file, under the same name
        "@eadir",  # Synology's thumbnails
        "#recycle",
        "#snapshot",
        "@tmp",
        "@recycle",  # QNAP's
        "@recently-snapshot",
        "~snapshot",  # NetApp's
        "$recycle.bin",  # Windows'
        "recycler",
        "system volume information",
        "lost+found",  # of Linux's file systems, closed to all but root
    )
)
"""Names of folders, in lower case, that systems make by themselves: thumbnails, deleted files, older versions."""
_DELAY_S = 2.0


def list_files(root: Path, num_expected: int | None = None) -> list[str]:
    """List all files below a folder, sorted, as relative paths with `/`.

    Hidden files, and files that operating systems leave behind, are passed over.

    Linked folders are not entered: what lies below `root` is found in its own place.

    Args:
        root: The dataset's folder.
        num_expected: Number of images of the whole dataset, about, for the progress bar.

    Raises:
        SourceError: there is no such folder, one below it cannot be listed, or a symbolic link leads out of it.
    """
    if not root.is_dir():
        raise SourceError(f"{root}: no such folder; expected the folder that the dataset was unpacked in")
    found = progress_bar(_find(root), total=num_expected, description="files found", unit="file", delay_s=_DELAY_S)
    try:
        return sorted(found)
    except OSError as error:
        raise SourceError(
            f"{root}: a folder below it cannot be listed ({error.strerror}); check its permissions"
        ) from None


def _find(root: Path) -> Iterator[str]:
    for path, entry in walk(root, _raise):
        if entry.is_symlink():
            locate(root, File(path), f"{root} (`find -type l` lists links)")
        if entry.is_file():
            yield path


def _raise(error: OSError) -> None:
    raise error


def walk(
    root: Path, on_closed: Callable[[OSError], None], prefix: str = ""
) -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Yield the files and links below a folder, each with its path relative to the folder, with `/`.

    What is hidden and the leavings of systems are passed over, and so are pipes and devices. Linked folders are yielded
    as links and not entered.

    Args:
        root: The folder.
        on_closed: Called with the error for each folder that cannot be listed; its `filename` is the folder's.
        prefix: The folder below `root` to begin at, empty or with `/` at its end.
    """
    folders = []
    try:
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name.lower() in _LEAVINGS:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{prefix}{entry.name}/")
                elif entry.is_symlink() or entry.is_file():
                    yield prefix + entry.name, entry
    except OSError as error:
        on_closed(error)
    for folder in folders:
        yield from walk(root, on_closed, folder)


def is_file(path: Path) -> bool:
    """Tell whether a path leads to a file; False also where it may not be looked up."""
    try:
        return path.is_file()
    except PermissionError:
        return False


def find_files(paths: Iterable[str], pattern: str) -> Iterator[tuple[re.Match[str], str]]:
    """Find the paths whose last parts fit a pattern, each with its match; case does not matter.

    Args:
        paths: Relative, with `/`.
        pattern: A regular expression for whole path parts, from some folder down to the file's name.
    """
    expression = re.compile(rf"(?:.*/)?{pattern}", re.IGNORECASE)
    for path in paths:
        if match := expression.fullmatch(path):
            yield match, path


def folders_of(path: str) -> set[str]:
    """Return the folders that a path leads through, in lower case, as `find_files` does not tell cases apart."""
    return set(path.lower().split("/")[:-1])


def find_file(root: Path, paths: Iterable[str], pattern: str) -> Path | None:
    """Find the one file that fits a pattern (as of `find_files`); None where there is none.

    Raises:
        SourceError: there are several.
    """
    found = sorted(path for _, path in find_files(paths, pattern))
    if len(found) > 1:
        raise SourceError(f"{root}: {len(found)} files of one kind, {', '.join(found)}; keep one of them")
    return root / found[0] if found else None


def find_list(root: Path, paths: Iterable[str], name: str) -> Path:
    """Find the one file of a name at any depth; where there is none, the path in the root at which it is missed.

    Raises:
        SourceError: there are several.
    """
    return find_file(root, paths, re.escape(name)) or root / name


def index_files(root: Path, paths: Iterable[str], pattern: str) -> dict[str, str]:
    """Map what the group `name` of a pattern (as of `find_files`) finds in a path to the path.

    Raises:
        SourceError: two files have one name, in whatever case, as where a mirror was unpacked beside the original.
    """
    index: dict[str, str] = {}
    seen: dict[str, str] = {}
    for match, path in find_files(paths, pattern):
        name = match["name"]
        if (other := seen.setdefault(name.casefold(), path)) != path:
            raise SourceError(f"{root}: {name} is there twice, as {other} and {path}; keep one of them")
        index[name] = path
    return index
