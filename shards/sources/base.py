"""What every source gives: records that name an image, whose it is, and what is known about it."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from shards.errors import SourceError

Label = int | None
"""1 present, 0 absent, -1 uncertain, None unknown."""


@dataclass(frozen=True)
class Record:
    """One image of a source, before it is read.

    Attributes:
        source_id: The image's name in its source, unique there.
        place: What messages and quarantine.csv call it: free of anything that could name a patient.
        image: The file.
        patient: The source's own patient id; leaves this package only as a keyed hash.
        study: The source's own study id, likewise.
        view: A short code, as PA.
        labels: Finding → label.
        spacing_mm: Size of a pixel (row, col) if known; of a projection, at the detector.
        sha256: Expected hash of the file, if the source has a manifest.
        masks: Structure → mask file of the image's size, non-zero inside.
        landmarks: Landmark → (row, col) in continuous source pixels.
    """

    source_id: str
    place: str
    image: Path
    patient: str
    study: str | None
    view: str | None
    labels: Mapping[str, Label]
    spacing_mm: tuple[float, float] | None
    sha256: str | None = None
    masks: Mapping[str, Path] = field(default_factory=dict)
    landmarks: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class Source(Protocol):
    """A raw dataset. Adding one: a params class in shards/params.py, a class like this, a line in `open_source`."""

    @property
    def channels(self) -> int:
        """1 or 3, for every image of the batch."""
        ...

    def records(self) -> list[Record]:
        """All images, in an order that depends on the data only.

        Raises:
            SourceError: files or columns are not what the source expects; names what was looked for.
        """
        ...


def read_csv(path: Path, required: tuple[str, ...], what: str) -> list[dict[str, str]]:
    """The rows of a CSV file with stripped values; messages name rows by number, never by content.

    Args:
        path: The file.
        required: Columns that must be there.
        what: What the file is, for messages, as `the phantom's labels`.

    Raises:
        SourceError: the file or a column is missing, a row has another number of fields, a column repeats.
    """
    if not path.is_file():
        raise SourceError(f"{path}: not found; expected {what}, a CSV with the columns {', '.join(required)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [[value.strip() for value in line] for line in csv.reader(file, strict=True) if line]
    except (UnicodeDecodeError, csv.Error):
        raise SourceError(f"{path}: expected {what} as a CSV file in UTF-8") from None
    header = lines[0] if lines else []
    missing = [name for name in required if name not in header]
    if missing or len(set(header)) != len(header) or "" in header:
        # A file without a header starts with data, which may be about a patient: it is not repeated.
        found = header if set(required) & set(header) else "a first line with none of them"
        raise SourceError(
            f"{path}: {what} needs the columns {', '.join(required)}, each once and every one named; found {found}"
        )
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(header):
            raise SourceError(f"{path} row {number}: {len(line)} fields; the header has {len(header)}")
    return [dict(zip(header, line, strict=True)) for line in lines[1:]]


def parse_label(value: str, place: str) -> Label:
    """1, 0, -1 or empty; `place` names the file, row and column.

    Raises:
        SourceError: anything else; the value is not repeated, for it may be about a patient.
    """
    known: dict[str, Label] = {"1": 1, "0": 0, "-1": -1, "": None, "1.0": 1, "0.0": 0, "-1.0": -1}
    if value not in known:
        raise SourceError(f"{place}: expected 1 (present), 0 (absent), -1 (uncertain) or empty (unknown)")
    return known[value]
