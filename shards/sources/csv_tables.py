"""The CSV files of datasets, plain or gzipped, read row by row; messages name rows by their lines, never by content."""

import csv
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO, TypeVar, cast

from shards.core.errors import SourceError

Item = TypeVar("Item")
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


class Row(tuple[str, ...]):
    """The values of a row, with the line of the file that it ends on, as an editor counts: the header is line 1."""

    line: int

    @classmethod
    def of(cls, values: Iterable[str], line: int) -> "Row":
        """Return a row of these values."""
        row = cls(values)
        row.line = line
        return row


class NamedRow(dict[str, str]):
    """The values of a row by column, with its line likewise."""

    line: int

    @classmethod
    def of(cls, values: Iterable[tuple[str, str]], line: int) -> "NamedRow":
        """Return a row of these columns and values."""
        row = cls(values)
        row.line = line
        return row


def with_lines(rows: Iterable[Item]) -> Iterator[tuple[int, Item]]:
    """Yield each row with its line; rows that were read from no file are taken to stand below one line of a header."""
    for number, row in enumerate(rows, start=2):
        yield getattr(row, "line", number), row


def read_lines(path: Path, what: str) -> Iterator[Row]:
    """Yield the stripped values of each line, whatever they are; empty lines are passed over.

    Args:
        path: A CSV file in UTF-8; gzipped if its name ends in .gz.
        what: Name of the file in messages, as `CheXpert's labels`.

    Raises:
        SourceError: the file is missing or no such file.
    """
    try:
        with _open(path) as file:
            reader = csv.reader(file, strict=True)
            yield from (Row.of((value.strip() for value in values), reader.line_num) for values in reader if values)
    except FileNotFoundError:
        raise SourceError(f"{path}: not found; expected {what}, a CSV file") from None
    except UnicodeDecodeError:
        raise SourceError(
            f"{path}: not in UTF-8; expected {what} as a CSV file in UTF-8 (Excel saves a workbook as 'CSV UTF-8')"
        ) from None
    except (csv.Error, gzip.BadGzipFile, EOFError, zlib.error):
        raise SourceError(f"{path}: damaged; expected {what} as a CSV file in UTF-8") from None
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); expected {what}, a CSV file") from None


def read_columns(
    path: Path, required: tuple[str, ...], what: str, optional: tuple[str, ...] = (), *, is_ragged: bool = False
) -> Iterator[Row]:
    """Yield, row by row, the values of the required columns, then of the optional ones.

    Columns without a name at the header's end are passed over, whether the rows have fields for them or not.

    Args:
        path: Path of the file.
        required: Columns that must be there, in the order wanted.
        what: Name of the file in messages, as `CheXpert's labels`.
        optional: Columns that are empty where the file has none of that name.
        is_ragged: The list was kept by hand: spaces in the names of columns do not matter, rows of empty fields are
            passed over, and a row may have fewer fields than the header, or more.

    Raises:
        SourceError: the file or a column is missing, one asked for repeats, a row has another number of fields.
    """
    lines = read_lines(path, f"{what} with the columns {', '.join(required)}")
    header, asked = list(next(lines, ())), [*required, *optional]
    if is_ragged:
        known = {re.sub(r"\s", "", name): name for name in asked}
        header = [known.get(re.sub(r"\s", "", name), name) for name in header]
    _check_header(path, what, required, header, asked)
    num_named = max(position for position, name in enumerate(header, start=1) if name)
    positions = [header.index(name) if name in header else None for name in asked]
    for row in lines:
        values: tuple[str, ...] = row
        if is_ragged:
            values += ("",) * (len(header) - len(row))
            if not any(values):
                continue
        elif not num_named <= len(row) <= len(header):
            raise SourceError(f"{path} line {row.line}: {len(row)} fields; the header has {len(header)}")
        yield Row.of(("" if position is None else values[position] for position in positions), row.line)


def read_rows(path: Path, required: tuple[str, ...], what: str) -> list[NamedRow]:
    """Yield the rows with all their columns, whatever these are.

    Args:
        path: Path of the file.
        required: Columns that must be there.
        what: Name of the file in messages, as `CheXpert's labels`.

    Raises:
        SourceError: as `read_columns`, or a column has no name or repeats, or there are no rows.
    """
    header = tuple(next(read_lines(path, f"{what} with the columns {', '.join(required)}"), ()))
    _check_header(path, what, required, header, header)
    rows = [NamedRow.of(zip(header, row, strict=True), row.line) for row in read_columns(path, header, what)]
    if not rows:
        raise SourceError(f"{path}: no rows below the header; expected {what}")
    return rows


def _check_header(path: Path, what: str, required: Sequence[str], header: Sequence[str], asked: Sequence[str]) -> None:
    if set(required) <= set(header) and "" not in asked and all(header.count(name) <= 1 for name in asked):
        return
    raise SourceError(
        f"{path}: found {_problem(required, header, asked)}; {what} needs the columns {', '.join(required)}, each once "
        "and every one named"
    )


def _problem(required: Sequence[str], header: Sequence[str], asked: Sequence[str]) -> str:
    """Say what is wrong with a header; a file without one starts with data, which may be about a patient."""
    if not header:
        return "an empty file"
    line = ",".join(header)
    for separator, name in _SEPARATORS.items():
        if line.count(separator) >= len(header):
            return f"columns separated by {name}, expected commas"
    missing = [name for name in required if name not in header]
    spelt = {name.casefold(): name for name in header}
    if other := {name: spelt[name.casefold()] for name in missing if name.casefold() in spelt}:
        return ", ".join(f"'{found}' in place of '{name}'" for name, found in other.items())
    if len(missing) == len(required):
        return "a first line with none of them"
    if missing:
        return f"none named {', '.join(missing)} among {list(header)}"
    if "" in asked:
        return f"column {header.index('') + 1} without a name (if pandas wrote it, it is an index: leave it out)"
    name = next(name for name in asked if header.count(name) > 1)
    positions = [str(position) for position, found in enumerate(header, start=1) if found == name]
    return f"'{name}' as the name of the columns {' and '.join(positions)}"


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return path.open(encoding="utf-8-sig", newline="")
