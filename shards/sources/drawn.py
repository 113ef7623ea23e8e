"""Masks, boxes and landmarks in the columns of a user's CSV, each named by its kind and what it shows.

    mask:lungs       the path of an image that is bright inside, or 0: known to be absent
    box:nodule       ROW0 COL0 ROW1 COL1 in pixels of the image; several with ; between them
    landmark:carina  ROW COL

A cell without anything is unknown. Boxes and landmarks need the columns `height` and `width`: the size of the image
that they were given for, so that those of a resized copy are not taken for the original's.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from shards.core.errors import SourceError
from shards.core.records import Box, File, Mask, MaskFiles, Point, check_inside

MASK, BOX, LANDMARK = "mask:", "box:", "landmark:"
SIZE = ("height", "width")
ABSENT = "0"
_KINDS = (MASK, BOX, LANDMARK)
_STRUCTURE = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The masks, boxes and landmarks of a row, as a record has them."""

    masks: Mapping[str, Mask] = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    landmarks: Mapping[str, Point] = field(default_factory=dict)
    size: tuple[int, int] | None = None


def drawn_columns(columns: Iterable[str]) -> tuple[str, ...]:
    """Return the columns of masks, boxes and landmarks, and of the size of the image that these were given for."""
    return tuple(name for name in columns if name.startswith(_KINDS) or name in SIZE)


def mask_paths(row: Mapping[str, str]) -> dict[str, str]:
    """Return the columns of a row that name the file of a mask, with its path, with `/` whatever the user wrote."""
    return {
        name: PurePosixPath(value.replace("\\", "/")).as_posix()
        for name, value in row.items()
        if name.startswith(MASK) and value not in ("", ABSENT)
    }


def check_drawn_columns(columns: Collection[str], labels: Collection[str], path: Path) -> None:
    """Check that the names of the columns of a CSV are such as shards can repeat.

    Args:
        columns: All columns of the CSV, in order.
        labels: Columns that are labels.
        path: The CSV.

    Raises:
        SourceError: a structure has no plain name, a box is of no label, or coordinates have no size; a column without
            a plain name is named by number.
    """
    for number, name in enumerate(columns, start=1):
        if name.startswith((MASK, LANDMARK)) and not _STRUCTURE.fullmatch(_shown(name)):
            raise SourceError(
                f"{path}: column {number} has no name that a mask or landmark may have; expected up to 64 letters, "
                f"digits, _ and - behind '{MASK}' or '{LANDMARK}'"
            )
        if name.startswith(BOX) and _shown(name) not in labels:
            raise SourceError(
                f"{path}: column {number} has boxes of a finding without labels; expected a column of labels by the "
                f"name behind '{BOX}' too"
            )
    if any(name.startswith((BOX, LANDMARK)) for name in columns) and not set(SIZE) <= set(columns):
        raise SourceError(
            f"{path}: boxes or landmarks, and not both of the columns {' and '.join(SIZE)}; expected the size in "
            "pixels of the image that they were given for"
        )


def parse_drawn(row: Mapping[str, str], where: str) -> Drawn:
    """Parse the masks, boxes and landmarks of one row.

    Args:
        row: Values by column.
        where: File and line, for messages, which repeat no value.

    Raises:
        SourceError: a path leaves the folder, or a cell is not as the module says.
    """
    given = {name: row[name] for name in drawn_columns(row) if row[name]}
    size = _size({name: given[name] for name in SIZE if name in given}, where)
    masks: dict[str, Mask] = {_shown(name): MaskFiles(files=()) for name in given if name.startswith(MASK)}
    for name, path in mask_paths(row).items():
        check_inside(path, f"{where}: column '{name}'")
        masks[_shown(name)] = MaskFiles(files=(File(path),))
    boxes: list[Box] = []
    landmarks: dict[str, Point] = {}
    for name, value in given.items():
        column = f"{where}: column '{name}'"
        if name.startswith(BOX):
            boxes += [_box(_shown(name), text, column) for text in value.split(";")]
        elif name.startswith(LANDMARK):
            row_px, col_px = _numbers(value, 2, f"{column}: expected ROW COL in pixels")
            landmarks[_shown(name)] = (row_px, col_px)
    if (boxes or landmarks) and size is None:
        raise SourceError(
            f"{where}: boxes or landmarks, and no {' and '.join(SIZE)} of the image that they were given for"
        )
    return Drawn(masks=masks, boxes=tuple(boxes), landmarks=landmarks, size=size)


def _shown(column: str) -> str:
    return column.partition(":")[2]


def _box(label: str, text: str, where: str) -> Box:
    expected = f"{where}: expected ROW0 COL0 ROW1 COL1 in pixels, the first corner above and left of the second"
    row0, col0, row1, col1 = _numbers(text, 4, expected)
    if row0 >= row1 or col0 >= col1:
        raise SourceError(expected)
    return Box(label=label, row0=row0, col0=col0, row1=row1, col1=col1)


def _numbers(text: str, count: int, expected: str) -> list[float]:
    try:
        values = [float(part) for part in text.split()]
    except ValueError:
        values = []
    if len(values) != count or not all(math.isfinite(value) and value >= 0 for value in values):
        raise SourceError(f"{expected}: {count} numbers from 0, with spaces between them")
    return values


def _size(given: Mapping[str, str], where: str) -> tuple[int, int] | None:
    if not given:
        return None
    if len(given) < len(SIZE) or not all(re.fullmatch(r"0*[1-9][0-9]{0,6}", value) for value in given.values()):
        raise SourceError(f"{where}: {' and '.join(SIZE)} must be whole numbers of pixels above 0, or both empty")
    return int(given["height"]), int(given["width"])
