"""Reading shard sets: the index, and one sample by its byte offsets."""

import hashlib
import io
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64
from PIL import Image

from shards.core.canvas import Canvas
from shards.core.errors import ConfigError, DamagedImageError, IndexFormatError
from shards.core.grid import GridSpec, Rectangle
from shards.core.identity import SPLITS
from shards.core.records import Split
from shards.format import jpeg
from shards.format.exclusion import NOTHING, Exclusion, read_exclusion
from shards.format.index import DatasetDescription, IndexDescription, TarDescription
from shards.format.jpeg import DecodedRegion, Encoded
from shards.format.layout import (
    HALF_SUFFIX,
    IMAGE_FORMATS,
    INDEX,
    MASK_SUFFIX,
    ROW_DTYPE,
    ROWS,
    SampleSpans,
)
from shards.format.tar import BLOCK, read_header, walk_members
from shards.store.cache import StoredFile
from shards.store.location import LocalStore, Location, RemoteStore, Store, Tar, open_store

Reduction = Literal[1, 2]
"""Pixels of the canvas, along a side, to one of what is asked for."""


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """The index of a shard set. Sent to another process it takes a description along, not a million rows.

    Attributes:
        store: The store that holds its files.
        description: The content of index.json.
        rows: One row of `ROW_DTYPE` per sample, memory-mapped, in the order of the shards.
        fingerprint: sha256 of index.json, and so, through the hashes in it, of the whole set; with what is excluded, if
            anything is.
        excluded: Images that are not read.
    """

    store: Store
    description: IndexDescription
    rows: np.ndarray
    fingerprint: str
    excluded: Exclusion = NOTHING

    @classmethod
    def open(cls, location: Location | LocalStore | RemoteStore, *, check_tars: bool = True) -> "ShardIndex":
        """Read and check the index of the shard set at a folder, a URL, or in a store that `open_store` made.

        Args:
            location: The folder, the URL or the store.
            check_tars: Require that its tars are there and of their sizes; otherwise they are looked at when they are
                read.

        Raises:
            IndexFormatError: there is none, it has another format version, or files do not fit it.
            StoreError: a server does not answer, or refuses.
            ConfigError: the URL cannot be used, or the cache's settings are wrong.
        """
        store = location if isinstance(location, LocalStore | RemoteStore) else open_store(location)
        name = store.location.rpartition("/")[2]
        try:
            content = store.read(INDEX)
            description = IndexDescription.parse(content, store.location)
        except (OSError, ValueError, RecursionError):
            raise IndexFormatError(
                f"{store.location}: no shard set: {INDEX} is missing or no JSON; build it with `dvc repro shard@{name}`"
            ) from None
        stored = _stored_rows(description)
        index = cls(
            store=store,
            description=description,
            rows=_read_rows(store, stored),
            fingerprint=hashlib.sha256(content).hexdigest(),
        )
        if index.rows.shape != (description.num_samples,):
            raise IndexFormatError(
                f"{store.location}: {len(index.rows)} rows, and its tars hold {description.num_samples} samples; build "
                "it again"
            )
        if check_tars:
            store.check(index.tars)
        return index

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        # A pickled memory map is a copy of all of it.
        return state | {"rows": None} if isinstance(self.rows, np.memmap) else state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.rows is None:
            self.__dict__["rows"] = _open_rows(self.store, self.stored_rows)

    @property
    def root(self) -> Path:
        """The folder of the set.

        Raises:
            ConfigError: it lies on a server.
        """
        if isinstance(self.store, LocalStore):
            return self.store.root
        raise ConfigError(
            f"{self.store.location}: lies on a server; expected a shard set in a local folder: copy it to one"
        )

    @property
    def name(self) -> str:
        """Name of the batch."""
        return self.description.batch

    @property
    def dataset(self) -> DatasetDescription:
        """The dataset that the images come from."""
        return self.description.dataset

    @property
    def spec(self) -> GridSpec:
        """The grid that the set was built with."""
        return self.description.spec

    @property
    def channels(self) -> Literal[1, 3]:
        """Number of channels of every image: 1 (grey) or 3."""
        return self.description.channels

    @property
    def shards(self) -> tuple[TarDescription, ...]:
        """The tars, in the order of the rows."""
        return self.description.shards

    @cached_property
    def tars(self) -> list[StoredFile]:
        """The tars' files, in the order of `shards`."""
        return [StoredFile(tar.name, tar.bytes, tar.sha256) for tar in self.shards]

    @property
    def stored_rows(self) -> StoredFile:
        """The file of its rows."""
        return _stored_rows(self.description)

    def without_excluded(self, project: Path) -> "ShardIndex":
        """Return the same set without what a project excludes of its batch; sizes and statistics stay those of all.

        Args:
            project: The folder of params.yaml.

        Raises:
            SourceError: the project excludes images of it, and the list that says which is missing or another.
        """
        excluded = read_exclusion(self.name, project)
        if not excluded:
            return self
        fingerprint = hashlib.sha256(f"{self.fingerprint} {excluded.sha256}".encode()).hexdigest()
        return replace(self, excluded=excluded, fingerprint=fingerprint)

    def without_patients(self, patients: Collection[str]) -> "ShardIndex":
        """Return the same set without all images of some patients."""
        excluded = replace(self.excluded, patients=self.excluded.patients.union(patients))
        return replace(self, excluded=excluded)

    def count_excluded(self) -> dict[str, int]:
        """Return how many images of each split are excluded."""
        is_excluded = self.excluded.of(self.rows)
        return {name: int(is_excluded[self.rows["split"] == number].sum()) for number, name in enumerate(SPLITS)}

    def select(self, split: Split | Literal["all"]) -> Int64[np.ndarray, "num_samples"]:
        """Select the rows of a split, or of all, in the order of the shards, without excluded ones.

        A tar is of one split, so that no row is looked at where none is excluded.
        """
        ends = np.cumsum([tar.num_samples for tar in self.shards], dtype=np.int64)
        runs = [
            np.arange(end - tar.num_samples, end, dtype=np.int64)
            for tar, end in zip(self.shards, ends, strict=True)
            if split in (tar.split, "all")
        ]
        rows = np.concatenate([np.zeros(0, np.int64), *runs])
        return rows[~self.excluded.of(self.rows[rows])] if self.excluded else rows

    def tar_numbers(self, rows: Int64[np.ndarray, "num_samples"]) -> Int64[np.ndarray, "num_samples"]:
        """Tell which of `shards` each of some rows lies in; from the tars' sizes, so no row is looked at."""
        ends = np.cumsum([tar.num_samples for tar in self.shards], dtype=np.int64)
        return np.searchsorted(ends, rows, side="right")

    def keys(self, rows: Int64[np.ndarray, "num_samples"]) -> list[str]:
        """Return the keys of the samples in some rows."""
        return [key.decode("ascii") for key in self.rows["key"][rows].tolist()]

    def verify(self) -> None:
        """Compare every tar with its sha256; those of a server are fetched.

        Raises:
            IndexFormatError: naming the tars that differ.
        """
        damaged = [tar for tar in self.tars if _sha256_of(self.store.open(tar)) != tar.sha256]
        if damaged:
            names = ", ".join(tar.name for tar in damaged)
            remedy = self.store.remedy(damaged[0])
            raise IndexFormatError(f"{self.store.location}: damaged tars: {names}; {remedy}")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image with what the shard says about it; nothing is decoded before it is asked for.

    Attributes:
        key: Key of the sample.
        encoded: The file of its canvas.
        half: The file of the canvas at half its size, each pixel the mean of 2 × 2; None where the set has none.
        image_format: `png` or `jpg`.
        tar: The tar it lies in.
        row: Row of the index.
    """

    key: str
    encoded: Encoded
    half: Encoded | None
    image_format: str
    tar: Tar
    row: np.void

    def __getstate__(self) -> dict[str, Any]:
        # A view of the bytes that were read in one piece.
        half = None if self.half is None else bytes(self.half)
        return self.__dict__ | {"encoded": bytes(self.encoded), "half": half}

    @cached_property
    def image(self) -> Canvas:
        """The canvas.

        Raises:
            IndexFormatError: its file is damaged.
        """
        decode = jpeg.decode if self.image_format == "jpg" else _decode_png
        with self._damage_has_a_place("image"):
            return decode(self.encoded)

    def region(self, rectangle: Rectangle, reduction: Reduction = 1) -> DecodedRegion:
        """Decode a part of the canvas that holds the rectangle (row0, col0, row1, col1).

        Of a JPEG, little more than the rectangle is decoded.

        Args:
            rectangle: Rectangle in the pixels that are returned.
            reduction: 2 takes them from the canvas at half its size, all of which is decoded; the set has it (`half`).

        Raises:
            IndexFormatError: its file is damaged.
        """
        encoded = self.encoded if reduction == 1 else self.half
        if encoded is None:
            raise IndexFormatError(f"{self.tar}: sample {self.key} has no {HALF_SUFFIX}; take its canvas")
        if self.image_format == "png":
            return DecodedRegion(self.image, 0, 0)
        with self._damage_has_a_place("image"):
            return (
                jpeg.decode_region(encoded, rectangle) if reduction == 1 else DecodedRegion(jpeg.decode(encoded), 0, 0)
            )

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The content of <key>.json.

        Raises:
            IndexFormatError: the bytes at its place are not the sample's.
        """
        return _read_meta(self.tar, self.row)

    @contextmanager
    def _damage_has_a_place(self, what: str) -> Iterator[None]:
        try:
            yield
        except DamagedImageError as error:
            raise IndexFormatError(
                f"{self.tar}: {what} of sample {self.key}: {error}; {self.tar.store.remedy(self.tar.stored)}"
            ) from None

    @property
    def split(self) -> Split:
        """Split of the patient."""
        return SPLITS[int(self.row["split"])]

    @property
    def landmarks(self) -> dict[str, tuple[float, float]]:
        """Landmark → (row, col) in continuous canvas pixels; read on demand."""
        if not self.row["landmarks_bytes"]:
            return {}
        span = SampleSpans.of(self.row).landmarks
        return {name: (row, col) for name, (row, col) in json.loads(self.tar.read(span.start, span.num_bytes)).items()}

    def masks(self) -> dict[str, np.ndarray]:
        """Read the masks: structure → boolean mask of the canvas.

        Raises:
            IndexFormatError: one is damaged.
        """
        span = SampleSpans.of(self.row).members
        before, after = MASK_SUFFIX.split("{structure}")
        masks = {}
        for name, data in walk_members(self.tar.read(span.start, span.num_bytes)):
            _, _, suffix = name.partition(".")
            if suffix.startswith(before) and suffix.endswith(after):
                with self._damage_has_a_place(suffix):
                    masks[suffix.removeprefix(before).removesuffix(after)] = _decode_png(data) > 0
        return masks


class ShardReader:
    """Samples of a shard set by row. Holds no open files: it may be forked, pickled and used from several threads."""

    def __init__(self, index: ShardIndex) -> None:
        self.index = index
        self._tars = [Tar(index.store, tar) for tar in index.tars]

    def read(self, row: int) -> Sample:
        """Read the sample of one row of the index.

        Raises:
            IndexFormatError: the bytes at its place are not the sample's.
            StoreError: its tar cannot be had from the server.
        """
        entry = self.index.rows[row]
        spans, tar = SampleSpans.of(entry), self._tar_of(entry)
        # The image's header and content and its half size lie side by side: one read for all.
        start = spans.image.member_start
        last = spans.half if spans.half.num_bytes else spans.image
        data = memoryview(tar.read(start, last.start + last.num_bytes - start))
        key = entry["key"].decode("ascii")
        found, _, image_format = read_header(bytes(data[:BLOCK]))[0].partition(".")
        if found != key or image_format not in IMAGE_FORMATS:
            raise _wrong_place(tar, f"{found}.{image_format}", key)
        half = data[spans.half.start - start :] if spans.half.num_bytes else None
        return Sample(
            key=key,
            encoded=data[BLOCK : BLOCK + spans.image.num_bytes],
            half=half,
            image_format=image_format,
            tar=tar,
            row=entry,
        )

    def meta(self, row: int) -> dict[str, Any]:
        """Read the description of the sample of one row, without its image.

        Raises:
            IndexFormatError: the bytes at its place are not the sample's.
            StoreError: its tar cannot be had from the server.
        """
        entry = self.index.rows[row]
        return _read_meta(self._tar_of(entry), entry)

    def _tar_of(self, entry: np.void) -> Tar:
        number = int(entry["shard"])
        if number >= len(self._tars):
            raise IndexFormatError(
                f"{self.index.store.location}/{ROWS}: a row in tar number {number}, of {len(self._tars)}; build the "
                "shard set again"
            )
        return self._tars[number]


def _read_meta(tar: Tar, row: np.void) -> dict[str, Any]:
    span, expected = SampleSpans.of(row).meta, row["key"].decode("ascii")
    try:
        meta: dict[str, Any] = json.loads(tar.read(span.start, span.num_bytes))
        found = meta["key"]
    except (ValueError, TypeError, KeyError):
        found = "(no description of one)"
    if found != expected:
        raise _wrong_place(tar, found, expected)
    return meta


def _wrong_place(tar: Tar, found: str, expected: str) -> IndexFormatError:
    return IndexFormatError(f"{tar}: found sample {found} in the place of {expected}; build it again")


def _decode_png(data: Encoded) -> np.ndarray:
    try:
        return np.array(Image.open(io.BytesIO(data), formats=["PNG"]))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DamagedImageError(f"truncated or damaged PNG ({error})") from None


def _read_rows(store: Store, stored: StoredFile) -> np.ndarray:
    """Map the rows, compared with their hash: read without becoming part of this process's memory."""
    if _sha256_of(store.open(stored)) != stored.sha256:
        raise IndexFormatError(f"{store.path(stored)}: missing or not the file of this index; {store.remedy(stored)}")
    return _open_rows(store, stored)


def _open_rows(store: Store, stored: StoredFile) -> np.ndarray:
    # Mapped by its descriptor: under its name another process may evict it first. Never unpickled: only rows of this
    # type are mapped.
    with os.fdopen(store.open(stored), "rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError:
            version, dtype = None, None
        if version != (1, 0) or dtype != ROW_DTYPE:
            raise IndexFormatError(
                f"{store.location}/{ROWS}: rows of {dtype}, expected {ROW_DTYPE}; build the shard set again"
            )
        return np.memmap(file, ROW_DTYPE, "r", file.tell(), shape)


def _stored_rows(description: IndexDescription) -> StoredFile:
    rows = description.samples
    return StoredFile(rows.name, rows.bytes, rows.sha256)


def _sha256_of(descriptor: int) -> str:
    """Hash of an open file, which is closed."""
    with os.fdopen(descriptor, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
