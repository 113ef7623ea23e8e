"""Shard sets in the UI: what they hold, and whether they are whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dagster import (
    AssetCheckExecutionContext,
    AssetCheckResult,
    AssetChecksDefinition,
    AssetCheckSpec,
    AssetKey,
    Failure,
    MetadataValue,
    multi_asset_check,
)

from pipelines.graph import Graph
from pipelines.lock import asset_key
from shards.checking.stats import format_statistics, statistics_of
from shards.core.errors import IndexFormatError
from shards.format.layout import INDEX
from shards.reading.reader import ShardIndex

SHARD = "shard"
"""The stage whose outs are shard sets."""
VERIFY = "verify"
MAX_PROBLEMS = 20


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
    """Build one check for each shard set, all of one step: is the set what its index says, byte for byte?"""
    paths = {asset_key(out.path): out.path for stage in graph.stages if stage.word == SHARD for out in stage.outs}
    if not paths:
        return []
    description = (
        "Every tar and report against its sum in the index, as `python -m shards verify` does; reads all of it"
    )

    # One step for all: a process for each of hundreds of sets would take longer to start than to read small ones.
    @multi_asset_check(
        name=VERIFY,
        specs=[AssetCheckSpec(VERIFY, asset=key, description=description) for key in paths],
        can_subset=True,
    )
    def verify(context: AssetCheckExecutionContext) -> Iterator[AssetCheckResult]:
        unread = []
        for key in sorted(check.asset_key for check in context.selected_asset_check_keys):
            try:
                yield _verified(root, key, paths[key])
            except OSError as error:  # the other sets can still be read
                unread.append(f"{paths[key]} ({error})")
        if unread:
            raise Failure(f"these shard sets cannot be read: {', '.join(unread)}")

    return [verify]


def _verified(root: Path, key: AssetKey, path: str) -> AssetCheckResult:
    # Here, not above: it takes along what builds shards.
    from shards.checking.verify import format_problems, verify_set

    problems = verify_set(root / path)
    shown = "\n".join(["```", format_problems(problems[:MAX_PROBLEMS]), "```"])
    text = f"{len(problems)} problems; `python -m shards verify {path}` lists them, --repair mends tars"
    return AssetCheckResult(
        asset_key=key,
        check_name=VERIFY,
        passed=not problems,
        description=text if problems else "all is as it should be",
        metadata={"problems": MetadataValue.md(shown)} if problems else {},
    )
