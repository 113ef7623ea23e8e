"""Read what other batches have settled before a delivery comes: which images they have, and each patient's splits.

An image is known by its content, whatever its file is called and wherever it lies; an image of a dataset that gives its
images ids also by its id, for a copy may be resized or written anew.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from shards.core.errors import SourceError
from shards.core.modality import OWN_KINDS
from shards.core.records import File, Record, Split
from shards.delivery.manifest import Entry, iterate_manifest
from shards.runtime.text import count_of

IN_ANOTHER_BATCH = "an image that batch"
"""Beginning of the reason of a file that is left out because another batch has it."""


@dataclass(frozen=True, kw_only=True)
class Registered:
    """A batch that has a manifest.

    Attributes:
        name: Name of the batch.
        kind: Name of its source.
        manifest: The file.
        root: Folder of its images.
        is_earlier: It is earlier than the delivery in question, so that its patients keep their splits.
    """

    name: str
    kind: str
    manifest: Path
    root: Path
    is_earlier: bool


@dataclass(frozen=True)
class Known:
    """An image of an earlier batch.

    Attributes:
        batch: The name of the first that has it.
        kind: Name of the batch's source.
        patient: Pseudonym; None where several patients have it, as a blank picture or a page that says no.
    """

    batch: str
    kind: str
    patient: str | None

    def replaces(self, record: Record, kind: str) -> bool:
        """Tell whether an image of a source need not be in a second batch.

        Of two public datasets whose mapping gave both images one patient, and so one split, each keeps its own: it has
        other labels.
        """
        return kind == self.kind or self.patient != record.patient or kind in OWN_KINDS


@dataclass(frozen=True, kw_only=True)
class Settled:
    """The images and the patients' splits of other batches.

    Attributes:
        images: Content, or kind and id, of an image (`names_of`) → which earlier batch has it.
        later: Names of images of the folder that came in a later batch, and their paths below the folder.
        files: Path below the folder → the file as a batch registered it, and when, in seconds as files have them.
        splits: Pseudonym → the splits that the patient can be in, of all earlier batches.
    """

    images: dict[str, Known] = field(default_factory=dict)
    later: set[str] = field(default_factory=set)
    files: dict[str, tuple[File, float]] = field(default_factory=dict)
    splits: dict[str, tuple[Split, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Growth:
    """The images that a delivery adds to those of other batches.

    Attributes:
        entries: The images that no other batch has, their patients in the splits that they have there.
        copies: Earlier batch → how many images are left out because it has them.
        left_out: Path of each of these → why.
        num_kept: Patients who would be in another split if earlier batches did not have them.
        num_old: Patients whom earlier batches have, in whatever split.
    """

    entries: list[Entry]
    copies: Counter[str]
    left_out: dict[str, str]
    num_kept: int
    num_old: int


def names_of(record: Record, kind: str) -> Iterator[str]:
    """Yield the names by which an image is known: its content, and its id where it is no path of the user's."""
    if record.image.sha256 is not None and record.image.num_bytes:
        yield record.image.sha256
    if kind != "folder":
        yield f"{kind}/{record.source_id}"


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
        entries = iterate_manifest(batch.manifest)[1]
        registered_s = batch.manifest.stat().st_mtime
        for _, entry in entries:
            record, path = entry.record, f"{other}{entry.record.image.path}"
            if batch.is_earlier:
                settled.splits.setdefault(record.patient, entry.splits)
                for name in names_of(record, batch.kind):
                    known = settled.images.setdefault(name, Known(batch.name, batch.kind, record.patient))
                    if known.patient not in (None, record.patient):
                        settled.images[name] = replace(known, patient=None)
            if path.startswith(folder):
                settled.files[path.removeprefix(folder)] = record.image, registered_s
                if not batch.is_earlier:
                    # Not its content: of two equal files the earlier batch may have one and the later the other.
                    ids = (name for name in names_of(record, batch.kind) if name != record.image.sha256)
                    settled.later.update((path.removeprefix(folder), *ids))
    return settled


def unchanged_files(root: Path, settled: Settled) -> Mapping[str, File]:
    """Find files of the folder that are unchanged since an earlier batch registered them.

    The result maps each path to the file with its hash, which is not read again.

    A file counts as unchanged if it has its size and was last written, renamed or moved before it was registered.
    """
    found = {}
    for path, (file, registered_s) in settled.files.items():
        try:
            status = (root / path).stat()
        except OSError:
            continue
        if file.sha256 and status.st_size == file.num_bytes and status.st_ctime < registered_s:
            found[path] = file
    return found


def grow(entries: Iterable[Entry], kind: str, root: Path, settled: Settled) -> Growth:
    """Leave out what other batches have, and leave the patients where they are.

    Args:
        entries: All images of the folder, as they are listed now, with their hashes.
        kind: Name of their source.
        root: The folder.
        settled: Images and patients of other batches.

    Raises:
        SourceError: there is nothing new, a file has been changed since it was registered, or new images are of
            patients who are called otherwise than in earlier batches that have other images of theirs, so that they
            could be in two splits.
    """
    new: list[Entry] = []
    copies, left_out, kept, old, num_later = Counter[str](), {}, set(), set(), 0
    renamed: dict[str, set[str]] = {}
    for entry in entries:
        record, path = entry.record, entry.record.image.path
        before = settled.files.get(path, (record.image, 0.0))[0].sha256
        if before is not None and before != record.image.sha256:
            raise SourceError(
                f"{root}: found an image of an earlier batch that has changed since it was registered; restore it, and "
                "give the new version another file name"
            )
        names = list(names_of(record, kind))
        in_batches = (name for name in names if name in settled.images)
        found = next((name for name in in_batches if settled.images[name].replaces(record, kind)), None)
        if found is not None:
            known = settled.images[found]
            copies[known.batch] += 1
            left_out[path] = f"{IN_ANOTHER_BATCH} {known.batch} has"
            if known.patient not in (None, record.patient):
                renamed.setdefault(found, set()).add(record.patient)
        elif settled.later.isdisjoint((path, *names)):
            splits = settled.splits.get(record.patient, entry.splits)
            old |= {record.patient} & settled.splits.keys()
            kept |= {record.patient} if splits != entry.splits else set()
            new.append(Entry(record, entry.position, splits))
        else:
            num_later += 1
    moved = {name: patients for name, patients in renamed.items() if len(patients) == 1}
    torn = set().union(*moved.values()) & {entry.record.patient for entry in new}
    if torn:
        batches = ", ".join(sorted({settled.images[name].batch for name in moved}))
        raise SourceError(
            f"{root}: {len(moved)} images of {batches} belong to other patients now than when they were registered, "
            f"and {len(torn)} of these patients have new images too, so a patient could be in two splits. Register "
            f"with the patients and the --site as they were, or take {batches} out (`python -m shards remove NAME`) "
            "and register all images together"
        )
    if not new:
        num_known = copies.total() + num_later
        raise SourceError(
            f"{root}: nothing to add: found {count_of(num_known, 'image')}, all of earlier batches{_named(copies)}"
        )
    return Growth(entries=new, copies=copies, left_out=left_out, num_kept=len(kept), num_old=len(old))


def _named(copies: Counter[str]) -> str:
    return f" ({', '.join(f'{batch}: {number}' for batch, number in copies.items())})" if copies else ""
