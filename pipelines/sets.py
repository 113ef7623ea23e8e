"""Shard sets in the UI: what they hold, and whether they are whole."""

from pathlib import Path
from typing import Any

from dagster import AssetCheckResult, AssetChecksDefinition, MetadataValue, asset_check

from pipelines.graph import Graph
from pipelines.lock import asset_key
from shards.checking.stats import format_statistics, statistics_of
from shards.core.errors import IndexFormatError
from shards.format.layout import INDEX
from shards.reading.reader import ShardIndex

SHARD = "shard"
"""The stage whose outs are shard sets."""
VERIFY = "verify"
MAX_FINDINGS = 20


def set_metadata(path: Path) -> dict[str, MetadataValue[Any]]:
    """Images, patients where they are known, and quarantined images of a shard set; nothing for any other folder."""
    if not (path / INDEX).is_file():
        return {}
    try:
        index = ShardIndex.open(path, check_tars=False)
    except IndexFormatError as error:
        return {"contents": MetadataValue.text(str(error))}
    statistics = statistics_of(index)
    counts: dict[str, int] = {"images": sum(statistics["images"].values())}
    if statistics["dataset"]["patient_grouping"] == "patient":
        counts["patients"] = sum(statistics["patients"].values())
    counts["quarantined"] = statistics["quarantined"]["count"]
    return {
        **{name: MetadataValue.int(number) for name, number in counts.items()},
        "contents": MetadataValue.md(f"```\n{format_statistics(index)}\n```"),
    }


def build_set_checks(root: Path, graph: Graph) -> list[AssetChecksDefinition]:
    """Build one check for each shard set: is it what its index says, byte for byte?"""
    return [_verified(root, out.path) for stage in graph.stages if stage.word == SHARD for out in stage.outs]


def _verified(root: Path, path: str) -> AssetChecksDefinition:
    description = (
        "Every tar and report against its sum in the index, as `python -m shards verify` does; reads all of it"
    )

    @asset_check(asset=asset_key(path), name=VERIFY, description=description)
    def verify() -> AssetCheckResult:
        # Here, not above: it takes along what builds shards.
        from shards.checking.verify import format_problems, verify_set

        findings = verify_set(root / path)
        shown = "\n".join(["```", format_problems(findings[:MAX_FINDINGS]), "```"])
        problem = f"{len(findings)} findings; `python -m shards verify {path}` lists them, --repair mends tars"
        return AssetCheckResult(
            passed=not findings,
            description=problem if findings else "all is as it should be",
            metadata={"findings": MetadataValue.md(shown)} if findings else {},
        )

    return verify
