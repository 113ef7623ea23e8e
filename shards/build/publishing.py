"""Publish a shard set: add up the summaries of its tars, write its index, and move the set where it belongs."""

import csv
import io
import math
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from shards.build.contact_sheet import draw_contact_sheet
from shards.build.encode import SampleEncoder
from shards.build.inspection import Inspection
from shards.build.summary import Tallied, Written
from shards.core.errors import SourceError
from shards.core.identity import SPLITS
from shards.core.records import Split
from shards.format.index import (
    BankDescription,
    CountedReasons,
    Counts,
    DatasetDescription,
    IndexDescription,
    LostAnnotations,
    ReportDescription,
    RowsDescription,
    SelectionDescription,
    Statistics,
    TarDescription,
)
from shards.format.layout import CONTACT_SHEET, FORMAT_VERSION, INDEX, QUARANTINE, ROW_DTYPE, ROWS, sha256_of
from shards.quality.reasons import COPIES
from shards.quality.report import QUALITY, ReportWriter
from shards.quality.sheet import SHEET, draw_sheet
from shards.reading.reader import ShardIndex
from shards.runtime.atomic import atomic_directory
from shards.store.location import LocalStore

REPORTS = (QUARANTINE, QUALITY, SHEET, CONTACT_SHEET)
"""The files of a set that are made for people."""
UNUSABLE = "images cannot be used"
"""The words after `N of M` in the message that refuses a batch for its quarantined images."""
_MAX_NAMED = 5
_MAX_GREY = 255
_NEARLY_ALL = 0.99


def check_quarantine(batch: str, inspection: Inspection, max_fraction: float, originals: Path | None) -> None:
    """Refuse to publish if so many images are quarantined that something is wrong with the source.

    Copies do not count: each has an original that is kept, and a delivery of many copies is no worse than without.

    Args:
        batch: Name of the batch.
        inspection: Result of the quality pass.
        max_fraction: Share of the batch's images that may be quarantined, in [0, 1].
        originals: Private list of the quarantined files, for the message; None where there is none.

    Raises:
        SourceError: more than the allowed fraction is quarantined, or nothing is left.
    """
    quarantined, total = _listed(inspection), inspection.plan.num_images
    faults = [[name, reason] for name, reason in quarantined if reason not in COPIES]
    if len(quarantined) < total and len(faults) <= max_fraction * total:
        return
    reasons = "; ".join(f"{count} × {reason}" for reason, count in _reasons(faults).reasons.items())
    names = ", ".join(name for name, _ in faults[:_MAX_NAMED])
    listed = f", all in {originals}" if originals else ""
    raise SourceError(
        f"batch {batch}: {len(faults)} of {total} {UNUSABLE} ({reasons}), first: {names}{listed}; "
        f"shard.max_quarantined_fraction allows {max_fraction:g}. Repair or remove them, or raise it"
    )


def _listed(inspection: Inspection) -> list[list[str]]:
    """List the display name and the reason of every image that is kept out."""
    return [[item.image.display_name, item.reason] for _, item in inspection.quarantined]


def publish(
    inspection: Inspection,
    encoder: SampleEncoder,
    out: Path,
    selection: Mapping[str, Any] | None = None,
    modality: str | None = None,
) -> IndexDescription:
    """Put the finished set together beside `out` and move it there in one step.

    Args:
        inspection: Result of the quality pass.
        encoder: Made the samples.
        out: Folder of the shard set.
        selection: Which images of the delivery the set has; None: all.
        modality: The kind of pictures, if it was said of somebody's own images.

    Returns:
        The content of index.json.

    Raises:
        SourceError: a finished tar is gone.
        NoSpaceError: the disk is full.
    """
    with atomic_directory(out) as finished:
        return _write_set(inspection, encoder, finished, selection, modality)


def _write_set(
    inspection: Inspection,
    encoder: SampleEncoder,
    finished: Path,
    selection: Mapping[str, Any] | None,
    modality: str | None,
) -> IndexDescription:
    tally, header, quarantined = _Tally(), inspection.plan.header, _listed(inspection)
    shards: list[TarDescription] = []
    with (
        closing(_RowWriter(finished / ROWS, inspection.plan.num_images - len(quarantined))) as rows,
        closing(ReportWriter(finished / QUALITY, inspection.bounds)) as report,
    ):
        for tar in inspection.tars():
            report.append(tar.rows)
            summary = tar.summary
            if not summary.samples:
                continue
            rows.append(summary.samples, split=SPLITS.index(summary.split), shard=len(shards))
            tally.add(summary.split, summary.samples)
            shards.append(
                TarDescription(
                    num_samples=len(summary.samples),
                    name=summary.name,
                    split=summary.split,
                    bytes=summary.num_bytes,
                    sha256=summary.sha256,
                )
            )
            link_or_copy(tar.files.tar, finished / summary.name)
    draw_sheet(list(inspection.tiles())).save(finished / SHEET)
    (finished / QUARANTINE).write_text(_csv_text([["path", "reason"], *quarantined]), encoding="utf-8")
    description = IndexDescription(
        format_version=FORMAT_VERSION,
        batch=encoder.batch,
        dataset=DatasetDescription(
            kind=header.kind,
            patient_grouping=header.patient_grouping,
            shares_images_with=header.shares_images_with,
            split_rule=header.split_rule,
            selection=None if selection is None else SelectionDescription.model_validate(selection),
            modality=modality,
        ),
        spec=encoder.spec,
        channels=encoder.channels,
        image_format=encoder.params.image_format,
        bank=BankDescription(seed=encoder.params.seed, num_pairs_per_scale=encoder.params.num_bank_pairs),
        id_key_fingerprint=header.id_key_fingerprint,
        shards=tuple(shards),
        counts=tally.counts(),
        statistics=tally.statistics(),
        quarantined=_reasons(quarantined),
        quality=inspection.describe(),
        samples=_rows_description(finished / ROWS),
        reports=(),
    )
    index = ShardIndex(
        store=LocalStore(finished),
        description=description,
        rows=np.load(finished / ROWS, mmap_mode="r"),
        fingerprint="",
    )
    draw_contact_sheet(index).save(finished / CONTACT_SHEET, compress_level=4)
    reports = tuple(_report_description(finished / name) for name in REPORTS)
    description = description.model_copy(update={"reports": reports})
    (finished / INDEX).write_text(description.to_text(), encoding="utf-8")
    return description


def _rows_description(path: Path) -> RowsDescription:
    return RowsDescription(name="samples.npy", bytes=path.stat().st_size, sha256=sha256_of(path))


def _report_description(path: Path) -> ReportDescription:
    return ReportDescription(name=path.name, bytes=path.stat().st_size, sha256=sha256_of(path))


class _Tally:
    """Adds up the samples of a set, tar by tar."""

    def __init__(self) -> None:
        self._images: Counter[str] = Counter()
        self._patients: dict[Split, list[np.ndarray]] = {split: [] for split in SPLITS}
        self._labels: dict[str, dict[str, Counter[str]]] = {split: {} for split in SPLITS}
        self._views: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        self._foreground = {split: [0, 0, 0] for split in SPLITS}
        self._num_lost_colour = 0
        self._losses: dict[str, Counter[str]] = {}
        self._areas: dict[str, tuple[int, float, float]] = {}
        self._num_values = dict.fromkeys(SPLITS, 0)

    def add(self, split: Split, samples: Sequence[Written]) -> None:
        """Add the samples of one tar."""
        self._images[split] += len(samples)
        self._patients[split].append(np.unique([sample.image.patient.encode("ascii") for sample in samples]))
        for sample in samples:
            tallied = sample.tallied
            self._views[split][sample.image.view or "unknown"] += 1
            for name, value in tallied.labels.items():
                self._labels[split].setdefault(name, Counter())["unknown" if value is None else str(value)] += 1
            sums = zip(self._foreground[split], tallied.foreground, strict=True)
            self._foreground[split] = [before + more for before, more in sums]
            self._num_lost_colour += tallied.lost_colour
            self._num_values[split] += tallied.num_values
            self._add_annotations(tallied)

    def _add_annotations(self, tallied: Tallied) -> None:
        texts = set()
        for loss in tallied.losses:
            text = f"{loss.name}: {loss.reason}"
            counts = self._losses.setdefault(text, Counter())
            counts.update(images=int(text not in texts), parts=loss.num_parts, pixels=loss.num_pixels)
            texts.add(text)
        for structure, area in tallied.areas.items():
            number, least, greatest = self._areas.get(structure, (0, 1.0, 0.0))
            self._areas[structure] = number + 1, min(least, area), max(greatest, area)

    def counts(self) -> Counts:
        """Return the numbers of what the set holds."""
        return Counts(
            images={split: self._images[split] for split in SPLITS},
            patients={
                split: len(np.unique(np.concatenate(parts))) if parts else 0 for split, parts in self._patients.items()
            },
            labels={
                split: {name: _sorted(counts) for name, counts in sorted(self._labels[split].items())}
                for split in SPLITS
            },
            views={split: _sorted(self._views[split]) for split in SPLITS},
            foreground={
                split: self._foreground[split][2] / self._num_values[split] if self._num_values[split] else None
                for split in SPLITS
            },
            num_lost_colour=self._num_lost_colour,
            lost_annotations={text: LostAnnotations(**counts) for text, counts in sorted(self._losses.items())},
            suspect_masks=self._suspect_masks(),
        )

    def _suspect_masks(self) -> dict[str, str]:
        """Name the structures whose every mask is empty, or nearly the whole image, as with files of another kind."""
        return {
            structure: f"{'empty' if greatest == 0 else 'nearly the whole image'} in all {number} images"
            for structure, (number, least, greatest) in sorted(self._areas.items())
            if greatest == 0 or least > _NEARLY_ALL
        }

    def statistics(self) -> Statistics:
        """Return mean and deviation of the training images' foreground in [0, 1], over channels too.

        The sums are whole numbers, so their order does not matter.
        """
        total, squares, count = self._foreground["train"]
        if not count:
            return Statistics(mean=None, std=None)
        mean = total / count
        return Statistics(mean=mean / _MAX_GREY, std=math.sqrt(max(squares / count - mean**2, 0.0)) / _MAX_GREY)


class _RowWriter:
    """Writes samples.npy, tar by tar."""

    def __init__(self, path: Path, num_rows: int) -> None:
        self._file = path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(ROW_DTYPE), "fortran_order": False, "shape": (num_rows,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, samples: Sequence[Written], *, split: int, shard: int) -> None:
        """Write the rows of one tar's samples."""
        rows = [
            {
                "key": sample.image.key,
                "patient": sample.image.patient,
                "split": split,
                "shard": shard,
                **asdict(sample.bytes),
            }
            for sample in samples
        ]
        names = ROW_DTYPE.names or ()
        self._file.write(np.array([tuple(row[name] for name in names) for row in rows], ROW_DTYPE).tobytes())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def describe(index: IndexDescription) -> str:
    """Sum a set up in one line, for the end of the stage."""
    images, patients = index.counts.images, index.counts.patients
    if index.dataset.patient_grouping == "patient":
        whose = f"{sum(patients.values())} patients"
        splits = ", ".join(f"{split} {images[split]} of {patients[split]}" for split in SPLITS)
    else:
        whose = "unknown patients"
        splits = ", ".join(f"{split} {images[split]}" for split in SPLITS)
    return (
        f"shard {index.batch}: {sum(images.values())} images of {whose} ({splits}) in {len(index.shards)} tars, "
        f"{index.quarantined.count} quarantined, {index.quality.suspects.count} suspect"
    )


def annotation_warnings(counts: Counts) -> Iterator[str]:
    """Say, a line each, which annotations are lost and which masks are suspect."""
    for text, lost in counts.lost_annotations.items():
        extent = f" ({lost.pixels:,} pixels, {lost.parts:,} whole lesions or parts)" if lost.pixels else ""
        yield f"{text}, in {lost.images:,} images{extent}; the images are kept, their descriptions say it (lost)"
    for structure, text in counts.suspect_masks.items():
        yield f"mask {structure}: {text}; look at the contact sheet, and at the files"


def keep_warnings(kept: Collection[str], inspection: Inspection) -> Iterator[str]:
    """Say, a line each, which images of a keep list are left out all the same: there is nothing to keep of them."""
    for _, item in inspection.quarantined:
        if item.image.key in kept:
            yield f"{item.image.key} is on the keep list and left out all the same: {item.reason}"


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _reasons(quarantined: list[list[str]]) -> CountedReasons:
    return CountedReasons(count=len(quarantined), reasons=_sorted(Counter(reason for _, reason in quarantined)))


def _csv_text(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file another name, or copy it where the disk cannot link."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
