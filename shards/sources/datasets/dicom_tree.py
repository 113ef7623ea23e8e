"""A tree of DICOM files, as an archive or a viewer's CD exports it, as a source.

Layout: files of any name at any depth, with or without extension; what is DICOM is told by content. Files without an
image (reports, presentation states, key object notes, DICOMDIR), modalities other than `MODALITIES`, screen shots and
scanned paper, several frames, and images that say that text is burned into them are left out and counted, and so are
images without Patient ID, for they cannot be split by patient.

The patient is the Patient ID alone. Its issuer is often written by one system and not by the next, and one person
under two names could be in training and in the test; two people under one name cannot do that harm. For the same reason
an id in UTF-8 is read as that also where the file does not say so, and letters are composed (Unicode's NFC).

A CSV of labels has the column `sop_uid` (SOP Instance UID) and one column per label with 1 (present), 0 (absent), -1
(uncertain) or nothing (unknown); images without a row have unknown labels.
"""

import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unicodedata import normalize

from pydicom.uid import (
    DigitalIntraOralXRayImageStorageForPresentation,
    DigitalIntraOralXRayImageStorageForProcessing,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameSingleBitSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
    SecondaryCaptureImageStorage,
)

from shards.core.errors import SourceError
from shards.core.records import File, Label, Record, is_below
from shards.decode import UnreadableImageError
from shards.decode.dicom import DicomHeader, read_header
from shards.decode.reasons import NOT_DICOM
from shards.runtime.parallel import map_in_processes
from shards.runtime.progress import progress
from shards.sources.base import Listing, SourceInfo, check_label_names, parse_label
from shards.sources.csv_tables import read_rows
from shards.sources.dicom_facts import body_part_of, view_of
from shards.sources.files import walk
from shards.sources.listing import number_warnings
from shards.sources.patients import OPTION, patients_in

MODALITIES = ("CR", "DX", "DR", "RG", "PX", "IO", "MG", "OP")
"""Projection radiographs (computed, digital, film, panoramic, intra-oral, mammography), and fundus photographs."""

_UID_COLUMN = "sop_uid"
FEW_FILES = 256
"""Fewer are read before other processes have started."""

_SCREEN_SHOTS = (
    SecondaryCaptureImageStorage,
    MultiFrameSingleBitSecondaryCaptureImageStorage,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    MultiFrameTrueColorSecondaryCaptureImageStorage,
)
_DIGITIZED_FILM = "DF"
_SECONDARY = ("SECONDARY", "LOCALIZER", "SCREEN SAVE", "SCREENSHOT", "SCREEN SHOT", "CAPTURE")
"""Values of Image Type."""
_PROCESSING = (
    DigitalXRayImageStorageForProcessing,
    DigitalMammographyXRayImageStorageForProcessing,
    DigitalIntraOralXRayImageStorageForProcessing,
)
_PRESENTATION = (
    DigitalXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalIntraOralXRayImageStorageForPresentation,
)

# Why files are left out: each follows a number in a warning, and none holds a value or a name of a file.
OTHER_FILE = "files that are not DICOM"
DAMAGED = "files that cannot be read, or with a damaged header"
BAD_NAME = "files with a name that is not UTF-8, which the manifest cannot hold"
UNLISTED = "folders that cannot be listed"
LINKED = "symbolic links to folders, or to files outside of the folder, which are not followed"
NO_IMAGE = "files without an image (reports, presentation states, DICOMDIR), or that end before it"
OTHER_MODALITY = f"images of another modality than {', '.join(MODALITIES)}"
CAPTURE = "secondary captures: screen shots, scanned documents, localizers"
FRAMES = "images with several frames"
BURNED_IN = "images that say that text is burned into their pixels"
NO_PATIENT = f"images without Patient ID; the split needs one for every image, or {OPTION}"
NO_UID = "images without a SOP Instance UID"
CONFLICT = "files that share a SOP Instance UID and differ in their headers"
COPY = "copies of an image that is kept"
RAW = "images FOR PROCESSING, of studies that have images FOR PRESENTATION"

INFO = SourceInfo(
    name="dicom",
    title="Your own DICOM files",
    modality="any",
    num_images=None,
    num_patients=None,
    tasks=("classification",),
    licence="yours",
    is_redistributable=False,
    citation="none: the images are yours",
    pages=("docs/register.md",),
    layout=f"FOLDER/**/* DICOM files of any name, modality {', '.join(MODALITIES)}\n"
    f"and --labels CSV, if there is one, with the column {_UID_COLUMN} and labels (1, 0, -1, empty)",
)


@dataclass(frozen=True)
class DicomTreeSource:
    """All radiographs and fundus photographs of a tree. Names and headers are about real people.

    Attributes:
        labels: The CSV.
        patient_from: Finds the patient in a path (`shards.sources.patients`), in the place of the Patient ID.
    """

    labels: Path | None = None
    patient_from: re.Pattern[str] | None = None
    info: SourceInfo = INFO

    def read(self, root: Path) -> Listing:
        """List one record per image, by path; reads headers, in several processes.

        Raises:
            SourceError: there is no image that can be used, or the CSV is not as expected; messages hold no value and
                no name of a file.
        """
        labels = _Labels((), {}) if self.labels is None else _read_labels(self.labels)
        paths, unlisted = _find_files(root)
        found = _look_at_all(root, paths, self.patient_from)
        distinct = _without_copies(image for image in found if not isinstance(image, str))
        images = _without_raw(distinct.kept)
        reasons = {path: reason for path, reason in zip(paths, found, strict=True) if isinstance(reason, str)}
        left_out = unlisted | reasons | distinct.left_out | images.left_out
        counts = sorted(Counter(left_out.values()).items())
        if not images.kept:
            raise SourceError(
                f"{root}: no image that can be used among {len(paths):,} files; expected\n{INFO.layout}"
                + "".join(f"\nleft out: {number:,} {reason}" for reason, number in counts)
            )
        records = tuple(_record(image, labels) for image in sorted(images.kept, key=lambda image: image.path))
        said = tuple(f"dicom: left out {number:,} {reason}" for reason, number in counts)
        doubts = (*_doubts(images.kept), *(() if self.patient_from else _doubts_of_ids(images.kept)))
        return Listing(
            records=records,
            patient_grouping="patient",
            warnings=(*said, *doubts, *_unmatched(records, labels)),
            left_out=left_out,
        )


SOURCE = DicomTreeSource()


@dataclass(frozen=True, kw_only=True)
class _Image:
    """An image that may be kept.

    Attributes:
        path: Relative to the root.
        num_bytes: Size of its file.
        header: Header of its file, whose ids are raw.
        patient: Its Patient ID.
        uid: Its SOP Instance UID.
        is_silent_utf8: Its Patient ID is in UTF-8 though the file does not say so.
    """

    path: str
    num_bytes: int
    header: DicomHeader
    patient: str
    uid: str
    is_silent_utf8: bool


@dataclass(frozen=True)
class _Sifted:
    """Images that are kept, and path → reason of the others."""

    kept: list[_Image]
    left_out: dict[str, str]


@dataclass(frozen=True)
class _Labels:
    """The content of the user's CSV.

    Attributes:
        names: Names of the labels.
        rows: SOP Instance UID → their values.
    """

    names: tuple[str, ...]
    rows: dict[str, dict[str, Label]]


def _find_files(root: Path) -> tuple[list[str], dict[str, str]]:
    """Find all files and links, sorted, and the reason for each path that could not be looked at.

    Hidden files, and files that operating systems leave behind, are passed over.

    Raises:
        SourceError: there is no such folder.
    """
    if not root.is_dir():
        raise SourceError(f"{root}: no such folder; expected one with DICOM files in it")
    closed: list[OSError] = []
    paths: list[str] = []
    unlisted: dict[str, str] = {}
    for path, entry in walk(root, closed.append):
        if not _is_utf8(path):
            unlisted[path] = BAD_NAME
        elif entry.name.upper() != "DICOMDIR":
            paths.append(path)
    unlisted |= {Path(error.filename).relative_to(root).as_posix(): UNLISTED for error in closed}
    return sorted(paths), unlisted


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _look_at_all(root: Path, paths: Sequence[str], rule: re.Pattern[str] | None) -> list[_Image | str]:
    """Yield an image or a reason for each path.

    Raises:
        SourceError: the rule finds no patient in the path of an image.
    """
    num_workers = 1 if len(paths) < FEW_FILES else None
    found = map_in_processes(partial(_look, root, needs_id=rule is None), paths, num_workers)
    looked = list(progress(found, total=len(paths), description="read headers", unit="file"))
    if rule is None:
        return looked
    patients = patients_in(root, (image.path for image in looked if isinstance(image, _Image)), rule)
    return [replace(image, patient=patients[image.path]) if isinstance(image, _Image) else image for image in looked]


def _look(root: Path, path: str, *, needs_id: bool) -> _Image | str:
    """Return an image, or the reason why the file is left out."""
    file = root / path
    if not is_below(root, file):
        return LINKED
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            return LINKED
        header = read_header(file)
    except UnreadableImageError as error:
        return OTHER_FILE if str(error) == NOT_DICOM else DAMAGED
    except OSError:
        return DAMAGED
    reason = _objection(header)
    if reason is not None:
        return reason
    if header.patient_id is None and needs_id:
        return NO_PATIENT
    if header.sop_uid is None or not header.sop_uid.isprintable():
        return NO_UID
    patient, issuer = _composed(header.patient_id or ""), _composed(header.issuer or "")
    return _Image(
        path=path,
        num_bytes=status.st_size,
        header=replace(header, patient_id=patient or None, issuer=issuer or None),
        patient=patient,
        uid=header.sop_uid,
        is_silent_utf8=_is_silent_utf8(header.patient_id or ""),
    )


def _composed(text: str) -> str:
    """Return the one form of a text that files may have in several encodings and ways to write a letter."""
    return normalize("NFC", text.encode("latin-1").decode() if _is_silent_utf8(text) else text)


def _is_silent_utf8(text: str) -> bool:
    """Tell whether a text is UTF-8 that was read as Latin-1, as happens if a file does not say its character set."""
    try:
        return len(text.encode("latin-1").decode()) < len(text)
    except UnicodeError:
        return False


def _objection(header: DicomHeader) -> str | None:
    """Say why a file is none of the images that are wanted, whoever it shows; None if it is one."""
    if not header.has_pixels or header.rows is None or header.cols is None:
        return NO_IMAGE
    if (header.modality or "").upper() not in MODALITIES:
        return OTHER_MODALITY
    if _is_capture(header):
        return CAPTURE
    if header.num_frames > 1:
        return FRAMES
    return BURNED_IN if header.burned_in else None


def _is_capture(header: DicomHeader) -> bool:
    """Tell whether an image is a picture of a picture; of secondary captures, digitized film alone is a radiograph.

    The Conversion Type of an object that is no secondary capture says nothing: workstations write WSD into originals.
    """
    is_film = (header.conversion_type or "").upper() == _DIGITIZED_FILM
    is_screen = header.sop_class in _SCREEN_SHOTS and not is_film
    return is_screen or any(value.upper() in _SECONDARY for value in header.image_type)


def _without_copies(images: Iterable[_Image]) -> _Sifted:
    """Keep one file of each SOP Instance UID.

    Files of one UID whose headers say the same are one image, perhaps compressed otherwise or cut off: the largest is
    kept, and of equals the first by path. Where they say different things of patient, study or image, none can be
    trusted, and all are left out.
    """
    by_uid: dict[str, list[_Image]] = {}
    for image in images:
        by_uid.setdefault(image.uid, []).append(image)
    sifted = _Sifted([], {})
    for same in by_uid.values():
        is_one = len({(image.header, image.patient) for image in same}) == 1
        kept = min(same, key=lambda image: (-image.num_bytes, image.path)) if is_one else None
        others = [image.path for image in same if image is not kept]
        sifted.left_out.update(dict.fromkeys(others, COPY if is_one else CONFLICT))
        sifted.kept.extend([kept] if kept else [])
    return sifted


def _without_raw(images: Sequence[_Image]) -> _Sifted:
    """Remove the detector's raw images of studies that have any that were made for looking at.

    Which of these shows the same exposure as which of those is written in no element that every vendor fills.
    """
    presented = {(image.patient, image.header.study_uid) for image in images if _is_for_presentation(image.header)}
    raw = {
        image.path: RAW
        for image in images
        if _is_raw(image.header)
        and image.header.study_uid is not None
        and (image.patient, image.header.study_uid) in presented
    }
    return _Sifted([image for image in images if image.path not in raw], raw)


def _is_raw(header: DicomHeader) -> bool:
    return header.presentation_intent == "FOR PROCESSING" or header.sop_class in _PROCESSING


def _is_for_presentation(header: DicomHeader) -> bool:
    return not _is_raw(header) and (
        header.presentation_intent == "FOR PRESENTATION" or header.sop_class in _PRESENTATION
    )


def _record(image: _Image, labels: _Labels) -> Record:
    header = image.header
    unknown: dict[str, Label] = dict.fromkeys(labels.names)
    return Record(
        source_id=image.uid,
        image=File(image.path),
        patient=image.patient,
        study=header.study_uid,
        view=view_of(header),
        labels=labels.rows.get(image.uid, unknown),
        sex=header.sex,
        age_years=None if header.age_years is None else float(header.age_years),
        spacing_mm=header.spacing,
        body_part=body_part_of(header),
    )


def _read_labels(path: Path) -> _Labels:
    """Read the user's CSV.

    Raises:
        SourceError: the column of UIDs is missing, a UID is empty or repeats, a label has no plain name, or a value is
            none of 1, 0, -1 and empty.
    """
    rows: dict[str, dict[str, Label]] = {}
    names: tuple[str, ...] = ()
    for row in read_rows(path, (_UID_COLUMN,), "the CSV of labels"):
        where = f"{path} line {row.line}"
        if not rows:
            names = check_label_names(row, (_UID_COLUMN,), path)
        if not row[_UID_COLUMN]:
            raise SourceError(f"{where}: no {_UID_COLUMN}; fill it in, or take the row out if it is empty")
        if row[_UID_COLUMN] in rows:
            raise SourceError(f"{where}: an earlier row has the same {_UID_COLUMN}; expected one row an image")
        rows[row[_UID_COLUMN]] = {name: parse_label(row[name], f"{where}: column '{name}'") for name in names}
    return _Labels(names, rows)


def _doubts(images: Sequence[_Image]) -> tuple[str, ...]:
    """Say what may be wrong with the images that are kept."""
    headers = [image.header for image in images]
    counts = {
        "images FOR PROCESSING are kept, for their studies have none FOR PRESENTATION: they may look otherwise": sum(
            map(_is_raw, headers)
        ),
        "images do not say whether text is burned into them, and nothing here removes it: look at some": sum(
            header.burned_in is None for header in headers
        ),
        "images without Study Instance UID": sum(header.study_uid is None for header in headers),
        "images without a view of the standard's; their view is unknown": sum(
            view_of(header) is None for header in headers
        ),
    }
    return number_warnings(INFO, counts)


def _doubts_of_ids(images: Sequence[_Image]) -> tuple[str, ...]:
    """Say what may be wrong with the images' Patient IDs."""
    issuers: dict[str, set[str | None]] = {}
    for image in images:
        issuers.setdefault(image.patient, set()).add(image.header.issuer)
    is_one_patient = len(issuers) == 1 < len(images)
    counts = {
        "Patient IDs have several issuers, or one and none: each is taken for one patient": sum(
            len(found) > 1 for found in issuers.values()
        ),
        "images have a Patient ID in UTF-8 and do not say so: it is read as UTF-8": sum(
            image.is_silent_utf8 for image in images
        ),
        "Patient IDs have letters beyond ASCII: where files do not say their character set, one patient may be taken "
        "for two": sum(not patient.isascii() for patient in issuers),
        "Patient ID for all images: if it is a placeholder, they cannot be split; "
        f"{OPTION} takes patients from paths instead": int(is_one_patient),
    }
    return number_warnings(INFO, counts)


def _unmatched(records: Sequence[Record], labels: _Labels) -> tuple[str, ...]:
    """Say which images and rows of the CSV do not find each other.

    Raises:
        SourceError: none does.
    """
    num_matched = sum(record.source_id in labels.rows for record in records)
    if labels.rows and not num_matched:
        raise SourceError(
            f"none of the {len(labels.rows):,} rows of the CSV names an image that is kept; expected SOP Instance UIDs "
            f"in its column {_UID_COLUMN}"
        )
    if not labels.names:
        return ()
    counts = {
        "rows of the CSV name no image that is kept": len(labels.rows) - num_matched,
        "images have no row of the CSV; their labels are unknown": len(records) - num_matched,
    }
    return number_warnings(INFO, counts)
