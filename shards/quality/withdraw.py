"""Take images out of finished tars before anything is published: what is left is copied, byte for byte."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shards.atomic import atomic_path
from shards.format import sha256_of
from shards.tar import copy_members

_OFFSETS = ("start", "stop", "image_start", "meta_start", "landmarks_start")
WITHOUT = "without-quarantined"
"""Folder in the scratch folder for the tars that images were taken out of."""


def withdraw(summary: Mapping[str, Any], reasons: Mapping[str, str], scratch: Path) -> dict[str, Any]:
    """The summary of a tar without some of its samples, and the tar itself in the folder `WITHOUT`.

    The finished tar stays as it is: with other bounds the next run may keep other samples.

    Args:
        summary: Of the finished tar.
        reasons: Key → why the sample is taken out.
        scratch: Where the finished tar lies.
    """
    kept = [sample for sample in summary["samples"] if sample["row"]["key"] not in reasons]
    path = scratch / WITHOUT / summary["name"]
    with atomic_path(path) as temporary:
        runs = [(sample["row"]["start"], sample["row"]["stop"]) for sample in kept]
        starts = copy_members(scratch / summary["name"], runs, temporary)
    return {
        **summary,
        "path": f"{WITHOUT}/{summary['name']}",
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "samples": [
            {**sample, "row": _moved(sample["row"], start - sample["row"]["start"])}
            for sample, start in zip(kept, starts, strict=True)
        ],
    }


def _moved(row: Mapping[str, Any], distance: int) -> dict[str, Any]:
    # A sample without landmarks has 0 for their place.
    moved = {name: row[name] + distance for name in _OFFSETS if name != "landmarks_start" or row[name]}
    return {**row, **moved}
