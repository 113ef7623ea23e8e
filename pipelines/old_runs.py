"""List the runs of Dagster that ended before a moment, or remove them: a command for `python -m ace ops clean`.

    python -m pipelines.old_runs 2026-05-30T00:00:00+00:00 [--remove]

It prints the id of each with the bytes of its output, as JSON.
"""

import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from dagster import DagsterInstance, RunsFilter
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._core.storage.event_log.sqlite import SqliteEventLogStorage
from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager


def main(arguments: Sequence[str]) -> None:
    """List the runs, or remove them."""
    before, *options = arguments
    with DagsterInstance.get() as instance:
        runs = {name: _size(instance, name) for name in old_runs(instance, datetime.fromisoformat(before))}
        print(json.dumps(runs))
        for name in runs if options == ["--remove"] else ():
            remove(instance, name)


def old_runs(instance: DagsterInstance, before: datetime) -> list[str]:
    """Return the ids of runs that have ended, and to which nothing has happened since a moment.

    The run by which an asset was materialized last stays: it is what Dagster knows of the asset.
    """
    latest = instance.get_latest_materialization_events(instance.all_asset_keys()).values()
    kept = {event.run_id for event in latest if event is not None}
    records = instance.get_run_records(RunsFilter(statuses=FINISHED_STATUSES, updated_before=before))
    return [name for record in records if (name := record.dagster_run.run_id) not in kept]


def remove(instance: DagsterInstance, run: str) -> None:
    """Remove a run's output, and then its events and itself, so that a kill leaves a run that is found again."""
    instance.compute_log_manager.delete_logs(prefix=[run])
    instance.event_log_storage.delete_events(run)
    for path in _files(instance, run):
        path.unlink(missing_ok=True)
    instance.run_storage.delete_run(run)


def _size(instance: DagsterInstance, run: str) -> int:
    return sum(path.stat().st_size for path in _files(instance, run))


def output_files(instance: DagsterInstance, run: str) -> list[Path]:
    """List the files with the output of a run on this machine."""
    logs = instance.compute_log_manager
    if not isinstance(logs, LocalComputeLogManager):
        return []
    folder = Path(logs.get_captured_local_path([run], "out")).parent / run
    return [path for path in folder.rglob("*") if path.is_file()]


def _files(instance: DagsterInstance, run: str) -> list[Path]:
    """List the files of a run on this machine: its output, and its events where SQLite has them."""
    found, events = output_files(instance, run), instance.event_log_storage
    if isinstance(events, SqliteEventLogStorage):
        database = Path(events.path_for_shard(run))
        found += [path for path in database.parent.glob(f"{database.name}*") if path.is_file()]
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
