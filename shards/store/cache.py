"""Files of remote shard sets on the local disk, named by their sha256: bounded, and shared by any number of processes.

Locks are flock's, which the kernel releases when their process ends, however it ends. A reader holds a shared lock on
the file it reads, so nobody evicts it; who downloads a file holds its `.lock`, and the others wait for it there.
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from shards.core.errors import ConfigError, IndexFormatError, StoreError
from shards.format.layout import sha256_of

CACHE_VARIABLE = "ACE_SHARD_CACHE"
SIZE_VARIABLE = "ACE_SHARD_CACHE_GB"
DEFAULT_GB = 100.0
_PART = ".part"
_OWN = re.compile(r"[0-9a-f]{64}(\.tar|\.npy|\.[0-9]+\.part)")
"""Names of the cache's files: whatever else lies in its folder is not evicted."""
_NUM_COPIES = 3
_RESERVE_BYTES = 2**26
_ROOM_TIMEOUT_S = 900.0
_POLL_S = 0.2

Download = Callable[[BinaryIO], None]
"""Appends to a file what it lacks; its position is its end."""


@dataclass(frozen=True)
class StoredFile:
    """A file of a shard set, as its index describes it."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardCache:
    """The folder of the cache.

    Attributes:
        root: Made when the first file comes, for its owner alone.
        max_bytes: Size of all files together, unfinished ones included.
    """

    root: Path
    max_bytes: int

    @classmethod
    def from_environment(cls) -> "ShardCache":
        """Open the cache that `ACE_SHARD_CACHE` names, which holds up to `ACE_SHARD_CACHE_GB`.

        By default it lies below the user's folder of caches.

        Raises:
            ConfigError: the folder is not absolute, or the size is not a number above 0.
        """
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        root = Path(os.environ.get(CACHE_VARIABLE) or caches / "ace" / "shards").expanduser()
        if not root.is_absolute():
            raise ConfigError(f"{CACHE_VARIABLE}={root}: expected an absolute path on a local disk")
        text = os.environ.get(SIZE_VARIABLE) or str(DEFAULT_GB)
        try:
            size_gb = float(text)
        except ValueError:
            size_gb = 0.0
        if not 0 < size_gb < float("inf"):
            raise ConfigError(f"{SIZE_VARIABLE}={text}: expected a number of gigabytes above 0")
        return cls(root, int(size_gb * 1e9))

    def path(self, stored: StoredFile) -> Path:
        """Return the path at which a file lies once it is here."""
        return self.root / f"{stored.sha256}{Path(stored.name).suffix}"

    def open(self, stored: StoredFile, where: str, download: Download) -> int:
        """Open a descriptor of a file, which is downloaded if it is not here.

        Until the descriptor is closed, nobody evicts the file.

        Args:
            stored: The file that is wanted.
            where: URL of the file, for messages.
            download: Called by one process at a time.

        Raises:
            ConfigError: the file is larger than the cache may be.
            IndexFormatError: what comes is not what the index says, more than once.
            StoreError: the folder cannot be used, the disk has no room, or the download fails for good.
        """
        try:
            descriptor = self._opened(stored)
            if descriptor is not None:
                return descriptor
            if stored.num_bytes > self.max_bytes:
                raise ConfigError(
                    f"{where}: {stored.num_bytes} bytes, and the cache {self.root} may hold {self.max_bytes}; raise "
                    f"{SIZE_VARIABLE}, so that it holds at least a few tars"
                )
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self.root / f"{stored.sha256}.lock"):
                descriptor = self._opened(stored)  # another process was first
                return self._downloaded(stored, where, download) if descriptor is None else descriptor
        except OSError as error:
            raise StoreError(
                f"{self.root}: the cache cannot be used: {error.strerror or error}; free space, or set "
                f"{CACHE_VARIABLE} to a folder on another disk that may be written"
            ) from None

    def _opened(self, stored: StoredFile) -> int | None:
        path = self.path(stored)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_size != stored.num_bytes:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):  # a folder that another one fills may be read-only here
            os.utime(descriptor)  # the last use, by which files are evicted
        return descriptor

    def _downloaded(self, stored: StoredFile, where: str, download: Download) -> int:
        part = self.root / f"{stored.sha256}.{stored.num_bytes}{_PART}"
        if part.exists() and part.stat().st_size > stored.num_bytes:
            part.unlink()
        self._make_room(stored, part, where)
        found = ""
        for _ in range(_NUM_COPIES):
            with part.open("ab") as file:
                download(file)
                file.flush()
                os.fsync(file.fileno())
            found = sha256_of(part)
            if found == stored.sha256:
                descriptor = os.open(part, os.O_RDONLY)
                fcntl.flock(descriptor, fcntl.LOCK_SH)  # before it can be evicted under its own name
                part.replace(self.path(stored))
                return descriptor
            part.unlink()
        raise IndexFormatError(
            f"{where}: found sha256 {found}, expected {stored.sha256}, in {_NUM_COPIES} copies; the file on the server "
            "is damaged or of another build than its index: upload the shard set again"
        )

    def _make_room(self, stored: StoredFile, part: Path, where: str) -> None:
        """Reserve the file's bytes by its part, evicting what was not used for longest.

        Raises:
            StoreError: the disk is full of other things, or of files in use.
        """
        deadline = time.monotonic() + _ROOM_TIMEOUT_S
        while True:
            with _locked(self.root / "room.lock"):
                missing = self._missing_bytes(stored, part)
                for path in self._oldest_first(part):
                    if missing <= 0:
                        break
                    if _evict(path):
                        missing = self._missing_bytes(stored, part)
                if missing <= 0:
                    part.touch()
                    return
                is_disk_full = self._free_bytes(stored, part) + sum(map(_size, self._others(part))) < 0
            if is_disk_full or time.monotonic() > deadline:
                raise StoreError(
                    f"{where}: {stored.num_bytes} bytes, and {self.root} lacks {missing} for it, with all evicted that "
                    f"is not in use; free space, set {CACHE_VARIABLE} to another disk, or raise {SIZE_VARIABLE} "
                    f"(now {self.max_bytes / 1e9:g})"
                )
            # Others are downloading, and what they finish can be evicted. Two that wait with a part each would wait for
            # each other.
            part.unlink(missing_ok=True)
            time.sleep(_POLL_S)

    def _missing_bytes(self, stored: StoredFile, part: Path) -> int:
        """Count the bytes that have to be evicted.

        Bytes that others are about to write count as written, for the cache's bound and for the disk.
        """
        others = self._others(part)
        reserved = sum(map(_reserved_bytes, others))
        to_come = reserved - sum(map(_size, others))
        return max(reserved + stored.num_bytes - self.max_bytes, to_come - self._free_bytes(stored, part))

    def _free_bytes(self, stored: StoredFile, part: Path) -> int:
        """Count the bytes that the disk would have left; below 0 it has no room for the file."""
        return shutil.disk_usage(self.root).free - (stored.num_bytes - _size(part)) - _RESERVE_BYTES

    def _others(self, part: Path) -> list[Path]:
        return [path for path in self.root.iterdir() if path != part and _OWN.fullmatch(path.name)]

    def _oldest_first(self, part: Path) -> list[Path]:
        """Sort files by what to evict first: tars and parts by their last use, then rows of indexes.

        A run opens rows of indexes once and may need them again.
        """
        used: dict[Path, float] = {}
        for path in self._others(part):
            with suppress(FileNotFoundError):
                used[path] = path.stat().st_mtime
        return sorted(used, key=lambda path: (path.suffix == ".npy", used[path]))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _reserved_bytes(path: Path) -> int:
    """Return the bytes that a file of the cache takes once it is whole; a part's name says it."""
    return int(path.name.split(".")[1]) if path.suffix == _PART else _size(path)


def _evict(path: Path) -> bool:
    """Remove a file unless somebody reads it or, of a part, writes it."""
    guard = path if path.suffix != _PART else path.with_name(f"{path.name.split('.')[0]}.lock")
    try:
        descriptor = os.open(guard, os.O_RDONLY)
    except FileNotFoundError:
        path.unlink(missing_ok=True)
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
