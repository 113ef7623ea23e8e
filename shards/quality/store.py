"""The measures of a batch on disk, a pair of files a tar: written as each tar is, read back without its thumbnails."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.lib import recfunctions

from shards.quality.measure import MEASURE_DTYPE, STRUCTURE_DTYPE, THUMBNAIL_PX, ImageMeasures
from shards.runtime.atomic import atomic_path

Thumbnails = UInt8[np.ndarray, "num 64 64"]
ReadThumbnails = Callable[[Int64[np.ndarray, "num"]], Thumbnails]
"""Rows → their thumbnails."""

_NUMBERS = [name for name in MEASURE_DTYPE.names or () if name != "thumbnail"]


class MeasureFiles(NamedTuple):
    """The two files with the measures of one tar's samples.

    Attributes:
        values: Items of `MEASURE_DTYPE`, one a sample.
        structures: Items of `STRUCTURE_DTYPE`, one a mask.
    """

    values: Path
    structures: Path


def write_measured(files: MeasureFiles, measured: Sequence[ImageMeasures]) -> None:
    """Write the measures of one tar's samples, in their order."""
    values = np.array([item.values for item in measured], MEASURE_DTYPE)
    structures = [
        (row, structure.name.encode(), structure.area, structure.contradicts)
        for row, item in enumerate(measured)
        for structure in item.structures
    ]
    for path, array in ((files.values, values), (files.structures, np.array(structures, STRUCTURE_DTYPE))):
        content = io.BytesIO()  # to a file numpy writes past Python, and of a full disk says only how much was missing
        np.save(content, array)
        with atomic_path(path) as temporary:
            temporary.write_bytes(content.getbuffer())


@dataclass(frozen=True)
class MeasureStore:
    """The measures of a batch's tars, at most one tar's thumbnails in memory; rows count over all tars in their order.

    Attributes:
        tars: Files of each tar.
        compared: Folder for what has been compared, so that a run that is killed goes on.
    """

    tars: tuple[MeasureFiles, ...]
    compared: Path

    def numbers(self) -> np.ndarray:
        """Read all measures but the thumbnails."""
        parts = [recfunctions.repack_fields(_values(tar)[_NUMBERS]) for tar in self.tars]
        return np.concatenate(parts) if parts else recfunctions.repack_fields(np.zeros(0, MEASURE_DTYPE)[_NUMBERS])

    def by_tar(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the items of `MEASURE_DTYPE` and `STRUCTURE_DTYPE` of each tar, with rows counted in the tar."""
        for tar in self.tars:
            yield np.array(_values(tar)), np.load(tar.structures)

    def thumbnails_by_tar(self) -> Iterator[Thumbnails]:
        """Yield the thumbnails of each tar."""
        for tar in self.tars:
            yield np.array(_values(tar)["thumbnail"]).reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX)

    def thumbnails(self, rows: Int64[np.ndarray, "num"]) -> Thumbnails:
        """Read the thumbnails of some rows, in their order."""
        starts = self._starts
        parts = np.searchsorted(starts, rows, side="right") - 1
        found = np.empty((len(rows), THUMBNAIL_PX, THUMBNAIL_PX), np.uint8)
        for part in np.unique(parts):
            chosen = parts == part
            found[chosen] = _values(self.tars[part])["thumbnail"][rows[chosen] - starts[part]]
        return found

    @cached_property
    def _starts(self) -> Int64[np.ndarray, "num"]:
        """The first row of each tar, and the number of all rows."""
        return np.cumsum([0, *(len(_values(tar)) for tar in self.tars)])


def _values(tar: MeasureFiles) -> np.ndarray:
    # Mapped and let go at once: neither memory nor open files grow with the number of tars.
    values: np.ndarray = np.load(tar.values, mmap_mode="r")
    return values
