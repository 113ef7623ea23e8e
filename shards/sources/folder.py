"""A user's own folder of PNG and JPEG images as a source, with an optional CSV of patients and labels."""

import hashlib
import re
from pathlib import Path, PurePosixPath

from shards.errors import SourceError
from shards.params import FolderSourceParams
from shards.sources.base import Record, parse_label, read_csv
from shards.sources.manifest import ManifestEntry, check_inside, read_manifest

REQUIRED_COLUMNS = ("path", "patient")
_OPTIONAL_COLUMNS = ("study", "view")
_VIEW = re.compile(r"[A-Za-z0-9 _-]{0,16}")
_LABEL_NAME = re.compile(r"[A-Za-z0-9 _()/+-]{1,64}")
_MAX_NAMED = 10


class FolderSource:
    """The files that a manifest lists. Their names, and the CSV's ids, may be about real people."""

    def __init__(self, params: FolderSourceParams) -> None:
        self._params = params
        self._root = Path(params.root)
        self._manifest = Path(params.dep)

    @property
    def channels(self) -> int:
        """As registered."""
        return self._params.channels

    def records(self) -> list[Record]:
        """One record per row of the manifest, in its order.

        Raises:
            SourceError: manifest, folder and CSV do not agree; files are named by their row in the manifest.
        """
        entries = read_manifest(self._manifest)
        self._check_sizes(entries)
        rows = self._rows(entries)
        return [self._record(number, entry, rows[entry.path]) for number, entry in enumerate(entries, start=1)]

    def _record(self, number: int, entry: ManifestEntry, row: dict[str, str]) -> Record:
        labels = {name: value for name, value in row.items() if name not in (*REQUIRED_COLUMNS, *_OPTIONAL_COLUMNS)}
        return Record(
            source_id=entry.path,
            place=f"manifest row {number}",
            image=self._root / entry.path,
            patient=row["patient"],
            study=row.get("study") or None,
            view=row.get("view") or None,
            labels={name: parse_label(value, f"manifest row {number}: label {name}") for name, value in labels.items()},
            spacing_mm=self._params.spacing_mm,
            sha256=entry.sha256,
        )

    def _rows(self, entries: list[ManifestEntry]) -> dict[str, dict[str, str]]:
        if self._params.labels is None:
            return {entry.path: {"patient": patient_of_path(entry.path)} for entry in entries}
        path = Path(self._params.labels)
        rows = read_label_rows(path)
        if hashlib.sha256(path.read_bytes()).hexdigest() != self._params.labels_sha256:
            raise SourceError(f"{path}: changed since the batch was registered; restore it, or register a new batch")
        missing = [number for number, entry in enumerate(entries, start=1) if entry.path not in rows]
        if missing:
            raise SourceError(f"{path}: no row for the images in {self._named(missing)}")
        return rows

    def _check_sizes(self, entries: list[ManifestEntry]) -> None:
        """The cheap half of the check for changes; hashes are compared as each file is read."""
        changed = []
        for number, entry in enumerate(entries, start=1):
            try:
                if (self._root / entry.path).stat().st_size != entry.num_bytes:
                    changed.append(number)
            except OSError:
                changed.append(number)
        if changed:
            raise SourceError(
                f"{len(changed)} of {len(entries)} files below {self._root} are missing or changed since the batch was "
                f"registered: {self._named(changed)}; restore them, or register the folder as a new batch"
            )

    def _named(self, numbers: list[int]) -> str:
        more = f" and {len(numbers) - _MAX_NAMED} more" if len(numbers) > _MAX_NAMED else ""
        return f"{self._manifest} rows {', '.join(map(str, numbers[:_MAX_NAMED]))}{more}"


def patient_of_path(path: str) -> str:
    """Without a CSV: the top-level subfolder is the patient, or the file's stem where there is no subfolder."""
    parts = PurePosixPath(path).parts
    return parts[0] if len(parts) > 1 else PurePosixPath(path).stem


def read_label_rows(path: Path) -> dict[str, dict[str, str]]:
    """The rows of a user's CSV by image path.

    Raises:
        SourceError: a column is missing, a path leaves the folder or repeats, a patient is empty, a view is no short
            code, a label column has no plain name or a value other than 1, 0, -1 and empty.
    """
    rows: dict[str, dict[str, str]] = {}
    for number, row in enumerate(read_csv(path, REQUIRED_COLUMNS, "the CSV of patients and labels"), start=1):
        place = f"{path} row {number}"
        check_inside(row["path"], place)
        if not row["patient"]:
            raise SourceError(f"{place}: no patient; the split needs one for every image")
        if not _VIEW.fullmatch(row.get("view", "")):
            raise SourceError(f"{place}: view must be a short code, as PA: at most 16 letters or digits")
        image = PurePosixPath(row["path"].replace("\\", "/")).as_posix()
        if image in rows:
            raise SourceError(f"{place}: an earlier row has the same path")
        for name in row.keys() - {*REQUIRED_COLUMNS, *_OPTIONAL_COLUMNS}:
            if not _LABEL_NAME.fullmatch(name):
                raise SourceError(f"{path}: a label column needs a plain name of letters, digits and spaces")
            parse_label(row[name], f"{place}: column '{name}' (every column but path, patient, study, view is a label)")
        rows[image] = {**row, "path": image}
    return rows
