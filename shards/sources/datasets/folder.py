"""A user's own folder of images as a source, with an optional CSV of patients, labels and views.

Layout: image files at any depth, by the endings of their names or else by their content; hidden files and folders are
passed over, and so is what systems leave in folders. The CSV has the column `path` (relative to the folder), optionally
`patient`, `study`, `view`, `split` (train, val, test), `sex` (F, M, O) and `age_years`, and one column per label with 1
(present), 0 (absent), -1 (uncertain) or nothing (unknown). Columns named `mask:…`, `box:…` and `landmark:…` say what
is drawn on an image (`shards.sources.drawn`).

Patients are those of the column `patient`, or those that a regular expression finds in the paths (`--patient-from`).
Without either, patients are unknown and images are split one by one: names of files and folders are taken for patients
only where the user says so.

Of a DICOM file the pixels are read and nothing else: `dicom_tree` takes patients, studies and views from headers.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast, get_args
from unicodedata import category, normalize

from shards.core.errors import SourceError
from shards.core.records import File, Record, Sex, Split, check_inside, files_of
from shards.sources.base import Listing, SourceInfo, check_label_names, parse_label
from shards.sources.csv_tables import NamedRow, read_rows
from shards.sources.drawn import check_drawn_columns, drawn_columns, mask_paths, parse_drawn
from shards.sources.files import is_file, list_files
from shards.sources.images import SUFFIXES, FoundImages, count_left_out, tell_images
from shards.sources.patients import OPTION, patients_in

REQUIRED_COLUMNS = ("path",)
_DESCRIPTIVE = ("patient", "study", "view", "split", "sex", "age_years")
_VIEW = re.compile(r"[A-Za-z0-9 _-]{0,16}")
_MAX_AGE_YEARS = 120
_FEW_PATIENTS = 10
NO_ROW = "images without a row in the CSV"
_NOT_IN_A_LINE = ("Cc", "Cs", "Zl", "Zp")
"""Categories of Unicode: control characters, what stands for bytes that are not UTF-8, ends of lines and paragraphs."""

INFO = SourceInfo(
    name="folder",
    title="Your own images",
    modality="any",
    num_images=None,
    num_patients=None,
    tasks=("classification", "segmentation", "detection", "landmarks"),
    licence="yours",
    is_redistributable=False,
    citation="none: the images are yours",
    pages=("docs/register.md",),
    layout=f"FOLDER/**/*{{{','.join(SUFFIXES)}}}, and --labels CSV with the column path, "
    f"optionally {', '.join(_DESCRIPTIVE)}, labels (1, 0, -1, empty), masks (mask:NAME), and boxes and landmarks "
    "(box:LABEL, landmark:NAME, height, width)",
)


@dataclass(frozen=True)
class FolderSource:
    """All images of a folder, or those that a CSV lists. Names and ids in them may be about real people.

    Attributes:
        labels: The CSV.
        patient_from: Finds the patient in a path (`shards.sources.patients`).
    """

    labels: Path | None = None
    patient_from: re.Pattern[str] | None = None
    info: SourceInfo = INFO

    def read(self, root: Path) -> Listing:
        """List one record per image, by path; images without a row of the CSV are left out.

        Raises:
            SourceError: there are no images, or the CSV is not as expected; messages name rows, never values.
        """
        found = find_images(root)
        left_out = dict(found.left_out)
        rows: dict[str, NamedRow]
        if self.labels is None:
            _check_names(root, found.kinds)
            _check_stems(root, found.kinds)
            rows = dict.fromkeys(found.kinds, NamedRow())
        else:
            rows = _with_paths_on_disk(root, found, read_label_rows(self.labels))
            _check_files(root, rows, self.labels)
            left_out |= dict.fromkeys(found.kinds, NO_ROW)
        doubts: tuple[str, ...] = ()
        if self.patient_from is not None:
            if any("patient" in row for row in rows.values()):
                raise SourceError(f"{self.labels} has a column patient, and {OPTION} is given; expected one of them")
            patients = patients_in(root, rows, self.patient_from)
            rows = {path: NamedRow({**row, "patient": patients[path]}) for path, row in rows.items()}
            doubts = _doubt(patients)
        records = tuple(_record(path, rows[path], f"{self.labels}") for path in sorted(rows))
        used = {file.path for record in records for file in files_of(record)}
        left_out = {path: reason for path, reason in left_out.items() if path not in used}
        warnings = count_left_out(left_out.values()) + doubts
        if num_dicom := sum(found.kinds.get(path) == "DICOM" for path in rows):
            warnings += (
                f"the headers of {num_dicom} DICOM files are not read: --source dicom takes patients and views from "
                "them",
            )
        is_grouped = all("patient" in row for row in rows.values())
        return Listing(
            records=records, patient_grouping="patient" if is_grouped else "image", warnings=warnings, left_out=left_out
        )


SOURCE = FolderSource()


def _record(path: str, row: dict[str, str], where: str) -> Record:
    age = row.get("age_years", "")
    drawn = parse_drawn(row, where)
    others = {*REQUIRED_COLUMNS, *_DESCRIPTIVE, *drawn_columns(row)}
    return Record(
        source_id=path,
        image=File(path),
        patient=row.get("patient", path),
        study=row.get("study") or None,
        view=row.get("view") or None,
        labels={name: parse_label(row[name], where) for name in row if name not in others},
        masks=drawn.masks,
        boxes=drawn.boxes,
        landmarks=drawn.landmarks,
        split=cast(Split, row["split"]) if row.get("split") else None,
        sex=cast(Sex, row["sex"]) if row.get("sex") else None,
        age_years=float(age) if age else None,
        size=drawn.size,
    )


def find_images(root: Path) -> FoundImages:
    """Find all images below `root`, by path, and why other files are none; hidden files and folders are passed over.

    Raises:
        SourceError: there are none, or a symbolic link leads out of `root`.
    """
    found = tell_images(root, list_files(root))
    if not found.kinds:
        left_out = "".join(f"\n{line}" for line in count_left_out(found.left_out.values()))
        raise SourceError(
            f"{root}: no images; looked for files ending in {', '.join(SUFFIXES)}, and for such images by their "
            f"content, at any depth{left_out}"
        )
    return found


def _check_names(root: Path, paths: Iterable[str]) -> None:
    """Check that names are such as a CSV line can hold, so that a CSV can be given later.

    Raises:
        SourceError: there are others; they may be patients' names and are not repeated.
    """
    num_odd = sum(path != path.strip() or any(category(letter) in _NOT_IN_A_LINE for letter in path) for path in paths)
    if num_odd:
        raise SourceError(
            f"{root}: {num_odd} images have control characters or line separators in their paths, bytes that are not "
            "UTF-8, or spaces at the ends; expected names that a line of a CSV holds: rename them (`LC_ALL=C ls -Rb` "
            "shows such characters as numbers, and spaces behind a \\)"
        )


def _check_stems(root: Path, paths: Collection[str]) -> None:
    """Refuse a file beside one of its own name in another format: it is the same image, and would count twice.

    Raises:
        SourceError: there is one.
    """
    stems = {re.sub(rf"({'|'.join(map(re.escape, SUFFIXES))})$", "", path, flags=re.IGNORECASE) for path in paths}
    if len(stems) < len(paths):
        raise SourceError(
            f"{root}: {len(paths) - len(stems)} images lie beside one of the same name in another format; keep one of "
            "each, or list those that you mean with --labels CSV"
        )


def _with_paths_on_disk(root: Path, found: FoundImages, rows: dict[str, NamedRow]) -> dict[str, NamedRow]:
    """Key the rows by the paths that the files have: macOS and others write the same letter with other code points.

    Raises:
        SourceError: two rows then name one file.
    """
    composed = {normalize("NFC", path): path for path in (*found.kinds, *found.left_out)}

    def as_on_disk(path: str) -> str:
        return path if is_file(root / path) else composed.get(normalize("NFC", path), path)

    def with_masks(row: NamedRow) -> NamedRow:
        masks = {name: as_on_disk(path) for name, path in mask_paths(row).items()}
        return NamedRow.of({**row, **masks}.items(), row.line)

    on_disk = {as_on_disk(path): with_masks(row) for path, row in rows.items()}
    if len(on_disk) < len(rows):
        raise SourceError(
            f"{root}: {len(rows) - len(on_disk)} rows of the CSV name the file of an earlier row, with their letters "
            "written in other code points; keep one row an image"
        )
    return on_disk


def _check_files(root: Path, rows: Mapping[str, NamedRow], labels: Path) -> None:
    """Check that every image and mask that a row names is there, and that none is both.

    Raises:
        SourceError: otherwise; names the first such row.
    """
    masks = {path: set(mask_paths(row).values()) for path, row in rows.items()}
    lines = {
        "no file": [row.line for path, row in rows.items() if not is_file(root / path)],
        "no file of a mask": [
            row.line for path, row in rows.items() if not all(is_file(root / mask) for mask in masks[path])
        ],
        "an image as a mask": [row.line for path, row in rows.items() if not rows.keys().isdisjoint(masks[path])],
    }
    for problem, found in lines.items():
        if found:
            raise SourceError(
                f"{labels}: {len(found)} rows name {problem}, first: line {found[0]}; paths are relative to {root}"
            )


def _doubt(patients: Mapping[str, str]) -> tuple[str, ...]:
    """Warn of folders of classes, which look like folders of patients."""
    few = len(set(patients.values()))
    if few >= _FEW_PATIENTS or few == len(patients):
        return ()
    return (
        f"{OPTION} finds only {few} patients in the paths of {len(patients)} images: are these classes rather than "
        "patients?",
    )


def read_label_rows(path: Path) -> dict[str, NamedRow]:
    """Read the rows of a user's CSV by image path.

    Raises:
        SourceError: there are no rows, a column is missing, a path is empty, leaves the folder or repeats, a patient is
            empty, a view is no short code, a split, sex or age is none, a label column has no plain name or a value
            other than 1, 0, -1, empty, or a mask, box or landmark is not as `shards.sources.drawn` has it.
    """
    rows: dict[str, NamedRow] = {}
    names: tuple[str, ...] = ()
    for row in read_rows(path, REQUIRED_COLUMNS, "the CSV of patients and labels"):
        where = f"{path} line {row.line}"
        if not rows:
            names = check_label_names(row, (*REQUIRED_COLUMNS, *_DESCRIPTIVE, *drawn_columns(row)), path)
            check_drawn_columns(row, names, path)
        if not row["path"]:
            raise SourceError(f"{where}: no path; fill it in, or take the row out if it is empty")
        check_inside(row["path"], where)
        _check_row(row, where)
        image = PurePosixPath(row["path"].replace("\\", "/")).as_posix()
        if image in rows:
            raise SourceError(f"{where}: an earlier row has the same path")
        for name in names:
            known = ", ".join((*REQUIRED_COLUMNS, *_DESCRIPTIVE, *drawn_columns(row)))
            parse_label(row[name], f"{where}: column '{name}' (every column but {known} is a label)")
        parse_drawn(row, where)
        rows[image] = NamedRow.of({**row, "path": image}.items(), row.line)
    return rows


def _check_row(row: dict[str, str], where: str) -> None:
    if not row.get("patient", "unknown"):
        raise SourceError(f"{where}: no patient; fill the column in for every image, or leave it out")
    if not _VIEW.fullmatch(row.get("view", "")):
        raise SourceError(f"{where}: view must be a short code, as PA: at most 16 letters or digits")
    for column, allowed in (("split", get_args(Split)), ("sex", get_args(Sex))):
        if row.get(column) and row[column] not in allowed:
            raise SourceError(f"{where}: {column} must be {', '.join(allowed)} or empty")
    if row.get("age_years") and not _is_age(row["age_years"]):
        raise SourceError(f"{where}: age_years must be a number from 0 to {_MAX_AGE_YEARS}, or empty")


def _is_age(value: str) -> bool:
    try:
        return 0 <= float(value) <= _MAX_AGE_YEARS and math.isfinite(float(value))
    except ValueError:
        return False
