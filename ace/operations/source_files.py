"""Name the file that each training image of a model was decoded from, for who has to show where a model comes from."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ace.operations.errors import OperationsError
from ace.operations.model_files import RecordedModel, find_files
from ace.operations.patients import batches_of
from shards.core.params import BatchParams, RegisteredSourceParams
from shards.core.records import File
from shards.delivery.manifest import iterate_manifest, key_of
from shards.format.layout import sha256_of
from shards.reading.lineage import TRAINING_IMAGES
from shards.runtime.text import count_of

COLUMNS = ("batch", "key", "file", "sha256")


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A training image, and the file that it was decoded from.

    Attributes:
        batch: Name of the batch that the image came with.
        key: Key of its sample in the tars.
        file: The file, relative to the folder that was registered; empty where it is not known.
        sha256: The file's hash when it was registered; empty likewise.
    """

    batch: str
    key: str
    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SourceFiles:
    """The files of all training images of a model.

    Attributes:
        files: A file for each image, in the order of the model's list.
        notes: What is not as it was when the model was trained, a sentence a batch.
    """

    files: list[SourceFile]
    notes: list[str]

    def write(self, out: TextIO) -> None:
        """Write them as CSV, with a header."""
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((item.batch, item.key, item.file, item.sha256) for item in self.files)


def source_files(root: Path, traced: Mapping[str, Any], folder: Path | None = None) -> SourceFiles:
    """Find the file of each image that a model was trained with, by the manifests of its batches.

    Args:
        root: A clone, with `data/manifests`.
        traced: The lineage of the model (`ace.operations.lineage`).
        folder: Folder of the model; None for a version.

    Raises:
        OperationsError: no list of training images is known, or it is damaged.
        SourceError: a manifest is missing or damaged.
    """
    images = list(_read_images(_find_list(root, traced, folder)))
    known, files, notes = batches_of(root), dict[str, dict[str, File]](), []
    for name, number in Counter(batch for batch, _ in images).items():
        files[name], why = _files_of(root, name, known.get(name), traced["batches"].get(name))
        missing = sum(batch == name and key not in files[name] for batch, key in images)
        why = why or ("its manifest does not name them, as after an erasure" if missing else "")
        if missing:
            notes.append(f"{name}: no file for {missing} of {count_of(number, 'image')}: {why}")
        elif why:
            notes.append(f"{name}: {why}")
    found = ((batch, key, files[batch].get(key)) for batch, key in images)
    return SourceFiles(
        files=[
            SourceFile(batch=batch, key=key, file=file.path if file else "", sha256=(file and file.sha256) or "")
            for batch, key, file in found
        ],
        notes=notes,
    )


def _find_list(root: Path, traced: Mapping[str, Any], folder: Path | None) -> Path:
    """Return the list of training images, in the folder itself or among the recorded files of the model behind it."""
    if folder is not None and (folder / TRAINING_IMAGES).is_file():
        return folder / TRAINING_IMAGES
    model = traced["model"]
    files = {} if model is None else find_files(root, RecordedModel(model["path"], model["md5"]))
    if TRAINING_IMAGES not in files:
        raise OperationsError(
            f"{folder or traced['version']}: no {TRAINING_IMAGES} is known of this model; expected it in its folder, "
            "or in that of the model it was made from. An imported model has none, nor has a shipped one, whose list "
            "stayed where it was trained"
        )
    return files[TRAINING_IMAGES]


def _read_images(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        if not {"batch", "key"} <= {*(rows.fieldnames or ())}:
            raise OperationsError(
                f"{path}: damaged; expected a list of training images that begins with a line that names the columns "
                "batch and key, as a training writes it"
            )
        for row in rows:
            yield row["batch"], row["key"]


def _files_of(
    root: Path, name: str, batch: BatchParams | None, traced: Mapping[str, Any] | None
) -> tuple[dict[str, File], str]:
    """Return key → file of a batch, and what is to be said of its manifest.

    Args:
        root: The clone.
        name: The batch.
        batch: The batch as it is in the clone; None if it is not there.
        traced: The batch as the model's commit has it; None if that is not known.
    """
    if batch is None:
        return {}, "the batch is not in this clone"
    if not isinstance(batch.source, RegisteredSourceParams):
        return {}, f"they are drawn, by the stage that writes {batch.source.dep}"
    manifest = root / batch.source.dep
    header, entries = iterate_manifest(manifest)
    files = {key_of(entry.record, header): entry.record.image for _, entry in entries}
    expected = batch.source.dep_sha256 if traced is None else traced["manifest_sha256"]
    changed = expected != sha256_of(manifest)
    return files, "its manifest is another one than when the model was trained, as after an erasure" if changed else ""
