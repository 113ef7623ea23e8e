"""The measures of a batch on disk, a pair of files a tar: written as each tar is, read back without its thumbnails."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.lib import recfunctions

from shards.quality.measure import MEASURE_DTYPE, STRUCTURE_DTYPE, THUMBNAIL_PX, Measured
from shards.runtime.atomic import atomic_path

Thumbnails = UInt8[np.ndarray, "num 64 64"]
ReadThumbnails = Callable[[Int64[np.ndarray, "num"]], Thumbnails]
"""Rows → their thumbnails."""

_NUMBERS = [name for name in MEASURE_DTYPE.names or () if name != "thumbnail"]


def write_measured(folder: Path, tar: str, measured: Sequence[Measured]) -> None:
    """Keep the measures of one tar's samples, in their order."""
    values = np.array([item.values for item in measured], MEASURE_DTYPE)
    structures = [
        (row, structure.name.encode(), structure.area, structure.contradicts)
        for row, item in enumerate(measured)
        for structure in item.structures
    ]
    for path, array in (
        (_values_path(folder, tar), values),
        (_structures_path(folder, tar), np.array(structures, STRUCTURE_DTYPE)),
    ):
        content = io.BytesIO()  # to a file numpy writes past Python, and of a full disk says only how much was missing
        np.save(content, array)
        with atomic_path(path) as temporary:
            temporary.write_bytes(content.getbuffer())


@dataclass(frozen=True)
class MeasureStore:
    """The measures of the tars of a batch; rows are counted over all of them, in their order.

    Holds no more than one tar's thumbnails at a time.

    Attributes:
        folder: Where they were written.
        tars: Names of the tars.
    """

    folder: Path
    tars: tuple[str, ...]

    def numbers(self) -> np.ndarray:
        """All but the thumbnails."""
        parts = [recfunctions.repack_fields(self._values(tar)[_NUMBERS]) for tar in self.tars]
        return np.concatenate(parts) if parts else recfunctions.repack_fields(np.zeros(0, MEASURE_DTYPE)[_NUMBERS])

    def by_tar(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of one tar after the other: `MEASURE_DTYPE`, and `STRUCTURE_DTYPE` with rows counted in the tar."""
        for tar in self.tars:
            yield np.array(self._values(tar)), np.load(_structures_path(self.folder, tar))

    def thumbnails_by_tar(self) -> Iterator[Thumbnails]:
        """Of one tar after the other."""
        for tar in self.tars:
            yield np.array(self._values(tar)["thumbnail"]).reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX)

    def thumbnails(self, rows: Int64[np.ndarray, "num"]) -> Thumbnails:
        """Of some rows, in their order."""
        starts = self._starts
        parts = np.searchsorted(starts, rows, side="right") - 1
        found = np.empty((len(rows), THUMBNAIL_PX, THUMBNAIL_PX), np.uint8)
        for part in np.unique(parts):
            chosen = parts == part
            found[chosen] = self._values(self.tars[part])["thumbnail"][rows[chosen] - starts[part]]
        return found

    @cached_property
    def _starts(self) -> Int64[np.ndarray, "num"]:
        """The first row of each tar, and the number of all rows."""
        return np.cumsum([0, *(len(self._values(tar)) for tar in self.tars)])

    def _values(self, tar: str) -> np.ndarray:
        # Mapped and let go at once: neither memory nor open files grow with the number of tars.
        values: np.ndarray = np.load(_values_path(self.folder, tar), mmap_mode="r")
        return values


def _values_path(folder: Path, tar: str) -> Path:
    return folder / f"{tar}.measures.npy"


def _structures_path(folder: Path, tar: str) -> Path:
    return folder / f"{tar}.structures.npy"
