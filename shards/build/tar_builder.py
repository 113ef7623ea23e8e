"""One tar of a shard set: built whole by one process, from the lines of the manifest that its plan names."""

import json
import platform
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from shards.build.encode import Encoded, Encoder, Rejected, Task
from shards.build.plan import ShardPlan, task_of
from shards.delivery.manifest import Header, read_entry
from shards.errors import SourceError
from shards.format.layout import HALF_SUFFIX, LANDMARKS_SUFFIX, sha256_of
from shards.format.tar import Span, TarWriter
from shards.quality.measure import Measured
from shards.quality.store import write_measured
from shards.runtime.atomic import atomic_path, write_text
from shards.runtime.memory import keep_freed_memory
from shards.runtime.scratch import SCRATCH_VARIABLE

Summary = dict[str, Any]
_MAX_NAMED = 10
_MAX_CRASHES = 2
_CRASHED = "ends the process that reads it (out of memory, or a fault in a decoder)"


@dataclass(frozen=True)
class TarBuilder:
    """Builds tars into a scratch folder, in any process of any machine that sees the folder and the raw files."""

    manifest: Path
    header: Header
    encoder: Encoder
    scratch: Path

    def __call__(self, shard: ShardPlan) -> None:
        """Write one tar, then its summary: a tar is finished when its summary is there.

        Raises:
            SourceError: images are missing or changed since they were registered, or this machine does not see the
                files.
            NoSpaceError: the disk is full.
            OSError: the disk is gone.
        """
        self._check_in_sight()
        keep_freed_memory()
        samples: list[dict[str, Any]] = []
        measured: list[Measured] = []
        rejected: list[tuple[int, Task, Rejected]] = []
        skipped = self._skipped(shard)
        with (
            atomic_path(self.scratch / shard.name) as temporary,
            (self.scratch / f"{shard.name}.begun").open("wb", buffering=0) as begun,
        ):
            with TarWriter(temporary) as tar:
                for position, (_, offset) in enumerate(shard.places):
                    begun.write(b".")
                    task = task_of(shard, position, read_entry(self.manifest, offset).record, self.header)
                    result = Rejected(_CRASHED) if position in skipped else self.encoder(task)
                    match result:
                        case Encoded():
                            spans = {suffix: tar.add(f"{task.key}.{suffix}", data) for suffix, data in result.members}
                            samples.append(
                                {"position": position, "place": task.place, "row": _row(task, spans), **result.counted}
                            )
                            measured.append(result.measured)
                        case Rejected():
                            rejected.append((position, task, result))
            _check_unchanged([(task, result) for _, task, result in rejected])
        write_measured(self.scratch, shard.name, measured)
        summary = {
            "name": shard.name,
            "split": shard.split,
            "bytes": tar.num_bytes,
            "sha256": tar.sha256,
            "samples": samples,
            "quarantined": [_quarantined(position, task, result.reason) for position, task, result in rejected],
        }
        write_text(self.scratch / f"{shard.name}.json", json.dumps(summary))

    def with_absolute_paths(self) -> Self:
        """Return a builder for processes that start in another folder than this one, as those of a cluster."""
        encoder = replace(self.encoder, root=self.encoder.root.absolute())
        return replace(self, manifest=self.manifest.absolute(), encoder=encoder, scratch=self.scratch.absolute())

    def _check_in_sight(self) -> None:
        """A scratch folder that is missing would be made, and the tar lost in it.

        Raises:
            SourceError: the manifest, the images' folder or the scratch folder is missing.
        """
        for path in (self.manifest, self.encoder.root, self.scratch):
            if not path.exists():
                raise SourceError(
                    f"{platform.node()}: {path} is not there; expected the manifest, the images and {SCRATCH_VARIABLE} "
                    "under the same paths on every machine that builds: mount them there, or build on this machine "
                    "alone, with --num-workers"
                )

    def note_crash(self, shard: ShardPlan) -> None:
        """Remember which image was being read when the tar's process ended; the second time it is given up."""
        crashes = [*self._crashes(shard), num_begun(self.scratch, shard.name) - 1]
        write_text(self.scratch / f"{shard.name}.crashes", json.dumps(crashes))

    def _skipped(self, shard: ShardPlan) -> frozenset[int]:
        counts = Counter(self._crashes(shard))
        return frozenset(position for position, count in counts.items() if count >= _MAX_CRASHES)

    def _crashes(self, shard: ShardPlan) -> list[int]:
        path = self.scratch / f"{shard.name}.crashes"
        return list(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else []


def _quarantined(position: int, task: Task, reason: str) -> dict[str, Any]:
    return {
        "position": position,
        "key": task.key,
        "place": task.place,
        "patient": task.record.patient,
        "view": task.record.view,
        "reason": reason,
    }


def num_begun(scratch: Path, name: str) -> int:
    """How many images of a tar have been begun, whoever builds it; 0 before."""
    path = scratch / f"{name}.begun"
    return path.stat().st_size if path.is_file() else 0


def read_summary(scratch: Path, name: str, *, is_checked: bool = False) -> Summary | None:
    """The summary of a finished tar; None if it is not finished.

    Args:
        scratch: Where it was built.
        name: Of the tar.
        is_checked: The tar is compared with the hash in its summary first.
    """
    try:
        summary: Summary = json.loads((scratch / f"{name}.json").read_text(encoding="utf-8"))
        is_whole = not is_checked or sha256_of(scratch / name) == summary["sha256"]
    except FileNotFoundError:
        return None
    return summary if is_whole else None


def _row(task: Task, spans: dict[str, Span]) -> dict[str, Any]:
    """The sample's row of the index, but for split and number of its tar."""
    meta, image, *others = spans.values()
    last = others[-1] if others else image
    landmarks = spans.get(LANDMARKS_SUFFIX, Span(0, 0))
    return {
        "key": task.key,
        "patient": task.record.patient,
        "start": meta.member_start,
        "num_bytes": last.member_stop - meta.member_start,
        "meta_bytes": meta.num_bytes,
        "image_bytes": image.num_bytes,
        "half_bytes": spans[HALF_SUFFIX].num_bytes if HALF_SUFFIX in spans else 0,
        "landmarks_bytes": landmarks.num_bytes,
    }


def _check_unchanged(rejected: list[tuple[Task, Rejected]]) -> None:
    changed = [task.place for task, result in rejected if result.has_changed]
    if changed:
        raise SourceError(
            f"{len(changed)} files are missing or changed since they were listed: {', '.join(changed[:_MAX_NAMED])}; "
            "restore them, or register the folder as a new batch"
        )
