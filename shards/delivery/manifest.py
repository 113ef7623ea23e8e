"""A delivery: the records of one batch with ids that name nobody, and the manifest that keeps them for ever."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from shards.core.errors import SourceError
from shards.core.identity import PUBLIC_KEY, IdKey, open_splits, patient_of_site
from shards.core.modality import OWN_KINDS
from shards.core.records import File, MaskFiles, Record, Split, check_inside, files_of, locate
from shards.format.layout import MAX_KEY_LENGTH
from shards.sources.base import Listing, PatientGrouping

MANIFEST_VERSION = 2
SplitRule = Literal["official", "hash"]
_OLDEST_BUCKET = 90
_BUCKET_YEARS = 10
_PUBLIC_FINGERPRINT = PUBLIC_KEY.fingerprint


@dataclass(frozen=True, slots=True)
class Entry:
    """A record as it may be kept.

    Attributes:
        record: The record. Its ids are keyed hashes, its age is the first year of its bucket, its sex is None unless it
            was asked for, and its split is None (`splits` stands for it).
        position: Position of its patient in [0, 1) among all patients; decides between the splits.
        splits: Splits that its patient can be in; the same in all batches.
    """

    record: Record
    position: float
    splits: tuple[Split, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Facts of a whole delivery: the first line of its manifest.

    Attributes:
        manifest_version: Version of the format.
        kind: Name of the source.
        patient_grouping: `image` where patients are unknown.
        shares_images_with: Datasets with some of the same images, which no mapping told apart.
        split_rule: `official`: the dataset's own splits where it has them. `hash`: patients by their hash alone.
        id_key_fingerprint: Fingerprint of the key behind the hashes.
        num_images: Lines that follow.
    """

    manifest_version: int
    kind: str
    patient_grouping: PatientGrouping
    shares_images_with: tuple[str, ...]
    split_rule: SplitRule
    id_key_fingerprint: str
    num_images: int

    @property
    def has_public_ids(self) -> bool:
        """Ids and file names hide nobody and may be shown."""
        return self.id_key_fingerprint == _PUBLIC_FINGERPRINT


@dataclass(frozen=True, slots=True)
class Delivery:
    """The images of one batch."""

    header: Header
    entries: list[Entry]


_HEADER, _ENTRY = TypeAdapter(Header), TypeAdapter(Entry)
_NO_MANIFEST = f"damaged, or no manifest of version {MANIFEST_VERSION}; restore it, or register again"


def identify(
    listing: Listing,
    kind: str,
    key: IdKey,
    *,
    split_rule: SplitRule,
    with_sex: bool,
    site: str = "",
    as_former: bool = False,
) -> Delivery:
    """Replace every id by what may be kept.

    The entries are in the order of their hashed ids: a list of the files' names, in whatever order, tells nothing about
    which is which. Under the public key, which hides nothing, they stay as they are listed.

    Args:
        listing: All images that the source found, since which official splits there are decides who may be in which.
            Its records have the hashes of their files.
        kind: Name of the source.
        key: Key behind the hashes; with the public one the names of images and studies stay.
        split_rule: `hash` forgets official splits.
        with_sex: Keep the patients' sex.
        site: Who gave the patients of a user's own images their ids; another site's patient of the same id is another
            person. Empty: nobody says.
        as_former: Write what earlier versions wrote: the order of the listing, and unknown patients told apart by the
            paths of their images.
    """
    official = frozenset(record.split for record in listing.records if record.split)
    records = listing.records
    if kind in OWN_KINDS:
        is_grouped = listing.patient_grouping == "patient"
        records = tuple(
            replace(record, patient=patient_of_site(site, record.patient))
            if is_grouped
            else replace(record, patient=_image_alone(record, as_former=as_former))
            for record in records
        )
    entries = [
        Entry(
            _published(record, key, with_sex=with_sex),
            key.position(record.patient),
            open_splits(record.split if split_rule == "official" else None, official),
        )
        for record in records
    ]
    if not (key.is_public or as_former):
        entries.sort(key=lambda entry: entry.record.source_id)
    header = Header(
        manifest_version=MANIFEST_VERSION,
        kind=kind,
        patient_grouping=listing.patient_grouping,
        shares_images_with=listing.shares_images_with,
        split_rule=split_rule,
        id_key_fingerprint=key.fingerprint,
        num_images=len(entries),
    )
    return Delivery(header, entries)


def key_of(record: Record, header: Header) -> str:
    """Make the sample's key: without a dot (WebDataset cuts names at the first), unique if the source ids are."""
    return public_key_of(record.source_id) if header.has_public_ids else record.source_id


def public_key_of(source_id: str) -> str:
    """Make a key that shows the source id as far as a key can."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", source_id)
    if name == source_id and len(name) <= MAX_KEY_LENGTH:
        return name
    digest = hashlib.sha256(source_id.encode()).hexdigest()[:16]
    return f"{name[: MAX_KEY_LENGTH - 17]}-{digest}"


def _image_alone(record: Record, *, as_former: bool) -> str:
    """Return what stands for the unknown patient of an image: its content, wherever a copy of it lies."""
    sha256 = None if as_former else record.image.sha256
    return record.patient if sha256 is None else f"image/{sha256}"


def _published(record: Record, key: IdKey, *, with_sex: bool) -> Record:
    # Study ids may be unique within a patient only.
    study = key.pseudonym("study", f"{record.patient}/{record.study}") if record.study else None
    return replace(
        record,
        source_id=record.source_id if key.is_public else key.pseudonym("source", record.source_id),
        patient=key.pseudonym("patient", record.patient),
        study=record.study if key.is_public else study,
        split=None,
        body_part=None,
        sex=record.sex if with_sex else None,
        age_years=None if record.age_years is None else float(_bucket(record.age_years)),
    )


def _bucket(age_years: float) -> int:
    return min(int(age_years) // _BUCKET_YEARS * _BUCKET_YEARS, _OLDEST_BUCKET)


def age_bucket(age_years: float | None) -> str | None:
    """Return the bucket of an age, as `60-69` or `90+`, which is what a shard says of it; None for an unknown age."""
    if age_years is None:
        return None
    first = _bucket(age_years)
    return f"{first}+" if first == _OLDEST_BUCKET else f"{first}-{first + _BUCKET_YEARS - 1}"


def format_manifest(delivery: Delivery) -> Iterator[str]:
    """Yield the lines of the manifest: the header, then an image a line as JSON."""
    yield _line(_HEADER.dump_python(delivery.header, mode="json"))
    for entry in delivery.entries:
        yield _line(_ENTRY.dump_python(entry, mode="json", exclude_defaults=True))


def _line(values: Any) -> str:
    return json.dumps(values, separators=(",", ":"), allow_nan=False) + "\n"


def iterate_manifest(path: Path) -> tuple[Header, Iterator[tuple[int, Entry]]]:
    """Read the header of a manifest, and its entries with the byte offset of their lines, one at a time.

    Raises:
        SourceError: it is missing, damaged, of another version, or not whole (at its end).
    """
    try:
        with path.open("rb") as file:
            header = _HEADER.validate_json(file.readline())
            start = file.tell()
    except FileNotFoundError:
        raise SourceError(
            f"{path}: not found; expected the manifest that `python -m shards register` wrote. Restore it from a copy, "
            "or give the same `register` command again: it writes the same manifest"
        ) from None
    except ValidationError:
        raise SourceError(f"{path}: {_NO_MANIFEST}") from None
    if header.manifest_version != MANIFEST_VERSION:
        raise SourceError(
            f"{path}: manifest version {header.manifest_version}, this code reads {MANIFEST_VERSION}; register again"
        )
    return header, _entries(path, start, header.num_images)


def _entries(path: Path, start: int, num_images: int) -> Iterator[tuple[int, Entry]]:
    number = 0
    with path.open("rb") as file:
        file.seek(start)
        while line := file.readline():
            yield file.tell() - len(line), _parsed(line, path)
            number += 1
    if number != num_images:
        raise SourceError(f"{path}: {number} images, its first line says {num_images}; restore it, or register again")


def read_entry(path: Path, offset: int) -> Entry:
    """Read the entry of one line.

    Raises:
        SourceError: there is none at this offset.
    """
    with path.open("rb") as file:
        file.seek(offset)
        return _parsed(file.readline(), path)


def _parsed(line: bytes, path: Path) -> Entry:
    try:
        return _ENTRY.validate_json(line)
    except ValidationError:
        raise SourceError(f"{path}: {_NO_MANIFEST}") from None


def check_records(records: Iterable[Record], where: str) -> None:
    """Check that every file lies below the root, and that no image is there twice.

    Raises:
        SourceError: naming the record by its number from 1.
    """
    seen: set[str] = set()
    ids: set[str] = set()
    for number, record in enumerate(records, start=1):
        for file in files_of(record):
            check_inside(file.path, f"{where} image {number}")
        if record.image.path in seen:
            raise SourceError(f"{where} image {number}: an earlier one has the same file")
        if record.source_id in ids:
            raise SourceError(f"{where} image {number}: an earlier one has the same id")
        seen.add(record.image.path)
        ids.add(record.source_id)


def hashed(records: Iterable[Record], root: Path) -> Iterator[Record]:
    """Yield the records with size and hash of every file as it is now.

    Raises:
        SourceError: a file lies outside of `root` or cannot be read; names the record by its number from 1.
    """
    for number, record in enumerate(records, start=1):
        where = f"{root} image {number} of the delivery"
        masks = {
            name: replace(mask, files=tuple(_described(root, file, where) for file in mask.files))
            if isinstance(mask, MaskFiles)
            else mask
            for name, mask in record.masks.items()
        }
        is_there = record.known_defect is None or (root / record.image.path).is_file()
        yield replace(record, image=_described(root, record.image, where) if is_there else record.image, masks=masks)


def _described(root: Path, file: File, where: str) -> File:
    try:
        with locate(root, file, where).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return File(file.path, stream.tell(), digest)
    except OSError as error:
        raise SourceError(f"{where}: {error.strerror}; expected files that can be read, then register again") from None
