"""Read the images of a whole run from a folder of files or from a shard set."""

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, Self

from ace.inference.images import decode_file
from shards.core.canvas import Pixels
from shards.core.errors import SourceError
from shards.core.identity import read_id_key
from shards.core.params import MeasuredParams
from shards.core.records import Split
from shards.decode import UnreadableImageError
from shards.delivery.batches import batch_path, read_batch
from shards.format.layout import INDEX
from shards.reading.reader import ShardIndex, ShardReader
from shards.sources.files import is_file, walk
from shards.sources.images import SUFFIXES, UNLISTED, FoundImages, count_left_out, tell_images
from shards.store.location import Location

KeyKind = Literal["relative path", "keyed hash of the relative path", "sample key"]


class ImageSource(Protocol):
    """Images by position, each with a key."""

    @property
    def keys(self) -> Sequence[str]:
        """One key an image, in order."""
        ...

    @property
    def key_kind(self) -> KeyKind:
        """Return what kind of keys the images have."""
        ...

    def read(self, position: int) -> Pixels:
        """Read the image at a position; may be called from several threads.

        Raises:
            UnreadableImageError: with a reason that names no file.
        """
        ...

    def part(self, start: int, stop: int) -> Self:
        """Return the images of some positions; may be pickled."""
        ...

    def fingerprint(self) -> str:
        """Return a digest of which images these are, and of the state of their files."""
        ...

    def check_in_sight(self) -> None:
        """Refuse a machine that does not see the files, where every image would be unreadable.

        Raises:
            SourceError: not one of them is there.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class FolderImages:
    """Files below a folder.

    Attributes:
        root: The folder.
        paths: Of the files, relative to it.
        keys: Of the files: their paths, or keyed hashes of them.
        key_kind: Which of both.
        max_pixels: Larger images are not decoded.
        left_out: A line for each reason why other files are left out, with their number.
    """

    root: Path
    paths: Sequence[str]
    keys: Sequence[str]
    key_kind: KeyKind
    max_pixels: float
    left_out: Sequence[str] = ()

    def read(self, position: int) -> Pixels:  # noqa: D102
        try:
            data = (self.root / self.paths[position]).read_bytes()
        except OSError:
            raise UnreadableImageError("missing or not readable") from None
        return decode_file(data, self.max_pixels, option="--max-megapixels")

    def part(self, start: int, stop: int) -> Self:  # noqa: D102
        return replace(self, paths=self.paths[start:stop], keys=self.keys[start:stop])

    def fingerprint(self) -> str:  # noqa: D102
        digest = hashlib.sha256(f"{self.root} {self.key_kind} {self.max_pixels}".encode())
        for path, key in zip(self.paths, self.keys, strict=True):
            digest.update(f"\n{key} {_state(self.root / path)}".encode())
        return digest.hexdigest()

    def check_in_sight(self) -> None:  # noqa: D102
        if not any(os.path.lexists(self.root / path) for path in self.paths):
            raise SourceError(
                f"{self.root}: none of the images is there; expected the folder under the same path on every machine: "
                "mount it there"
            )


@dataclass(frozen=True, kw_only=True)
class ShardImages:
    """Canvases of a shard set.

    Attributes:
        reader: Of the set.
        rows: Of its index.
        keys: The samples'.
        key_kind: That they are.
    """

    reader: ShardReader
    rows: Sequence[int]
    keys: Sequence[str]
    key_kind: KeyKind

    def read(self, position: int) -> Pixels:  # noqa: D102
        return self.reader.read(self.rows[position]).image

    def part(self, start: int, stop: int) -> Self:  # noqa: D102
        return replace(self, rows=self.rows[start:stop], keys=self.keys[start:stop])

    def fingerprint(self) -> str:  # noqa: D102
        return hashlib.sha256(f"{self.reader.index.fingerprint} {self.rows}".encode()).hexdigest()

    def check_in_sight(self) -> None:
        """Do nothing: a shard that is not there is an error of its own."""


def open_folder(root: Path, *, is_hashed: bool, max_pixels: float) -> FolderImages:
    """Image files of every kind that is read, at any depth, in the order of their keys; hidden ones are passed over.

    Files are told by the endings of their names or else by their content, as `register` tells them. Links to files are
    followed, links to folders are not.

    Args:
        root: The folder.
        is_hashed: Keys are hashes under the project's identity key, the same as a registered folder's source ids.
        max_pixels: Larger images are not decoded.

    Raises:
        SourceError: there is no such folder, it holds shard sets, or there is no image in it.
        IdKeyError: keys are to be hashed and there is no identity key.
    """
    if not root.is_dir():
        raise SourceError(
            f"{root}: no such folder; expected a shard set or a folder of images (PNG, JPEG, TIFF, BMP, GIF, DICOM)"
        )
    # Their contact sheets would be taken for the images.
    _, subfolders, _ = next(os.walk(root), ("", [], []))
    if shard_sets := sorted(name for name in subfolders if is_shard_set(root / name)):
        raise SourceError(f"{root}: holds the shard sets {', '.join(shard_sets)}; embed one of them by its own folder")
    found, unlisted = _find_images(root)
    left_out = count_left_out([*found.left_out.values(), *unlisted])
    paths = sorted(found.kinds)
    if not paths:
        reasons = "".join(f"\n{line}" for line in left_out)
        raise SourceError(
            f"{root}: no images; looked at any depth for {', '.join(SUFFIXES)} and for such images by their content"
            f"{reasons}"
        )
    # Names that are not Unicode cannot stand in a table.
    keys = [path.encode("utf-8", "backslashreplace").decode() for path in paths]
    if not is_hashed:
        return FolderImages(
            root=root, paths=paths, keys=keys, key_kind="relative path", max_pixels=max_pixels, left_out=left_out
        )
    id_key = read_id_key()
    # In the order of the hashes: in that of the paths, a list of them would tell which hash is whose.
    hashed = sorted((id_key.pseudonym("source", key), path) for key, path in zip(keys, paths, strict=True))
    of_images, in_order = zip(*hashed, strict=True)
    return FolderImages(
        root=root,
        paths=in_order,
        keys=of_images,
        key_kind="keyed hash of the relative path",
        max_pixels=max_pixels,
        left_out=left_out,
    )


def open_shards(index: ShardIndex, split: Split | Literal["all"]) -> ShardImages:
    """Open the samples of one split or of all, in the order of the shards.

    Raises:
        SourceError: the split is empty.
    """
    rows = index.select(split)
    if not len(rows):
        raise SourceError(f"{index.store.location}: no samples of the split '{split}'")
    return ShardImages(reader=ShardReader(index), rows=rows.tolist(), keys=index.keys(rows), key_kind="sample key")


def measured_of(index: ShardIndex, project: Path) -> MeasuredParams | None:
    """Return the mean and deviation of a shard set's own images, for a model that was not trained with it.

    Args:
        index: The set.
        project: The folder of params.yaml. Where it has the batch, the numbers are those that `register` measured, as
            in `evaluate`; elsewhere those of the training images in the set's index.

    Returns:
        None if the set has no training images and the project does not know it.
    """
    if batch_path(index.name, project).is_file():
        return read_batch(index.name, project).measured
    found = index.description.statistics
    return None if found.mean is None or found.std is None else MeasuredParams(mean=(found.mean,), std=(found.std,))


def is_shard_set(location: Location) -> bool:
    """Tell whether a folder is a shard set; a URL can be nothing else."""
    return isinstance(location, str) or is_file(location / INDEX)


def _find_images(root: Path) -> tuple[FoundImages, list[str]]:
    """Find the images, and the reason `UNLISTED` for each folder that could not be listed."""
    unlisted: list[str] = []
    found = walk(root, lambda _: unlisted.append(UNLISTED))
    return tell_images(root, [path for path, entry in found if _may_be_opened(entry)]), unlisted


def _may_be_opened(entry: "os.DirEntry[str]") -> bool:
    """Tell whether a path may be opened: a file, or one of which nothing tells; a pipe would wait for its writer."""
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:  # a link to nowhere, say, which is listed as unreadable
        return True


def _state(path: Path) -> str:
    """Return size and time of a file, by which a change is noticed; nothing of one that is not there."""
    try:
        status = path.stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"
