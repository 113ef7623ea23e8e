"""Reading shard sets: the index, one sample by its byte offsets, and the order of an epoch."""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64
from PIL import Image

from shards import jpeg
from shards.canvas import Canvas
from shards.errors import ConfigError, DamagedImageError, IndexFormatError
from shards.format import FORMAT_VERSION, HALF_SUFFIX, IMAGE_FORMATS, INDEX, MASK_SUFFIX, ROW_DTYPE, ROWS, sha256_of
from shards.grid import GridSpec, Rectangle
from shards.identity import Split
from shards.jpeg import Region
from shards.tar import BLOCK, Span, read_header, walk_members

Reduction = Literal[1, 2]
"""Pixels of the canvas, along a side, to one of what is asked for."""


@dataclass(frozen=True)
class ShardIndex:
    """What is in a shard set.

    Attributes:
        root: Its folder.
        values: The content of index.json.
        rows: One row of `ROW_DTYPE` per sample, memory-mapped.
        fingerprint: sha256 of index.json, and so, through the hashes in it, of the whole set.
    """

    root: Path
    values: dict[str, Any]
    rows: np.ndarray
    fingerprint: str

    @classmethod
    def open(cls, root: Path) -> "ShardIndex":
        """Read and check the index of the shard set in `root`.

        Raises:
            IndexFormatError: there is none, it has another format version, or files do not fit it.
        """
        try:
            text = (root / INDEX).read_bytes()
            values = json.loads(text)
        except (OSError, ValueError):
            raise IndexFormatError(
                f"{root}: no shard set: {INDEX} is missing or no JSON; build it with `dvc repro shard@{root.name}`"
            ) from None
        found = values.get("format_version")
        if found != FORMAT_VERSION:
            raise IndexFormatError(
                f"{root}: format_version {found}, this code reads {FORMAT_VERSION}; build it again: "
                f"`dvc repro --force shard@{root.name}`"
            )
        index = cls(root, values, _read_rows(root, values), hashlib.sha256(text).hexdigest())
        for shard in index.shards:
            size = (root / shard["name"]).stat().st_size if (root / shard["name"]).is_file() else None
            if size != shard["bytes"]:
                raise IndexFormatError(
                    f"{root / shard['name']}: {size} bytes, the index says {shard['bytes']}; restore the shard set "
                    "with `dvc checkout` or build it again"
                )
        return index

    @property
    def name(self) -> str:
        """The batch."""
        return str(self.values["batch"])

    @cached_property
    def spec(self) -> GridSpec:
        """The grid that the set was built with."""
        return GridSpec.from_json(self.values["spec"])

    @property
    def channels(self) -> int:
        """1 (grey) or 3, for every image."""
        return int(self.values["channels"])

    @property
    def shards(self) -> list[dict[str, Any]]:
        """name, split, num_samples, bytes, sha256 of each tar."""
        return list(self.values["shards"])

    @property
    def statistics(self) -> dict[str, Any]:
        """mean and std of the training images' foreground in [0, 1], and counts of images, patients, labels, views."""
        return {**self.values["statistics"], **self.values["counts"]}

    def select(self, split: Split) -> Int64[np.ndarray, "num_samples"]:
        """Rows of a split, in the order of its shards."""
        return np.flatnonzero(self.rows["split"] == split)

    def verify(self) -> None:
        """Compare every tar with its sha256.

        Raises:
            IndexFormatError: naming the tars that differ.
        """
        damaged = [shard["name"] for shard in self.shards if sha256_of(self.root / shard["name"]) != shard["sha256"]]
        if damaged:
            raise IndexFormatError(
                f"{self.root}: damaged tars: {', '.join(damaged)}; restore them with `dvc checkout` or build again"
            )


@dataclass(frozen=True)
class Sample:
    """One image with what the shard says about it; nothing is decoded before it is asked for.

    Attributes:
        key: Its key.
        encoded: The file of its canvas.
        image_format: `png` or `jpg`.
        shard: The tar it lies in.
        row: Its row of the index.
    """

    key: str
    encoded: bytes
    image_format: str
    shard: Path
    row: np.void

    @cached_property
    def image(self) -> Canvas:
        """The canvas.

        Raises:
            IndexFormatError: its JPEG is damaged.
        """
        if self.image_format == "jpg":
            with self._damage_has_a_place():
                return jpeg.decode(self.encoded)
        return np.array(Image.open(io.BytesIO(self.encoded)))

    @cached_property
    def half(self) -> bytes | None:
        """The file of the canvas at half its size, each pixel the mean of 2 × 2; None where the set has none."""
        start = Span(int(self.row["image_start"]), int(self.row["image_bytes"])).member_stop
        name, num_bytes = read_header(_read_at(self.shard, start, BLOCK))
        return _read_at(self.shard, start + BLOCK, num_bytes) if name == f"{self.key}.{HALF_SUFFIX}" else None

    def region(self, rectangle: Rectangle, reduction: Reduction = 1) -> Region:
        """A part of the canvas that holds the rectangle (row0, col0, row1, col1); of a JPEG no more is decoded.

        Args:
            rectangle: In the pixels that are returned.
            reduction: 2 takes them from the canvas at half its size; the set has it (`half`).

        Raises:
            IndexFormatError: its JPEG is damaged.
        """
        encoded = self.encoded if reduction == 1 else self.half
        if encoded is None:
            raise IndexFormatError(f"{self.shard}: sample {self.key} has no {HALF_SUFFIX}; take its canvas")
        if self.image_format == "png":
            return Region(self.image, 0, 0)
        with self._damage_has_a_place():
            return jpeg.decode_region(encoded, rectangle)

    @cached_property
    def meta(self) -> dict[str, Any]:
        """The content of <key>.json.

        Raises:
            IndexFormatError: the bytes at its place are not the sample's.
        """
        return _read_meta(self.shard, self.row)

    @contextmanager
    def _damage_has_a_place(self) -> Iterator[None]:
        try:
            yield
        except DamagedImageError as error:
            raise IndexFormatError(
                f"{self.shard}: image of sample {self.key}: {error}; restore the shard set with `dvc checkout` or "
                "build it again"
            ) from None

    @property
    def landmarks(self) -> dict[str, tuple[float, float]]:
        """Landmark → (row, col) in continuous canvas pixels; read on demand."""
        if not self.row["landmarks_bytes"]:
            return {}
        data = _read_at(self.shard, int(self.row["landmarks_start"]), int(self.row["landmarks_bytes"]))
        return {name: (row, col) for name, (row, col) in json.loads(data).items()}

    def masks(self) -> dict[str, np.ndarray]:
        """Structure → boolean mask of the canvas; read on demand."""
        start, stop = int(self.row["start"]), int(self.row["stop"])
        before, after = MASK_SUFFIX.split("{structure}")
        masks = {}
        for name, data in walk_members(_read_at(self.shard, start, stop - start)):
            _, _, suffix = name.partition(".")
            if suffix.startswith(before) and suffix.endswith(after):
                masks[suffix.removeprefix(before).removesuffix(after)] = np.asarray(Image.open(io.BytesIO(data))) > 0
        return masks


class ShardReader:
    """Samples of a shard set by row. Holds no open files: it may be forked, pickled and used from several threads."""

    def __init__(self, index: ShardIndex) -> None:
        self.index = index
        self._paths = [index.root / shard["name"] for shard in index.shards]

    def read(self, row: int) -> Sample:
        """The sample of one row of the index.

        Raises:
            IndexFormatError: the bytes at its place are not the sample's.
        """
        entry = self.index.rows[row]
        path, key = self._paths[entry["shard"]], str(entry["key"])
        start, num_bytes = int(entry["image_start"]), int(entry["image_bytes"])
        member = _read_at(path, start - BLOCK, BLOCK + num_bytes)
        found, _, image_format = read_header(member[:BLOCK])[0].partition(".")
        if found != key or image_format not in IMAGE_FORMATS:
            raise _wrong_place(path, f"{found}.{image_format}", key)
        return Sample(key, member[BLOCK:], image_format, path, entry)

    def meta(self, row: int) -> dict[str, Any]:
        """What the shard says about the sample of one row, without reading its image.

        Raises:
            IndexFormatError: the bytes at its place are not the sample's.
        """
        entry = self.index.rows[row]
        return _read_meta(self._paths[entry["shard"]], entry)


def epoch_order(
    sizes: Sequence[int],
    weights: Sequence[float],
    *,
    seed: int,
    epoch: int,
    rank: int,
    world_size: int,
    batch_size: int,
) -> Int64[np.ndarray, "num_batches batch_size 2"]:
    """Which samples one rank sees in one epoch, in order, as (data set, position in its selected rows).

    A weight multiplies a data set's size: 1 shows each of its samples once, 2.5 shows each twice and a random half a
    third time, 0 none. All draws are shuffled together and dealt to the ranks; what does not fill a batch on every
    rank is left out of this epoch (another part in each). Everything follows from the arguments.

    Raises:
        ConfigError: fewer draws than one batch on every rank.
    """
    draws = [
        _draw(dataset, size, weight, np.random.default_rng([seed, epoch, 1 + dataset]))
        for dataset, (size, weight) in enumerate(zip(sizes, weights, strict=True))
    ]
    # SeedSequence pads with zeros: without the 1 + above, data set 0 would share this stream.
    order = np.random.default_rng([seed, epoch]).permutation(np.concatenate(draws))
    num_batches = len(order) // (world_size * batch_size)
    if not num_batches:
        raise ConfigError(
            f"{len(order)} training samples an epoch for {world_size} rank(s) × batch_size {batch_size} = "
            f"{world_size * batch_size}; lower the batch size or the number of ranks, or add data"
        )
    dealt = order[: num_batches * world_size * batch_size].reshape(num_batches, world_size, batch_size, 2)
    return dealt[:, rank]


def _draw(dataset: int, size: int, weight: float, rng: np.random.Generator) -> Int64[np.ndarray, "num_draws 2"]:
    repeats, rest = divmod(round(weight * size), max(size, 1))
    positions = np.concatenate([np.tile(np.arange(size), repeats), rng.permutation(size)[:rest]])
    return np.stack([np.full_like(positions, dataset), positions], axis=1)


def _read_rows(root: Path, values: dict[str, Any]) -> np.ndarray:
    path = root / ROWS
    if not path.is_file() or sha256_of(path) != values["samples"]["sha256"]:
        raise IndexFormatError(f"{path}: missing or not the file of this index; restore or build the shard set again")
    rows: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    if rows.dtype != ROW_DTYPE:
        raise IndexFormatError(f"{path}: rows of {rows.dtype}, expected {ROW_DTYPE}; build the shard set again")
    return rows


def _read_meta(path: Path, row: np.void) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads(_read_at(path, int(row["meta_start"]), int(row["meta_bytes"])))
    if meta["key"] != row["key"]:
        raise _wrong_place(path, meta["key"], str(row["key"]))
    return meta


def _wrong_place(path: Path, found: str, expected: str) -> IndexFormatError:
    return IndexFormatError(f"{path}: found sample {found} in the place of {expected}; build it again")


def _read_at(path: Path, start: int, num_bytes: int) -> bytes:
    file = os.open(path, os.O_RDONLY)
    try:
        data = os.pread(file, num_bytes, start)
    finally:
        os.close(file)
    if len(data) != num_bytes:
        raise IndexFormatError(f"{path}: ends before byte {start + num_bytes}; restore or build the shard set again")
    return data
