"""The contract of every source, as a battery: `check_source(source, root)` for your own adapters and for ours."""

import math
import os
import re
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from shards.core.errors import SourceError, UserError
from shards.core.records import File, MaskFiles, MaskPolygons, MaskRuns, Record, check_inside, files_of, locate
from shards.sources.base import Source

_LABEL = re.compile(r"[A-Za-z0-9 _()/+,'-]{1,64}")
_VIEW = re.compile(r"[A-Za-z0-9 _-]{1,16}")
_STRUCTURE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_WITHOUT_PREFIX = ("phantom", "folder", "dicom")


class ContractError(UserError):
    """A source does not do what every source must; the message says what."""


def check_source(source: Source, root: Path) -> None:
    """Read `root` with the source and hold what it gives against the contract of `shards.core.records` and `Source`.

    Raises:
        ContractError: the first thing that is wrong.
        SourceError: the source itself refuses the folder.
    """
    info = source.info
    for name in ("name", "title", "modality", "tasks", "licence", "citation", "pages", "layout"):
        _require(bool(getattr(info, name)), f"info.{name} is empty")
    _check_empty_folder(source)
    listing = source.read(root)
    records = listing.records
    _require(bool(records), "no records; a folder without images must raise SourceError")
    _require(source.read(root) == listing, "two readings of one folder differ")
    _require(
        set(listing.shares_images_with) <= set(info.shares_images_with),
        "the listing shares images with a dataset that info does not name",
    )
    for name in ("source_id", "image"):
        values = [getattr(record, name) for record in records]
        _require(len(set(values)) == len(values), f"two records have the same {name}")
    findings = set(records[0].labels)
    _require(all(_LABEL.fullmatch(name) for name in findings), "a label needs a plain name")
    prefixes = () if info.name in _WITHOUT_PREFIX else (info.name, *info.shares_images_with)
    files = _Files(root)
    for record in records:
        _check_record(record, files, findings, prefixes)
    splits: dict[str, set[str | None]] = {}
    for record in records:
        splits.setdefault(record.patient, set()).add(record.split)
    _require(all(len(found) == 1 for found in splits.values()), "a patient is in several official splits")
    if listing.patient_grouping == "image":
        # A few images may be known to be of one patient where nobody names the patients.
        num_images = Counter(record.patient for record in records)
        num_shared = sum(num for num in num_images.values() if num > 1)
        _require(2 * num_shared < len(records), "patient_grouping is 'image' but most images share their patient")


def _check_empty_folder(source: Source) -> None:
    with TemporaryDirectory() as folder:
        try:
            source.read(Path(folder))
        except SourceError:
            return
    raise ContractError("a folder without images must raise SourceError")


class _Files:
    """Files below a folder; of a great many, only those that a symbolic link may lead elsewhere are resolved."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._is_plain = {"": True}

    def has(self, file: File, where: str) -> bool:
        """Tell whether a file is there.

        Raises:
            SourceError: it lies outside.
        """
        check_inside(file.path, where)
        if not self._has_no_link(file.path):
            locate(self._root, file, where)
        return os.path.isfile(f"{self._root}/{file.path}")  # noqa: PTH113

    def _has_no_link(self, path: str) -> bool:
        folder = path.rpartition("/")[0]
        if folder not in self._is_plain:
            self._is_plain[folder] = self._has_no_link(folder)
        # Strings, for paths as objects take longer than the look-up.
        return self._is_plain[folder] and not os.path.islink(f"{self._root}/{path}")  # noqa: PTH114


def _check_record(record: Record, files: _Files, findings: set[str], prefixes: tuple[str, ...]) -> None:
    where = f"record {record.source_id}"
    _require(bool(record.source_id) and record.source_id.isprintable(), f"{where}: source_id must be printable")
    for file in files_of(record):
        _require(files.has(file, where) or record.known_defect is not None, f"{where}: no file {file.path}")
        _require(file.sha256 is None and file.num_bytes is None, f"{where}: hashes are made by `register`")
    _require(record.patient == record.patient.strip() != "", f"{where}: every record needs a patient")
    _require(
        not prefixes or record.patient.startswith(tuple(f"{prefix}/" for prefix in prefixes)),
        f"{where}: the patient must begin with {' or '.join(prefixes)} and '/', so that datasets do not mix",
    )
    _require(record.study != "", f"{where}: an unknown study is None")
    _require(record.view is None or bool(_VIEW.fullmatch(record.view)), f"{where}: a view is a short code")
    _require(set(record.labels) == findings, f"{where}: every record has the same labels")
    _require(set(record.labels.values()) <= {1, 0, -1, None}, f"{where}: labels are 1, 0, -1 or None")
    _require(record.split in (None, "train", "val", "test"), f"{where}: split is train, val, test or None")
    _require(record.sex in (None, "F", "M", "O"), f"{where}: sex is F, M, O or None")
    _require(record.age_years is None or 0 <= record.age_years <= 120, f"{where}: an age that cannot be is None")
    _require(all(_STRUCTURE.fullmatch(name) for name in record.masks), f"{where}: structures have no dot")
    for name, mask in record.masks.items():
        match mask:
            case MaskFiles():
                _require(0 <= (mask.low or 0) <= mask.high <= 255, f"{where}: mask {name}: 0 <= low <= high <= 255")
            case MaskRuns():
                pixels = [sum(skipped + inside for skipped, inside in runs) for runs in mask.runs]
                _require(max(pixels, default=0) <= mask.height * mask.width, f"{where}: mask {name} ends outside")
            case MaskPolygons():
                _require(all(len(ring) >= 3 for ring in mask.rings), f"{where}: mask {name}: a ring has 3 points")
                points = (value for ring in mask.rings for point in ring for value in point)
                _require(all(map(math.isfinite, points)), f"{where}: mask {name} has points that are no numbers")
    for box in record.boxes:
        _require(box.label in findings, f"{where}: box of {box.label}, which is none of the labels")
        _require(
            0 <= box.row0 < box.row1 < math.inf and 0 <= box.col0 < box.col1 < math.inf,
            f"{where}: box of {box.label} has no area",
        )
    for name, point in record.landmarks.items():
        _require(bool(_STRUCTURE.fullmatch(name)), f"{where}: landmarks have no dot")
        _require(all(map(math.isfinite, point)), f"{where}: landmark {name} is nowhere")
    if record.size is not None:
        _require(all(side > 0 for side in record.size), f"{where}: an image has a size above 0")
    if isinstance(record.spacing_mm, tuple):
        _require(all(0 < side < math.inf for side in record.spacing_mm), f"{where}: a spacing is above 0 mm")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ContractError(message)
