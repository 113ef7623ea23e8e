"""`quality.parquet`: one row for every image of a batch, in the shards or not; and what may be asked of several."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64

from shards.errors import IndexFormatError
from shards.quality.measure import MEASURE_DTYPE, NUM_HASHES, THUMBNAIL_PX
from shards.quality.near import find_near_copies
from shards.quality.params import NearCopyParams
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


@dataclass(frozen=True)
class ReportRow:
    """One image.

    Attributes:
        key: Of its sample.
        place: What quarantine.csv calls it.
        patient: Pseudonym.
        split: Of its patient.
        view: Code.
        verdict: `kept`, `suspect` or `quarantined`.
        reason: Of the verdict, if it is not kept without a remark.
        group: Key of the first image of its group of copies, if it is in one.
        values: An item of `MEASURE_DTYPE`, if it was measured.
        structures: Items of `STRUCTURE_DTYPE`.
    """

    key: str
    place: str
    patient: str
    split: str
    view: str | None
    verdict: str
    reason: str | None
    group: str | None
    values: np.void | None
    structures: np.ndarray


def write_report(path: Path, parts: Iterable[Sequence[ReportRow]], bounds: NearCopyParams) -> None:
    """Write the report, a row group a part.

    Args:
        path: Of the file.
        parts: Rows.
        bounds: By which `near_duplicates_between` will find copies.
    """
    schema = _SCHEMA.with_metadata({_BOUNDS: bounds.model_dump_json()})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in parts:
            writer.write_table(pa.Table.from_pylist([_values(row) for row in rows], schema))


def _values(row: ReportRow) -> dict[str, Any]:
    values = {
        name: getattr(row, name) for name in ("key", "place", "patient", "split", "view", "verdict", "reason", "group")
    }
    if row.values is None:
        return values
    numbers = {name: row.values[name].item() for name in _NUMBERS}
    names = [name.decode() for name in row.structures["structure"]]
    return {
        **values,
        **numbers,
        "burned_in": None if row.values["burned_in"] < 0 else bool(row.values["burned_in"]),
        "mask_areas": list(zip(names, row.structures["area"].tolist(), strict=True)),
        "contradictions": [name for name, item in zip(names, row.structures, strict=True) if item["contradicts"]],
        "pixels": row.values["pixels"].tobytes(),
        "hashes": row.values["hashes"].tolist(),
        "thumbnail": None if row.verdict == "quarantined" else row.values["thumbnail"].tobytes(),
    }


@dataclass(frozen=True)
class Place:
    """An image of a shard set.

    Attributes:
        report: The set's report.
        key: Of the sample.
        split: That it is in.
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
        correlation: Of their details; 1 for the same pixels.
    """

    first: Place
    second: Place
    correlation: float


def near_duplicates_between(reports: Sequence[Path]) -> list[NearDuplicate]:
    """Pairs of images of different shard sets and different splits that show the same picture.

    By the bounds that the first set was built with. Quarantined images are in no set and do not count.

    Args:
        reports: `quality.parquet` of two or more sets.

    Raises:
        IndexFormatError: a report is missing or is none.
    """
    opened = [_OpenReport.open(number, path) for number, path in enumerate(reports)]
    if len(opened) < 2:
        return []
    columns = {name: np.concatenate([getattr(report, name) for report in opened]) for name in _OpenReport.COLUMNS}
    starts = np.cumsum([0, *(len(report.keys) for report in opened)])
    numbers, splits = columns["numbers"], columns["splits"]

    def read(rows: Int64[np.ndarray, "num"]) -> Thumbnails:
        found = np.empty((len(rows), THUMBNAIL_PX, THUMBNAIL_PX), np.uint8)
        for number, report in enumerate(opened):
            chosen = numbers[rows] == number
            found[chosen] = report.thumbnails(rows[chosen] - starts[number])
        return found

    def is_wanted(first: Int64[np.ndarray, "num"], second: Int64[np.ndarray, "num"]) -> Bool[np.ndarray, "num"]:
        return np.asarray((numbers[first] != numbers[second]) & (splits[first] != splits[second]))

    _, patients = np.unique(columns["patients"], return_inverse=True)
    found = find_near_copies(columns["hashes"], patients, read, opened[0].bounds, is_wanted)
    places = [
        Place(reports[numbers[row]], str(columns["keys"][row]), str(splits[row]), str(columns["patients"][row]))
        for row in np.stack([found.first, found.second], axis=1).ravel()
    ]
    return [
        NearDuplicate(first, second, float(correlation))
        for first, second, correlation in zip(places[::2], places[1::2], found.correlation, strict=True)
    ]


@dataclass(frozen=True)
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

    COLUMNS = ("keys", "patients", "splits", "hashes", "numbers")

    @classmethod
    def open(cls, number: int, path: Path) -> "_OpenReport":
        try:
            file = pq.ParquetFile(path)
            bounds = NearCopyParams.model_validate_json(file.schema_arrow.metadata[_BOUNDS])
            table = file.read(["key", "patient", "split", "verdict", "hashes"])
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
            raise IndexFormatError(
                f"{path}: missing or no quality report of this version; restore the shard set or build it again"
            ) from None
        rows = np.flatnonzero(table["verdict"].to_numpy() != "quarantined")
        kept = table.take(rows)
        hashes = np.array(kept["hashes"].to_pylist(), np.uint64).reshape(-1, NUM_HASHES)
        keys, patients, splits = (kept[name].to_numpy().astype(str) for name in ("key", "patient", "split"))
        return cls(path, bounds, keys, patients, splits, hashes, np.full(len(rows), number), rows)

    def thumbnails(self, rows: Int64[np.ndarray, "num"]) -> Thumbnails:
        """Of some of the set's images, row group by row group."""
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
