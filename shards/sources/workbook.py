"""Tables in Excel workbooks (.xlsx, ECMA-376), in which some datasets keep their labels."""

import re
import zipfile
from pathlib import Path
from xml.etree import ElementTree

from shards.core.errors import SourceError

_SPACE = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_STRINGS = "xl/sharedStrings.xml"
_MAX_BYTES = 2**26
"""Greatest size of one part, unpacked: a workbook of some hundred rows has thousandths of it, a bomb more."""


def read_workbook(path: Path, required: tuple[str, ...], what: str) -> list[dict[str, str]]:
    """Read the rows below a header, with stripped values as they are stored; lines above the header are passed over.

    Args:
        path: The file.
        required: Columns that tell the header; one that is empty below a row's last value reads as "".
        what: Name of the file in messages, as `REFUGE's labels`.

    Raises:
        SourceError: not a workbook, too large, or no sheet has the columns.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if re.fullmatch(r"xl/worksheets/[^/]+\.xml", name))
            strings = _strings(_parse(archive, _STRINGS)) if _STRINGS in archive.namelist() else []
            sheets = [_cells(_parse(archive, name), strings) for name in names]
    except (zipfile.BadZipFile, ElementTree.ParseError, ValueError, IndexError):
        raise SourceError(f"{path}: expected {what} as an Excel workbook (.xlsx); it cannot be read as one") from None
    for rows in sheets:
        for number, row in enumerate(rows):
            header = {column: value for column, value in row.items() if value}
            if set(required) <= set(header.values()):
                below = [{name: line.get(column, "") for column, name in header.items()} for line in rows[number + 1 :]]
                return [line for line in below if any(line.values())]
    raise SourceError(f"{path}: {what} needs a row with the columns {', '.join(required)}; no sheet has one")


def _parse(archive: zipfile.ZipFile, name: str) -> ElementTree.Element:
    if archive.getinfo(name).file_size > _MAX_BYTES:
        raise SourceError(
            f"{archive.filename}: {name} unpacks to more than {_MAX_BYTES:,} bytes; expected a small table"
        )
    return ElementTree.fromstring(archive.read(name))


def _strings(root: ElementTree.Element) -> list[str]:
    return [_text(item) for item in root.iter(f"{_SPACE}si")]


def _text(element: ElementTree.Element) -> str:
    # Rich text comes in runs; a phonetic reading (rPh) is not part of the value.
    direct = [child for child in element if child.tag in (f"{_SPACE}t", f"{_SPACE}r")]
    return "".join(part.text or "" for child in direct for part in child.iter(f"{_SPACE}t")).strip()


def _cells(root: ElementTree.Element, strings: list[str]) -> list[dict[str, str]]:
    """Return one mapping a row: letters of the column → value."""
    return [
        {_column(cell): _value(cell, strings) for cell in row.iter(f"{_SPACE}c")} for row in root.iter(f"{_SPACE}row")
    ]


def _column(cell: ElementTree.Element) -> str:
    return cell.get("r", "").rstrip("0123456789")


def _value(cell: ElementTree.Element, strings: list[str]) -> str:
    inline = cell.find(f"{_SPACE}is")
    if inline is not None:
        return _text(inline)
    stored = (cell.findtext(f"{_SPACE}v") or "").strip()
    return strings[int(stored)] if cell.get("t") == "s" and stored else stored
