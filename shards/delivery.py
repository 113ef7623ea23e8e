"""A delivery: the records of one batch with ids that name nobody, and the manifest that keeps them for ever."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from shards.errors import SourceError
from shards.identity import IdKey
from shards.records import Record, Split, check_inside, files_of
from shards.sources.base import Listing, PatientGrouping

MANIFEST_VERSION = 1
SplitRule = Literal["official", "hash"]
_OLDEST_BUCKET = 90
_BUCKET_YEARS = 10


@dataclass(frozen=True)
class Entry:
    """A record as it may be kept.

    Attributes:
        record: Its ids are keyed hashes, its age the first year of its bucket, its sex None unless it was asked for.
        position: Where its patient stands in [0, 1) among all patients; decides the split.
    """

    record: Record
    position: float


@dataclass(frozen=True)
class Header:
    """What holds for a whole delivery: the first line of its manifest.

    Attributes:
        manifest_version: Of the format.
        kind: Its dataset.
        patient_grouping: `image` where patients are unknown.
        shares_images_with: Datasets with some of the same images, which no mapping told apart.
        split_rule: `official`: the dataset's own splits where it has them. `hash`: patients by their hash alone.
        id_key_fingerprint: Of the key behind the hashes.
        num_images: Lines that follow.
    """

    manifest_version: int
    kind: str
    patient_grouping: PatientGrouping
    shares_images_with: tuple[str, ...]
    split_rule: SplitRule
    id_key_fingerprint: str
    num_images: int


@dataclass(frozen=True)
class Delivery:
    """The images of one batch."""

    header: Header
    entries: list[Entry]

    @property
    def official_splits(self) -> frozenset[Split]:
        """Those that any image has."""
        return frozenset(entry.record.split for entry in self.entries if entry.record.split)


_HEADER, _ENTRY = TypeAdapter(Header), TypeAdapter(Entry)


def identify(listing: Listing, kind: str, key: IdKey, *, split_rule: SplitRule, has_sex: bool) -> Delivery:
    """Replace every id by what may be kept.

    Args:
        listing: What the source found.
        kind: Of the source.
        key: Behind the hashes; with the public one the names of images and studies stay.
        split_rule: `hash` forgets official splits.
        has_sex: Whether the sex is kept.
    """
    entries = [
        Entry(_published(record, key, split_rule=split_rule, has_sex=has_sex), key.position(record.patient))
        for record in listing.records
    ]
    header = Header(
        MANIFEST_VERSION,
        kind,
        listing.patient_grouping,
        listing.shares_images_with,
        split_rule,
        key.fingerprint,
        len(entries),
    )
    return Delivery(header, entries)


def _published(record: Record, key: IdKey, *, split_rule: SplitRule, has_sex: bool) -> Record:
    # Study ids may be unique within a patient only.
    study = key.pseudonym("study", f"{record.patient}/{record.study}") if record.study else None
    return replace(
        record,
        source_id=record.source_id if key.is_public else key.pseudonym("source", record.source_id),
        patient=key.pseudonym("patient", record.patient),
        study=record.study if key.is_public else study,
        split=record.split if split_rule == "official" else None,
        sex=record.sex if has_sex else None,
        age_years=None if record.age_years is None else float(_bucket(record.age_years)),
    )


def _bucket(age_years: float) -> int:
    return min(int(age_years) // _BUCKET_YEARS * _BUCKET_YEARS, _OLDEST_BUCKET)


def age_bucket(age_years: float | None) -> str | None:
    """`60-69`, or `90+`; what a shard says of an age."""
    if age_years is None:
        return None
    first = _bucket(age_years)
    return f"{first}+" if first == _OLDEST_BUCKET else f"{first}-{first + _BUCKET_YEARS - 1}"


def format_manifest(delivery: Delivery) -> Iterator[str]:
    """The manifest, line by line: the header, then an image a line as JSON."""
    yield _line(_HEADER.dump_python(delivery.header, mode="json"))
    for entry in delivery.entries:
        yield _line(_ENTRY.dump_python(entry, mode="json", exclude_defaults=True))


def _line(values: Any) -> str:
    return json.dumps(values, separators=(",", ":"), allow_nan=False) + "\n"


def read_manifest(path: Path) -> Delivery:
    """The delivery that a manifest keeps; its lines are numbered from 1 below the header.

    Raises:
        SourceError: it is missing, damaged, of another version, or a path in it leaves the folder or repeats.
    """
    try:
        with path.open(encoding="utf-8") as file:
            header = _HEADER.validate_json(next(file, ""))
            entries = [_ENTRY.validate_json(line) for line in file]
    except FileNotFoundError:
        raise SourceError(
            f"{path}: not found; expected the manifest that `python -m shards register` wrote. Restore it from a copy, "
            "or give the same `register` command again: it writes the same manifest"
        ) from None
    except (ValidationError, UnicodeDecodeError):
        raise SourceError(f"{path}: no manifest of version {MANIFEST_VERSION}; restore it, or register again") from None
    if header.manifest_version != MANIFEST_VERSION or header.num_images != len(entries):
        raise SourceError(
            f"{path}: version {header.manifest_version} with {len(entries)} images; expected version "
            f"{MANIFEST_VERSION} with {header.num_images}; restore it, or register again"
        )
    check_paths((entry.record for entry in entries), str(path))
    return Delivery(header, entries)


def check_paths(records: Iterable[Record], where: str) -> None:
    """Every file lies below the root, and no image is named twice.

    Raises:
        SourceError: naming the record by its number from 1.
    """
    seen: set[str] = set()
    for number, record in enumerate(records, start=1):
        for file in files_of(record):
            check_inside(file.path, f"{where} image {number}")
        if record.image.path in seen:
            raise SourceError(f"{where} image {number}: an earlier one has the same file")
        seen.add(record.image.path)
