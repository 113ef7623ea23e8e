"""Define records: what a raw dataset says about each of its images, in the one form that all sources give."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path, PurePosixPath
from typing import Literal
from unicodedata import normalize

import numpy as np

from shards.core.errors import SourceError

Label = int | None
"""1 present, 0 absent, -1 uncertain, None unknown."""
Split = Literal["train", "val", "test"]
Sex = Literal["F", "M", "O"]
Point = tuple[float, float]
"""(row, col) in continuous source pixels."""
Spacing = tuple[float, float] | Literal["unusable"] | None
"""(row, col) sides of a pixel in mm; None: unknown, so that the file's own hold; unusable: these do not hold either."""


@dataclass(frozen=True, slots=True)
class File:
    """A file below the dataset's root.

    Attributes:
        path: Relative, with `/`.
        num_bytes: Size when it was registered; None before.
        sha256: Hash when it was registered, in hex; None before.
    """

    path: str
    num_bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RawLayout:
    """The layout of grey values in a headerless file, row by row, as in JSRT's .IMG files.

    Attributes:
        height: Rows.
        width: Columns.
        dtype: Type of a value, as numpy writes unsigned integers with their byte order: `>u2`.
        max_value: Value of white; values above it, which occur, are cut to it.
        is_inverted: A value of 0 is white.
    """

    height: int
    width: int
    dtype: str
    max_value: int
    is_inverted: bool

    @property
    def num_bytes(self) -> int:
        """Size of the whole file."""
        return self.height * self.width * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskFiles:
    """A structure drawn in one or more image files; inside where any has low <= grey <= high.

    Attributes:
        files: Images of grey levels 0 to 255; none at all: the structure is known to be absent.
        low: Least grey level inside; None: half of the range of grey levels that a file has, for files of two levels
            (3 and 253 as well as 0 and 1). A file of one level is inside everywhere if that is 128 or more.
        high: Greatest grey level inside.
        is_scaled: The files may have another size than the image, and cover the same field; nearest pixel.
    """

    files: tuple[File, ...]
    low: int | None = None
    high: int = 255
    is_scaled: bool = False


@dataclass(frozen=True, slots=True)
class MaskRuns:
    """A structure as run lengths, several of which are OR-ed; none: it is known to be absent.

    Attributes:
        runs: Pairs (pixels skipped since the end of the run before, pixels inside), one tuple an annotation; counted
            down the columns (SIIM-ACR's relative encoding).
        height: Rows of the mask, which are the image's.
        width: Columns.
    """

    runs: tuple[tuple[tuple[int, int], ...], ...]
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class MaskPolygons:
    """A structure as polygons, one closed ring an instance, even-odd, OR-ed; none: it is known to be absent."""

    rings: tuple[tuple[Point, ...], ...]


Mask = MaskFiles | MaskRuns | MaskPolygons


def is_drawn(mask: Mask) -> bool:
    """Tell whether anything draws a mask; otherwise the structure is known to be absent."""
    match mask:
        case MaskFiles():
            return bool(mask.files)
        case MaskRuns():
            return bool(mask.runs)
        case MaskPolygons():
            return bool(mask.rings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A finding's rectangle: continuous source pixels, half open."""

    label: str
    row0: float
    col0: float
    row1: float
    col1: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One image of a dataset, before it is read.

    Attributes:
        source_id: The image's name in its dataset, unique there.
        image: File of the image.
        patient: The dataset's own id, `DATASET/ID` where the dataset is public, or DATASET/ and the image's name where
            patients are unknown; leaves this package only as a keyed hash. In composed letters (Unicode's NFC): one id
            is one text, however its letters were typed.
        study: The dataset's own study id, likewise.
        view: A short code, as PA.
        body_part: A DICOM word, as HAND, where a header has one; selects images and stays in this package.
        labels: Finding → label, the same findings for every image of a dataset.
        masks: Structure → where it is drawn; one that is called as a label (`structure_of`) shows that finding.
        boxes: Rectangles of findings.
        landmarks: Landmark → its point.
        split: The dataset's official one, if it has one.
        sex: Sex of the patient, as recorded.
        age_years: Age of the patient, as recorded; leaves this package only as a bucket.
        size: (height, width) of the image that boxes, landmarks, polygons and spacing were given for; None: whatever
            the file has.
        spacing_mm: Size of a pixel; of a projection, at the detector.
        raw: Layout of a file without a header; None for others.
        known_defect: Reason why the image is known to be unusable; it is quarantined unread.
    """

    source_id: str
    image: File
    patient: str
    study: str | None = None
    view: str | None = None
    labels: Mapping[str, Label] = field(default_factory=dict)
    masks: Mapping[str, Mask] = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    landmarks: Mapping[str, Point] = field(default_factory=dict)
    split: Split | None = None
    sex: Sex | None = None
    age_years: float | None = None
    size: tuple[int, int] | None = None
    spacing_mm: Spacing = None
    raw: RawLayout | None = None
    known_defect: str | None = None
    body_part: str | None = None

    def __post_init__(self) -> None:
        """Compose the letters of the ids that are hashed."""
        object.__setattr__(self, "patient", normalize("NFC", self.patient))
        if self.study is not None:
            object.__setattr__(self, "study", normalize("NFC", self.study))


def structure_of(finding: str) -> str:
    """Return the finding's name as the name of a mask, which has no spaces."""
    return finding.replace(" ", "_")


def files_of(record: Record) -> list[File]:
    """Return the image's file, then those of its masks."""
    masks = (mask for mask in record.masks.values() if isinstance(mask, MaskFiles))
    return [record.image, *(file for mask in masks for file in mask.files)]


def check_inside(path: str, where: str) -> None:
    """Refuse a listed path that leaves its folder.

    Raises:
        SourceError: it is absolute, has `..` parts, or is empty.
    """
    parts = PurePosixPath(path.replace("\\", "/"))
    if not parts.parts or parts.is_absolute() or ".." in parts.parts or "\0" in path:
        raise SourceError(f"{where}: the path leaves the folder; expected one below it, without '..' and not absolute")


def is_below(root: Path, path: Path) -> bool:
    """Tell whether a path leads below a folder, links followed; links in a circle lead nowhere."""
    try:
        resolved = path.resolve(strict=True)
    except FileNotFoundError:
        resolved = path.resolve()
    except (OSError, RuntimeError):  # what Python says of a circle, with the path in it
        return False
    return resolved.is_relative_to(root.resolve())


def locate(root: Path, file: File, where: str) -> Path:
    """Return the path of a file below its root; a symbolic link must not lead out of it either.

    Raises:
        SourceError: the path leaves the folder.
    """
    check_inside(file.path, where)
    path = root / file.path
    # Following every link costs as much as reading a small file: only where there is one.
    parts = accumulate(file.path.split("/"), os.path.join, initial=os.fspath(root))
    if any(map(os.path.islink, islice(parts, 1, None))) and not is_below(root, path):
        raise SourceError(f"{where}: a symbolic link leads out of the folder; expected files that lie below it")
    return path
