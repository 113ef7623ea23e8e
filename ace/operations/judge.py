"""Judge a delivery whose shards are built: each check has a measured value, a bound and a verdict."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ace.operations.params import JudgeParams
from shards.core.config import read_params
from shards.core.errors import ConfigError
from shards.core.modality import check_mixture, pictures_of
from shards.core.params import BatchParams
from shards.delivery.batches import read_batches
from shards.delivery.earlier_batches import IN_ANOTHER_BATCH
from shards.delivery.yaml_lines import SHARDS
from shards.format.layout import MANIFESTS
from shards.quality.reasons import COPIES
from shards.quality.report import QUALITY, near_copies_of
from shards.runtime.text import count_of, table

_MAX_PICTURES = 1000
"""Pictures of a batch, at most, that its mean picture is made of."""
_COLUMNS = ["key", "patient", "split", "view", "verdict", "reason"]


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of one check.

    Attributes:
        check: Name of the check, which is the bound's in params.yaml without `min_` or `max_`.
        measured: The measured value; None where there is nothing to measure it by.
        bound: The bound.
        passed: The value keeps to the bound, or there is none.
        text: What was compared, for people.
    """

    check: str
    measured: float | str | None
    bound: float | str
    passed: bool
    text: str


@dataclass(frozen=True, kw_only=True)
class _Set:
    """A built batch.

    Attributes:
        name: Name of the batch.
        batch: Content of batches/NAME.yaml.
        report: Path of the batch's quality report.
        rows: Rows of the report, column → values.
    """

    name: str
    batch: BatchParams
    report: Path
    rows: Mapping[str, np.ndarray]

    @classmethod
    def read(cls, name: str, batch: BatchParams, project: Path) -> "_Set":
        report = project / SHARDS / name / QUALITY
        table_ = pq.read_table(report, columns=_COLUMNS)
        return cls(
            name=name, batch=batch, report=report, rows={column: table_[column].to_numpy() for column in _COLUMNS}
        )

    @property
    def is_kept(self) -> np.ndarray:
        return np.asarray(self.rows["verdict"] != "quarantined")

    @property
    def keys(self) -> list[str]:
        return list(self.rows["key"][self.is_kept])

    def views(self) -> Counter[str]:
        return Counter(view or "unknown" for view in self.rows["view"][self.is_kept])

    def patients(self, split: str) -> set[str]:
        return set(self.rows["patient"][self.is_kept & (self.rows["split"] == split)])

    def mean_picture(self) -> np.ndarray:
        """Return the mean of the thumbnails of the first images that are kept."""
        pictures: list[bytes] = []
        for part in pq.ParquetFile(self.report).iter_batches(columns=["thumbnail"], batch_size=_MAX_PICTURES):
            pictures += filter(None, part["thumbnail"].to_pylist())
            if len(pictures) >= _MAX_PICTURES:
                break
        pictures = pictures[:_MAX_PICTURES]
        mean: np.ndarray = np.frombuffer(b"".join(pictures), np.uint8).reshape(len(pictures), -1).mean(axis=0)
        return mean


def judge(name: str, params: Path, bounds: JudgeParams) -> list[CheckResult]:
    """Compare a built batch with the accepted ones.

    Args:
        name: Name of the batch, which is registered and has its shards.
        params: The file params.yaml; batches, manifests and shards lie beside it.
        bounds: Bounds of the checks.

    Returns:
        A result for each check.

    Raises:
        ConfigError: a file of the project is not as expected, or the measured set is not here.
        IndexFormatError: a quality report is damaged.
    """
    project, values = params.parent, read_params(params)
    batches = read_batches(params, values)
    new = _Set.read(name, batches[name], project)
    there = {other: batch for other, batch in batches.items() if other != name and _has_shards(other, project)}
    others = [_Set.read(other, batch, project) for other, batch in there.items()]
    absent = sorted(batches.keys() - there.keys() - {name})
    mix = values.get("mix") or {}
    accepted = [item for item in others if mix.get(item.name, {}).get("weight", 0) > 0]
    return [
        _pictures(new, {other: batch for other, batch in batches.items() if other in mix}, values),
        _images(new, bounds),
        _quarantined(new, bounds),
        _copies(new, project, bounds),
        _near_copies(new, others, absent, bounds),
        *_drift(new, accepted, bounds),
        _measured_patients(new, others, values, bounds),
    ]


def format_results(results: Sequence[CheckResult]) -> str:
    """Write the results as a table, a line each."""
    rows = [("check", "measured", "bound", "verdict")]
    rows += [
        (item.check, _as_text(item.measured), _as_text(item.bound), "passed" if item.passed else "FAILED")
        for item in results
    ]
    return "\n".join([table(rows), "", *(f"{item.check}: {item.text}" for item in results)])


def _as_text(value: float | str | None) -> str:
    return "not measured" if value is None else value if isinstance(value, str) else f"{value:.4g}"


def _has_shards(name: str, project: Path) -> bool:
    return (project / SHARDS / name / QUALITY).is_file()


def _pictures(new: _Set, mixed: Mapping[str, BatchParams], values: Mapping[str, Any]) -> CheckResult:
    """Check that training takes these pictures beside those of the mix."""
    known = {other: pictures_of(batch.source) for other, batch in mixed.items()}
    own = pictures_of(new.batch.source)
    is_accepted = bool((values.get("pretrain") or {}).get("accept_mixed_images"))
    try:
        check_mixture({**known, new.name: own}, is_accepted=is_accepted)
        passed, text = True, "training takes them beside those of the mix"
    except ConfigError as error:
        passed, text = False, str(error)
    bound = "; ".join(sorted(set(map(str, known.values()))))
    return CheckResult(check="pictures", measured=str(own), bound=bound, passed=passed, text=text)


def _images(new: _Set, bounds: JudgeParams) -> CheckResult:
    num, total = len(new.keys), len(new.rows["key"])
    text = f"{num:,} of {count_of(total, 'image')} are in the shards"
    return CheckResult(
        check="images", measured=num, bound=bounds.min_images, passed=num >= bounds.min_images, text=text
    )


def _quarantined(new: _Set, bounds: JudgeParams) -> CheckResult:
    reasons = new.rows["reason"][~new.is_kept]
    faults = Counter(reason for reason in reasons if reason not in COPIES)
    said = "".join(f"; {number} × {reason}" for reason, number in faults.most_common())
    return _share("quarantined", faults.total(), len(new.rows["key"]), bounds.max_quarantined, f"images{said}")


def _copies(new: _Set, project: Path, bounds: JudgeParams) -> CheckResult:
    """Count the files that `register` left out because an earlier batch has them."""
    listed, num = project / MANIFESTS / f"{new.name}.left_out.csv", 0
    if listed.is_file():
        with listed.open(newline="", encoding="utf-8") as file:
            num = sum(row["reason"].startswith(IN_ANOTHER_BATCH) for row in csv.DictReader(file))
    what = "delivered images are in earlier batches, and were left out"
    return _share("copies", num, num + len(new.rows["key"]), bounds.max_copies, what)


def _near_copies(new: _Set, others: Sequence[_Set], absent: Sequence[str], bounds: JudgeParams) -> CheckResult:
    found = near_copies_of(new.report, new.keys, {item.report: item.keys for item in others}) if others else []
    num = len({pair.first.key for pair in found})
    what = "images show the same picture as one of an earlier batch"
    what += f"; not compared, as their shards are not here: {', '.join(absent)}" if absent else ""
    return _share("near_copies", num, len(new.keys), bounds.max_near_copies, what)


def _drift(new: _Set, accepted: Sequence[_Set], bounds: JudgeParams) -> Iterator[CheckResult]:
    """Compare views, brightness and mean picture with those of the accepted batches, all their images alike."""
    weights = [len(item.keys) for item in accepted]
    reason = ""
    if len(new.keys) < bounds.min_images_of_drift:
        reason = f"{count_of(len(new.keys), 'image')} are too few to tell (min_images_of_drift)"
    elif not sum(weights):
        reason = "no accepted batch has its shards here to compare with"

    def result(
        check: str, bound: float, compare: Callable[[], tuple[float, str]], *, is_floor: bool = False
    ) -> CheckResult:
        if reason:
            return CheckResult(check=check, measured=None, bound=bound, passed=True, text=reason)
        value, text = compare()
        passed = value >= bound if is_floor else value <= bound
        return CheckResult(check=check, measured=value, bound=bound, passed=passed, text=text)

    def views() -> tuple[float, str]:
        here, there = new.views(), sum((item.views() for item in accepted), Counter[str]())
        shares = [(here[view] / here.total(), there[view] / there.total()) for view in here | there]
        return sum(abs(one - other) for one, other in shares) / 2, f"views {_shares(here)}, accepted {_shares(there)}"

    def levels(number: int) -> tuple[float, str]:
        measured = [item.batch.measured.normalisation(1)[number] for item in (new, *accepted)]
        own, *rest = (float(np.mean(level)) for level in measured)
        there = float(np.average(rest, weights=weights))
        return abs(own - there), f"{own:.3f} here, {there:.3f} in the accepted batches"

    def likeness() -> tuple[float, str]:
        rest = np.average([item.mean_picture() for item in accepted], axis=0, weights=weights)
        value = float(np.corrcoef(new.mean_picture(), rest)[0, 1])
        return value, f"the mean picture here and that of the accepted batches correlate by {value:.3f}"

    yield result("view_drift", bounds.max_view_drift, views)
    yield result("mean_drift", bounds.max_mean_drift, lambda: levels(0))
    yield result("std_drift", bounds.max_std_drift, lambda: levels(1))
    yield result("likeness", bounds.min_likeness, likeness, is_floor=True)


def _measured_patients(
    new: _Set, others: Sequence[_Set], values: Mapping[str, Any], bounds: JudgeParams
) -> CheckResult:
    """Count the patients whom the delivery would train on and the evaluation measures.

    Raises:
        ConfigError: the measured set is not here.
    """
    evaluate = values.get("evaluate") or {}
    name, split = str(evaluate.get("batch")), str(evaluate.get("split"))
    bound = bounds.max_measured_patients
    measured = next((item for item in others if item.name == name), None)
    if measured is None:
        raise ConfigError(
            f"the shards of {name} (evaluate.batch) are not here, so nobody can tell whose images must not be trained "
            f"on; `dvc pull {SHARDS}{name}` brings them"
        )
    shared = new.patients("train") & measured.patients(split)
    text = f"{count_of(len(shared), 'patient')} of the {split} split of {name} would be trained on"
    return CheckResult(
        check="measured_patients", measured=len(shared), bound=bound, passed=len(shared) <= bound, text=text
    )


def _share(check: str, num: int, total: int, bound: float, what: str) -> CheckResult:
    share = num / total if total else 0.0
    return CheckResult(
        check=check, measured=share, bound=bound, passed=share <= bound, text=f"{num:,} of {total:,} {what}"
    )


def _shares(views: Counter[str]) -> str:
    return ", ".join(f"{view} {number / views.total():.0%}" for view, number in views.most_common())
