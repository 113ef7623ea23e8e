"""Read the files of a shard set where they lie: in a local folder, or on a server behind a cache."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shards.core.errors import ConfigError, IndexFormatError
from shards.format.layout import MAX_INDEX_BYTES
from shards.runtime.progress import progress_bar
from shards.store.cache import ShardCache, StoredFile
from shards.store.remote import PATIENT, Remote, Retry

Location = Path | str
"""A folder, or a URL such as s3://bucket/prefix or https://host/path."""

_SHOWN_AFTER_S = 3.0
_RESTORE = "restore the shard set with `dvc checkout` or build it again"


@dataclass(frozen=True)
class LocalStore:
    """A folder; its files are read in place."""

    root: Path

    @property
    def location(self) -> str:
        """The folder, as messages show it."""
        return str(self.root)

    def read(self, name: str) -> bytes:
        """Read a small file, whole, and as it is now.

        Raises:
            OSError: it is not in the folder.
        """
        return (self.root / name).read_bytes()

    def check(self, tars: Sequence[StoredFile]) -> None:
        """Look for what can be seen without reading the tars.

        Raises:
            IndexFormatError: a tar is missing or has another size.
        """
        for tar in tars:
            path = self.path(tar)
            size = path.stat().st_size if path.is_file() else None
            if size != tar.num_bytes:
                raise IndexFormatError(f"{path}: {size} bytes, the index says {tar.num_bytes}; {_RESTORE}")

    def open(self, stored: StoredFile) -> int:
        """Open a descriptor of a file for reading; the caller closes it.

        Raises:
            IndexFormatError: the file is missing.
        """
        try:
            return os.open(self.path(stored), os.O_RDONLY)
        except OSError as error:
            raise IndexFormatError(f"{self.path(stored)}: {error.strerror}; {_RESTORE}") from None

    def path(self, stored: StoredFile) -> Path:
        """Return the path at which `open` finds the file."""
        return self.root / stored.name

    def remedy(self, stored: StoredFile) -> str:
        """Say what to do where the file is not what the index says."""
        del stored
        return _RESTORE


@dataclass(frozen=True)
class RemoteStore:
    """A folder on a server; whole files come into the cache when they are first asked for, and are checked there."""

    remote: Remote
    cache: ShardCache

    @property
    def location(self) -> str:
        """The URL, as messages show it."""
        return self.remote.location

    def read(self, name: str) -> bytes:
        """Read a small file, whole, and as it is now; it does not go to the cache.

        Raises:
            StoreError: it cannot be had from the server.
        """
        return self.remote.read(name, MAX_INDEX_BYTES)

    def check(self, tars: Sequence[StoredFile]) -> None:
        """Do nothing: a tar is checked when it comes."""

    def open(self, stored: StoredFile) -> int:
        """Open a descriptor of a file for reading; the caller closes it, and until then the file stays in the cache.

        Raises:
            ConfigError: the file is larger than the cache may be.
            IndexFormatError: the server's file is not what the index says.
            StoreError: it cannot be had from the server, or there is no room for it.
        """
        return self.cache.open(stored, self.remote.url(stored.name), lambda file: self._download(stored, file))

    def path(self, stored: StoredFile) -> Path:
        """Return the path at which the file lies while `open`'s descriptor is held."""
        return self.cache.path(stored)

    def remedy(self, stored: StoredFile) -> str:
        """Say what to do where the file, which was right when it came, is no longer what the index says."""
        return f"remove {self.path(stored)}, which is fetched again, and look at the disk"

    def _download(self, stored: StoredFile, file: BinaryIO) -> None:
        bar = progress_bar(
            total=stored.num_bytes,
            initial=file.tell(),
            description=f"fetch {stored.name}",
            unit="B",
            scale_unit=True,
            delay_s=_SHOWN_AFTER_S,
        )
        with bar:
            self.remote.append(stored.name, file, stored.num_bytes, bar.update)


Store = LocalStore | RemoteStore
"""The store of one shard set's files. Holds no open files: may be forked, pickled and used from several threads."""


@dataclass(frozen=True)
class Tar:
    """One tar of a store."""

    store: Store
    stored: StoredFile

    def read(self, start: int, num_bytes: int) -> bytes:
        """Read some bytes of the tar.

        Raises:
            IndexFormatError: the tar is missing, not what the index says, or has no such place.
            StoreError: it cannot be had from the server.
        """
        stop = start + num_bytes
        if 0 <= start <= stop <= self.stored.num_bytes:
            descriptor = self.store.open(self.stored)
            try:
                data = os.pread(descriptor, num_bytes, start)
            finally:
                os.close(descriptor)
            if len(data) == num_bytes:
                return data
        raise IndexFormatError(f"{self}: bytes {start} to {stop} are not in it; {self.store.remedy(self.stored)}")

    def __str__(self) -> str:
        return f"{self.store.location}/{self.stored.name}"


def open_store(
    location: Location,
    *,
    storage_options: Mapping[str, Any] | None = None,
    cache: ShardCache | None = None,
    retry: Retry = PATIENT,
) -> Store:
    """Open the store at a folder or a URL; nothing is read yet.

    Args:
        location: The folder or the URL.
        storage_options: Options that fsspec's own configuration does not have, as {"endpoint_url": …}.
        cache: Cache for remote files; by default that of the environment (`ShardCache.from_environment`).
        retry: Patience with a server.

    Raises:
        ConfigError: the URL carries credentials or a query, which would stand in messages and records.
    """
    if not is_remote(location):
        return LocalStore(Path(location))
    url = str(location).rstrip("/")
    if "@" in url.partition("://")[2].partition("/")[0] or "?" in url or "#" in url:
        raise ConfigError(
            "the address of a shard set carries a user, a query or a fragment; expected SCHEME://HOST/PATH alone: it "
            "stands in messages and records. Give credentials in fsspec's configuration or the store's own way"
        )
    return RemoteStore(Remote(url, storage_options or {}, retry), cache or ShardCache.from_environment())


def is_remote(location: Location) -> bool:
    """Tell whether a location is a URL."""
    return isinstance(location, str) and "://" in location


def parse_location(text: str) -> Location:
    """Parse a location as it is written on a command line."""
    return text if is_remote(text) else Path(text)


def location_of(root: Location, name: str) -> Location:
    """Return the location of the shard set `name` below a folder or a URL."""
    return f"{str(root).rstrip('/')}/{name}" if is_remote(root) else Path(root) / name
