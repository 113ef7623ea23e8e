"""One Dagster multi_asset per DVC stage, or per foreach family, with one asset per out."""

import keyword
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dagster import (
    AssetCheckResult,
    AssetExecutionContext,
    AssetObservation,
    AssetsDefinition,
    AssetSpec,
    DataVersion,
    Failure,
    MaterializeResult,
    map_asset_specs,
    multi_asset,
)
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from dagster._core.definitions.utils import is_valid_owner

from pipelines.graph import Graph, Stage, load_graph
from pipelines.lock import asset_key, commit_tag, is_up_to_date, provenance, read_lock
from pipelines.metadata import Check, out_metadata, stage_metadata
from pipelines.process import reproduce
from shards.core.errors import ConfigError

StepEvent = AssetObservation | MaterializeResult[None] | AssetCheckResult


def build_assets(root: Path, graph: Graph, checks: Sequence[Check]) -> list[AssetsDefinition]:
    """Build the assets of the whole graph.

    Raises:
        ConfigError: an out's path, or two of them, cannot be told apart by Dagster.
    """
    _check_names(graph)
    return [_family(root, graph, word, stages, checks) for word, stages in graph.families]


def _family(root: Path, graph: Graph, word: str, stages: Sequence[Stage], checks: Sequence[Check]) -> AssetsDefinition:
    own = {out.path for stage in stages for out in stage.outs}
    by_name = {check.spec.key: check for check in checks if check.out in own}

    @multi_asset(
        # Dagster names no op by a word of Python's, as `import`.
        name=f"{word}_" if keyword.iskeyword(word) else re.sub(r"\W", "_", word),
        specs=[spec for stage in stages for spec in _specs(stage)],
        check_specs=[check.spec for check in by_name.values()],
        can_subset="@" in stages[0].name,
        pool=stages[0].meta.pool,
    )
    def run(context: AssetExecutionContext) -> Iterator[StepEvent]:
        selected = [
            (stage, [out for out in stage.outs if asset_key(out.path) in context.selected_asset_keys])
            for stage in stages
        ]
        selected = [(stage, outs) for stage, outs in selected if outs]
        failure, commit = None, commit_tag(root)
        try:
            yield from reproduce(
                context,
                root,
                [stage.name for stage, _ in selected],
                jobs=stages[0].meta.jobs,
                observed=asset_key(selected[0][1][0].path),
            )
        except Failure as error:
            failure = error
            finished = _finished(root)
            selected = [(stage, outs) for stage, outs in selected if stage.name in finished]
        if failure and not selected:
            raise failure
        records = read_lock(root, graph, just_run=[stage.name for stage, _ in selected], wait=True)
        for stage, outs in selected:
            tags = provenance(records[stage.name])
            for out in outs:
                yield MaterializeResult(
                    asset_key=asset_key(out.path),
                    metadata=out_metadata(root, out, records[stage.name].outs[out.path]),
                    data_version=DataVersion(tags[out.path][DATA_VERSION_TAG]),
                    tags={**tags[out.path], **commit},
                )
        if failure:
            names = ", ".join(stage.name for stage, _ in selected)
            raise Failure(f"{failure.description}; these have finished: {names}", metadata=failure.metadata)
        for key in context.selected_asset_check_keys:
            done = by_name[key].evaluation(root)
            yield AssetCheckResult(
                asset_key=done.asset_key,
                check_name=done.check_name,
                passed=done.passed,
                severity=done.severity,
                description=done.description,
                metadata=done.metadata,
            )

    return run


def with_owners(
    assets: Iterable[AssetsDefinition | AssetSpec], owners: Sequence[str]
) -> Sequence[AssetsDefinition | AssetSpec]:
    """Let Dagster show the owners on every asset.

    Raises:
        ConfigError: one is neither an e-mail address nor a team.
    """
    for owner in owners:
        if not is_valid_owner(owner):
            raise ConfigError(
                f"operations.owners: found '{owner}'; expected an e-mail address, as anna@clinic.org, or team:imaging"
            )
    return map_asset_specs(lambda spec: spec.replace_attributes(owners=owners), assets)


def _finished(root: Path) -> set[str]:
    """Name the stages that are up to date after a failure; none if not even that can be told."""
    try:
        graph = load_graph(root)
        records = read_lock(root, graph, wait=True)
    except ConfigError:
        return set()
    return {stage.name for stage in graph.stages if is_up_to_date(root, stage, records)}


def _specs(stage: Stage) -> Iterator[AssetSpec]:
    for out in stage.outs:
        yield AssetSpec(
            asset_key(out.path),
            deps=[asset_key(path) for path in (*stage.inputs, *stage.deliveries)],
            description=stage.description,
            group_name=stage.meta.group,
            code_version=stage.code_version,
            kinds={"dvc", out.kind},
            metadata=stage_metadata(stage),
        )


def _check_names(graph: Graph) -> None:
    """Dagster names a step's outputs after their keys, with `-` and `.` made `_`."""
    paths: dict[str, str] = {}
    for path in sorted(graph.produced):
        name = asset_key(path).to_python_identifier()
        if not re.fullmatch(r"\w+", name, re.ASCII):
            raise ConfigError(f"dvc.yaml: out '{path}': only letters, digits, '_', '-', '.' and '/' can name an asset")
        if paths.setdefault(name, path) != path:
            raise ConfigError(f"dvc.yaml: outs '{paths[name]}' and '{path}' differ only in '-', '.', '_' or '/'")
