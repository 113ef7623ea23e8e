"""From records and counts to a public dataset's listing: what must hold, and what is worth a word."""

from collections.abc import Iterable
from pathlib import Path

from shards.errors import SourceError
from shards.records import Record
from shards.sources.base import Listing, SourceInfo, count_warnings


def build_listing(
    info: SourceInfo,
    root: Path,
    records: Iterable[Record],
    *,
    num_rows: int,
    num_files: int,
    warnings: tuple[str, ...] = (),
) -> Listing:
    """The records of the images that are there, by source id; rows without a file and files without a row are counted.

    Args:
        info: The dataset.
        root: Its folder.
        records: One for each row that has a file.
        num_rows: Images that its tables name.
        num_files: Images found.
        warnings: What else was seen.

    Raises:
        SourceError: no image at all, or a patient in several splits.
    """
    found = tuple(sorted(records, key=lambda record: record.source_id))
    if not found:
        raise SourceError(
            f"{root}: no image of {info.title} that its tables name ({num_rows:,} named, {num_files:,} files found); "
            f"expected\n{info.layout}"
        )
    check_split(info, found)
    counts = {
        f"{info.name}: {num_rows - len(found):,} of {num_rows:,} listed images have no file; left out": num_rows,
        f"{info.name}: {num_files - len(found):,} of {num_files:,} image files are in no table; left out": num_files,
    }
    absent = tuple(text for text, number in counts.items() if number > len(found))
    return Listing(found, "patient", (*absent, *warnings, *count_warnings(info, found)))


def check_split(info: SourceInfo, records: Iterable[Record]) -> None:
    """No patient may be in several splits.

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


def missing_table(info: SourceInfo, root: Path, what: str) -> SourceError:
    """The error where a table that every copy of the dataset has is not found."""
    return SourceError(f"{root}: {what} not found at any depth; expected\n{info.layout}")
