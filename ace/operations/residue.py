"""Search files for what is left of a patient: the pseudonym, keys of images, and pieces of their encoded bytes."""

import subprocess
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from ace.operations.errors import OperationsError
from shards.format.layout import SampleSpans
from shards.reading.reader import ShardIndex

_PIECE_BYTES, _MIN_LEVELS = 48, 24
_CHUNK_BYTES = 2**24


def piece_of(data: bytes) -> bytes | None:
    """Return a piece of encoded bytes that no other file has; None where they are too regular, as of a black image."""
    for part in (2, 3, 4, 5):
        start = len(data) // part
        piece = data[start : start + _PIECE_BYTES]
        if len(piece) == _PIECE_BYTES and len(set(piece)) >= _MIN_LEVELS:
            return piece
    return None


def pieces_of_samples(index: ShardIndex, patient: str) -> list[bytes]:
    """Return a piece of the image, and of its half size, of each sample of a patient in a local shard set."""
    found = []
    for row in index.rows[index.rows["patient"] == patient.encode()]:
        spans = SampleSpans.of(row)
        with (index.root / index.shards[row["shard"]].name).open("rb") as file:
            for span in (spans.image, spans.half):
                file.seek(span.start)
                found.append(piece_of(file.read(span.num_bytes)))
    return [piece for piece in found if piece is not None]


def search(folders: Collection[Path], needles: Sequence[bytes], without: Path) -> list[Path]:
    """Return the files below folders that have one of some texts, each file of the disk once; links are passed over.

    Args:
        folders: The folders; one that is missing has nothing.
        needles: What is searched for.
        without: A file that is passed over.
    """
    found, seen = [], set()
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.is_symlink() or not path.is_file() or path == without:
            continue
        status = path.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        with path.open("rb") as file:
            if _has(file, needles):
                found.append(path)
    return found


def is_in_git(root: Path, needles: Sequence[bytes]) -> bool:
    """Tell whether an object of a repository, in whatever commit, has one of some texts.

    Raises:
        OperationsError: git cannot read all objects.
    """
    command = ["git", "-C", str(root), "cat-file", "--batch-all-objects", "--batch", "--unordered"]
    with TemporaryFile() as errors:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors) as process:
            assert process.stdout is not None
            is_found = _has(process.stdout, needles)  # type: ignore[arg-type]
        has_failed = bool(process.returncode or errors.tell())  # of a damaged object git only says so
    if has_failed and not is_found:
        raise OperationsError(f"{root}: git cannot read all its objects, so they were not searched: see git fsck")
    return is_found


def _has(file: BinaryIO, needles: Sequence[bytes]) -> bool:
    return any(needle in chunk for chunk in _chunks(file, max(map(len, needles))) for needle in needles)


def _chunks(file: BinaryIO, overlap: int) -> Iterator[bytes]:
    before = b""
    while data := file.read(_CHUNK_BYTES):
        yield before + data
        before = (before + data)[-overlap:]
