"""The index of a shard set: what the summaries of its tars add up to, and how the finished set gets to its place."""

import csv
import io
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from shards.build.contact_sheet import draw_contact_sheet
from shards.build.encode import Encoder
from shards.build.inspection import Inspection
from shards.errors import SourceError
from shards.format.layout import CONTACT_SHEET, FORMAT_VERSION, INDEX, QUARANTINE, ROW_DTYPE, ROWS, sha256_of
from shards.identity import SPLITS
from shards.quality.reasons import COPIES
from shards.quality.report import QUALITY
from shards.quality.sheet import SHEET
from shards.reading.reader import ShardIndex
from shards.records import Split
from shards.runtime.atomic import atomic_directory
from shards.store.location import LocalStore

REPORTS = (QUARANTINE, QUALITY, SHEET, CONTACT_SHEET)
"""What a set has for people."""
_MAX_NAMED = 5
_MAX_GREY = 255
_NEARLY_ALL = 0.99


def check_quarantine(batch: str, inspection: Inspection, max_fraction: float, originals: Path | None) -> None:
    """A few quarantined images are counted; many mean that something is wrong with the source.

    Copies do not count: each has an original that is kept, and a delivery of many copies is no worse than without.

    Args:
        batch: Its name.
        inspection: What is kept out of it.
        max_fraction: That may be quarantined.
        originals: The private list of their paths, for the message.

    Raises:
        SourceError: more than the allowed fraction is quarantined, or nothing is left.
    """
    quarantined, total = _listed(inspection), inspection.plan.num_images
    faults = [[place, reason] for place, reason in quarantined if reason not in COPIES]
    if len(quarantined) < total and len(faults) <= max_fraction * total:
        return
    reasons = "; ".join(f"{count} × {reason}" for reason, count in _reasons(faults).items())
    places = ", ".join(place for place, _ in faults[:_MAX_NAMED])
    listed = f", all in {originals}" if originals else ""
    raise SourceError(
        f"batch {batch}: {len(faults)} of {total} images cannot be used ({reasons}), first: {places}{listed}; "
        f"shard.max_quarantined_fraction allows {max_fraction:g}. Repair or remove them, or raise it"
    )


def _listed(inspection: Inspection) -> list[list[str]]:
    """Place and reason of everything that is kept out."""
    return [[item["place"], item["reason"]] for _, item in inspection.quarantined()]


def publish(
    inspection: Inspection, encoder: Encoder, scratch: Path, out: Path, selection: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Put the finished set together beside `out` and move it there in one step; returns the content of index.json.

    `selection` says which images of the delivery it has, where not all of them.
    """
    with atomic_directory(out) as finished:
        return _write_set(inspection, encoder, scratch, finished, selection)


def _write_set(
    inspection: Inspection, encoder: Encoder, scratch: Path, finished: Path, selection: Mapping[str, Any] | None
) -> dict[str, Any]:
    tally, header, quarantined = _Tally(), inspection.plan.header, _listed(inspection)
    shards: list[dict[str, Any]] = []
    with closing(_RowWriter(finished / ROWS, inspection.plan.num_images - len(quarantined))) as rows:
        for summary in inspection.summaries():
            if not summary["samples"]:
                continue
            rows.append(summary["samples"], split=SPLITS.index(summary["split"]), shard=len(shards))
            tally.add(summary["split"], summary["samples"])
            shards.append({"num_samples": len(summary["samples"]), **{key: summary[key] for key in _OF_TARS}})
            link_or_copy(scratch / summary["path"], finished / summary["name"])
    (finished / QUARANTINE).write_text(_csv_text([["path", "reason"], *quarantined]), encoding="utf-8")
    values = {
        "format_version": FORMAT_VERSION,
        "batch": encoder.batch,
        "dataset": {
            "kind": header.kind,
            "patient_grouping": header.patient_grouping,
            "shares_images_with": list(header.shares_images_with),
            "split_rule": header.split_rule,
            **({} if selection is None else {"selection": dict(selection)}),
        },
        "spec": encoder.spec.to_json(),
        "channels": encoder.channels,
        "image_format": encoder.params.image_format,
        "bank": {"seed": encoder.params.seed, "num_pairs_per_scale": encoder.params.num_bank_pairs},
        "id_key_fingerprint": header.id_key_fingerprint,
        "shards": shards,
        "counts": tally.counts(),
        "statistics": tally.statistics(),
        "quarantined": {"count": len(quarantined), "reasons": _reasons(quarantined)},
        "quality": inspection.values,
        "samples": _described(finished / ROWS),
    }
    index = ShardIndex(LocalStore(finished), values, np.load(finished / ROWS, mmap_mode="r"), fingerprint="")
    draw_contact_sheet(index).save(finished / CONTACT_SHEET, compress_level=4)
    inspection.write(finished)
    values["reports"] = [_described(finished / name) for name in REPORTS]
    (finished / INDEX).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return values


def _described(path: Path) -> dict[str, Any]:
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


_OF_TARS = ("name", "split", "bytes", "sha256")


class _Tally:
    """What the samples of a set add up to, tar by tar."""

    def __init__(self) -> None:
        self._images: Counter[str] = Counter()
        self._patients: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        self._labels: dict[str, dict[str, Counter[str]]] = {split: {} for split in SPLITS}
        self._views: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
        self._foreground = {split: [0, 0, 0] for split in SPLITS}
        self._num_lost_colour = 0
        self._losses: dict[str, Counter[str]] = {}
        self._areas: dict[str, tuple[int, float, float]] = {}
        self._num_values = dict.fromkeys(SPLITS, 0)

    def add(self, split: Split, samples: list[dict[str, Any]]) -> None:
        """The samples of one tar."""
        self._images[split] += len(samples)
        self._patients[split].append(np.unique([sample["row"]["patient"].encode("ascii") for sample in samples]))
        for sample in samples:
            self._views[split][sample["view"] or "unknown"] += 1
            for name, value in sample["labels"].items():
                self._labels[split].setdefault(name, Counter())["unknown" if value is None else str(value)] += 1
            sums = zip(self._foreground[split], sample["foreground"], strict=True)
            self._foreground[split] = [before + more for before, more in sums]
            self._num_lost_colour += sample["lost_colour"]
            self._num_values[split] += sample["num_values"]
            self._add_annotations(sample)

    def _add_annotations(self, sample: dict[str, Any]) -> None:
        texts = set()
        for loss in sample["losses"]:
            text = f"{loss['name']}: {loss['reason']}"
            counts = self._losses.setdefault(text, Counter())
            counts.update(images=int(text not in texts), parts=loss["num_parts"], pixels=loss["num_pixels"])
            texts.add(text)
        for structure, area in sample["areas"].items():
            number, least, greatest = self._areas.get(structure, (0, 1.0, 0.0))
            self._areas[structure] = number + 1, min(least, area), max(greatest, area)

    def counts(self) -> dict[str, Any]:
        """Images, patients, labels (label → "1", "0", "-1", "unknown" → images), views, and the share of the canvases
        that is foreground, of each split; where there are any, lost annotations and suspect masks, of all splits."""
        found = {"lost_annotations": self._lost_annotations(), "suspect_masks": self._suspect_masks()}
        return {
            "images": {split: self._images[split] for split in SPLITS},
            "patients": {
                split: len(np.unique(np.concatenate(parts))) if parts else 0 for split, parts in self._patients.items()
            },
            "labels": {
                split: {name: _sorted(counts) for name, counts in sorted(self._labels[split].items())}
                for split in SPLITS
            },
            "views": {split: _sorted(self._views[split]) for split in SPLITS},
            "foreground": {
                split: self._foreground[split][2] / self._num_values[split] if self._num_values[split] else None
                for split in SPLITS
            },
            "num_lost_colour": self._num_lost_colour,
            **{name: values for name, values in found.items() if values},
        }

    def _lost_annotations(self) -> dict[str, dict[str, int]]:
        """What and why → images, and of masks connected parts and pixels."""
        return {text: dict(counts) for text, counts in sorted(self._losses.items())}

    def _suspect_masks(self) -> dict[str, str]:
        """Structures whose every mask is empty, or nearly the whole image, as with files of another kind."""
        return {
            structure: f"{'empty' if greatest == 0 else 'nearly the whole image'} in all {number} images"
            for structure, (number, least, greatest) in sorted(self._areas.items())
            if greatest == 0 or least > _NEARLY_ALL
        }

    def statistics(self) -> dict[str, float | None]:
        """Mean and deviation of the training images' foreground in [0, 1], over channels too.

        The sums are whole numbers, so their order does not matter.
        """
        total, squares, count = self._foreground["train"]
        if not count:
            return {"mean": None, "std": None}
        mean = total / count
        return {"mean": mean / _MAX_GREY, "std": math.sqrt(max(squares / count - mean**2, 0.0)) / _MAX_GREY}


class _RowWriter:
    """samples.npy, written tar by tar."""

    def __init__(self, path: Path, num_rows: int) -> None:
        self._file = path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(ROW_DTYPE), "fortran_order": False, "shape": (num_rows,)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def append(self, samples: list[dict[str, Any]], *, split: int, shard: int) -> None:
        """The rows of one tar's samples."""
        rest = {"split": split, "shard": shard}
        rows = [tuple({**sample["row"], **rest}[name] for name in ROW_DTYPE.names or ()) for sample in samples]
        self._file.write(np.array(rows, dtype=ROW_DTYPE).tobytes())

    def close(self) -> None:
        """Bring them to the disk."""
        self._file.close()


def describe(values: dict[str, Any]) -> str:
    """One line for the end of the stage."""
    images, patients = values["counts"]["images"], values["counts"]["patients"]
    num_suspect = values["quality"]["suspects"]["count"]
    if values["dataset"]["patient_grouping"] == "patient":
        whose = f"{sum(patients.values())} patients"
        splits = ", ".join(f"{split} {images[split]} of {patients[split]}" for split in SPLITS)
    else:
        whose = "unknown patients"
        splits = ", ".join(f"{split} {images[split]}" for split in SPLITS)
    return (
        f"shard {values['batch']}: {sum(images.values())} images of {whose} ({splits}) in "
        f"{len(values['shards'])} tars, {values['quarantined']['count']} quarantined, {num_suspect} suspect"
    )


def annotation_warnings(counts: Mapping[str, Any]) -> Iterator[str]:
    """Say, a line each, which annotations are lost and which masks are suspect, from the counts of index.json."""
    for text, lost in counts.get("lost_annotations", {}).items():
        extent = f" ({lost['pixels']:,} pixels, {lost['parts']:,} whole lesions or parts)" if lost["pixels"] else ""
        yield f"{text}, in {lost['images']:,} images{extent}; the images are kept, their descriptions say it (lost)"
    for structure, text in counts.get("suspect_masks", {}).items():
        yield f"mask {structure}: {text}; look at the contact sheet, and at the files"


def keep_warnings(kept: Collection[str], inspection: Inspection) -> Iterator[str]:
    """Say, a line each, which images of a keep list are left out all the same: there is nothing to keep of them."""
    for _, item in inspection.quarantined():
        if item["key"] in kept:
            yield f"{item['key']} is on the keep list and left out all the same: {item['reason']}"


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _reasons(quarantined: list[list[str]]) -> dict[str, int]:
    return _sorted(Counter(reason for _, reason in quarantined))


def _csv_text(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under another name, a copy where the disk cannot link."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
