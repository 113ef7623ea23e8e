"""The images among the files of a folder, told by the endings of their names or else by their content."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from shards.decode.reasons import OTHER_FORMAT, UnreadableImageError
from shards.decode.signature import kind_of
from shards.sources.dicom_facts import DICOM_SUFFIXES

Kind = Literal["raster", "DICOM"]

RASTER_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".dib", ".gif")
SUFFIXES = (*RASTER_SUFFIXES, *DICOM_SUFFIXES)
_DIRECTORY = "dicomdir"
_HEAD_BYTES = 4096

# Why files are left out: each follows a number, and none holds a name of a file.
UNREAD_FORMAT = "images in WebP, HEIC, AVIF, JPEG XL or JPEG 2000, which are not read: convert them to PNG"
TIFF_BASED = "files in a format based on TIFF (camera raw, whole slides), which are not read: convert them to PNG"
CLOSED = "files without the ending of an image that cannot be opened: check their permissions"
UNLISTED = "folders that cannot be listed: check their permissions"
OTHER_FILE = "files that are no images"


@dataclass(frozen=True)
class FoundImages:
    """The kinds of the files of a folder.

    Attributes:
        kinds: The path of each image below the folder → what it is taken for; a damaged file keeps the kind that its
            name says.
        left_out: The path of each other file → why it is no image to be read.
    """

    kinds: dict[str, Kind]
    left_out: dict[str, str]


def tell_images(root: Path, paths: Iterable[str]) -> FoundImages:
    """Tell the images among files; opens those whose names do not end as an image's.

    Args:
        root: The folder.
        paths: Relative to it.
    """
    found = FoundImages({}, {})
    for path in paths:
        try:
            found.kinds[path] = kind_of_file(root / path)
        except UnreadableImageError as error:
            found.left_out[path] = str(error)
    return found


def kind_of_file(path: Path) -> Kind:
    """Return the kind of image that a file is by its name or, where its name has another ending, by its content.

    Raises:
        UnreadableImageError: it is no image to be read; the reason is one of this module's.
    """
    name = path.name.lower()
    if name == _DIRECTORY:  # which is DICOM, and lists the images of a disc
        raise UnreadableImageError(OTHER_FILE)
    if name.endswith(RASTER_SUFFIXES):
        return "raster"
    if name.endswith(DICOM_SUFFIXES):
        return "DICOM"
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        raise UnreadableImageError(CLOSED) from None
    try:
        kind = kind_of(head)
    except UnreadableImageError as error:
        raise UnreadableImageError(UNREAD_FORMAT if str(error) == OTHER_FORMAT else OTHER_FILE) from None
    # The first image of a camera's raw file is a thumbnail, that of a whole slide one of several sizes.
    if kind == "TIFF" and has_ending(name):
        raise UnreadableImageError(TIFF_BASED)
    return "DICOM" if kind == "DICOM" else "raster"


def has_ending(name: str) -> bool:
    """Tell whether a name says what kind of file it is; the last number of an identifier, as of 1.2.840, does not."""
    suffix = PurePath(name).suffix.strip(".")
    return bool(suffix) and not suffix.isdecimal()


def count_left_out(reasons: Iterable[str]) -> tuple[str, ...]:
    """Write a line for each reason with the number of files that it holds for, the most frequent first."""
    counts = sorted(Counter(reasons).items(), key=lambda item: (-item[1], item[0]))
    return tuple(f"left out {number:,} {reason}" for reason, number in counts)
