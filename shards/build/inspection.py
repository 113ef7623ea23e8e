"""The quality pass over a batch whose tars are finished: judge, take out what is bad, report."""

import csv
import io
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from shards.build.plan import BatchPlan, ShardPlan
from shards.build.tar_builder import Summary, read_summary
from shards.build.withdraw import WITHOUT, withdraw
from shards.delivery.manifest import read_entry
from shards.errors import SourceError
from shards.format.layout import MAX_KEY_LENGTH
from shards.quality.judge import MOST_PROTECTED_FIRST, Images, Judgement, Verdict, judge
from shards.quality.reasons import BURNED_IN
from shards.quality.report import QUALITY, ReportRow, write_report
from shards.quality.sheet import SHEET, Tile, draw_sheet
from shards.quality.store import MeasureStore
from shards.quality_params import QualityParams
from shards.runtime.atomic import write_private_text, write_text

_MAX_TILES_OF_REASON = 12


@dataclass(frozen=True)
class Inspection:
    """What the quality pass found.

    Attributes:
        plan: Of the batch.
        scratch: Where tars, summaries and measures lie.
        keys: Of all samples that were written, in the order of the tars.
        judgement: Its rows are positions in `keys`.
        store: Measures of the same rows.
        params: Section `shard.quality`.
        rewritten: Tars that samples were taken out of.
    """

    plan: BatchPlan
    scratch: Path
    keys: np.ndarray
    judgement: Judgement
    store: MeasureStore
    params: QualityParams
    rewritten: frozenset[str]

    def summaries(self) -> Iterator[Summary]:
        """Of the tars without what is quarantined, one at a time; `path` is where each lies in the scratch folder."""
        for shard in self.plan.shards:
            if shard.name in self.rewritten:
                yield _needed(self.scratch / WITHOUT, shard.name)
            else:
                yield {**_needed(self.scratch, shard.name), "path": shard.name}

    def quarantined(self) -> Iterator[tuple[ShardPlan, dict[str, Any]]]:
        """What is kept out, in the order of the plans: position, key, place, patient, view, reason."""
        for shard, summary in zip(self.plan.shards, self.summaries(), strict=True):
            for item in summary["quarantined"]:
                yield shard, item

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
        groups = {_text(self.keys[row]): _text(self.keys[first]) for row, first in self.judgement.groups.items()}
        for shard, item in self.quarantined():
            original = shard.copies.get(item["position"])
            if original is not None:
                groups[item["key"]] = groups.setdefault(original, original)
        return groups

    def _rows(self) -> Iterator[list[ReportRow]]:
        """Of one tar after the other: its images in their order."""
        groups, start = self._groups(), 0
        for shard, summary, (values, structures) in zip(
            self.plan.shards, self.summaries(), self.store.by_tar(), strict=True
        ):
            row_of = {_text(key): row for row, key in enumerate(self.keys[start : start + len(values)])}
            kept = (
                {**sample["row"], **{name: sample[name] for name in ("position", "place", "view")}, "reason": None}
                for sample in summary["samples"]
            )
            images = sorted([*kept, *summary["quarantined"]], key=lambda image: int(image["position"]))
            rows = []
            for image in images:
                row = row_of.get(image["key"])
                verdict = self.judgement.verdicts.get(start + row) if row is not None else None
                if row is None:
                    verdict = Verdict(True, image["reason"])
                rows.append(
                    ReportRow(
                        image["key"],
                        image["place"],
                        image["patient"],
                        shard.split,
                        image["view"],
                        "kept" if verdict is None else "quarantined" if verdict.is_quarantined else "suspect",
                        verdict.reason if verdict else None,
                        groups.get(image["key"]),
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
                yield Tile(None if BURNED_IN in reason[1] else picture, f"{_text(self.keys[row])}: {kind}: {reason[1]}")


def inspect(
    plan: BatchPlan, params: QualityParams, scratch: Path, kept: Collection[str] = (), num_workers: int | None = None
) -> Inspection:
    """Judge the samples of finished tars and take the bad ones out.

    Every run judges anew, so a kill leaves nothing to go wrong; the finished tars stay for a run with other bounds, and
    so do comparisons of pictures.

    Args:
        plan: Of the batch.
        params: Section `shard.quality`.
        scratch: Where tars, summaries and measures lie.
        kept: Keys of images that a person keeps, whatever the checks say.
        num_workers: Processes that compare pictures; one a core if None.
    """
    store = MeasureStore(scratch, tuple(shard.name for shard in plan.shards))
    images = _images(plan, store, scratch, kept)
    judgement = judge(images, store, params, num_workers)
    reasons = {
        _text(images.keys[row]): verdict.reason for row, verdict in judgement.verdicts.items() if verdict.is_quarantined
    }
    rewritten = frozenset(shard.name for shard in plan.shards if _take_out(shard.name, reasons, scratch))
    return Inspection(plan, scratch, images.keys, judgement, store, params, rewritten)


def list_originals(path: Path, inspection: Inspection) -> Path | None:
    """Write the private list of quarantined files, by the names they have on disk; there is none where none is.

    Args:
        path: Of the list: beside the manifest, which is as private.
        inspection: Of the batch.

    Returns:
        The path, if there is a list.
    """
    manifest = inspection.plan.manifest
    rows = [
        (read_entry(manifest, shard.places[item["position"]][1]).record.image.path, item["key"], item["reason"])
        for shard, item in inspection.quarantined()
    ]
    if not rows:
        path.unlink(missing_ok=True)
        return None
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "key", "reason"), *rows])
    write_private_text(path, text.getvalue())
    return path


def _images(plan: BatchPlan, store: MeasureStore, scratch: Path, kept: Collection[str]) -> Images:
    keys, patients, ranks, views = [], [], [], []
    for shard in plan.shards:
        samples = _needed(scratch, shard.name)["samples"]
        keys.append(np.array([sample["row"]["key"].encode("ascii") for sample in samples], f"S{MAX_KEY_LENGTH}"))
        patients.append(np.array([sample["row"]["patient"].encode("ascii") for sample in samples], "S16"))
        ranks.append(np.full(len(samples), MOST_PROTECTED_FIRST.index(shard.split), np.int64))
        views.append(np.array([sample["view"] or "" for sample in samples], "U32"))
    contradicts, start = np.zeros(sum(map(len, keys)), bool), 0
    for values, structures in store.by_tar():
        contradicts[start + structures["row"][structures["contradicts"]]] = True
        start += len(values)
    return Images(
        keys=np.concatenate(keys),
        patients=np.unique(np.concatenate(patients), return_inverse=True)[1],
        ranks=np.concatenate(ranks),
        views=np.concatenate(views),
        numbers=store.numbers(),
        contradicts=contradicts,
        is_kept=np.isin(np.concatenate(keys), [key.encode("ascii") for key in kept]),
    )


def _take_out(name: str, reasons: Mapping[str, str], scratch: Path) -> bool:
    """Write a tar and its summary anew without what is quarantined; whether there was anything."""
    summary = _needed(scratch, name)
    bad = [sample for sample in summary["samples"] if sample["row"]["key"] in reasons]
    if not bad:
        return False
    found = [
        {
            "position": sample["position"],
            "key": sample["row"]["key"],
            "place": sample["place"],
            "patient": sample["row"]["patient"],
            "view": sample["view"],
            "reason": reasons[sample["row"]["key"]],
        }
        for sample in bad
    ]
    cleaned = withdraw(summary, {item["key"] for item in found}, scratch)
    cleaned["quarantined"] = sorted([*summary["quarantined"], *found], key=lambda item: int(item["position"]))
    write_text(scratch / WITHOUT / f"{name}.json", json.dumps(cleaned))
    return True


def _needed(folder: Path, name: str) -> Summary:
    """The summary of a tar that was finished.

    Raises:
        SourceError: it is gone.
    """
    summary = read_summary(folder, name)
    if summary is None:
        raise SourceError(f"{folder / name}: gone since it was built; give the same command again")
    return summary


def _text(key: np.bytes_) -> str:
    return key.decode("ascii")
