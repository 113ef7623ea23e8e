"""The index of a shard set: what the summaries of its tars add up to, and how the finished set gets to its place."""

import csv
import io
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from shards.atomic import replace_directory
from shards.contact import draw_contact_sheet
from shards.delivery import Header
from shards.errors import SourceError
from shards.format import CONTACT_SHEET, FORMAT_VERSION, INDEX, QUARANTINE, ROW_DTYPE, ROWS, sha256_of
from shards.identity import SPLITS
from shards.quality.inspection import Inspection
from shards.read import ShardIndex
from shards.sample import Encoder

Summary = dict[str, Any]
_MAX_NAMED = 5
_MAX_GREY = 255


def check_quarantine(batch: str, summaries: list[Summary], max_fraction: float, originals: Path | None) -> None:
    """A few quarantined images are counted; many mean that something is wrong with the source.

    Args:
        batch: Its name.
        summaries: Of its tars.
        max_fraction: That may be quarantined.
        originals: The private list of their paths, for the message.

    Raises:
        SourceError: more than the allowed fraction is quarantined, or nothing is left.
    """
    quarantined = [item for summary in summaries for item in summary["quarantined"]]
    num_samples = sum(len(summary["samples"]) for summary in summaries)
    total = num_samples + len(quarantined)
    if num_samples and len(quarantined) <= max_fraction * total:
        return
    reasons = "; ".join(f"{count} × {reason}" for reason, count in _reasons(quarantined).items())
    places = ", ".join(place for place, _ in quarantined[:_MAX_NAMED])
    listed = f", all in {originals}" if originals else ""
    raise SourceError(
        f"batch {batch}: {len(quarantined)} of {total} images cannot be used ({reasons}), first: {places}{listed}; "
        f"shard.max_quarantined_fraction allows {max_fraction:g}. Repair or remove them, or raise it"
    )


def index_values(encoder: Encoder, header: Header, summaries: list[Summary]) -> dict[str, Any]:
    """The content of index.json, but for the hash of the rows. Tars without a sample are not listed."""
    summaries = [summary for summary in summaries if summary["samples"]]
    samples = [sample for summary in summaries for sample in summary["samples"]]
    return {
        "format_version": FORMAT_VERSION,
        "batch": encoder.batch,
        "dataset": {
            "kind": header.kind,
            "patient_grouping": header.patient_grouping,
            "shares_images_with": list(header.shares_images_with),
            "split_rule": header.split_rule,
        },
        "spec": encoder.spec.to_json(),
        "channels": encoder.channels,
        "image_format": encoder.params.image_format,
        "bank": {"seed": encoder.params.seed, "num_pairs_per_scale": encoder.params.num_bank_pairs},
        "id_key_fingerprint": header.id_key_fingerprint,
        "shards": [
            {
                "name": summary["name"],
                "split": summary["split"],
                "num_samples": len(summary["samples"]),
                "bytes": summary["bytes"],
                "sha256": summary["sha256"],
            }
            for summary in summaries
        ],
        "counts": {
            "images": {split: len(_of_split(samples, split)) for split in SPLITS},
            "patients": {split: len({s["row"]["patient"] for s in _of_split(samples, split)}) for split in SPLITS},
            "labels": {split: _label_counts(_of_split(samples, split)) for split in SPLITS},
            "views": {
                split: _counts(sample["view"] or "unknown" for sample in _of_split(samples, split)) for split in SPLITS
            },
            "num_lost_colour": sum(sample["lost_colour"] for sample in samples),
        },
        "statistics": _statistics(_of_split(samples, "train")),
    }


def publish(values: dict[str, Any], inspection: Inspection, scratch: Path, out: Path) -> None:
    """Put the finished set together beside `out` and move it there in one step. Completes `values`."""
    finished = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(finished, ignore_errors=True)
    finished.mkdir(parents=True)
    summaries = [summary for summary in inspection.summaries if summary["samples"]]
    for summary in summaries:
        _link_or_copy(scratch / summary["path"], finished / summary["name"])
    np.save(finished / ROWS, _rows(summaries))
    quarantined = [item for summary in inspection.summaries for item in summary["quarantined"]]
    (finished / QUARANTINE).write_text(_csv_text([["path", "reason"], *quarantined]), encoding="utf-8")
    values["quarantined"] = {"count": len(quarantined), "reasons": _reasons(quarantined)}
    values["quality"] = inspection.values
    values["samples"] = {"name": ROWS, "sha256": sha256_of(finished / ROWS)}
    (finished / INDEX).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    draw_contact_sheet(ShardIndex.open(finished)).save(finished / CONTACT_SHEET)
    inspection.write(finished)
    replace_directory(finished, out)


def describe(values: dict[str, Any]) -> str:
    """One line for the end of the stage."""
    images, patients = values["counts"]["images"], values["counts"]["patients"]
    num_suspect = values["quality"]["suspects"]["count"]
    splits = ", ".join(f"{split} {images[split]} of {patients[split]}" for split in SPLITS)
    return (
        f"shard {values['batch']}: {sum(images.values())} images of {sum(patients.values())} patients ({splits}) in "
        f"{len(values['shards'])} tars, {values['quarantined']['count']} quarantined, {num_suspect} suspect"
    )


def _of_split(samples: list[dict[str, Any]], split: str) -> list[dict[str, Any]]:
    return [sample for sample in samples if sample["row"]["split"] == split]


def _label_counts(samples: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Label → "1", "0", "-1", "unknown" → number of images."""
    names = sorted({name for sample in samples for name in sample["labels"]})
    return {
        name: _counts("unknown" if s["labels"].get(name) is None else str(s["labels"][name]) for s in samples)
        for name in names
    }


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _reasons(quarantined: list[list[str]]) -> dict[str, int]:
    return _counts(reason for _, reason in quarantined)


def _statistics(samples: list[dict[str, Any]]) -> dict[str, float | None]:
    """Mean and deviation of the foreground's pixels in [0, 1], over channels too; exact, so order does not matter."""
    total, squares, count = (sum(sample["foreground"][i] for sample in samples) for i in range(3))
    if not count:
        return {"mean": None, "std": None}
    mean = total / count
    return {"mean": mean / _MAX_GREY, "std": math.sqrt(max(squares / count - mean**2, 0.0)) / _MAX_GREY}


def _rows(summaries: list[Summary]) -> np.ndarray:
    return np.array(
        [
            tuple({**sample["row"], "shard": number}[name] for name in ROW_DTYPE.names or ())
            for number, summary in enumerate(summaries)
            for sample in summary["samples"]
        ],
        dtype=ROW_DTYPE,
    )


def _csv_text(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
