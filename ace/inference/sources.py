"""Where the images of a whole run come from: a folder of files, or a shard set."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from ace.inference.images import decode_file
from shards.canvas import Pixels
from shards.decode import UnreadableImageError
from shards.decode.signature import is_dicom
from shards.errors import SourceError
from shards.format import INDEX
from shards.identity import read_id_key
from shards.read import ShardIndex, ShardReader
from shards.records import Split
from shards.store import Location

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".dcm", ".dicom")
_BYTES_THAT_TELL = 132
_DIRECTORY = "DICOMDIR"

KeyKind = Literal["relative path", "keyed hash of the relative path", "sample key"]


class ImageSource(Protocol):
    """Images by position, each with a key."""

    @property
    def keys(self) -> Sequence[str]:
        """One key an image, in order."""
        ...

    @property
    def key_kind(self) -> KeyKind:
        """What the keys are."""
        ...

    def read(self, position: int) -> Pixels:
        """The image at a position; may be called from several threads.

        Raises:
            UnreadableImageError: with a reason that names no file.
        """
        ...


@dataclass(frozen=True)
class FolderImages:
    """Files below a folder.

    Attributes:
        root: The folder.
        paths: Of the files, relative to it.
        keys: Of the files: their paths, or keyed hashes of them.
        key_kind: Which of both.
        max_pixels: Larger images are not decoded.
    """

    root: Path
    paths: Sequence[str]
    keys: Sequence[str]
    key_kind: KeyKind
    max_pixels: float

    def read(self, position: int) -> Pixels:  # noqa: D102
        try:
            data = (self.root / self.paths[position]).read_bytes()
        except OSError:
            raise UnreadableImageError("missing or not readable") from None
        return decode_file(data, self.max_pixels)


@dataclass(frozen=True)
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


def open_folder(root: Path, *, is_hashed: bool, max_pixels: float) -> FolderImages:
    """Image files of every kind that is read, at any depth, in the order of their paths; hidden ones are passed over.

    Files of other names count if they have DICOM's preamble. Links to files are followed, links to folders are not.

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
    if shard_sets := sorted(path.name for path in root.iterdir() if is_shard_set(path)):
        raise SourceError(f"{root}: holds the shard sets {', '.join(shard_sets)}; embed one of them by its own folder")
    paths = sorted(_find_images(root))
    if not paths:
        raise SourceError(
            f"{root}: no images; looked at any depth for {', '.join(SUFFIXES)} and for files with DICOM's preamble"
        )
    # Names that are not Unicode cannot stand in a table.
    keys = [path.encode("utf-8", "backslashreplace").decode() for path in paths]
    if not is_hashed:
        return FolderImages(root, paths, keys, "relative path", max_pixels)
    id_key = read_id_key()
    hashed = [id_key.pseudonym("source", key) for key in keys]
    return FolderImages(root, paths, hashed, "keyed hash of the relative path", max_pixels)


def open_shards(index: ShardIndex, split: Split | Literal["all"]) -> ShardImages:
    """The samples of one split or of all, in the order of the shards.

    Raises:
        SourceError: the split is empty.
    """
    rows = np.arange(len(index.rows)) if split == "all" else index.select(split)
    if not len(rows):
        raise SourceError(f"{index.store.location}: no samples of the split '{split}'")
    return ShardImages(ShardReader(index), rows.tolist(), index.keys(rows), "sample key")


def is_shard_set(location: Location) -> bool:
    """Whether a folder is a shard set; a URL can be nothing else."""
    return isinstance(location, str) or (location / INDEX).is_file()


def _find_images(root: Path) -> list[str]:
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            path = Path(folder) / name
            if not name.startswith(".") and name != _DIRECTORY and _is_image(path):
                found.append(path.relative_to(root).as_posix())
    return found


def _is_image(path: Path) -> bool:
    # Opening a pipe would wait for whoever writes to it; a link to nowhere is kept, to be listed as not readable.
    if path.exists() and not path.is_file():
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(_BYTES_THAT_TELL))
    except OSError:
        return False
