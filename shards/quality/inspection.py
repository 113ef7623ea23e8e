"""The quality pass over a batch whose tars are finished: judge, take out what is bad, report."""

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from shards.atomic import write_text
from shards.plan import ShardPlan
from shards.quality.judge import MOST_PROTECTED_FIRST, Images, Judgement, Verdict, judge
from shards.quality.params import QualityParams
from shards.quality.reasons import BURNED_IN
from shards.quality.report import QUALITY, ReportRow, write_report
from shards.quality.sheet import SHEET, Tile, draw_sheet
from shards.quality.store import MeasureStore
from shards.quality.withdraw import withdraw
from shards.sample import Task

Summary = dict[str, Any]
_MAX_TILES_OF_REASON = 12


@dataclass(frozen=True)
class Inspection:
    """What the quality pass found.

    Attributes:
        plans: Of the tars.
        summaries: Of the tars without what is quarantined; `path` is where each lies in the scratch folder.
        keys: Of all samples that were written, in the order of the tars.
        judgement: Its rows are positions in `keys`.
        store: Measures of the same rows.
        params: Section `shard.quality`.
    """

    plans: Sequence[ShardPlan]
    summaries: list[Summary]
    keys: np.ndarray
    judgement: Judgement
    store: MeasureStore
    params: QualityParams

    @property
    def values(self) -> dict[str, Any]:
        """What index.json says of it."""
        suspects = [verdict for verdict in self.judgement.verdicts.values() if not verdict.is_quarantined]
        remarks = Counter(remark for verdict in suspects for remark in verdict.reason.split("; "))
        return {
            "suspects": {"count": len(suspects), "reasons": dict(sorted(remarks.items()))},
            "num_groups_of_copies": len(set(self._groups().values())),
            "view_means": {
                mean.view or "unknown": {
                    "num_images": mean.num_images,
                    "coherence": round(mean.coherence, 3),
                    "has_bright_corners": mean.has_bright_corners,
                }
                for mean in self.judgement.view_means
            },
        }

    def write(self, folder: Path) -> None:
        """Put quality.parquet and quality.png into the finished set."""
        write_report(folder / QUALITY, self._rows(), self.params.near_copies)
        draw_sheet(list(self._tiles())).save(folder / SHEET)

    def _groups(self) -> dict[str, str]:
        """Key → first key of its group of copies."""
        groups = {str(self.keys[row]): str(self.keys[first]) for row, first in self.judgement.groups.items()}
        for plan in self.plans:
            for task in plan.tasks:
                if task.copy_of is not None:
                    groups[task.key] = groups.setdefault(task.copy_of, task.copy_of)
        return groups

    def _rows(self) -> Iterator[list[ReportRow]]:
        """Of one tar after the other: its tasks in their order."""
        groups, start = self._groups(), 0
        for plan, summary, (values, structures) in zip(self.plans, self.summaries, self.store.by_tar(), strict=True):
            row_of = {str(key): row for row, key in enumerate(self.keys[start : start + len(values)])}
            rejected = dict(summary["quarantined"])
            rows = []
            for task in plan.tasks:
                row = row_of.get(task.key)
                verdict = self.judgement.verdicts.get(start + row) if row is not None else None
                if row is None:
                    verdict = Verdict(True, rejected[task.place])
                rows.append(
                    ReportRow(
                        task.key,
                        task.place,
                        task.record.patient,
                        task.split,
                        task.record.view,
                        "kept" if verdict is None else "quarantined" if verdict.is_quarantined else "suspect",
                        verdict.reason if verdict else None,
                        groups.get(task.key),
                        values[row] if row is not None else None,
                        structures[structures["row"] == row] if row is not None else structures[:0],
                    )
                )
            yield rows
            start += len(values)

    def _tiles(self) -> Iterator[Tile]:
        for mean in self.judgement.view_means:
            yield Tile(mean.picture, f"{mean.view or 'no view'}: mean of {mean.num_images} images")
        verdicts = self.judgement.verdicts
        for reason in sorted({(not verdict.is_quarantined, verdict.reason) for verdict in verdicts.values()}):
            rows = (row for row, verdict in verdicts.items() if (not verdict.is_quarantined, verdict.reason) == reason)
            chosen = np.array(list(islice(rows, _MAX_TILES_OF_REASON)), np.int64)
            kind = "suspect" if reason[0] else "quarantined"
            for row, picture in zip(chosen, self.store.thumbnails(chosen), strict=True):
                # What is written in the picture may be a name.
                yield Tile(None if reason[1] == BURNED_IN else picture, f"{self.keys[row]}: {kind}: {reason[1]}")


def inspect(plans: Sequence[ShardPlan], summaries: list[Summary], params: QualityParams, scratch: Path) -> Inspection:
    """Judge the samples of finished tars and take the bad ones out.

    Every run judges anew, so a kill leaves nothing to go wrong; the finished tars stay for a run with other bounds.

    Args:
        plans: Of the tars.
        summaries: Of the tars, in the same order.
        params: Section `shard.quality`.
        scratch: Where tars and measures lie.
    """
    store = MeasureStore(scratch, tuple(summary["name"] for summary in summaries))
    images = _images(summaries, store)
    judgement = judge(images, store, params)
    reasons = {
        str(images.keys[row]): verdict.reason for row, verdict in judgement.verdicts.items() if verdict.is_quarantined
    }
    cleaned = [_without(plan, summary, reasons, scratch) for plan, summary in zip(plans, summaries, strict=True)]
    return Inspection(plans, cleaned, images.keys, judgement, store, params)


def list_originals(path: Path, inspection: Inspection) -> Path | None:
    """Write the private list of quarantined files, by the names they have on disk; there is none where none is.

    Args:
        path: Of the list: beside the manifest, which is as private.
        inspection: Of the batch.

    Returns:
        The path, if there is a list.
    """
    rows = [
        (task.record.image.path, reason)
        for plan, summary in zip(inspection.plans, inspection.summaries, strict=True)
        for task, reason in _quarantined(plan, dict(summary["quarantined"]))
    ]
    if not rows:
        path.unlink(missing_ok=True)
        return None
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "reason"), *rows])
    write_text(path, text.getvalue())
    return path


def _images(summaries: Sequence[Summary], store: MeasureStore) -> Images:
    samples = [sample for summary in summaries for sample in summary["samples"]]
    patients = np.array([sample["row"]["patient"] for sample in samples], str)
    contradicts, start = np.zeros(len(samples), bool), 0
    for values, structures in store.by_tar():
        contradicts[start + structures["row"][structures["contradicts"]]] = True
        start += len(values)
    return Images(
        keys=np.array([sample["row"]["key"] for sample in samples], str),
        patients=np.unique(patients, return_inverse=True)[1],
        ranks=np.array([MOST_PROTECTED_FIRST.index(sample["row"]["split"]) for sample in samples], np.int64),
        views=np.array([sample["view"] or "" for sample in samples], str),
        numbers=store.numbers(),
        contradicts=contradicts,
    )


def _without(plan: ShardPlan, summary: Summary, reasons: Mapping[str, str], scratch: Path) -> Summary:
    """The summary with its place in the scratch folder, and its tar without what is quarantined."""
    withdrawn = {
        sample["row"]["key"]: reasons[sample["row"]["key"]]
        for sample in summary["samples"]
        if sample["row"]["key"] in reasons
    }
    if not withdrawn:
        return {**summary, "path": summary["name"]}
    place_of = {task.key: task.place for task in plan.tasks}
    by_place = {**dict(summary["quarantined"]), **{place_of[key]: reason for key, reason in withdrawn.items()}}
    quarantined = [[task.place, reason] for task, reason in _quarantined(plan, by_place)]
    return {**withdraw(summary, withdrawn, scratch), "quarantined": quarantined}


def _quarantined(plan: ShardPlan, reasons: Mapping[str, str]) -> Iterator[tuple[Task, str]]:
    """Tasks of a plan with the reasons of their places, in their order."""
    return ((task, reasons[task.place]) for task in plan.tasks if task.place in reasons)
