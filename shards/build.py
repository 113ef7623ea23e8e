"""The stage `shard`: one batch of raw images becomes one set of tars with an index."""

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from shards.atomic import atomic_path, write_text
from shards.delivery import Delivery, identify, read_manifest
from shards.errors import SourceError
from shards.format import LANDMARKS_SUFFIX, sha256_of
from shards.identity import PUBLIC_KEY
from shards.index import check_quarantine, describe, index_values, publish
from shards.parallel import map_in_processes
from shards.params import GridParams, PhantomSourceParams, ShardParams, SourceParams
from shards.plan import ShardPlan, fingerprint, plan_shards
from shards.progress import progress_bar
from shards.quality.inspection import Inspection, inspect, list_originals
from shards.quality.measure import Measured
from shards.quality.store import write_measured
from shards.records import files_of
from shards.sample import Encoded, Encoder, Rejected, Task
from shards.scratch import unfinished_work
from shards.sources.phantom import PhantomSource
from shards.tar import Span, TarWriter

_MAX_NAMED = 10

Result = Encoded | Rejected


def build_shards(
    batch: str,
    source_params: SourceParams,
    grid: GridParams,
    params: ShardParams,
    out: Path,
    *,
    num_workers: int | None = None,
) -> None:
    """Build the shard set of one batch; `out` appears whole or not at all.

    Finished tars wait in the scratch folder: after a kill the same call goes on with the first unfinished one and
    leaves the same bytes.

    Args:
        batch: Its name.
        source_params: Where its images come from.
        grid: Section `grid`.
        params: Section `shard`.
        out: Folder of the shard set.
        num_workers: Processes; one per core if None. The result does not depend on it.

    Raises:
        SourceError: the source's files are not what it expects, changed since they were registered, or too many of them
            cannot be read.
    """
    delivery = _delivery(source_params)
    plans = plan_shards(delivery, params, has_public_ids=isinstance(source_params, PhantomSourceParams))
    encoder = Encoder(batch, source_params.kind, _root(source_params), source_params.channels, grid.spec, params)
    # An experiment beside the workspace may need the same set: the second waits for the first.
    with unfinished_work(f"shard/{batch}", fingerprint(plans, encoder), is_waiting=True) as scratch:
        summaries = _build_tars(plans, encoder, scratch, num_workers)
        inspection = inspect(plans, summaries, params.quality, scratch)
        originals = _list_originals(batch, source_params, inspection)
        check_quarantine(batch, inspection.summaries, params.max_quarantined_fraction, originals)
        values = index_values(encoder, delivery.header, inspection.summaries)
        publish(values, inspection, scratch, out)
    print(describe(values), file=sys.stderr)
    if originals:
        print(f"paths of the quarantined files, for you alone: {originals}", file=sys.stderr)


def _delivery(source: SourceParams) -> Delivery:
    if isinstance(source, PhantomSourceParams):
        listing = PhantomSource().read(Path(source.dep))
        return identify(listing, source.kind, PUBLIC_KEY, split_rule="hash", has_sex=False)
    manifest = Path(source.dep)
    delivery = read_manifest(manifest)
    found = sha256_of(manifest)
    if found != source.dep_sha256:
        raise SourceError(
            f"{manifest}: sha256 {found}, params.yaml expects {source.dep_sha256}; restore the manifest, or register "
            "the changed files as a new batch"
        )
    _check_sizes(delivery, Path(source.root), manifest)
    return delivery


def _list_originals(batch: str, source: SourceParams, inspection: Inspection) -> Path | None:
    """Where the names of files are private, quarantine.csv does not say them; a file beside the manifest does."""
    if isinstance(source, PhantomSourceParams):
        return None
    return list_originals(Path(source.dep).with_name(f"{batch}.quarantine.csv"), inspection)


def _root(source: SourceParams) -> Path:
    return Path(source.dep if isinstance(source, PhantomSourceParams) else source.root)


def _check_sizes(delivery: Delivery, root: Path, manifest: Path) -> None:
    """The cheap half of the check for changes; hashes are compared as each file is read."""
    changed = [
        number
        for number, entry in enumerate(delivery.entries, start=1)
        if any(_size_of(root / file.path) != file.num_bytes for file in files_of(entry.record))
    ]
    if changed:
        more = f" and {len(changed) - _MAX_NAMED} more" if len(changed) > _MAX_NAMED else ""
        raise SourceError(
            f"files of {len(changed)} of {len(delivery.entries)} images below {root} are missing or changed since the "
            f"batch was registered: {manifest} images {', '.join(map(str, changed[:_MAX_NAMED]))}{more}; restore them, "
            "or register the folder as a new batch"
        )


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _build_tars(
    plans: list[ShardPlan], encoder: Encoder, scratch: Path, num_workers: int | None
) -> list[dict[str, Any]]:
    """Write the tars that are not there yet; returns a summary of each, in the order of the plans."""
    summaries = {plan.name: summary for plan in plans if (summary := _finished(plan, scratch))}
    pending = [plan for plan in plans if plan.name not in summaries]
    tasks = [task for plan in pending for task in plan.tasks]
    total = sum(len(plan.tasks) for plan in plans)
    bar = progress_bar(total=total, initial=total - len(tasks), description=f"shard {encoder.batch}", unit="image")
    with bar, closing(map_in_processes(encoder, tasks, num_workers)) as results:
        for plan in pending:
            summaries[plan.name] = _write_tar(plan, results, scratch, bar)
    return [summaries[plan.name] for plan in plans]


def _finished(plan: ShardPlan, scratch: Path) -> dict[str, Any] | None:
    """The summary of a tar that an earlier run finished: it is written last, and names the tar's hash."""
    try:
        summary = json.loads((scratch / f"{plan.name}.json").read_text(encoding="utf-8"))
        is_whole = sha256_of(scratch / plan.name) == summary["sha256"]
    except FileNotFoundError:
        return None
    return dict(summary) if is_whole else None


def _write_tar(plan: ShardPlan, results: Iterator[Result], scratch: Path, bar: "tqdm[Any]") -> dict[str, Any]:
    """Write one tar from the next results, then its summary."""
    samples: list[dict[str, Any]] = []
    measured: list[Measured] = []
    rejected: list[tuple[Task, Rejected]] = []
    with atomic_path(scratch / plan.name) as temporary:
        with TarWriter(temporary) as tar:
            # The tasks come first: zip must not take a result of the next tar.
            for task, result in zip(plan.tasks, results, strict=False):
                match result:
                    case Encoded():
                        spans = {suffix: tar.add(f"{task.key}.{suffix}", data) for suffix, data in result.members}
                        samples.append({"row": _row(task, spans), **result.counted})
                        measured.append(result.measured)
                    case Rejected():
                        rejected.append((task, result))
                bar.update()
        _check_unchanged(rejected)
    write_measured(scratch, plan.name, measured)
    summary = {
        "name": plan.name,
        "split": plan.split,
        "bytes": (scratch / plan.name).stat().st_size,
        "sha256": sha256_of(scratch / plan.name),
        "samples": samples,
        "quarantined": [[task.place, result.reason] for task, result in rejected],
    }
    write_text(scratch / f"{plan.name}.json", json.dumps(summary))
    return summary


def _row(task: Task, spans: dict[str, Span]) -> dict[str, Any]:
    """The sample's row of the index, but for the number of its tar."""
    meta, image, *others = spans.values()
    last = others[-1] if others else image
    landmarks = spans.get(LANDMARKS_SUFFIX, Span(0, 0))
    return {
        "key": task.key,
        "patient": task.record.patient,
        "split": task.split,
        "start": meta.member_start,
        "stop": last.member_stop,
        "image_start": image.start,
        "image_bytes": image.num_bytes,
        "meta_start": meta.start,
        "meta_bytes": meta.num_bytes,
        "landmarks_start": landmarks.start,
        "landmarks_bytes": landmarks.num_bytes,
    }


def _check_unchanged(rejected: list[tuple[Task, Rejected]]) -> None:
    changed = [task.place for task, result in rejected if result.has_changed]
    if changed:
        raise SourceError(
            f"{len(changed)} files are missing or changed since they were listed: {', '.join(changed[:_MAX_NAMED])}; "
            "restore them, or register the folder as a new batch"
        )
