"""One tar of a shard set: built whole by one process, from the lines of the manifest that its plan names."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from shards.build.encode import EncodedSample, PlannedSample, Rejected, SampleEncoder
from shards.build.plan import ShardPlan, planned_sample
from shards.build.summary import ListedImage, Quarantined, SampleBytes, TarSummary, Written
from shards.build.tar_files import TarFiles
from shards.core.errors import SourceError
from shards.delivery.manifest import Header, read_entry
from shards.format.layout import HALF_SUFFIX, LANDMARKS_SUFFIX
from shards.format.tar import Span, TarWriter
from shards.quality.measure import ImageMeasures
from shards.quality.store import write_measured
from shards.runtime.atomic import atomic_path
from shards.runtime.memory import keep_freed_memory
from shards.runtime.scratch import SCRATCH_VARIABLE

_MAX_NAMED = 10
_CRASHED = "ends the process that reads it (out of memory, or a fault in a decoder)"


@dataclass(frozen=True, kw_only=True)
class TarBuilder:
    """Builds tars into a scratch folder, in any process of any machine that sees the folder and the raw files.

    Attributes:
        manifest: File with the records of the images.
        header: First line of the manifest.
        encoder: Makes samples of images.
        scratch: The scratch folder.
    """

    manifest: Path
    header: Header
    encoder: SampleEncoder
    scratch: Path

    def __call__(self, shard: ShardPlan) -> None:
        """Write one tar, its measures, and then its summary, which says that the tar is finished.

        Raises:
            SourceError: images are missing or changed since they were registered, or this machine does not see the
                files.
            NoSpaceError: the disk is full.
            OSError: the disk is gone.
        """
        self._check_in_sight()
        keep_freed_memory()
        files = self.files(shard)
        samples: list[Written] = []
        measured: list[ImageMeasures] = []
        rejected: list[tuple[int, PlannedSample, Rejected]] = []
        given_up = files.given_up()
        with atomic_path(files.tar) as temporary, files.begun.open("wb", buffering=0) as begun:
            with TarWriter(temporary) as tar:
                for position, image in enumerate(shard.images):
                    begun.write(b".")
                    planned = planned_sample(
                        shard, position, read_entry(self.manifest, image.offset).record, self.header
                    )
                    result = Rejected(_CRASHED) if position in given_up else self.encoder(planned)
                    match result:
                        case EncodedSample():
                            spans = {
                                suffix: tar.add(f"{planned.key}.{suffix}", data) for suffix, data in result.members
                            }
                            samples.append(
                                Written(image=_listed(position, planned), bytes=_bytes(spans), tallied=result.tallied)
                            )
                            measured.append(result.measured)
                        case Rejected():
                            rejected.append((position, planned, result))
            _check_unchanged([(planned, result) for _, planned, result in rejected])
        write_measured(files.measures, measured)
        files.write_summary(
            TarSummary(
                name=shard.name,
                split=shard.split,
                num_bytes=tar.num_bytes,
                sha256=tar.sha256,
                samples=tuple(samples),
                quarantined=tuple(
                    Quarantined(image=_listed(position, planned), reason=result.reason)
                    for position, planned, result in rejected
                ),
            )
        )

    def files(self, shard: ShardPlan) -> TarFiles:
        """Return the files of a tar in the scratch folder."""
        return TarFiles(self.scratch, shard.name)

    def with_absolute_paths(self) -> Self:
        """Return a builder for processes that start in another folder than this one, as those of a cluster."""
        encoder = replace(self.encoder, root=self.encoder.root.absolute())
        return replace(self, manifest=self.manifest.absolute(), encoder=encoder, scratch=self.scratch.absolute())

    def _check_in_sight(self) -> None:
        """Refuse to build where a folder is missing: a scratch folder would be made anew, and the tar lost in it.

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


def _listed(position: int, planned: PlannedSample) -> ListedImage:
    return ListedImage(
        position=position,
        key=planned.key,
        display_name=planned.display_name,
        patient=planned.record.patient,
        view=planned.record.view,
    )


def _bytes(spans: Mapping[str, Span]) -> SampleBytes:
    """Tell where a sample lies, from its members: suffix → span, in the order of the tar."""
    meta, image, *others = spans.values()
    last = others[-1] if others else image
    absent = Span(0, 0)
    return SampleBytes(
        start=meta.member_start,
        num_bytes=last.member_stop - meta.member_start,
        meta_bytes=meta.num_bytes,
        image_bytes=image.num_bytes,
        half_bytes=spans.get(HALF_SUFFIX, absent).num_bytes,
        landmarks_bytes=spans.get(LANDMARKS_SUFFIX, absent).num_bytes,
    )


def _check_unchanged(rejected: list[tuple[PlannedSample, Rejected]]) -> None:
    changed = [planned.display_name for planned, result in rejected if result.has_changed]
    if changed:
        raise SourceError(
            f"{len(changed)} files are missing or changed since they were listed: {', '.join(changed[:_MAX_NAMED])}; "
            "restore them, or register the folder as a new batch"
        )
