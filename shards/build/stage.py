"""The stage `shard`: one batch of raw images becomes one set of tars with an index."""

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shards.build.encode import Encoder
from shards.build.inspection import Inspection, inspect, list_originals
from shards.build.plan import BatchPlan, ShardPlan, fingerprint, plan_batch
from shards.build.publishing import annotation_warnings, check_quarantine, describe, keep_warnings, publish
from shards.build.tar_builder import TarBuilder, num_begun, read_summary
from shards.delivery.keep_list import read_list
from shards.delivery.manifest import format_manifest, hashed, identify
from shards.errors import ConfigError, SourceError, WorkerError
from shards.format.layout import sha256_of
from shards.identity import PUBLIC_KEY
from shards.params import GridParams, PhantomSourceParams, ShardParams, SourceParams
from shards.runtime.atomic import check_room, clear_when_full, write_text
from shards.runtime.execution import Execution, Processes
from shards.runtime.progress import progress_bar
from shards.runtime.scratch import SCRATCH_VARIABLE, scratch_root, unfinished_work
from shards.sources.datasets.phantom import PhantomSource

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
        batch: Its name.
        source: Where its images come from.
        grid: Section `grid`.
        params: Section `shard`.
        out: Folder of the shard set.
        selection: Which images of the delivery it has, for the index.
        execution: Where tars are built; one process a core if None. The result does not depend on it.

    Raises:
        SourceError: the source's files are not what it expects, changed since they were registered, or too many of them
            cannot be read.
        NoSpaceError: the disk has too little room for the set, or is full.
    """
    encoder = Encoder(batch, source.kind, root_of(source), source.channels, grid.spec, params)
    execution = execution or Processes()
    manifest = open_manifest(source)
    kept = frozenset() if isinstance(source, PhantomSourceParams) else read_list(batch, source)
    # An experiment beside the workspace may need the same set: the second waits for the first.
    with (
        clear_when_full(scratch_root()),
        unfinished_work(f"shard/{batch}", fingerprint(manifest.sha256, encoder), is_waiting=True) as scratch,
    ):
        plan = plan_batch(manifest.placed_in(scratch), root_of(source), params)
        build_tars(plan, TarBuilder(plan.manifest, plan.header, encoder, scratch), execution, out)
        num_workers = execution.num_workers if isinstance(execution, Processes) else None
        inspection = inspect(plan, params.quality, scratch, kept, num_workers)
        originals = _list_originals(batch, source, inspection)
        check_quarantine(batch, inspection, params.max_quarantined_fraction, originals)
        values = publish(inspection, encoder, scratch, out, selection)
        warnings = [*annotation_warnings(values["counts"]), *keep_warnings(kept, inspection)]
    print(describe(values), file=sys.stderr)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if originals:
        print(f"paths of the quarantined files, for you alone: {originals}", file=sys.stderr)


def _list_originals(batch: str, source: SourceParams, inspection: Inspection) -> Path | None:
    """Where the names of files are private, quarantine.csv does not say them; a file beside the manifest does."""
    if isinstance(source, PhantomSourceParams):
        return None
    return list_originals(Path(source.dep).with_name(f"{batch}.quarantine.csv"), inspection)


def root_of(source: SourceParams) -> Path:
    """The folder that the paths of the manifest are relative to.

    Raises:
        SourceError: nothing says where the images are.
    """
    if isinstance(source, PhantomSourceParams):
        return Path(source.dep)
    if not source.root:
        path = Path(source.dep).with_suffix(".root.txt")
        raise SourceError(
            f"{path}: not found, so nothing here says where the images are; say it: "
            "`python -m shards relocate NAME FOLDER`"
        )
    return Path(source.root)


@dataclass(frozen=True)
class ManifestFile:
    """A batch's manifest: the registered file, or the text that stands for one."""

    sha256: str
    path: Path | None = None
    text: str = ""

    def placed_in(self, scratch: Path) -> Path:
        """The file to read; a text is written to `scratch` first."""
        if self.path is not None:
            return self.path
        write_text(scratch / "manifest.jsonl", self.text)
        return scratch / "manifest.jsonl"


def open_manifest(source: SourceParams) -> ManifestFile:
    """The manifest of a batch. The phantom, which a stage makes, needs no registering: its manifest is made here.

    Raises:
        SourceError: it is missing or not the registered one, or the phantom is not whole.
    """
    if isinstance(source, PhantomSourceParams):
        listing = PhantomSource().read(root_of(source))
        listing = replace(listing, records=tuple(hashed(listing.records, root_of(source))))
        delivery = identify(listing, source.kind, PUBLIC_KEY, split_rule="hash", has_sex=False)
        text = "".join(format_manifest(delivery))
        return ManifestFile(hashlib.sha256(text.encode()).hexdigest(), text=text)
    path = Path(source.dep)
    found = sha256_of(path) if path.is_file() else source.dep_sha256  # a missing one is named where it is read
    if found != source.dep_sha256:
        raise SourceError(
            f"{path}: sha256 {found}, its batch's file in batches/ expects {source.dep_sha256}; restore it, or "
            "register the changed files as a new batch"
        )
    return ManifestFile(found, path)


def build_tars(plan: BatchPlan, builder: TarBuilder, execution: Execution, out: Path) -> None:
    """Write the tars of a plan that are not there yet.

    Args:
        plan: Of some tars of a batch, or all.
        builder: Writes one of them.
        execution: Where it does.
        out: Folder of the shard set, for whose disk they are.

    Raises:
        SourceError: images are missing or changed since they were registered.
        NoSpaceError: there is too little room, or a disk is full.
        WorkerError: the processes end before they read an image.
        OSError: the disk is gone.
    """
    builder = builder.with_absolute_paths()
    pending = [shard for shard in plan.shards if read_summary(builder.scratch, shard.name, is_checked=True) is None]
    num_pending = sum(len(shard.places) for shard in pending)
    _check_space(plan.num_images, num_pending, builder, out)
    # The largest first, so that at the end no process waits long for another's.
    pending.sort(key=lambda shard: len(shard.places), reverse=True)
    num_finished = plan.num_images - num_pending
    bar = progress_bar(
        total=plan.num_images, initial=num_finished, description=f"shard {builder.encoder.batch}", unit="image"
    )

    begun: Counter[str] = Counter()

    def show_progress() -> None:
        for shard in pending:
            if begun[shard.name] < len(shard.places):
                begun[shard.name] = num_begun(builder.scratch, shard.name)
                if not begun[shard.name]:
                    break  # tars are begun in their order; to ask after every later one can take a core's whole time
        bar.update(num_finished + begun.total() - bar.n)

    with bar:
        left = pending
        while left:
            lost = _run(builder, left, execution, show_progress)
            # Which of the tars under way ended its process? One at a time tells, and tells which image it was.
            for shard in [shard for shard in lost if num_begun(builder.scratch, shard.name)]:
                while _run(builder, [shard], execution, show_progress):
                    builder.note_crash(shard)
            left = [shard for shard in lost if read_summary(builder.scratch, shard.name) is None]
        show_progress()


def _run(
    builder: TarBuilder, shards: list[ShardPlan], execution: Execution, on_poll: Callable[[], None]
) -> list[ShardPlan]:
    """Build tars; return those whose process was lost.

    Raises:
        WorkerError: the processes end before they read an image, which no image is to blame for.
    """
    for shard in shards:
        (builder.scratch / f"{shard.name}.begun").unlink(missing_ok=True)
    lost = [shard for shard, is_lost in execution.run(builder, shards, on_poll) if is_lost]
    if lost and not any(num_begun(builder.scratch, shard.name) for shard in shards):
        raise WorkerError(
            f"batch {builder.encoder.batch}: the processes that build its tars ended before they read an image; "
            "expected free memory for each of them: free some or take fewer (--num-workers), then give the same "
            "command again"
        )
    return lost


def _check_space(num_images: int, num_pending: int, builder: TarBuilder, out: Path) -> None:
    """Before an hour of work, not after it.

    Args:
        num_images: In all tars; all of them are copied to `out` if it is on another disk, and linked otherwise.
        num_pending: In the tars that are not there yet.
        builder: Of the tars.
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
