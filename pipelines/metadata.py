"""What an asset shows in the UI: figures, tables, small pictures, and checks against bounds of params.yaml."""

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

from ace.evaluation.params import Bound
from pipelines.graph import Graph, Out, Stage
from pipelines.lock import RecordedOut, asset_key
from shards.config import read_params
from shards.errors import ConfigError

Metadata = dict[str, MetadataValue[Any]]

MAX_NUMBERS = 100
MAX_PICTURES = 2
PICTURE_PX = 480


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
        """The metric compared as it stands in its file; a missing one fails."""
        value = flat_numbers(_read_metrics(root / self.out)).get(self.metric)
        return AssetCheckEvaluation(
            asset_key=asset_key(self.out),
            check_name=self.name,
            passed=value is not None and self.bound.accepts(value),
            description=f"{self.metric} = {value}, expected {self.expected}",
            metadata=number_metadata({} if value is None else {"value": value}),
        )


def read_checks(root: Path, graph: Graph) -> list[MetricCheck]:
    """The checks of params.yaml, each tied to the one metrics file of its stage.

    Raises:
        ConfigError: a stage has checks but not exactly one metrics file, or a range is misspelt.
    """
    params = root / "params.yaml"
    sections = read_params(params) if params.is_file() else {}
    checks = []
    for stage in graph.stages:
        section = sections.get(stage.name)
        bounds = section.get("checks", {}) if isinstance(section, Mapping) else {}
        metrics = [out.path for out in stage.outs if out.kind == "metric"]
        if bounds and len(metrics) != 1:
            raise ConfigError(f"{params}: {stage.name}.checks: one metrics file is needed, found {metrics}")
        for metric, bound in bounds.items():
            where = f"{params}: {stage.name}.checks.{metric}"
            checks.append(MetricCheck(metrics[0], metric, Bound.from_params(bound, where)))
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
        shown |= {"table": MetadataValue.md(_metrics_table(numbers)), **number_metadata(_headline(numbers))}
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


def _headline(numbers: Mapping[str, float]) -> dict[str, float]:
    """Of a figure with its interval, n and chance (`{value, low, high, …}`) only the value."""
    figures = {key.removesuffix(".value") for key in numbers if key.endswith(".value")}
    return {key: number for key, number in numbers.items() if _owner(key) not in figures or key.endswith(".value")}


def _owner(key: str) -> str:
    return key.rpartition(".")[0]


def _metrics_table(numbers: Mapping[str, float]) -> str:
    """One row per innermost mapping and one column per name of its leaves; flat metrics one below the other."""
    if not any(map(_owner, numbers)):
        return _markdown(["", "value"], ([key, f"{number:.5g}"] for key, number in numbers.items()))
    rows: dict[str, dict[str, str]] = {}
    for key, number in numbers.items():
        rows.setdefault(_owner(key), {})[key.rpartition(".")[2]] = f"{number:.5g}"
    columns = list(dict.fromkeys(leaf for cells in rows.values() for leaf in cells))
    return _markdown(["", *columns], ([row, *(cells.get(name, "") for name in columns)] for row, cells in rows.items()))


def _series_table(path: Path) -> str:
    """One row per numeric column of each CSV or TSV file: how it began, ended, and ranged."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))
    header = ["series", "rows", "first", "last", "min", "max"]
    return _markdown(header, (row for file in files if file.suffix in {".csv", ".tsv"} for row in _series(file)))


def _series(file: Path) -> Iterator[list[str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ","))
    for column in [name for name in rows[0] if name != "step"] if rows else []:
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
