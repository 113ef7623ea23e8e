"""The `dvc_lock` sensor: what `dvc repro` did on the command line shows up in Dagster."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dagster import (
    AssetCheckEvaluation,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    DagsterEventType,
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
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecord

from ace.operations.params import OperationsParams, read_operations
from pipelines.graph import PARAMS_NAME, Graph, Stamps, load_graph, stamps
from pipelines.lock import asset_key, commit_tag, is_reported, provenance, read_lock
from pipelines.metadata import Check, out_metadata, read_checks
from shards.core.errors import ConfigError

TICK_S = 10
RELOAD_TIMEOUT_S = 60
MAX_RELOADS = 3
NUM_NAMED = 3
Event = AssetMaterialization | AssetObservation | AssetCheckEvaluation
ACTIVE = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]


def build_dvc_lock_sensor(
    root: Path, graph: Graph | None, checks: Sequence[Check], operations: OperationsParams | None
) -> SensorDefinition:
    """Report differences between dvc.lock and the latest materializations; reload when params or code changed.

    Args:
        root: of the DVC repository.
        graph: what the running definitions were built from; None if it could not be read, and they are empty.
        checks: of the running definitions.
        operations: Section `operations` that they were built from; None likewise.
    """
    num_reloads, is_changed = 0, False
    seen: Stamps | None = None

    @sensor(name="dvc_lock", minimum_interval_seconds=TICK_S, default_status=DefaultSensorStatus.RUNNING)
    def dvc_lock(context: SensorEvaluationContext) -> SensorResult:
        """Compares dvc.lock with the latest materialization tags and reports what differs, without a run."""
        nonlocal num_reloads, is_changed, seen
        events: list[Event] = []
        notes: list[str] = []
        # Reported before a reload is asked for: not every code server can reload.
        try:
            if graph:
                events = lock_events(context.instance, root, graph, checks)
                notes += [] if events else ["dvc.lock holds nothing new" + _absent(root, graph)]
        except ConfigError as error:
            notes.append(str(error))
        now = stamps(root, graph) if graph else None
        try:
            if now is None or now != seen:  # to resolve the graph of hundreds of batches takes seconds
                current = load_graph(root)
                read = (current, read_checks(root, current), read_operations(root / PARAMS_NAME))
                is_changed = read != (graph, checks, operations)
                seen = now
        except ConfigError as error:
            is_changed = False
            notes.append(str(error))
        if is_changed:
            notes.append(_reload(context, num_reloads))
        num_reloads = min(num_reloads + 1, MAX_RELOADS) if is_changed else 0
        return SensorResult(asset_events=events, skip_reason="; ".join(notes) or None)

    return dvc_lock


def lock_events(instance: DagsterInstance, root: Path, graph: Graph, checks: Sequence[Check]) -> list[Event]:
    """Materializations, with their checks, for all that dvc.lock records otherwise than Dagster does.

    Assets of a run in progress are left to it: it reports them itself. An out that is not in the work tree, as in a
    fresh clone, is not reported. A check is evaluated again when its result would be another one.
    """
    # In this order, because a run writes dvc.lock, reports, and ends: if its record is seen here, and it has ended when
    # the runs are looked at, its report is among the latest.
    records = read_lock(root, graph)
    busy = _in_progress(instance, graph)
    latest = instance.get_latest_materialization_events([asset_key(path) for path in graph.produced])
    results = instance.event_log_storage.get_latest_asset_check_execution_by_key([check.key for check in checks])
    events: list[Event] = []
    commit: Mapping[str, str] = {}
    for record, out in [(records.get(stage.name), out) for stage in graph.stages for out in stage.outs]:
        key = asset_key(out.path)
        if record is None or out.path not in record.outs or key in busy or not (root / out.path).exists():
            continue
        tags = provenance(record)[out.path]
        entry = latest.get(key)
        known = entry.asset_materialization if entry else None
        is_known = known is not None and is_reported(tags, known.tags or {})
        if not is_known:
            commit = commit or commit_tag(root)
            shown = out_metadata(root, out, record.outs[out.path])
            events.append(AssetMaterialization(key, metadata=shown, tags={**tags, **commit}))
        for check in [check for check in checks if check.out == out.path]:
            result = check.evaluation(root)
            if not is_known or not _is_same(result, results.get(check.key)):
                events.append(result)
    return events


def _is_same(result: AssetCheckEvaluation, latest: AssetCheckExecutionRecord | None) -> bool:
    """Tell whether the latest evaluation of a check found the same value against the same bound."""
    event = latest.event.dagster_event if latest and latest.event else None
    if event is None or event.event_type != DagsterEventType.ASSET_CHECK_EVALUATION:
        return False
    known = event.asset_check_evaluation_data
    return (known.passed, known.description) == (result.passed, result.description)


def _absent(root: Path, graph: Graph) -> str:
    paths = sorted(path for path in graph.produced if not (root / path).exists())
    more = f" and {len(paths) - NUM_NAMED} more" if len(paths) > NUM_NAMED else ""
    return f"; not in the work tree: {', '.join(paths[:NUM_NAMED])}{more}" if paths else ""


def _in_progress(instance: DagsterInstance, graph: Graph) -> set[AssetKey]:
    """Assets of all active runs; a run without a selection runs them all."""
    everything = {asset_key(path) for path in graph.produced}
    runs = instance.get_runs(RunsFilter(statuses=ACTIVE))
    return {key for run in runs for key in run.asset_selection or everything}


def _reload(context: SensorEvaluationContext, num_before: int) -> str:
    """Ask the code server that evaluates this very sensor to load the definitions again, which makes a new sensor.

    Args:
        context: of the sensor.
        num_before: Reloads asked for by this sensor, in vain: else it would no longer be evaluated.
    """
    origin = context.code_location_origin
    if not isinstance(origin, GrpcServerCodeLocationOrigin):
        return "params or code changed: reload the code location to see it"
    if num_before >= MAX_RELOADS:
        return (
            f"params or code changed: {num_before} reloads changed nothing, as with `dagster api grpc`, which cannot "
            "reload: restart the code server, or start it with `dagster code-server start`"
        )
    origin.create_client().reload_code(timeout=RELOAD_TIMEOUT_S)
    return "params or code changed: the code location was asked to reload"
