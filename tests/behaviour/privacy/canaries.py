"""Strings and numbers that stand for what a file says of a patient, and the search for them in any output."""

import base64
import gzip
import io
import itertools
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from tests.support.datasets import smooth_image

_WORD = "QZXJKV"
_UID_ROOT = "1.2.826.0.1.3680043.10.9173"
_PNG = b"\x89PNG\r\n\x1a\n"

WHOLE = 1_731_900_000
"""Numbers of ten digits begin like this one."""
SHORT = 17_319
"""The one that fits into 16 bits."""
AGE = "073Y"

# Numbers only where they stand alone: inside a hash or a fraction they are chance.
_ALONE = rb"(?<![0-9a-z.])(?:%s)(?![0-9a-z])"
_NUMBERS = re.compile(
    _ALONE
    % b"|".join(
        [
            rb"17319\d{5}",
            rb"1\.7319\d+e\+?0?9",
            rb"17319",
            rb"1731-?[01]\d-?[0-3]\d",  # dates
            rb"(?:1731[01]\d[0-3]\d)?17\d{4}\.173197",  # times
            rb"073y",
        ]
    )
)
_IN_NUMBERS = (b"1731", b"1.7319", b"073y")
"""One of them is in every such number, and is found a hundred times as fast."""


class Canaries:
    """Gives out values, each another one, of the kinds that DICOM and image files hold; below 100,000 of them."""

    def __init__(self, first: int = 1) -> None:
        self._numbers = itertools.count(first)

    def picture(self) -> np.ndarray:
        """96 × 80 grey levels unlike those of the other files."""
        return smooth_image(96, 80, next(self._numbers))

    def text(self) -> str:
        return f"{_WORD}{next(self._numbers):05d}"

    def data(self) -> bytes:
        """16 bytes, so that they are whole numbers of any size."""
        return f"{self.text():<16}".encode()

    def uid(self) -> str:
        return f"{_UID_ROOT}.{next(self._numbers)}"

    def whole(self) -> int:
        return WHOLE + next(self._numbers)

    def date(self) -> str:
        number = next(self._numbers)
        return f"1731{1 + number % 12:02d}{1 + number % 28:02d}"

    def time(self) -> str:
        number = next(self._numbers)
        return f"17{number // 60 % 60:02d}{number % 60:02d}.173197"


def canaries_in(data: bytes) -> set[str]:
    """What of a patient an output says, in whatever container and encoding."""
    return set(itertools.chain.from_iterable(_in_bytes(part) for part in _parts(data)))


def canaries_below(*folders: Path) -> dict[str, set[str]]:
    """The same of all files below the folders, and of their names: path → what was found."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            seen = _in_bytes(str(path.relative_to(folder)).encode(errors="surrogateescape"))
            if path.is_file():
                seen |= canaries_in(path.read_bytes())
            if seen:
                found[path.relative_to(folder).as_posix()] = seen
    return found


def _in_bytes(data: bytes) -> set[str]:
    found: set[str] = set()
    # Without zeros the ASCII part of UTF-16 and UTF-32 is ASCII.
    for plain in {data, data.replace(b"\0", b"")}:
        lower = plain.lower()
        for needle in (_WORD.lower().encode(), _UID_ROOT.encode()):
            found |= {f"{needle.decode()} as text" for _ in range(needle in lower)}
        if any(part in lower for part in _IN_NUMBERS):
            found |= {match.decode() for match in _NUMBERS.findall(lower)}
        for secret in (_WORD.encode(), _UID_ROOT.encode()):
            for name, needle in _encoded(secret).items():
                if needle in (lower if name == "hex" else plain):
                    found.add(f"{secret.decode()} as {name}")
    return found


def _encoded(secret: bytes) -> dict[str, bytes]:
    """In hex, and in base64 at each of the three places at which it can begin."""
    encoded = {"hex": secret.hex().encode()}
    for shift in range(3):
        whole = base64.b64encode(bytes(shift) + secret)
        # The characters that also carry bits of what stands before and after are not its own.
        encoded[f"base64 at {shift}"] = whole[-(-8 * shift // 6) : 8 * (shift + len(secret)) // 6]
    return encoded


def _parts(data: bytes) -> Iterator[bytes]:
    """The bytes themselves, and what they hold in compressed or nested form."""
    yield data
    if data.startswith(_PNG):
        for name, content in png_chunks(data):
            if name in (b"zTXt", b"iCCP", b"iTXt"):
                yield _inflated(content[content.rfind(b"\0\0") + 2 :])
        yield _inflated(b"".join(content for name, content in png_chunks(data) if name == b"IDAT"))
    elif data.startswith(b"\x1f\x8b"):
        yield from _parts(gzip.decompress(data))
    elif data.startswith(b"PAR1"):
        table = pq.read_table(io.BytesIO(data))
        yield repr((table.schema, table.to_pylist())).encode()
    elif data[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                file = tar.extractfile(member)
                yield from _parts(file.read() if file else b"")


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of the chunks of a PNG file."""
    start = len(_PNG)
    while start + 12 <= len(data):
        length = int.from_bytes(data[start : start + 4], "big")
        yield data[start + 4 : start + 8], data[start + 8 : start + 8 + length]
        start += 12 + length


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompress(data)
    except zlib.error:
        return b""
