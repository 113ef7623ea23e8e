"""Deliveries on S3: which have come, and one of them fetched whole. Nothing is changed there, so reading is enough.

Credentials and the endpoint are those of the environment, a profile or the machine's role, as for shard sets on S3.
"""

import hashlib
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import sync

from ace.operations.durable import sync_folder
from ace.operations.incoming import CONTROL, MARKER, shown
from shards.core.errors import ConfigError, SourceError, StoreError
from shards.runtime.atomic import check_room, clear_when_full, size, write_private_text
from shards.runtime.progress import progress_bar

_CHUNK_BYTES = 2**24
_NUM_THREADS = 8
_MAX_NAME_BYTES = 255
_MD5 = re.compile(r"[0-9a-f]{32}")
_ENCRYPTED = ("SSEKMSKeyId", "SSECustomerAlgorithm")
"""An object with one of these has an ETag that is no md5."""


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """One object of a delivery.

    Attributes:
        name: Name of the object below its delivery, as `2026/0001.dcm`.
        num_bytes: Size of the object, in bytes.
        etag: ETag that the server gives it, which changes with its content.
        changed_s: Time of its last change, in seconds.
    """

    name: str
    num_bytes: int
    etag: str
    changed_s: float


@dataclass(frozen=True)
class Seen:
    """Tells one state of a delivery from another.

    Attributes:
        mark: ETag and time of the marker, or the digest where there is none; one request tells whether it is known.
        digest: Digest of names, sizes and ETags of all objects.
        batch: Name of the batch that was made of it.
    """

    mark: str
    digest: str
    batch: str


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A delivery on S3 that was not taken yet.

    Attributes:
        url: Prefix of the delivery, as `s3://BUCKET/PREFIX/NAME`.
        is_complete: It may be taken.
        text: How far it is, for people.
        mark: As `Seen` has it.
        digest: As `Seen` has it.
        earlier: Batch that an earlier delivery of this name became, whose objects were others; None if none came.
    """

    url: str
    is_complete: bool
    text: str
    mark: str
    digest: str
    earlier: str | None

    @property
    def name(self) -> str:
        """Name of the delivery."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Bucket:
    """A prefix on S3, whose sub-prefixes are deliveries.

    Attributes:
        url: The prefix, as `s3://bucket/prefix`.
        max_objects: Objects of a delivery, at most.
        max_bytes: Size of a delivery, at most.
    """

    url: str
    max_objects: int
    max_bytes: float

    def sent(self, known: Mapping[str, Sequence[Seen]], settle_s: float, now_s: float) -> list[Sent]:
        """List the deliveries that were not taken yet, by name.

        Args:
            known: URL of a delivery → its states that were taken, the last one last.
            settle_s: Seconds for which the objects of one without the marker must have stayed as they are.
            now_s: The time, in seconds.

        Raises:
            StoreError: the server does not answer, or refuses.
            ConfigError: s3fs is not installed.
        """
        found = []
        for url in self._urls():
            before = known.get(url, ())
            marker = next((item for item in self._objects(url, MARKER) if item.name == MARKER), None)
            if marker and any(seen.mark == f"{marker.etag} {marker.changed_s}" for seen in before):
                continue
            objects = self.objects(url)
            digest = _digest(objects)
            if not any(seen.digest == digest for seen in before):
                mark = f"{marker.etag} {marker.changed_s}" if marker else digest
                earlier = before[-1].batch if before else None
                is_complete, text = _progress(marker, objects, settle_s, now_s)
                found.append(
                    Sent(url=url, is_complete=is_complete, text=text, mark=mark, digest=digest, earlier=earlier)
                )
        return found

    def objects(self, url: str) -> list[StoredObject]:
        """List the objects of a delivery by name, without its marker; one more than may be at most.

        Raises:
            StoreError: as `sent`.
        """
        found: list[StoredObject] = []
        for item in self._objects(url):
            is_folder = not item.num_bytes and (not item.name or item.name.endswith("/"))  # as consoles make them
            if item.name != MARKER and not is_folder:
                found.append(item)
            if len(found) > self.max_objects:
                break
        return found

    def fetch(self, url: str, images: Path, work: Path) -> dict[str, Any]:
        """Fetch all objects of a delivery into a folder, which appears whole; after a kill it goes on.

        Args:
            url: The delivery.
            images: The folder.
            work: Folder beside it for what was fetched so far, with the names, sizes and ETags of the objects that it
                is of. It goes at the end: names and ETags of images are their patients' data.

        Returns:
            What was fetched, for the record: number of objects and bytes, and their digest.

        Raises:
            SourceError: its names, sizes or number are not as they may be.
            StoreError: as `sent`, or the objects change meanwhile.
            NoSpaceError: the disk has too little room.
        """
        objects = self.objects(url)
        self._check(objects)
        listed, part = work / "objects.json", work / "images"
        text = json.dumps(_listing(objects))
        if not listed.is_file() or listed.read_text(encoding="utf-8") != text:
            shutil.rmtree(work, ignore_errors=True)  # of other objects
            write_private_text(listed, text)
        part.mkdir(exist_ok=True)
        total = sum(item.num_bytes for item in objects)
        there = sum(path.stat().st_size for path in part.rglob("*") if path.is_file())
        check_room(work, total - there, f"{len(objects):,} objects of the delivery")
        bar = progress_bar(total=total, description="fetch", unit="B", scale_unit=True, delay_s=3)
        with clear_when_full(work, num_bytes=total), bar, ThreadPoolExecutor(_NUM_THREADS) as pool:
            try:
                for item, _ in zip(objects, pool.map(lambda item: self._fetch(url, item, part), objects), strict=True):
                    bar.update(item.num_bytes)
            finally:
                pool.shutdown(cancel_futures=True)
        if _listing(self.objects(url)) != _listing(objects):
            raise StoreError(f"{url}: its objects changed while they were fetched; expected them to stay as they are")
        part.rename(images)
        sync_folder(images.parent)
        shutil.rmtree(work)
        return {"objects": len(objects), "bytes": total, "digest": _digest(objects)}

    @cached_property
    def _system(self) -> Any:
        try:
            return fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
        except ImportError as error:
            raise ConfigError(f"{self.url}: {error}; pip install 'ace-pretraining[s3]'") from None

    def _pages(self, url: str, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
        """Yield what the server lists of keys that begin with the prefix.

        Raises:
            StoreError: as `sent`.
        """
        while True:
            try:
                page = self._system.call_s3("list_objects_v2", Bucket=_bucket(url), Prefix=prefix, **options)
            except Exception as error:  # whatever the libraries below raise
                raise _refused(error, self.url, "listed") from None  # Dagster shows it, and no name of a delivery
            yield page
            if not page.get("IsTruncated"):
                return
            options["ContinuationToken"] = page["NextContinuationToken"]

    def _urls(self) -> list[str]:
        prefix = _key(self.url)
        start = f"{prefix}/" if prefix else ""
        pages = self._pages(self.url, start, Delimiter="/")
        found = [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", ())]
        names = [key.removeprefix(start).removesuffix("/") for key in found]
        return [f"{self.url}/{name}" for name in sorted(names) if name and not name.startswith(".")]

    def _objects(self, url: str, name: str = "") -> Iterator[StoredObject]:
        start = f"{_key(url)}/"
        for page in self._pages(url, start + name):
            for item in page.get("Contents", ()):
                key, changed = item["Key"].removeprefix(start), item["LastModified"].timestamp()
                yield StoredObject(name=key, num_bytes=item["Size"], etag=item["ETag"].strip('"'), changed_s=changed)

    def _check(self, objects: Sequence[StoredObject]) -> None:
        """Refuse a delivery that is too large, or whose names cannot all be names of files in one folder."""
        if len(objects) > self.max_objects:
            raise SourceError(
                f"the delivery has more than {self.max_objects:,} objects, and may not have "
                "(operations.deliveries.max_objects); send it in several parts"
            )
        if (total := sum(item.num_bytes for item in objects)) > self.max_bytes:
            raise SourceError(
                f"the delivery has {size(total)}, and may have {size(self.max_bytes)} (operations.deliveries.max_gb); "
                "send it in several parts"
            )
        names = {item.name for item in objects}
        spelled: dict[str, str] = {}
        for item in objects:
            parts = item.name.split("/")
            fault = None
            if any(part in ("", ".", "..") for part in parts) or "\\" in item.name:
                fault = "leads out of its folder, or is no path of a file"
            elif CONTROL.search(item.name):
                fault = "has control characters"
            elif any(len(part.encode()) > _MAX_NAME_BYTES for part in parts):
                fault = "is longer than a file's name may be"
            for end in range(1, len(parts) + 1):
                path = "/".join(parts[:end])
                if end < len(parts) and path in names:
                    fault = fault or "lies below another object"
                if spelled.setdefault(unicodedata.normalize("NFC", path).casefold(), path) != path:
                    fault = fault or "equals another one but for capitals"
            if fault:
                raise SourceError(
                    f"the name of the object {shown(item.name)} {fault}; expected names that can stand in one folder"
                )

    def _fetch(self, url: str, item: StoredObject, part: Path) -> None:
        """Fetch what a file lacks of one object.

        Raises:
            StoreError: as `sent`, or what came is not the object.
        """
        path = part / item.name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            while (start := file.tell()) < item.num_bytes:
                stop = min(start + _CHUNK_BYTES, item.num_bytes)
                data = self._read(url, item, start, stop)
                if len(data) != stop - start:
                    raise StoreError(f"{url}: an object is shorter than it was; expected them to stay as they are")
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not self._is_whole(path, url, item):
            path.unlink()
            raise StoreError(f"{url}: an object came damaged, which is fetched again the next time")

    def _read(self, url: str, item: StoredObject, start: int, stop: int) -> bytes:
        place = f"bytes={start}-{stop - 1}"
        try:
            # Not `cat_file`, which takes a part of some keys for a version.
            answer = self._system.call_s3("get_object", **_place(url, item), Range=place, IfMatch=item.etag)
            return bytes(sync(self._system.loop, answer["Body"].read))
        except Exception as error:  # whatever the libraries below raise
            raise _refused(error, url, "fetched") from None

    def _is_whole(self, path: Path, url: str, item: StoredObject) -> bool:
        """Compare a file with its object: by size, and by md5 where the ETag is one."""
        with path.open("rb") as file:
            if _MD5.fullmatch(item.etag) is None:
                return path.stat().st_size == item.num_bytes
            if hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == item.etag:
                return True
        try:
            head = self._system.call_s3("head_object", **_place(url, item))
        except Exception as error:  # whatever the libraries below raise
            raise _refused(error, url, "fetched") from None
        return any(name in head for name in _ENCRYPTED)


def _place(url: str, item: StoredObject) -> dict[str, str]:
    return {"Bucket": _bucket(url), "Key": f"{_key(url)}/{item.name}"}


def _bucket(url: str) -> str:
    return url.removeprefix("s3://").partition("/")[0]


def _key(url: str) -> str:
    return url.removeprefix("s3://").partition("/")[2]


def _listing(objects: Sequence[StoredObject]) -> list[list[str | int]]:
    return sorted([item.name, item.num_bytes, item.etag] for item in objects)


def _digest(objects: Sequence[StoredObject]) -> str:
    return hashlib.sha256(json.dumps(_listing(objects)).encode()).hexdigest()


def _progress(
    marker: StoredObject | None, objects: Sequence[StoredObject], settle_s: float, now_s: float
) -> tuple[bool, str]:
    """Tell whether a delivery may be taken, and how far it is."""
    if marker:
        return True, f"complete, it has {MARKER}"
    if not objects:
        return False, "empty"
    quiet_s = max(now_s - max(item.changed_s for item in objects), 0)
    return quiet_s >= settle_s, f"unchanged for {quiet_s:.0f} of {settle_s:.0f} s, without {MARKER}"


def _refused(error: Exception, url: str, done: str) -> StoreError:
    """Say why a request failed, and what to do; nothing of the request itself is shown."""
    name = type(error).__name__
    if isinstance(error, FileNotFoundError):
        remedy = "there is no such bucket or object: check operations.deliveries.incoming"
    elif isinstance(error, PermissionError) or "Credential" in name:
        remedy = "the service may not read there: give it s3:ListBucket and s3:GetObject, and its credentials by the "
        remedy += "environment, a profile or the machine's role"
    else:
        remedy = "the server does not answer as expected, or the object is another one by now"
    return StoreError(f"{url}: its objects cannot be {done} ({name}: {error}); {remedy}")
