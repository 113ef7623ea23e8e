"""The CSV files of public datasets: large, plain or gzipped; of their columns only those asked for are kept."""

import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, cast

from shards.errors import SourceError


def read_columns(
    path: Path, required: tuple[str, ...], what: str, optional: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """Row by row the stripped values of the required columns, then of the optional ones.

    Columns without a name at the header's end are passed over, whether the rows have fields for them or not.

    Args:
        path: A CSV file in UTF-8; gzipped if its name ends in .gz.
        required: Columns that must be there, in the order wanted.
        what: What the file is, for messages, as `CheXpert's labels`.
        optional: Columns that are empty where the file has none of that name.

    Raises:
        SourceError: the file or a column is missing, one asked for repeats, a row has another number of fields.
    """
    try:
        with _open(path) as file:
            yield from _rows(path, csv.reader(file, strict=True), required, what, optional)
    except FileNotFoundError:
        raise SourceError(f"{path}: not found; expected {what}, a CSV with the columns {', '.join(required)}") from None
    except (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, EOFError, zlib.error):
        raise SourceError(f"{path}: damaged; expected {what} as a CSV file in UTF-8") from None


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return path.open(encoding="utf-8-sig", newline="")


def _rows(
    path: Path, lines: Iterator[list[str]], required: tuple[str, ...], what: str, optional: tuple[str, ...]
) -> Iterator[tuple[str, ...]]:
    header = [name.strip() for name in next(lines, [])]
    asked = (*required, *optional)
    if any(name not in header for name in required) or any(header.count(name) > 1 for name in asked):
        # A file without a header starts with data: it is not repeated.
        found = ", ".join(header) if set(asked) & set(header) else "a first line with none of them"
        raise SourceError(f"{path}: {what} needs the columns {', '.join(required)}, each once; found {found}")
    num_named = max(place for place, name in enumerate(header, start=1) if name)
    places = [header.index(name) if name in header else None for name in asked]
    for number, line in enumerate((line for line in lines if line), start=1):
        if not num_named <= len(line) <= len(header):
            raise SourceError(f"{path} row {number}: {len(line)} fields; the header has {len(header)}")
        yield tuple("" if place is None else line[place].strip() for place in places)
