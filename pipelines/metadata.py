"""What an asset shows in the UI: figures, tables, small pictures, and checks against thresholds of params.yaml."""

import base64
import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster import AssetCheckEvaluation, AssetCheckSpec, MetadataValue
from PIL import Image

from pipelines.graph import Graph, Out, Stage
from pipelines.lock import RecordedOut, asset_key
from shards.config import Section, read_params
from shards.errors import ConfigError

Metadata = dict[str, MetadataValue[Any]]

MAX_NUMBERS = 100
MAX_PICTURES = 2
PICTURE_PX = 480


class Threshold(Section):
    """The range in which a metric passes its asset check; an absent end is open."""

    min: float | None = None
    max: float | None = None

    def __str__(self) -> str:
        return f"[{'-∞' if self.min is None else self.min}, {'∞' if self.max is None else self.max}]"

    def holds(self, value: float) -> bool:
        """Whether `value` lies within both ends."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


@dataclass(frozen=True)
class MetricCheck:
    """One threshold of `checks: {STAGE: {METRIC: {min, max}}}` in params.yaml."""

    out: str
    """The metrics file."""
    metric: str
    """Dotted path inside it."""
    threshold: Threshold

    @property
    def name(self) -> str:
        """The metric's path in the characters that Dagster allows."""
        return re.sub(r"\W", "_", self.metric)

    @property
    def spec(self) -> AssetCheckSpec:
        """Its definition."""
        return AssetCheckSpec(
            self.name, asset=asset_key(self.out), description=f"{self.metric} within {self.threshold}"
        )

    def evaluation(self, root: Path) -> AssetCheckEvaluation:
        """The metric compared as it stands in its file; a missing one fails."""
        value = flat_numbers(_read_metrics(root / self.out)).get(self.metric)
        return AssetCheckEvaluation(
            asset_key=asset_key(self.out),
            check_name=self.name,
            passed=value is not None and self.threshold.holds(value),
            description=f"{self.metric} = {value}, expected within {self.threshold}",
            metadata=number_metadata({} if value is None else {"value": value}),
        )


def read_checks(root: Path, graph: Graph) -> list[MetricCheck]:
    """The checks of params.yaml, each tied to the one metrics file of its stage.

    Raises:
        ConfigError: a check names a stage without exactly one metrics file, or its range is misspelt.
    """
    params = root / "params.yaml"
    sections = read_params(params).get("checks", {}) if params.is_file() else {}
    metrics = {stage.name: [out.path for out in stage.outs if out.kind == "metric"] for stage in graph.stages}
    checks = []
    for name, thresholds in sections.items():
        if len(metrics.get(name, [])) != 1:
            able = sorted(stage for stage, paths in metrics.items() if len(paths) == 1)
            raise ConfigError(f"{params}: checks.{name}: expected a stage with one metrics file, one of {able}")
        for metric, threshold in thresholds.items():
            where = f"{params}: checks.{name}.{metric}"
            checks.append(MetricCheck(metrics[name][0], metric, Threshold.from_params(threshold, where)))
    return checks


def stage_metadata(stage: Stage) -> Metadata:
    """What a definition shows before it ever ran."""
    return {
        "dvc_stage": MetadataValue.text(stage.name),
        "command": MetadataValue.md(f"```\n{stage.cmd}\n```"),
        "files": MetadataValue.json(sorted(stage.files)),
        "params": MetadataValue.json({file: sorted(values) for file, values in stage.params.items()}),
    }


def out_metadata(root: Path, out: Out, recorded: RecordedOut) -> Metadata:
    """What a materialization shows: size and md5; a metric's numbers and table; a plot's series; pictures."""
    path = root / out.path
    shown: Metadata = {"path": MetadataValue.path(path), "md5": MetadataValue.text(recorded.md5)}
    if recorded.num_bytes is not None:
        shown["size_mb"] = MetadataValue.float(round(recorded.num_bytes / 1e6, 3))
    if recorded.num_files is not None:
        shown["num_files"] = MetadataValue.int(recorded.num_files)
    if out.kind == "metric":
        numbers = flat_numbers(_read_metrics(path))
        shown |= {"table": MetadataValue.md(_metrics_table(numbers)), **number_metadata(numbers)}
    if out.kind == "plot":
        shown |= {"series": MetadataValue.md(_series_table(path))}
    pictures = [path] if path.suffix == ".png" else sorted(path.glob("*.png"))
    return shown | {picture.name: MetadataValue.md(_preview(picture)) for picture in pictures[:MAX_PICTURES]}


def number_metadata(numbers: Mapping[str, float]) -> Metadata:
    """Figures that the UI draws over time; GraphQL has no NaN and no infinity."""
    finite = [(key, float(value)) for key, value in numbers.items() if math.isfinite(value)]
    return {key: MetadataValue.float(value) for key, value in finite[:MAX_NUMBERS]}


def flat_numbers(tree: Any, prefix: str = "") -> dict[str, float]:
    """Numeric leaves of nested mappings by dotted path."""
    if isinstance(tree, Mapping):
        return {key: leaf for name, sub in tree.items() for key, leaf in flat_numbers(sub, f"{prefix}.{name}").items()}
    is_number = isinstance(tree, int | float) and not isinstance(tree, bool)
    return {prefix.removeprefix("."): tree} if is_number else {}


def _read_metrics(path: Path) -> Any:
    if not path.is_file():
        return {}
    return json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else read_params(path)


def _metrics_table(numbers: Mapping[str, float]) -> str:
    """One row per innermost mapping, one column per name of its leaves."""
    split = {key: key.rpartition(".") for key in numbers}
    columns = list(dict.fromkeys(leaf for _, _, leaf in split.values()))
    rows: dict[str, dict[str, str]] = {}
    for key, (row, _, leaf) in split.items():
        rows.setdefault(row, {})[leaf] = f"{numbers[key]:.5g}"
    return _markdown(["", *columns], ([row, *(cells.get(name, "") for name in columns)] for row, cells in rows.items()))


def _series_table(path: Path) -> str:
    """One row per numeric column of each CSV or TSV file: how it began, ended, and ranged."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    header = ["series", "rows", "first", "last", "min", "max"]
    return _markdown(header, (row for file in files if file.suffix in {".csv", ".tsv"} for row in _series(file)))


def _series(file: Path) -> Iterator[list[str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ","))
    for column in rows[0] if rows else ():
        try:
            values = [float(row[column]) for row in rows]
        except (TypeError, ValueError):
            continue
        figures = [values[0], values[-1], min(values), max(values)]
        yield [f"{file.stem}: {column}", str(len(values)), *(f"{figure:.5g}" for figure in figures)]


def _markdown(header: Sequence[str], rows: Iterator[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])


def _preview(path: Path) -> str:
    """The picture itself, small, as Markdown that needs no server."""
    with Image.open(path) as image:
        image.thumbnail((PICTURE_PX, PICTURE_PX))
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
    return f"![{path.name}](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"
