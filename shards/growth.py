"""What other batches have settled before a delivery comes: which images they have, and whose patient may be where."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from shards.delivery import Entry, iterate_manifest
from shards.errors import SourceError
from shards.records import Split


@dataclass(frozen=True)
class Registered:
    """A batch that has a manifest.

    Attributes:
        name: Of the batch.
        manifest: The file.
        root: Folder of its images.
        is_earlier: Than the delivery in question: its patients keep their splits.
    """

    name: str
    manifest: Path
    root: Path
    is_earlier: bool


@dataclass(frozen=True)
class Settled:
    """What those batches say of a folder's images and of all patients.

    Attributes:
        sizes: Path below the folder → bytes of the image when it was registered.
        ids: Of the folder's images, as manifests hold them: a copy of an image may have another path.
        patients: Path or id → pseudonym of the patient, of earlier batches.
        splits: Pseudonym → the splits that the patient can be in, of all earlier batches, whatever their folder.
        batches: Names of the earlier batches of the folder.
    """

    sizes: dict[str, int | None] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    patients: dict[str, str] = field(default_factory=dict)
    splits: dict[str, tuple[Split, ...]] = field(default_factory=dict)
    batches: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Growth:
    """What a delivery adds.

    Attributes:
        entries: The images that no other batch has, their patients in the splits that they have there.
        num_known: Images left out.
        num_kept: Patients who would be in another split if earlier batches did not have them.
    """

    entries: list[Entry]
    num_known: int
    num_kept: int


def read_settled(root: Path, batches: Iterable[Registered]) -> Settled:
    """Read the manifests of other batches, in the order of params.yaml.

    Raises:
        SourceError: a manifest is missing or damaged.
    """
    settled, folder = Settled(), f"{root.resolve()}/"
    for batch in batches:
        other = f"{batch.root.resolve()}/"
        has_images = other.startswith(folder) or folder.startswith(other)
        if not (has_images or batch.is_earlier):
            continue
        if has_images and batch.is_earlier:
            settled.batches.append(batch.name)
        for _, entry in iterate_manifest(batch.manifest)[1]:
            record = entry.record
            if batch.is_earlier:
                settled.splits.setdefault(record.patient, entry.splits)
            path = f"{other}{record.image.path}"
            if has_images and path.startswith(folder):
                path = path.removeprefix(folder)
                settled.sizes[path] = record.image.num_bytes
                settled.ids.add(record.source_id)
                if batch.is_earlier:
                    settled.patients.update({path: record.patient, record.source_id: record.patient})
    return settled


def grow(entries: Iterable[Entry], root: Path, settled: Settled) -> Growth:
    """Leave out what other batches have, and leave the patients where they are.

    Args:
        entries: All images of the folder, as they are listed now.
        root: The folder.
        settled: By other batches.

    Raises:
        SourceError: there is nothing new, an image has been changed since it was registered, or the folder's lists now
            give images of earlier batches to other patients, who may be in another split.
    """
    new, num_known, num_moved, kept = [], 0, 0, set()
    for entry in entries:
        record, path = entry.record, entry.record.image.path
        if path not in settled.sizes and record.source_id not in settled.ids:
            splits = settled.splits.get(record.patient, entry.splits)
            kept |= {record.patient} if splits != entry.splits else set()
            new.append(Entry(record, entry.position, splits))
            continue
        num_known += 1
        if path in settled.sizes and _size_of(root / path) != settled.sizes[path]:
            raise SourceError(
                f"{root}: an image of an earlier batch has changed since it was registered; restore it, and give the "
                "new version another name"
            )
        before = settled.patients.get(path, settled.patients.get(record.source_id, record.patient))
        num_moved += before != record.patient
    if num_moved:
        names = ", ".join(settled.batches)
        raise SourceError(
            f"{root}: {num_moved} images of {names} belong to other patients now than when they were registered, so a "
            "patient could be in two splits: a mapping file or a list of patients came, went or changed. Register with "
            f"the lists as they were, or take {names} out of params.yaml and dvc.yaml and register the whole folder"
        )
    if not new:
        raise SourceError(f"{root}: all {num_known} images are in earlier batches; there is nothing to add")
    return Growth(new, num_known, len(kept))


def _size_of(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
