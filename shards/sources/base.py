"""Define a source: a dataset's description, and a way from its folder to records."""

import re
import textwrap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from shards.core.errors import SourceError
from shards.core.records import Label, Record

PatientGrouping = Literal["patient", "image"]
_INDEX_NAME = re.compile(r"Unnamed: \d+")
_LABEL_NAME = re.compile(r"[A-Za-z0-9 _()/+-]{1,64}")


@dataclass(frozen=True, kw_only=True)
class SourceInfo:
    """A dataset's description, as `python -m shards sources` prints it.

    Attributes:
        name: Its kind, as `nih-chestxray14`; also the prefix of its patients.
        title: Title, as its authors write it.
        modality: Kind of pictures, as `chest X-ray`.
        num_images: Number of images, as published; None for a user's own.
        num_patients: Number of patients, as published; None where the dataset does not say.
        tasks: Uses of its annotations, as `classification`.
        licence: Licence, in a few words.
        is_redistributable: Shards made of it may be passed on.
        citation: Authors, title, where, year.
        pages: Pages where it can be had.
        layout: Description of the folder that the source reads, several lines.
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


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The images that a source finds in a folder.

    Attributes:
        records: Images in an order that depends on the data only.
        patient_grouping: `image` where patients are unknown and every image stands alone in the split: a patient may
            then be in several splits.
        warnings: Differences from the published dataset that may be right all the same; no value of a private file.
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
        """The description of the dataset."""
        ...

    def read(self, root: Path) -> Listing:
        """List all images below `root`; reads lists and headers, no pixels.

        Raises:
            SourceError: files or columns are not what the source expects; names what was looked for.
        """
        ...


def layout_in(docstring: str | None) -> str:
    """Return the part of a module's docstring between the line `Layout:` and the next empty one, without its indent."""
    _, _, below = (docstring or "").partition("\nLayout:\n")
    return textwrap.dedent(below.partition("\n\n")[0])


def parse_label(value: str, where: str) -> Label:
    """Parse a label: 1, 0, -1 or empty; `where` names the file, row and column.

    Raises:
        SourceError: anything else; the value is not repeated, for it may be about a patient.
    """
    known: dict[str, Label] = {"1": 1, "0": 0, "-1": -1, "": None, "1.0": 1, "0.0": 0, "-1.0": -1}
    if value not in known:
        raise SourceError(f"{where}: expected 1 (present), 0 (absent), -1 (uncertain) or empty (unknown)")
    return known[value]


def check_label_names(columns: Iterable[str], others: Collection[str], path: Path) -> tuple[str, ...]:
    """Check the names of the labels in a user's CSV, which must be plain, for shards and indices repeat them.

    Args:
        columns: All columns of the CSV, in order.
        others: Columns that are no labels.
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
