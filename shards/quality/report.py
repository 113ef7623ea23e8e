"""`quality.parquet`: one row for every image of a batch, in the shards or not; and what may be asked of several."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64

from shards.core.errors import IndexFormatError
from shards.core.quality_params import NearCopyParams
from shards.quality.measure import MEASURE_DTYPE, NUM_HASHES, THUMBNAIL_PX
from shards.quality.near_duplicates import NearCopies, find_copies_of, find_near_copies
from shards.quality.store import Thumbnails

QUALITY = "quality.parquet"
_BOUNDS = b"near_copies"

_NUMBERS = [name for name in MEASURE_DTYPE.names or () if MEASURE_DTYPE[name].subdtype is None and name != "burned_in"]
_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("place", pa.string()),
        ("patient", pa.string()),
        ("split", pa.string()),
        ("view", pa.string()),
        ("verdict", pa.string()),
        ("reason", pa.string()),
        ("group", pa.string()),
        *[(name, pa.from_numpy_dtype(MEASURE_DTYPE[name])) for name in _NUMBERS],
        ("burned_in", pa.bool_()),
        ("mask_areas", pa.map_(pa.string(), pa.float32())),
        ("contradictions", pa.list_(pa.string())),
        ("pixels", pa.binary(16)),
        ("hashes", pa.list_(pa.uint64(), NUM_HASHES)),
        ("thumbnail", pa.binary(THUMBNAIL_PX**2)),
    ]
)
"""Measures are null where the image could not be read, the thumbnail also where it was quarantined."""


@dataclass(frozen=True, kw_only=True)
class ReportRow:
    """An image of the report.

    Attributes:
        key: Key of its sample.
        display_name: Its name in messages and in quarantine.csv; the column `place`.
        patient: Pseudonym of its patient.
        split: Split of its patient.
        view: A code, as PA; None where it is unknown.
        verdict: `kept`, `suspect` or `quarantined`.
        reason: Reason of the verdict; None for an image that is kept without a remark.
        group: Key of the first image of its group of copies; None if it is in none.
        values: Its item of `MEASURE_DTYPE`; None if it was not measured.
        structures: Items of `STRUCTURE_DTYPE` of its masks.
    """

    key: str
    display_name: str
    patient: str
    split: str
    view: str | None
    verdict: str
    reason: str | None
    group: str | None
    values: np.void | None
    structures: np.ndarray


class ReportWriter:
    """Writes `quality.parquet`, a row group a tar."""

    def __init__(self, path: Path, bounds: NearCopyParams) -> None:
        """Open the file.

        Args:
            path: Path of the file.
            bounds: Bounds by which `near_duplicates_between` will find copies.
        """
        self._schema = _SCHEMA.with_metadata({_BOUNDS: bounds.model_dump_json()})
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")

    def append(self, rows: Sequence[ReportRow]) -> None:
        """Write the rows of one tar."""
        self._writer.write_table(pa.Table.from_pylist([_values(row) for row in rows], self._schema))

    def close(self) -> None:
        """Write the end of the file and close it."""
        self._writer.close()


def _values(row: ReportRow) -> dict[str, Any]:
    names = ("key", "patient", "split", "view", "verdict", "reason", "group")
    values = {"place": row.display_name, **{name: getattr(row, name) for name in names}}
    if row.values is None:
        return values
    numbers = {name: row.values[name].item() for name in _NUMBERS}
    structures = [name.decode() for name in row.structures["structure"]]
    return {
        **values,
        **numbers,
        "burned_in": None if row.values["burned_in"] < 0 else bool(row.values["burned_in"]),
        "mask_areas": list(zip(structures, row.structures["area"].tolist(), strict=True)),
        "contradictions": [name for name, item in zip(structures, row.structures, strict=True) if item["contradicts"]],
        "pixels": row.values["pixels"].tobytes(),
        "hashes": row.values["hashes"].tolist(),
        "thumbnail": None if row.verdict == "quarantined" else row.values["thumbnail"].tobytes(),
    }


@dataclass(frozen=True, kw_only=True)
class ReportedImage:
    """An image of a shard set.

    Attributes:
        report: The set's report.
        key: Key of the sample.
        split: Split that it is in.
        patient: Pseudonym.
    """

    report: Path
    key: str
    split: str
    patient: str


@dataclass(frozen=True)
class NearDuplicate:
    """Two images that show the same picture.

    Attributes:
        first: One.
        second: The other.
        correlation: Correlation of their details; 1 for the same pixels.
    """

    first: ReportedImage
    second: ReportedImage
    correlation: float


def near_duplicates_between(reports: Sequence[Path]) -> list[NearDuplicate]:
    """Find pairs of images of different shard sets and different splits that show the same picture.

    By the bounds that the first set was built with. Quarantined images are in no set and do not count.

    Args:
        reports: `quality.parquet` of two or more sets.

    Raises:
        IndexFormatError: a report is missing or is none.
    """
    if len(reports) < 2:
        return []
    images = _Images.of([_OpenReport.open(number, path) for number, path in enumerate(reports)])

    def is_wanted(first: Int64[np.ndarray, "num"], second: Int64[np.ndarray, "num"]) -> Bool[np.ndarray, "num"]:
        numbers, splits = images.numbers, images.splits
        return np.asarray((numbers[first] != numbers[second]) & (splits[first] != splits[second]))

    bounds = images.reports[0].bounds
    return images.named(find_near_copies(images.hashes, images.patient_numbers, images.read, bounds, is_wanted))


def near_copies_of(report: Path, keys: Collection[str], others: Mapping[Path, Collection[str]]) -> list[NearDuplicate]:
    """Find images of one set, as the first of each pair, that show the same picture as one of other sets.

    Args:
        report: `quality.parquet` of the set.
        keys: Keys of the set's images that are in question; few.
        others: `quality.parquet` of another set → keys of its images that are compared; many.

    Raises:
        IndexFormatError: a report is missing or is none.
    """
    wanted = [set(keys), *map(set, others.values())]
    images = _Images.of([_OpenReport.open(number, path) for number, path in enumerate([report, *others])])
    is_asked = np.array([str(key) in wanted[number] for key, number in zip(images.keys, images.numbers, strict=True)])
    chosen, rest = (np.flatnonzero(is_asked & (images.numbers == 0)), np.flatnonzero(is_asked & (images.numbers > 0)))
    bounds = images.reports[0].bounds
    return images.named(find_copies_of(chosen, rest, images.hashes, images.patient_numbers, images.read, bounds))


@dataclass(frozen=True, kw_only=True)
class _Images:
    """The images of several sets, one behind the other."""

    reports: "Sequence[_OpenReport]"
    keys: np.ndarray
    patients: np.ndarray
    splits: np.ndarray
    hashes: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(cls, reports: "Sequence[_OpenReport]") -> "_Images":
        names = ("keys", "patients", "splits", "hashes", "numbers")
        return cls(
            reports=reports,
            **{name: np.concatenate([getattr(report, name) for report in reports]) for name in names},
        )

    @property
    def patient_numbers(self) -> Int64[np.ndarray, "num_images"]:
        """A number for each image, the same for images of the same patient."""
        return np.unique(self.patients, return_inverse=True)[1]

    def read(self, rows: Int64[np.ndarray, "num"]) -> Thumbnails:
        """Read the thumbnails of some images."""
        starts = np.cumsum([0, *(len(report.keys) for report in self.reports)])
        found = np.empty((len(rows), THUMBNAIL_PX, THUMBNAIL_PX), np.uint8)
        for number, report in enumerate(self.reports):
            chosen = self.numbers[rows] == number
            found[chosen] = report.thumbnails(rows[chosen] - starts[number])
        return found

    def named(self, copies: NearCopies) -> list[NearDuplicate]:
        """Name the images of the pairs, in order."""
        first, second = ([self._image(int(row)) for row in rows] for rows in (copies.first, copies.second))
        return [
            NearDuplicate(one, other, float(correlation))
            for one, other, correlation in zip(first, second, copies.correlation, strict=True)
        ]

    def _image(self, row: int) -> ReportedImage:
        report = self.reports[self.numbers[row]].path
        return ReportedImage(
            report=report, key=str(self.keys[row]), split=str(self.splits[row]), patient=str(self.patients[row])
        )


@dataclass(frozen=True, kw_only=True)
class _OpenReport:
    """The images of one set that are in its shards."""

    path: Path
    bounds: NearCopyParams
    keys: np.ndarray
    patients: np.ndarray
    splits: np.ndarray
    hashes: np.ndarray
    numbers: np.ndarray
    rows: np.ndarray

    @classmethod
    def open(cls, number: int, path: Path) -> "_OpenReport":
        try:
            file = pq.ParquetFile(path)
            bounds = NearCopyParams.model_validate_json(file.schema_arrow.metadata[_BOUNDS])
            table = file.read(["key", "patient", "split", "verdict", "hashes"])
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
            raise IndexFormatError(
                f"{path}: found no quality report of this version; restore the shard set with `dvc checkout`, or build "
                "it again"
            ) from None
        rows = np.flatnonzero(table["verdict"].to_numpy() != "quarantined")
        kept = table.take(rows)
        hashes = np.array(kept["hashes"].to_pylist(), np.uint64).reshape(-1, NUM_HASHES)
        keys, patients, splits = (kept[name].to_numpy().astype(str) for name in ("key", "patient", "split"))
        return cls(
            path=path,
            bounds=bounds,
            keys=keys,
            patients=patients,
            splits=splits,
            hashes=hashes,
            numbers=np.full(len(rows), number),
            rows=rows,
        )

    def thumbnails(self, rows: Int64[np.ndarray, "num"]) -> Thumbnails:
        """Read the thumbnails of some of the set's images, row group by row group."""
        file = pq.ParquetFile(self.path)
        found = np.empty((len(rows), THUMBNAIL_PX, THUMBNAIL_PX), np.uint8)
        wanted, start = self.rows[rows], 0
        for part in range(file.num_row_groups):
            stop = start + file.metadata.row_group(part).num_rows
            chosen = np.flatnonzero((start <= wanted) & (wanted < stop))
            if len(chosen):
                column = file.read_row_group(part, ["thumbnail"])["thumbnail"].take(wanted[chosen] - start)
                data = b"".join(column.to_pylist())
                found[chosen] = np.frombuffer(data, np.uint8).reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX)
            start = stop
        return found
