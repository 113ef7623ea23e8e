"""Tell what an asset shows in the UI: figures, tables, and checks against bounds of params.yaml."""

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from dagster import AssetCheckEvaluation, AssetCheckKey, AssetCheckSpec, MetadataValue

from ace.evaluation.bounds import Bound
from ace.models.folder import CARD
from pipelines.graph import Graph, Out, Stage
from pipelines.lock import RecordedOut, asset_key
from pipelines.sets import set_metadata
from pipelines.verdict import VerdictCheck, verdict_metadata
from shards.core.config import read_params
from shards.core.errors import ConfigError

Metadata = dict[str, MetadataValue[Any]]

MAX_NUMBERS = 100
MAX_PICTURES = 2
CURVE_WIDTH, LEVELS = 32, "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class MetricCheck:
    """One bound of a stage's `checks: {METRIC: {min, max}}` in params.yaml."""

    out: str
    """The metrics file."""
    metric: str
    """Dotted path inside it."""
    bound: Bound

    @property
    def name(self) -> str:
        """The metric's path in the characters that Dagster allows."""
        return re.sub(r"\W", "_", self.metric)

    @property
    def expected(self) -> str:
        """The bound in words."""
        sides = self.bound.model_dump(exclude_none=True)
        return ", ".join(f"{side} {value}" for side, value in sides.items())

    @property
    def spec(self) -> AssetCheckSpec:
        """Its definition."""
        return AssetCheckSpec(self.name, asset=asset_key(self.out), description=f"{self.metric}: {self.expected}")

    def evaluation(self, root: Path) -> AssetCheckEvaluation:
        """Compare the metric as it stands in its file; a missing one fails, one that is null could not be measured."""
        leaves = flat_leaves(_read_metrics(root / self.out))
        value: Any = leaves.get(self.metric)
        is_number = _is_number(value)
        is_unmeasured = self.metric in leaves and value is None
        description = f"{self.metric} = {value}, expected {self.expected}"
        if is_unmeasured:
            reason = leaves.get(f"{_owner(self.metric)}.reason", "null in the metrics")
            description = f"{self.metric} was not measured ({reason}), so its bound ({self.expected}) does not apply"
        return AssetCheckEvaluation(
            asset_key=asset_key(self.out),
            check_name=self.name,
            passed=is_unmeasured or (is_number and self.bound.accepts(value)),
            description=description,
            metadata=number_metadata({"value": value} if is_number else {}),
        )

    @property
    def key(self) -> AssetCheckKey:
        """The key by which Dagster knows it."""
        return AssetCheckKey(asset_key(self.out), self.name)


Check = MetricCheck | VerdictCheck


def read_checks(root: Path, graph: Graph) -> list[Check]:
    """Read the checks of params.yaml, each tied to the metrics file of its stage, or of each item of a foreach stage.

    A verdict has a check of its own, without any bound.

    Raises:
        ConfigError: a stage has checks but not exactly one metrics file, or a bound is misspelt.
    """
    params = root / "params.yaml"
    sections = read_params(params) if params.is_file() else {}
    checks: list[Check] = []
    for stage in graph.stages:
        section = sections.get(stage.word)
        bounds = (section.get("checks") if isinstance(section, Mapping) else None) or {}
        if not isinstance(bounds, Mapping):
            raise ConfigError(f"{params}: {stage.word}.checks: expected a bound for each metric, found {bounds!r}")
        metrics = [out.path for out in stage.outs if out.kind in ("metric", "verdict")]
        if bounds and len(metrics) != 1:
            raise ConfigError(f"{params}: {stage.word}.checks: one metrics file is needed, found {metrics}")
        for metric, bound in bounds.items():
            where = f"{params}: {stage.word}.checks.{metric}"
            checks.append(MetricCheck(metrics[0], metric, Bound.from_params(bound, where)))
        checks += [VerdictCheck(out.path) for out in stage.outs if out.kind == "verdict"]
    return checks


def stage_metadata(stage: Stage) -> Metadata:
    """Return what Dagster shows of a stage before it ever ran."""
    return {
        "dvc_stage": MetadataValue.text(stage.name),
        "command": MetadataValue.md(f"```\n{stage.cmd}\n```"),
        "files": MetadataValue.json(sorted(stage.files)),
        "params": MetadataValue.json({file: sorted(values) for file, values in stage.params.items()}),
    }


def out_metadata(root: Path, out: Out, recorded: RecordedOut) -> Metadata:
    """Return what Dagster shows of a materialization: size and md5, and what is inside, by the kind of the out.

    Of a metric its numbers and table, of a verdict its rules, of a plot its series, of a shard set its counts; of all
    where pictures, a page for the browser or a model card are.

    No pixels: Dagster's event database outlives the images of patients that an out may hold.
    """
    path = root / out.path
    shown: Metadata = {"path": MetadataValue.path(path), "md5": MetadataValue.text(recorded.md5)}
    if recorded.num_bytes is not None:
        shown["size_mb"] = MetadataValue.float(round(recorded.num_bytes / 1e6, 3))
    if recorded.num_files is not None:
        shown["num_files"] = MetadataValue.int(recorded.num_files)
    if out.kind == "metric":
        numbers = flat_numbers(_read_metrics(path))
        shown |= {"table": MetadataValue.md(_metrics_table(numbers)), **number_metadata(_headline(numbers))}
    if out.kind == "verdict":
        shown |= verdict_metadata(path)
    if out.kind == "data":
        shown |= set_metadata(path)
    if out.kind == "plot":
        shown |= {"series": MetadataValue.md(_series_table(path))}
    if path.suffix == ".html":
        shown |= {"page": MetadataValue.url(path.absolute().as_uri())}
    if (card := path / CARD).is_file():
        shown |= {"card": MetadataValue.path(card)}
    pictures = [path] if path.suffix == ".png" else sorted(path.glob("*.png"))
    return shown | {picture.name: MetadataValue.path(picture) for picture in pictures[:MAX_PICTURES]}


def number_metadata(numbers: Mapping[str, float]) -> Metadata:
    """Figures that the UI draws over time; GraphQL has no NaN and no infinity."""
    finite = [(key, float(value)) for key, value in numbers.items() if math.isfinite(value)]
    return {key: MetadataValue.float(value) for key, value in finite[:MAX_NUMBERS]}


def flat_numbers(tree: Any) -> dict[str, float]:
    """Numeric leaves of nested mappings by dotted path."""
    return {key: leaf for key, leaf in flat_leaves(tree).items() if _is_number(leaf)}


def flat_leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Everything in nested mappings that is no mapping, by dotted path."""
    if isinstance(tree, Mapping):
        return {key: leaf for name, sub in tree.items() for key, leaf in flat_leaves(sub, f"{prefix}.{name}").items()}
    return {prefix.removeprefix("."): tree}


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, int | float) and not isinstance(leaf, bool)


def _read_metrics(path: Path) -> Any:
    if not path.is_file():
        return {}
    return json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else read_params(path)


def _headline(numbers: Mapping[str, float]) -> dict[str, float]:
    """Reduce a figure with its interval, n and chance (`{value, low, high, …}`) to the value."""
    figures = {key.removesuffix(".value") for key in numbers if key.endswith(".value")}
    return {key: number for key, number in numbers.items() if _owner(key) not in figures or key.endswith(".value")}


def _owner(key: str) -> str:
    return key.rpartition(".")[0]


def _metrics_table(numbers: Mapping[str, float]) -> str:
    """Return one row per innermost mapping and one column per name of its leaves; flat metrics one below the other."""
    if not any(map(_owner, numbers)):
        return _markdown(["", "value"], ([key, f"{number:.5g}"] for key, number in numbers.items()))
    rows: dict[str, dict[str, str]] = {}
    for key, number in numbers.items():
        rows.setdefault(_owner(key), {})[key.rpartition(".")[2]] = f"{number:.5g}"
    columns = list(dict.fromkeys(leaf for cells in rows.values() for leaf in cells))
    return _markdown(["", *columns], ([row, *(cells.get(name, "") for name in columns)] for row, cells in rows.items()))


def _series_table(path: Path) -> str:
    """Return one row per numeric column of each CSV or TSV file: its curve, and how it began, ended, and ranged.

    Values that are not finite are shown where a series begins or ends with one, and have no part in its range.
    """
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    header = ["series", "curve", "rows", "first", "last", "min", "max"]
    return _markdown(header, (row for file in files if file.suffix in {".csv", ".tsv"} for row in _series(file)))


def _series(file: Path) -> Iterator[list[str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ","))
    for column in [name for name in rows[0] if name != "step"] if rows else []:
        try:
            values = [float(row[column]) for row in rows]
        except (TypeError, ValueError):
            continue
        finite = [value for value in values if math.isfinite(value)] or [math.nan]
        figures = [values[0], values[-1], min(finite), max(finite)]
        yield [f"{file.stem}: {column}", _curve(values), str(len(values)), *(f"{figure:.5g}" for figure in figures)]


def _curve(values: Sequence[float]) -> str:
    """Draw a series with letters, because Dagster shows no pictures that are not on a server.

    Each letter is the mean of a run of values, between the lowest and the highest of these means; what is not finite
    is left out.
    """
    runs = [run[np.isfinite(run)] for run in np.array_split(np.asarray(values), min(len(values), CURVE_WIDTH))]
    means = np.array([run.mean() for run in runs if run.size])
    if not means.size:
        return ""
    low, high = means.min(), means.max()
    heights = (means - low) / (high - low) if high > low else np.zeros_like(means)
    return "".join(LEVELS[round(height * (len(LEVELS) - 1))] for height in heights)


def _markdown(header: Sequence[str], rows: Iterator[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])
