"""The stage `shard`: one batch of raw images becomes one set of tars with an index."""

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shards.build.inspection import inspect, list_originals
from shards.build.job import BuildJob
from shards.build.plan import BatchPlan, ShardPlan
from shards.build.publishing import annotation_warnings, check_quarantine, describe, keep_warnings, publish
from shards.build.tar_builder import TarBuilder
from shards.core.errors import ConfigError, WorkerError
from shards.core.params import GridParams, RegisteredSourceParams, ShardParams, SourceParams
from shards.delivery.keep_list import read_list
from shards.runtime.atomic import check_room
from shards.runtime.execution import Execution, Processes
from shards.runtime.progress import progress_bar
from shards.runtime.scratch import SCRATCH_VARIABLE

_ENCODED_FRACTION = {"png": 0.7, "jpg": 0.4}
"""Upper end of what a stored canvas takes of its raw size, at the formats' usual settings."""


def build_shards(
    batch: str,
    source: SourceParams,
    grid: GridParams,
    params: ShardParams,
    out: Path,
    *,
    selection: Mapping[str, Any] | None = None,
    execution: Execution | None = None,
) -> None:
    """Build the shard set of one batch; `out` appears whole or not at all.

    Tars are built in other processes, so a script calls this below `if __name__ == "__main__":`.

    Finished tars wait in the scratch folder: after a kill the same call goes on with the unfinished ones and leaves the
    same bytes.

    Args:
        batch: Name of the batch.
        source: Where its images come from.
        grid: Section `grid`.
        params: Section `shard`.
        out: Folder of the shard set.
        selection: Which images of the delivery the batch has, for the index; None: all.
        execution: Where tars are built; one process a core if None. The result does not depend on it.

    Raises:
        SourceError: the source's files are not what it expects, changed since they were registered, or too many of them
            cannot be read.
        NoSpaceError: the disk has too little room for the set, or is full.
    """
    job = BuildJob(batch=batch, source=source, grid=grid, params=params)
    execution = execution or Processes()
    # An experiment beside the workspace may need the same set: the second waits for the first.
    with job.unfinished("shard", wait=True) as scratch:
        kept = read_list(batch, source)
        plan = job.plan(scratch)
        build_tars(plan, job.builder(plan, scratch), execution, out)
        num_workers = execution.num_workers if isinstance(execution, Processes) else None
        inspection = inspect(plan, params.quality, scratch, kept, num_workers)
        originals = None
        if not plan.header.has_public_ids:  # quarantine.csv does not name the files; a list beside the manifest does
            originals = list_originals(plan.manifest.with_name(f"{batch}.quarantine.csv"), inspection)
        check_quarantine(batch, inspection, params.max_quarantined_fraction, originals)
        modality = source.modality if isinstance(source, RegisteredSourceParams) else None
        index = publish(inspection, job.encoder, out, selection, modality)
        warnings = [*annotation_warnings(index.counts), *keep_warnings(kept, inspection)]
    print(describe(index), file=sys.stderr)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if originals:
        print(f"{originals} lists the paths of the quarantined files; only you can read it", file=sys.stderr)


def build_tars(plan: BatchPlan, builder: TarBuilder, execution: Execution, out: Path) -> None:
    """Write the tars of a plan that are not there yet.

    Args:
        plan: The tars, some of a batch or all.
        builder: Writes one tar.
        execution: Where tars are built.
        out: Folder of the shard set, for whose disk they are.

    Raises:
        SourceError: images are missing or changed since they were registered.
        NoSpaceError: there is too little room, or a disk is full.
        WorkerError: the processes end before they read an image.
        OSError: the disk is gone.
    """
    builder = builder.with_absolute_paths()
    pending = [shard for shard in plan.shards if builder.files(shard).read_summary(check_tar=True) is None]
    num_pending = sum(len(shard.images) for shard in pending)
    _check_space(plan.num_images, num_pending, builder, out)
    # The largest first, so that at the end no process waits long for another's.
    pending.sort(key=lambda shard: len(shard.images), reverse=True)
    num_finished = plan.num_images - num_pending
    bar = progress_bar(
        total=plan.num_images, initial=num_finished, description=f"shard {builder.encoder.batch}", unit="image"
    )

    begun: Counter[str] = Counter()

    def show_progress() -> None:
        for shard in pending:
            if begun[shard.name] < len(shard.images):
                begun[shard.name] = builder.files(shard).num_begun()
                if not begun[shard.name]:
                    break  # tars are begun in their order; to ask after every later one can take a core's whole time
        bar.update(num_finished + begun.total() - bar.n)

    with bar:
        left = pending
        while left:
            lost = _run(builder, left, execution, show_progress)
            # Which of the tars under way ended its process? One at a time tells, and tells which image it was.
            for shard in [shard for shard in lost if builder.files(shard).num_begun()]:
                while _run(builder, [shard], execution, show_progress):
                    builder.files(shard).note_crash()
            left = [shard for shard in lost if builder.files(shard).read_summary() is None]
        show_progress()


def _run(
    builder: TarBuilder, shards: list[ShardPlan], execution: Execution, on_poll: Callable[[], None]
) -> list[ShardPlan]:
    """Build tars; return those whose process was lost.

    Raises:
        WorkerError: the processes end before they read an image, which no image is to blame for.
    """
    for shard in shards:
        builder.files(shard).begun.unlink(missing_ok=True)
    lost = [shard for shard, is_lost in execution.run(builder, shards, on_poll) if is_lost]
    if lost and not any(builder.files(shard).num_begun() for shard in shards):
        raise WorkerError(
            f"batch {builder.encoder.batch}: the processes that build its tars ended before they read an image; "
            "expected free memory for each of them: free some or take fewer (--num-workers), then give the same "
            "command again"
        )
    return lost


def _check_space(num_images: int, num_pending: int, builder: TarBuilder, out: Path) -> None:
    """Refuse to begin if the scratch disk or the output disk is too small.

    Args:
        num_images: Images of all tars, which are copied to `out` if it is on another disk, and linked otherwise.
        num_pending: Images of the tars that are not there yet.
        builder: Builds the tars.
        out: Folder of the shard set.

    Raises:
        ConfigError: there is no place for `out`.
        NoSpaceError: the scratch folder's disk, or that of `out`, has too little room.
    """
    encoder = builder.encoder
    image_bytes = encoder.spec.canvas_px**2 * encoder.channels * _ENCODED_FRACTION[encoder.params.image_format]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{out.parent}: {error.strerror}; expected a folder for the shard set, choose another --out"
        ) from None
    scratch = builder.scratch
    what = "{:,} images".format
    if scratch.stat().st_dev == out.parent.stat().st_dev:
        advice = f"make room there, or choose an --out and an {SCRATCH_VARIABLE} on another disk"
        check_room(out.parent, num_pending * image_bytes, what(num_pending), advice)
        return
    advice = f"make room there, or set {SCRATCH_VARIABLE} to a folder on another disk"
    check_room(scratch, num_pending * image_bytes, what(num_pending), advice)
    advice = "make room there, or choose an --out on another disk"
    check_room(out.parent, num_images * image_bytes, what(num_images), advice)
