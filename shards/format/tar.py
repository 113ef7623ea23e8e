"""Tar archives with the same bytes on every build, and the place of each member in them."""

import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from shards.core.errors import IndexFormatError

BLOCK = tarfile.BLOCKSIZE
_COPIED_AT_ONCE = 1 << 20
_NAME_BYTES, _SIZE, _CHECK_SUM = 100, slice(124, 135), slice(148, 156)
_CHECK_SUM_OF_SPACES = 8 * ord(" ")


@dataclass(frozen=True)
class Span:
    """The span of a member's data in its tar: first byte and number of bytes. Its header is the block before."""

    start: int
    num_bytes: int

    @property
    def member_start(self) -> int:
        """First byte of the member's header."""
        return self.start - BLOCK

    @property
    def member_stop(self) -> int:
        """One past the member's padding."""
        return self.start + -(-self.num_bytes // BLOCK) * BLOCK


class TarWriter:
    """A ustar archive whose bytes depend on nothing but names, data and their order (mtime 0, root, mode 0644)."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    @property
    def sha256(self) -> str:
        """Hash of what has been written, in hex: of the whole archive, once it is closed."""
        return self._digest.hexdigest()

    def add(self, name: str, data: bytes) -> Span:
        """Append one member. A ustar name of up to 100 characters has a header of exactly one block."""
        self._write(_header(name, len(data)))
        span = Span(self.num_bytes, len(data))
        self._write(data)
        self._write(bytes(-len(data) % BLOCK))
        return span

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.num_bytes += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._write(bytes(2 * BLOCK))
                self._write(bytes(-self.num_bytes % tarfile.RECORDSIZE))
        finally:
            self._file.close()


def _header(name: str, num_bytes: int) -> bytes:
    """Fill name, size and check sum into the template of a header.

    The check sum is that of all bytes, its own taken as spaces. `tarfile` takes far longer over each of the constant
    fields.
    """
    encoded = name.encode("ascii")
    if len(encoded) > _NAME_BYTES:
        raise ValueError(f"member name of {len(encoded)} bytes; a ustar header has room for {_NAME_BYTES}")
    header = bytearray(_template())
    header[: len(encoded)] = encoded
    header[_SIZE] = b"%011o" % num_bytes
    header[_CHECK_SUM] = b"%06o\0 " % (sum(header) + _CHECK_SUM_OF_SPACES)
    return bytes(header)


@cache
def _template() -> bytes:
    """Return a header with zeros for name, size and check sum."""
    member = tarfile.TarInfo("")
    member.mode, member.uname, member.gname = 0o644, "root", "root"
    header = bytearray(member.tobuf(tarfile.USTAR_FORMAT))
    for part in (_SIZE, _CHECK_SUM):
        header[part] = bytes(part.stop - part.start)
    return bytes(header)


def read_header(block: bytes) -> tuple[str, int]:
    """Read name and number of bytes from a member's header as `TarWriter` writes it; ("", 0) if it is none.

    This is some twenty times as fast as tarfile's, and readers need it for every sample.
    """
    num_bytes = block[124:135]
    if block[257:262] != b"ustar" or num_bytes.strip(b"01234567"):
        return "", 0
    return block[:100].rstrip(b"\0").decode("ascii", "replace"), int(num_bytes, 8)


def copy_members(source: Path, runs: Iterable[tuple[int, int]], target: Path) -> list[int]:
    """Copy some members of a tar into a new one, as `TarWriter` would have written it without the others.

    Args:
        source: The tar.
        runs: First byte and one past the last of each run of members, headers and padding included, in order.
        target: The new one.

    Returns:
        First byte of each run in the new tar.

    Raises:
        IndexFormatError: the tar ends before a run does.
    """
    starts = []
    with source.open("rb") as whole, target.open("wb") as part:
        for start, stop in runs:
            starts.append(part.tell())
            whole.seek(start)
            remaining = stop - start
            while remaining:
                data = whole.read(min(remaining, _COPIED_AT_ONCE))
                if not data:
                    raise IndexFormatError(f"{source}: ends before byte {stop}; build the shard set again")
                part.write(data)
                remaining -= len(data)
        part.write(bytes(2 * BLOCK))
        part.write(bytes(-part.tell() % tarfile.RECORDSIZE))
    return starts


def walk_members(run: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield (name, data) of the members in a run of bytes cut from a tar at member boundaries."""
    with tarfile.open(fileobj=io.BytesIO(run), mode="r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield member.name, file.read()
