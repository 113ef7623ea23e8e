"""Datasets whose images are NIH ChestX-ray14's under other names: which patient and which split they belong to.

RSNA Pneumonia, SIIM-ACR and ChestX-Det took their images from NIH ChestX-ray14 and renamed them. Pretraining on one and
evaluating on another shows a model its test images, so each is told apart by a mapping file where there is one: the
patient is then NIH's own, `nih-chestxray14/` and the 8 digits that begin the NIH file name, and its pseudonym and split
agree over all these datasets. Where there is none, the listing says with which datasets images are shared. COVID-QU-Ex
took images from RSNA Pneumonia without saying which: no mapping tells it apart.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from shards.core.errors import SourceError
from shards.core.records import Record, Split
from shards.sources.base import Listing, SourceInfo
from shards.sources.files import find_file
from shards.sources.listing import number_warnings

NIH = "nih-chestxray14"
FAMILY = (NIH, "rsna-pneumonia", "siim-acr", "chestx-det")
SPLIT_FILES: dict[str, Split] = {"train_val_list.txt": "train", "test_list.txt": "test"}

_NIH_IMAGE = re.compile(r"(\d{8})_\d{3}\.png")


def relatives(kind: str) -> tuple[str, ...]:
    """Name the other datasets that are made of NIH ChestX-ray14's images.

    The last of them can never be told apart, and always says so itself.
    """
    return (*(name for name in FAMILY if name != kind), "covid-qu-ex")


def is_nih_image(name: str) -> bool:
    """Tell whether a name is a file name of NIH ChestX-ray14, as 00000001_000.png."""
    return _NIH_IMAGE.fullmatch(name) is not None


def nih_patient(image: str, where: str) -> str:
    """Return the patient of an NIH image.

    Raises:
        SourceError: it is no file name of NIH ChestX-ray14; `where` says in what file and line.
    """
    match = _NIH_IMAGE.fullmatch(image)
    if match is None:
        raise SourceError(f"{where}: expected a file name of NIH ChestX-ray14, as 00000001_000.png")
    return f"{NIH}/{match[1]}"


def find_nih_splits(root: Path, paths: Iterable[str]) -> dict[str, Split]:
    """Find NIH's official split by image; empty where neither of its two lists is there.

    Args:
        root: The folder.
        paths: Paths of all files below it.

    Raises:
        SourceError: only one is there, or one twice; a line does not begin with an image, or an image is in both.
    """
    lists = {name: find_file(root, paths, re.escape(name)) for name in SPLIT_FILES}
    missing = [name for name, path in lists.items() if path is None]
    if len(missing) == 1:
        raise SourceError(
            f"{root}: {missing[0]} is missing; expected both of {' and '.join(SPLIT_FILES)}, or none for no official "
            "split"
        )
    splits: dict[str, Split] = {}
    for name, path in lists.items():
        for image in _read_list(path) if path else ():
            if splits.setdefault(image, SPLIT_FILES[name]) != SPLIT_FILES[name]:
                raise SourceError(
                    f"{root}: {image} is in both {' and '.join(SPLIT_FILES)}; restore the published lists"
                )
    return splits


def _read_list(path: Path) -> Iterator[str]:
    # Lines end in CRLF in some copies, and in labels in others.
    lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if words := line.split():
            if not is_nih_image(words[0]):
                raise SourceError(f"{path} line {number}: expected an image, as 00000001_000.png")
            yield words[0]


def parse_mapping(pairs: Iterable[tuple[str, str]], where: str) -> dict[str, str]:
    """Parse the mapping from a dataset's image to NIH's file name.

    Raises:
        SourceError: an image has two NIH images; `where` names the file.
    """
    images: dict[str, str] = {}
    for name, image in pairs:
        if images.setdefault(name, image) != image:
            raise SourceError(f"{where}: {name} is mapped to two images of NIH ChestX-ray14; expected one")
    return images


def list_nih_images(
    info: SourceInfo,
    root: Path,
    paths: Iterable[str],
    records: tuple[Record, ...],
    images: Mapping[str, str] | None,
    warnings: tuple[str, ...],
) -> Listing:
    """List a dataset's images with NIH's patients, and NIH's official split where its lists are there.

    Args:
        info: The dataset.
        root: Folder of the dataset.
        paths: Paths of all files below it, among which NIH's lists may be.
        records: Records of the dataset, each its own patient, with its own official split if it has one.
        images: source_id → NIH file name; None: no mapping is known.
        warnings: Lines that are to be said besides.

    Returns:
        The listing. Images that a mapping leaves out keep their own patient, are counted in a warning, and the sharing
        is still told in full. Without NIH's lists a patient in several of the dataset's own splits goes to train, so
        that no test image is of a patient seen in training.

    Raises:
        SourceError: the mapping or the lists are not NIH's.
    """
    if images is None:
        return Listing(
            records=records, patient_grouping="image", warnings=warnings, shares_images_with=relatives(info.name)
        )
    splits = find_nih_splits(root, paths)
    mapped = tuple(_as_nih(record, images.get(record.source_id), splits) for record in records)
    num_unmapped = sum(record.source_id not in images for record in records)
    mapped, num_moved = _without_straddling(mapped)
    counts = {
        f"of {len(records):,} images have no NIH image in the mapping; each counts as a patient of its own, and may be "
        "of a patient in another split": num_unmapped,
        "images went to train from the dataset's own val or test, for their patients are in several of its splits; put "
        f"NIH's {' and '.join(SPLIT_FILES)} beside the mapping to use NIH's split": num_moved,
    }
    shared = relatives(info.name) if num_unmapped else ()
    return Listing(
        records=mapped,
        patient_grouping="patient",
        warnings=(*warnings, *number_warnings(info, counts)),
        shares_images_with=shared,
    )


def _as_nih(record: Record, image: str | None, splits: Mapping[str, Split]) -> Record:
    if image is None:
        return record
    patient = nih_patient(image, f"{record.source_id} in the mapping to NIH")
    if not splits:
        return replace(record, patient=patient)
    if image not in splits:
        raise SourceError(f"{image} is in neither {' nor '.join(SPLIT_FILES)}; put the complete lists there")
    return replace(record, patient=patient, split=splits[image])


def _without_straddling(records: tuple[Record, ...]) -> tuple[tuple[Record, ...], int]:
    """Give each patient one split: the only one that the images are in, or train; and count the images that moved."""
    splits: dict[str, set[Split]] = {}
    for record in records:
        splits.setdefault(record.patient, set()).update(() if record.split is None else (record.split,))
    kept = tuple(
        replace(record, split="train" if len(splits[record.patient]) > 1 else next(iter(splits[record.patient]), None))
        for record in records
    )
    return kept, sum(before.split not in (None, after.split) for before, after in zip(records, kept, strict=True))
