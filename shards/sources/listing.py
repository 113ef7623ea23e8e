"""Make a listing of what a source finds: what must hold is checked, and what is worth a word is a warning."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from shards.core.errors import SourceError
from shards.core.records import Record
from shards.sources.base import Listing, SourceInfo

Row = TypeVar("Row")


def wrong_layout(info: SourceInfo, root: Path, problem: str) -> SourceError:
    """Return the error for a folder in which a part of the dataset is not found.

    It names the layout that was looked for.
    """
    layout = "\n".join(f"    {line}" for line in info.layout.splitlines())
    return SourceError(f"{root}: {problem}; expected below it\n{layout}")


def no_images(info: SourceInfo, root: Path) -> SourceError:
    """Return the error of a folder that holds no image of the dataset."""
    return wrong_layout(info, root, f"no image of {info.name} found")


def count_warnings(info: SourceInfo, records: tuple[Record, ...]) -> tuple[str, ...]:
    """Yield a line if there are more or fewer images or patients than published.

    A part of a dataset is fine, but worth a word.
    """
    found = {"images": len(records), "patients": len({record.patient for record in records})}
    published = {"images": info.num_images, "patients": info.num_patients}
    return tuple(
        f"{info.name}: {found[what]:,} {what} found, {number:,} published"
        for what, number in published.items()
        if number is not None and found[what] != number
    )


def number_warnings(info: SourceInfo, counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return a line for each thing that was met at all; what → how often, where `what` continues the sentence."""
    return tuple(f"{info.name}: {number:,} {what}" for what, number in counts.items() if number)


def read_or_warn(read: Callable[[], Iterable[Row]], warnings: list[str]) -> list[Row]:
    """Read the rows of a list whose form is known at second hand alone: one in another form is a warning and no row."""
    try:
        return list(read())
    except SourceError as error:
        warnings.append(f"{error}; what the file says stays unknown")
        return []


def build_listing(
    info: SourceInfo,
    root: Path,
    records: Iterable[Record],
    *,
    num_rows: int,
    num_files: int,
    warnings: tuple[str, ...] = (),
) -> Listing:
    """Build the records of the images that are there, by source id.

    Rows without a file and files without a row are counted.

    Args:
        info: The dataset.
        root: Folder of the dataset.
        records: One for each row that has a file.
        num_rows: Images that its tables name.
        num_files: Images found.
        warnings: Lines on what else was seen.

    Raises:
        SourceError: no image at all, or a patient in several splits.
    """
    found = tuple(sorted(records, key=lambda record: record.source_id))
    if not found:
        raise wrong_layout(info, root, f"no image that the tables name ({num_rows:,} named, {num_files:,} files found)")
    check_split(info, found)
    counts = {
        f"{info.name}: {num_rows - len(found):,} of {num_rows:,} listed images have no file; left out": num_rows,
        f"{info.name}: {num_files - len(found):,} of {num_files:,} image files are in no table; left out": num_files,
    }
    absent = tuple(text for text, number in counts.items() if number > len(found))
    return Listing(
        records=found, patient_grouping="patient", warnings=(*absent, *warnings, *count_warnings(info, found))
    )


def check_split(info: SourceInfo, records: Iterable[Record]) -> None:
    """Check that no patient is in several splits.

    Raises:
        SourceError: one is; the datasets' own splits are by patient, so a table or list is damaged.
    """
    splits: dict[str, str | None] = {}
    for record in records:
        if splits.setdefault(record.patient, record.split) != record.split:
            raise SourceError(
                f"{info.name}: patient {record.patient} is in the splits {splits[record.patient]} and {record.split}; "
                "the official split is by patient: restore the published lists"
            )
