"""What every source is: a dataset's description, and a way from its folder to records."""

import re
import textwrap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from shards.errors import SourceError
from shards.records import Label, Record

PatientGrouping = Literal["patient", "image"]
OWN_KINDS = ("folder", "dicom")
"""Kinds of a user's own images: another site may call other people by the same ids."""
_INDEX_NAME = re.compile(r"Unnamed: \d+")
_LABEL_NAME = re.compile(r"[A-Za-z0-9 _()/+-]{1,64}")


@dataclass(frozen=True)
class SourceInfo:
    """What `python -m shards sources` says of a dataset.

    Attributes:
        name: Its kind, as `nih-chestxray14`; also the prefix of its patients.
        title: As its authors write it.
        modality: As `chest X-ray`.
        num_images: As published; None for a user's own.
        num_patients: Likewise; None where the dataset does not say.
        tasks: What its annotations are for, as `classification`.
        licence: In a few words.
        is_redistributable: Whether shards made of it may be passed on.
        citation: Authors, title, where, year.
        pages: Where to get it.
        layout: What to put where, several lines.
        shares_images_with: Other datasets that hold the same images.
    """

    name: str
    title: str
    modality: str
    num_images: int | None
    num_patients: int | None
    tasks: tuple[str, ...]
    licence: str
    is_redistributable: bool
    citation: str
    pages: tuple[str, ...]
    layout: str
    shares_images_with: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """What a source finds in a folder.

    Attributes:
        records: In an order that depends on the data only.
        patient_grouping: `image` where patients are unknown and every image stands alone in the split: a patient may
            then be in several splits.
        warnings: What differs from the published dataset and may be right all the same; no value of a private file.
        shares_images_with: Datasets with some of the same images, which no mapping file told apart.
        left_out: Path of a file that is none of the records' → why; it holds names of files and is kept in private.
    """

    records: tuple[Record, ...]
    patient_grouping: PatientGrouping
    warnings: tuple[str, ...] = ()
    shares_images_with: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


class Source(Protocol):
    """A raw dataset. Adding one: a module with a class like this, a line in the registry, and `check_source`."""

    @property
    def info(self) -> SourceInfo:
        """What it is."""
        ...

    def read(self, root: Path) -> Listing:
        """All images below `root`; reads lists and headers, no pixels.

        Raises:
            SourceError: files or columns are not what the source expects; names what was looked for.
        """
        ...


def layout_in(docstring: str | None) -> str:
    """What a module's docstring has between the line `Layout:` and the next empty one, without its indent."""
    _, _, below = (docstring or "").partition("\nLayout:\n")
    return textwrap.dedent(below.partition("\n\n")[0])


def parse_label(value: str, where: str) -> Label:
    """1, 0, -1 or empty; `where` names the file, row and column.

    Raises:
        SourceError: anything else; the value is not repeated, for it may be about a patient.
    """
    known: dict[str, Label] = {"1": 1, "0": 0, "-1": -1, "": None, "1.0": 1, "0.0": 0, "-1.0": -1}
    if value not in known:
        raise SourceError(f"{where}: expected 1 (present), 0 (absent), -1 (uncertain) or empty (unknown)")
    return known[value]


def check_label_names(columns: Iterable[str], others: Collection[str], path: Path) -> tuple[str, ...]:
    """The names of the labels in a user's CSV, which must be plain, for shards and indices repeat them.

    Args:
        columns: All of the CSV, in order.
        others: Those that are no labels.
        path: The CSV.

    Raises:
        SourceError: a label has no plain name; its column is named by number, for a misplaced one may be about
            patients.
    """
    names = []
    for number, name in enumerate(columns, start=1):
        if name in others:
            continue
        if _INDEX_NAME.fullmatch(name):
            raise SourceError(f"{path}: column {number}, '{name}', is an index that pandas wrote; leave it out")
        if not _LABEL_NAME.fullmatch(name):
            raise SourceError(
                f"{path}: column {number} has no name that a label may have; expected up to 64 letters, digits, spaces "
                "and _()/+- (every column of another name than "
                f"{', '.join(others)} is a label)"
            )
        names.append(name)
    return tuple(names)
