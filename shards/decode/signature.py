"""Tell what a file is by its first bytes: names and extensions lie."""

import re
from typing import Literal

from shards.decode.reasons import (
    ANNEX_POINTER,
    ARCHIVE,
    EMPTY,
    GZIP,
    LFS_POINTER,
    NOT_AN_IMAGE,
    OTHER_FORMAT,
    WEB_PAGE,
    ZEROS,
    ZIP,
    UnreadableImageError,
)

RasterKind = Literal["PNG", "JPEG", "TIFF", "BMP", "GIF"]

PREAMBLE_BYTES = 128
DICOM_MAGIC = b"DICM"
# Files without a preamble begin with the group of their file meta information or with the identifying group.
_FIRST_ELEMENT = re.compile(
    rb"\x02\x00[\x00-\x16]\x00(UL|OB|UI)|\x08\x00[\x00-\x18]\x00([A-Z]{2}|.\x00\x00\x00)", re.DOTALL
)
_RASTERS: tuple[tuple[bytes, RasterKind], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
)
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_PRETENDERS = (
    (b"version https://git-lfs", LFS_POINTER),
    (b"/annex/objects/", ANNEX_POINTER),
    (b"PK\x03\x04", ZIP),
    (b"PK\x05\x06", ZIP),
    (b"\x1f\x8b", GZIP),
    (b"BZh", ARCHIVE),
    (b"\xfd7zXZ\0", ARCHIVE),
    (b"7z\xbc\xaf\x27\x1c", ARCHIVE),
    (b"Rar!\x1a\x07", ARCHIVE),
    (b"\xff\x4f\xff\x51", OTHER_FORMAT),
    (b"\0\0\0\x0cjP  ", OTHER_FORMAT),
    (b"\xff\x0a", OTHER_FORMAT),
    (b"\0\0\0\x0cJXL ", OTHER_FORMAT),
)
_FEW_BYTES = 4096


def kind_of(data: bytes) -> RasterKind | Literal["DICOM"]:
    """Tell the kind of image that a file's content says it is.

    Raises:
        UnreadableImageError: it is none that is read; the reason names what else is often found in its place.
    """
    # A DICOM file's preamble may hold the header of another format.
    if is_dicom(data):
        return "DICOM"
    for prefix, kind in _RASTERS:
        if data.startswith(prefix):
            return kind
    if data.startswith(b"BM") and int.from_bytes(data[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    raise UnreadableImageError(pretence(data) or NOT_AN_IMAGE)


def is_dicom(data: bytes) -> bool:
    """Tell whether a file says that it is DICOM, by its preamble, or by a first element that only DICOM begins with."""
    return data[PREAMBLE_BYTES : PREAMBLE_BYTES + 4] == DICOM_MAGIC or _FIRST_ELEMENT.match(data) is not None


def pretence(data: bytes) -> str | None:
    """Name the kind of file that this is instead of an image, as a reason; None if it is none of the usual kinds."""
    if not data:
        return EMPTY
    head = data[:_FEW_BYTES]
    for prefix, reason in _PRETENDERS:
        if head.startswith(prefix):
            return reason
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        return WEB_PAGE
    if head[4:8] == b"ftyp" or (head.startswith(b"RIFF") and head[8:12] == b"WEBP"):
        return OTHER_FORMAT
    return None if head.strip(b"\0") else ZEROS
