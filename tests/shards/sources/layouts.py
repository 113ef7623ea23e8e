"""Small folders in the layouts of public datasets: names as published, contents as far as lists are read."""

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from shards.records import MaskFiles, Record
from shards.sources.base import Listing

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"


def write_files(root: Path, paths: Iterable[str], content: bytes = b"") -> None:
    """Files of one content; without any, each holds its own path, so that no two are equal."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content or path.encode())


def write_text(root: Path, path: str, text: str) -> Path:
    """A text file with its line ends as given."""
    write_files(root, [path], text.encode())
    return root / path


def write_workbook(path: Path, rows: Sequence[Sequence[str]], *, is_inline: bool = False) -> Path:
    """An .xlsx file of one sheet, as ECMA-376 has it: numbers stored, text shared or inline, empty cells left out."""
    shared: list[str] = []
    lines = []
    for number, row in enumerate(rows, start=1):
        cells = []
        for column, value in zip("ABCDEFGHIJ", row, strict=False):
            place = f'r="{column}{number}"'
            if value.replace(".", "", 1).isdigit():
                cells.append(f"<c {place}><v>{value}</v></c>")
            elif value and is_inline:
                cells.append(f'<c {place} t="inlineStr"><is><t>{escape(value)}</t></is></c>')
            elif value:
                shared.append(value)
                cells.append(f'<c {place} t="s"><v>{len(shared) - 1}</v></c>')
        lines.append(f'<row r="{number}">{"".join(cells)}</row>')
    strings = "".join(f"<si><r><t>{escape(v[:2])}</t></r><r><t>{escape(v[2:])}</t></r></si>" for v in shared)
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("xl/sharedStrings.xml", f'<sst xmlns="{MAIN}">{strings}</sst>')
        archive.writestr(
            "xl/worksheets/sheet1.xml",
            f'<worksheet xmlns="{MAIN}"><sheetData>{"".join(lines)}</sheetData></worksheet>',
        )
    return path


def by_id(listing: Listing) -> dict[str, Record]:
    return {record.source_id: record for record in listing.records}


def mask_paths(record: Record, structure: str) -> list[str]:
    mask = record.masks[structure]
    assert isinstance(mask, MaskFiles)
    return [file.path for file in mask.files]
