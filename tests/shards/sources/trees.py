"""Small trees in the true layouts of datasets: names as published, contents as far as sources read them."""

import csv
import errno
import gzip
import os
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest
from PIL import Image
from pydicom.config import disable_value_validation

from shards.core.errors import SourceError
from shards.core.records import Mask, MaskFiles, Record
from shards.decode.masks import draw
from shards.sources.base import Listing, Source
from shards.sources.check import check_source
from tests.shards.decode.dicom_files import data_of, dataset_of

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"


def write_files(root: Path, paths: Iterable[str], content: bytes | None = None) -> None:
    """Files of one content; without any, each holds its own path, so that no two are equal."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(path.encode() if content is None else content)


def write_text(root: Path, path: str, text: str) -> Path:
    """A text file with its line ends as given."""
    write_files(root, [path], text.encode())
    return root / path


def write_lines(path: Path, *lines: str, end: str = "\n", start: str = "") -> Path:
    """A text file, gzipped if its name says so."""
    data = (start + "".join(line + end for line in lines)).encode()
    write_files(path.parent, [path.name], gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_table(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def write_pixels(path: Path, level: int = 0, size: tuple[int, ...] = (4, 4), dtype: type = np.uint8) -> None:
    """An image of one level, in the format of its extension."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, level, dtype)).save(path)


def write_dicom(path: Path, **tags: Any) -> None:
    """A radiograph of 4 x 4 pixels with these tags, as wrong as they may be."""
    with disable_value_validation():
        data = data_of(dataset_of(np.arange(16, dtype=np.uint8).reshape(4, 4), **tags))
    write_files(path.parent, [path.name], data)


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


def check_one_folder_more(source: Source, root: Path) -> None:
    """Whether an archive left a folder around it all must not matter; moves the tree there."""
    names = [record.source_id for record in source.read(root).records]
    inner = root / "more"
    inner.mkdir()
    for path in sorted(root.iterdir()):
        if path != inner:
            path.rename(inner / path.name)
    check_source(source, root)
    assert [record.source_id for record in source.read(root).records] == names


def by_id(listing: Listing) -> dict[str, Record]:
    return {record.source_id: record for record in listing.records}


def mask_paths(record: Record, structure: str) -> list[str]:
    mask = record.masks[structure]
    assert isinstance(mask, MaskFiles)
    return [file.path for file in mask.files]


def problem(read: Callable[..., object], *arguments: object) -> str:
    """What the SourceError says."""
    with pytest.raises(SourceError) as error:
        read(*arguments)
    return str(error.value)


def drawn(mask: Mask, root: Path, size: tuple[int, int]) -> np.ndarray:
    """The pixels inside a mask of a record, whose files lie below `root`."""
    return draw(mask, size, lambda file: (root / file.path).read_bytes(), 1e9)


def close_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder one that cannot be listed, whoever runs the tests: root lists every folder."""
    listed = os.scandir

    def list_as_another_user(path: Path) -> object:
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", list_as_another_user)
