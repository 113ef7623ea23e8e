"""The `dvc_lock` sensor: what `dvc repro` did on the command line shows up in Dagster."""

from collections.abc import Sequence
from pathlib import Path

from dagster import (
    AssetCheckEvaluation,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    DagsterInstance,
    DagsterRunStatus,
    DefaultSensorStatus,
    RunsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    sensor,
)
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin

from pipelines.graph import Graph, load_graph
from pipelines.lock import asset_key, is_reported, provenance, read_lock
from pipelines.metadata import MetricCheck, out_metadata, read_checks
from shards.errors import ConfigError

TICK_S = 10
RELOAD_TIMEOUT_S = 60
Event = AssetMaterialization | AssetObservation | AssetCheckEvaluation
ACTIVE = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]


def build_dvc_lock_sensor(root: Path, graph: Graph, checks: Sequence[MetricCheck]) -> SensorDefinition:
    """Report differences between dvc.lock and the latest materializations; reload when params or code changed.

    Args:
        root: of the DVC repository.
        graph: what the running definitions were built from.
        checks: likewise.
    """

    @sensor(name="dvc_lock", minimum_interval_seconds=TICK_S, default_status=DefaultSensorStatus.RUNNING)
    def dvc_lock(context: SensorEvaluationContext) -> SensorResult:
        """Compares dvc.lock with the latest materialization tags and reports what differs, without a run."""
        try:
            current = load_graph(root)
            if current != graph or read_checks(root, current) != checks:
                return SensorResult(skip_reason=_reload(context))
            events = lock_events(context.instance, root, graph, checks)
        except ConfigError as error:
            return SensorResult(skip_reason=str(error))
        return SensorResult(asset_events=events, skip_reason=None if events else "dvc.lock holds nothing new")

    return dvc_lock


def lock_events(instance: DagsterInstance, root: Path, graph: Graph, checks: Sequence[MetricCheck]) -> list[Event]:
    """Materializations, with their checks, for all that dvc.lock records otherwise than Dagster does.

    Assets of a run in progress are left to it: it reports them itself.
    """
    records = read_lock(root, graph)
    latest = instance.get_latest_materialization_events([asset_key(path) for path in graph.produced])
    busy = _in_progress(instance, graph)
    events: list[Event] = []
    for record, out in [(records.get(stage.name), out) for stage in graph.stages for out in stage.outs]:
        key = asset_key(out.path)
        if record is None or out.path not in record.outs or key in busy:
            continue
        tags = provenance(record)[out.path]
        entry = latest.get(key)
        known = entry.asset_materialization if entry else None
        if known and is_reported(tags, known.tags or {}):
            continue
        events.append(AssetMaterialization(key, metadata=out_metadata(root, out, record.outs[out.path]), tags=tags))
        events += [check.evaluation(root) for check in checks if check.out == out.path]
    return events


def _in_progress(instance: DagsterInstance, graph: Graph) -> set[AssetKey]:
    """Assets of all active runs; a run without a selection runs them all."""
    everything = {asset_key(path) for path in graph.produced}
    runs = instance.get_runs(RunsFilter(statuses=ACTIVE))
    return {key for run in runs for key in run.asset_selection or everything}


def _reload(context: SensorEvaluationContext) -> str:
    """Ask the code server that evaluates this very sensor to load the definitions again."""
    origin = context.code_location_origin
    if not isinstance(origin, GrpcServerCodeLocationOrigin):
        return "params or code changed: reload the code location to see it"
    origin.create_client().reload_code(timeout=RELOAD_TIMEOUT_S)
    return "params or code changed: the code location was reloaded"
