"""The tracked record of a user's folder: which files, their sizes and hashes, so that a silent change is noticed."""

import csv
import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from shards.errors import SourceError
from shards.sources.base import read_csv

COLUMNS = ("path", "bytes", "sha256")
SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class ManifestEntry:
    """One file: its path below the folder (with `/`), size and hash."""

    path: str
    num_bytes: int
    sha256: str


def find_images(root: Path) -> list[str]:
    """Paths of all PNG and JPEG files below `root`, sorted; hidden files and folders are passed over.

    Raises:
        SourceError: there are none, or one has a name that no CSV line can hold.
    """
    if not root.is_dir():
        raise SourceError(f"{root}: no such folder; expected one with {', '.join(SUFFIXES)} files in it")
    found = sorted(_walk(root))
    if not found:
        raise SourceError(f"{root}: no images; looked for files ending in {', '.join(SUFFIXES)} at any depth")
    for path in found:
        if not path.isprintable() or path != path.strip():
            raise SourceError(f"{root}: rename {path!r}: expected printable characters without spaces at the ends")
    return found


def _walk(root: Path) -> Iterator[str]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield (Path(folder) / name).relative_to(root).as_posix()


def describe_file(root: Path, path: str) -> ManifestEntry:
    """The manifest entry of a file as it is now."""
    with (root / path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return ManifestEntry(path, file.tell(), digest)


def format_manifest(entries: list[ManifestEntry]) -> str:
    """The manifest as CSV text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((entry.path, entry.num_bytes, entry.sha256) for entry in entries)
    return text.getvalue()


def read_manifest(path: Path) -> list[ManifestEntry]:
    """The entries of a manifest; row numbers in messages count from 1 below the header.

    Raises:
        SourceError: it is missing, has wrong columns, or a path leaves the folder or repeats.
    """
    rows = read_csv(path, COLUMNS, "the manifest that `python -m shards register` wrote")
    if not rows:
        raise SourceError(f"{path}: no files listed; `python -m shards register` writes one row per image")
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        check_inside(row["path"], f"{path} row {number}")
        if row["path"] in seen or not row["bytes"].isdigit():
            raise SourceError(f"{path} row {number}: expected a path that no earlier row has, and a size in bytes")
        seen.add(row["path"])
    return [ManifestEntry(row["path"], int(row["bytes"]), row["sha256"]) for row in rows]


def check_inside(path: str, place: str) -> None:
    """A listed path must stay below its folder.

    Raises:
        SourceError: it is absolute, has `..` parts, or is empty.
    """
    parts = PurePosixPath(path.replace("\\", "/"))
    if not parts.parts or parts.is_absolute() or ".." in parts.parts or "\0" in path:
        raise SourceError(f"{place}: the path leaves the folder; expected one below it, without '..' and not absolute")
