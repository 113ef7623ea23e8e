"""Take images out of finished tars before anything is published: what is left is copied, byte for byte."""

from collections.abc import Mapping
from dataclasses import replace

from shards.build.summary import Quarantined, TarSummary
from shards.build.tar_files import TarFiles
from shards.format.layout import sha256_of
from shards.format.tar import copy_members
from shards.runtime.atomic import atomic_path


def withdraw(files: TarFiles, summary: TarSummary, reasons: Mapping[str, str]) -> TarSummary:
    """Write a tar without some of its samples beside the finished one, and its summary.

    The finished tar stays as it is: with other bounds the next run may keep other samples.

    Args:
        files: Files of the finished tar.
        summary: Summary of the finished tar.
        reasons: Key of a sample that is taken out → why.

    Returns:
        The summary of the new tar, which lies at `files.without_quarantined`.
    """
    kept = [sample for sample in summary.samples if sample.image.key not in reasons]
    found = [
        Quarantined(image=sample.image, reason=reasons[sample.image.key])
        for sample in summary.samples
        if sample.image.key in reasons
    ]
    target = files.without_quarantined
    with atomic_path(target.tar) as temporary:
        runs = [(sample.bytes.start, sample.bytes.start + sample.bytes.num_bytes) for sample in kept]
        starts = copy_members(files.tar, runs, temporary)
    cleaned = replace(
        summary,
        num_bytes=target.tar.stat().st_size,
        sha256=sha256_of(target.tar),
        samples=tuple(
            replace(sample, bytes=replace(sample.bytes, start=start))
            for sample, start in zip(kept, starts, strict=True)
        ),
        quarantined=tuple(sorted([*summary.quarantined, *found], key=lambda item: item.image.position)),
    )
    target.write_summary(cleaned)
    return cleaned
