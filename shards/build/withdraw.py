"""Take images out of finished tars before anything is published: what is left is copied, byte for byte."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from shards.format.layout import sha256_of
from shards.format.tar import copy_members
from shards.runtime.atomic import atomic_path

WITHOUT = "without-quarantined"
"""Folder in the scratch folder for the tars that images were taken out of."""


def withdraw(summary: Mapping[str, Any], keys: Collection[str], scratch: Path) -> dict[str, Any]:
    """The summary of a tar without some of its samples, and the tar itself in the folder `WITHOUT`.

    The finished tar stays as it is: with other bounds the next run may keep other samples.

    Args:
        summary: Of the finished tar.
        keys: Of the samples that are taken out.
        scratch: Where the finished tar lies.
    """
    kept = [sample for sample in summary["samples"] if sample["row"]["key"] not in keys]
    path = scratch / WITHOUT / summary["name"]
    with atomic_path(path) as temporary:
        runs = [(row["start"], row["start"] + row["num_bytes"]) for row in (sample["row"] for sample in kept)]
        starts = copy_members(scratch / summary["name"], runs, temporary)
    return {
        **summary,
        "path": f"{WITHOUT}/{summary['name']}",
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "samples": [
            {**sample, "row": {**sample["row"], "start": start}} for sample, start in zip(kept, starts, strict=True)
        ],
    }
