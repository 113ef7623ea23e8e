"""The quality pass over a batch whose tars are finished: judge, take out what is bad, report."""

import csv
import io
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np

from shards.build.plan import BatchPlan, ShardPlan
from shards.build.summary import Quarantined, TarSummary
from shards.build.tar_files import TarFiles
from shards.build.withdraw import withdraw
from shards.core.errors import SourceError
from shards.core.quality_params import NearCopyParams, QualityParams
from shards.delivery.manifest import read_entry
from shards.format.index import CountedReasons, QualityDescription, ViewMeanDescription
from shards.format.layout import MAX_KEY_LENGTH
from shards.quality.judge import MOST_PROTECTED_FIRST, Images, Judgement, Verdict, judge
from shards.quality.reasons import BURNED_IN
from shards.quality.report import ReportRow
from shards.quality.sheet import Tile
from shards.quality.store import MeasureStore
from shards.runtime.atomic import write_private_text

_COMPARED = "compared"
_MAX_TILES_OF_REASON = 12


@dataclass(frozen=True, kw_only=True)
class InspectedTar:
    """A tar as it is published, and its rows of the quality report.

    Attributes:
        files: Its files in the scratch folder.
        summary: Its content.
        rows: A row for each image that the tar was planned with, in their order.
    """

    files: TarFiles
    summary: TarSummary
    rows: list[ReportRow]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The result of the quality pass.

    Attributes:
        plan: Plan of the batch.
        files: Files of each tar without what is quarantined, in the order of the plan.
        quarantined: Images that are kept out, each with the plan of its tar, in the order of the plan.
        keys: Keys of all samples that were written, in the order of the tars.
        judgement: Verdicts; its rows are positions in `keys`.
        store: Measures of the same rows.
        bounds: Bounds of the comparison of pictures.
    """

    plan: BatchPlan
    files: Sequence[TarFiles]
    quarantined: Sequence[tuple[ShardPlan, Quarantined]]
    keys: np.ndarray
    judgement: Judgement
    store: MeasureStore
    bounds: NearCopyParams

    def tars(self) -> Iterator[InspectedTar]:
        """Read the tars one at a time, so that memory does not grow with their number."""
        start = 0
        for shard, files, (values, structures) in zip(self.plan.shards, self.files, self.store.by_tar(), strict=True):
            summary = _read_summary(files)
            yield InspectedTar(files=files, summary=summary, rows=self._rows(shard, summary, start, values, structures))
            start += len(values)

    def describe(self) -> QualityDescription:
        """Sum the results up for index.json."""
        suspects = [verdict for verdict in self.judgement.verdicts.values() if not verdict.is_quarantined]
        remarks = Counter(remark for verdict in suspects for remark in verdict.reason.split("; "))
        return QualityDescription(
            suspects=CountedReasons(count=len(suspects), reasons=dict(sorted(remarks.items()))),
            num_groups_of_copies=len(set(self._groups.values())),
            view_means={
                mean.view or "unknown": ViewMeanDescription(
                    num_images=mean.num_images,
                    coherence=round(mean.coherence, 3),
                    has_bright_corners=mean.has_bright_corners,
                )
                for mean in self.judgement.view_means
            },
        )

    def tiles(self) -> Iterator[Tile]:
        """Draw the mean image of each view, and up to twelve images of each reason."""
        for mean in self.judgement.view_means:
            yield Tile(mean.picture, f"{mean.view or 'no view'}: mean of {mean.num_images} images")
        verdicts = self.judgement.verdicts
        for reason in sorted({(not verdict.is_quarantined, verdict.reason) for verdict in verdicts.values()}):
            rows = (row for row, verdict in verdicts.items() if (not verdict.is_quarantined, verdict.reason) == reason)
            chosen = np.array(list(islice(rows, _MAX_TILES_OF_REASON)), np.int64)
            kind = "suspect" if reason[0] else "quarantined"
            for row, picture in zip(chosen, self.store.thumbnails(chosen), strict=True):
                # What is written in the picture may be a name.
                yield Tile(None if BURNED_IN in reason[1] else picture, f"{_text(self.keys[row])}: {kind}: {reason[1]}")

    @cached_property
    def _groups(self) -> dict[str, str]:
        """Key → first key of its group of copies."""
        groups = {_text(self.keys[row]): _text(self.keys[first]) for row, first in self.judgement.groups.items()}
        for shard, item in self.quarantined:
            original = shard.copies.get(item.image.position)
            if original is not None:
                groups[item.image.key] = groups.setdefault(original, original)
        return groups

    def _rows(
        self, shard: ShardPlan, summary: TarSummary, start: int, values: np.ndarray, structures: np.ndarray
    ) -> list[ReportRow]:
        """Make the rows of the quality report for one tar.

        Args:
            shard: Plan of the tar.
            summary: Content of the tar without what is quarantined.
            start: Position in `keys` of its first sample that was written.
            values: Measures of its samples that were written.
            structures: Measures of their masks.
        """
        row_of = {_text(key): row for row, key in enumerate(self.keys[start : start + len(values)])}
        reasons = {item.image.key: item.reason for item in summary.quarantined}
        rows = []
        images = [sample.image for sample in summary.samples] + [item.image for item in summary.quarantined]
        for image in sorted(images, key=lambda image: image.position):
            row = row_of.get(image.key)
            if row is None:
                verdict: Verdict | None = Verdict(True, reasons[image.key])
            else:
                verdict = self.judgement.verdicts.get(start + row)
            rows.append(
                ReportRow(
                    key=image.key,
                    display_name=image.display_name,
                    patient=image.patient,
                    split=shard.split,
                    view=image.view,
                    verdict="kept" if verdict is None else "quarantined" if verdict.is_quarantined else "suspect",
                    reason=verdict.reason if verdict else None,
                    group=self._groups.get(image.key),
                    values=None if row is None else values[row],
                    structures=structures[:0] if row is None else structures[structures["row"] == row],
                )
            )
        return rows


def inspect(
    plan: BatchPlan, params: QualityParams, scratch: Path, kept: Collection[str] = (), num_workers: int | None = None
) -> Inspection:
    """Judge the samples of finished tars and take the bad ones out.

    Every run judges anew, so a kill leaves nothing to go wrong; the finished tars stay for a run with other bounds, and
    so do comparisons of pictures.

    Args:
        plan: Plan of the batch.
        params: Section `shard.quality`.
        scratch: Folder where tars, summaries and measures lie.
        kept: Keys of images that a person keeps, whatever the checks say.
        num_workers: Number of processes that compare pictures; one a core if None.

    Raises:
        SourceError: a finished tar is gone.
    """
    finished = [TarFiles(scratch, shard.name) for shard in plan.shards]
    store = MeasureStore(tuple(files.measures for files in finished), scratch / _COMPARED)
    images, num_samples, rejected = _collect(plan, finished, store, kept)
    judgement = judge(images, store, params, num_workers)
    bad = {row: verdict.reason for row, verdict in judgement.verdicts.items() if verdict.is_quarantined}
    reasons = {_text(images.keys[row]): reason for row, reason in bad.items()}
    hurt = set(np.searchsorted(np.cumsum(num_samples), list(bad), side="right").tolist())
    quarantined: list[tuple[ShardPlan, Quarantined]] = []
    for number, shard in enumerate(plan.shards):
        found = rejected[number]
        if number in hurt:
            found = withdraw(finished[number], _read_summary(finished[number]), reasons).quarantined
            finished[number] = finished[number].without_quarantined
        quarantined += ((shard, item) for item in found)
    return Inspection(
        plan=plan,
        files=finished,
        quarantined=quarantined,
        keys=images.keys,
        judgement=judgement,
        store=store,
        bounds=params.near_copies,
    )


def list_originals(path: Path, inspection: Inspection) -> Path | None:
    """Write the private list of quarantined files, by the names they have on disk; there is none where none is.

    Args:
        path: Path of the list: beside the manifest, which is as private.
        inspection: Result of the quality pass.

    Returns:
        The path, if there is a list.
    """
    manifest = inspection.plan.manifest
    rows = [
        (
            read_entry(manifest, shard.images[item.image.position].offset).record.image.path,
            item.image.key,
            item.reason,
        )
        for shard, item in inspection.quarantined
    ]
    if not rows:
        path.unlink(missing_ok=True)
        return None
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "key", "reason"), *rows])
    write_private_text(path, text.getvalue())
    return path


def _collect(
    plan: BatchPlan, finished: Sequence[TarFiles], store: MeasureStore, kept: Collection[str]
) -> tuple[Images, list[int], list[tuple[Quarantined, ...]]]:
    """Read each tar's summary once, and keep what the checks need of it.

    Returns:
        The images of all tars for the checks; number of samples of each tar; images that each tar was built without.
    """
    keys, patients, ranks, views, rejected = [], [], [], [], []
    for shard, files in zip(plan.shards, finished, strict=True):
        summary = _read_summary(files)
        images = [sample.image for sample in summary.samples]
        keys.append(np.array([image.key.encode("ascii") for image in images], f"S{MAX_KEY_LENGTH}"))
        patients.append(np.array([image.patient.encode("ascii") for image in images], "S16"))
        ranks.append(np.full(len(images), MOST_PROTECTED_FIRST.index(shard.split), np.int64))
        views.append(np.array([image.view or "" for image in images], "U32"))
        rejected.append(summary.quarantined)
    num_samples = [len(of_tar) for of_tar in keys]
    contradicts, start = np.zeros(sum(num_samples), bool), 0
    for values, structures in store.by_tar():
        contradicts[start + structures["row"][structures["contradicts"]]] = True
        start += len(values)
    collected = Images(
        keys=np.concatenate(keys),
        patients=np.unique(np.concatenate(patients), return_inverse=True)[1],
        ranks=np.concatenate(ranks),
        views=np.concatenate(views),
        numbers=store.numbers(),
        contradicts=contradicts,
        is_kept=np.isin(np.concatenate(keys), [key.encode("ascii") for key in kept]),
    )
    return collected, num_samples, rejected


def _read_summary(files: TarFiles) -> TarSummary:
    """Read the summary of a tar that was finished.

    Raises:
        SourceError: it is gone.
    """
    summary = files.read_summary()
    if summary is None:
        raise SourceError(f"{files.tar}: gone since it was built; give the same command again")
    return summary


def _text(key: np.bytes_) -> str:
    return key.decode("ascii")
