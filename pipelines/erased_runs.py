"""Remove what Dagster keeps of a patient: output and runs that have some texts, for `python -m ace withdraw --erase`.

    python -m pipelines.erased_runs < texts.json

The texts come from stdin as a list of hex, since the list of processes shows what stands on a command line. It prints
the ids of the runs whose output was removed, of those that were removed as a whole, and of those that have not ended,
which are left, as JSON. A service may run meanwhile.
"""

import json
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from dagster import DagsterInstance, DagsterRun
from dagster._core.storage.dagster_run import FINISHED_STATUSES
from dagster._serdes import serialize_value
from sqlalchemy import event
from sqlalchemy.engine import Engine

from pipelines.old_runs import output_files, remove

_TIMEOUT_S = 30.0


def main() -> None:
    """Remove them."""
    texts = [bytes.fromhex(text) for text in json.load(sys.stdin)]
    with DagsterInstance.get() as instance:
        print(json.dumps(erase_runs(instance, texts)))


def erase_runs(instance: DagsterInstance, texts: Sequence[bytes]) -> dict[str, list[str]]:
    """Remove the output of runs that have one of some texts in it, and runs that have it in their events or tags.

    A run goes as a whole although it may be the one that made an asset last: what it says of the patient must not stay.

    Args:
        instance: Dagster's.
        texts: The texts.

    Returns:
        Ids of the runs: `output`, of which the output alone was removed; `removed`; and `running`, which have not
        ended, and are left as they are.
    """
    found: dict[str, list[str]] = {"output": [], "removed": [], "running": []}
    event.listen(Engine, "connect", _overwrite_what_is_deleted)
    try:
        for record in instance.get_run_records():
            run = record.dagster_run
            is_in_events = _is_in_events(instance, run, texts)
            if not is_in_events and not _has(b"".join(map(Path.read_bytes, output_files(instance, run.run_id))), texts):
                continue
            if run.status not in FINISHED_STATUSES:
                found["running"].append(run.run_id)
            elif is_in_events:
                remove(instance, run.run_id)
                found["removed"].append(run.run_id)
            else:
                instance.compute_log_manager.delete_logs(prefix=[run.run_id])
                found["output"].append(run.run_id)
    finally:
        event.remove(Engine, "connect", _overwrite_what_is_deleted)
    _empty_journals(Path(instance.root_directory))  # also of what an earlier call was killed after
    return found


def _is_in_events(instance: DagsterInstance, run: DagsterRun, texts: Sequence[bytes]) -> bool:
    """Ask Dagster, which may have them on a server; in a file of SQLite a long one is cut into pieces."""
    serialized = (serialize_value(run), *map(serialize_value, instance.all_logs(run.run_id)))
    return any(_has(text.encode(), texts) for text in serialized)


def _has(data: bytes, texts: Sequence[bytes]) -> bool:
    return any(text in data for text in texts)


def _overwrite_what_is_deleted(connection: Any, _: object) -> None:
    """Let SQLite write zeros over deleted rows, which not every build of it does by itself."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA secure_delete = ON").close()


def _empty_journals(home: Path) -> None:
    """Bring SQLite's journals into its files: deleted rows stand in both until then."""
    for journal in sorted(home.rglob("*.db-wal")):
        with closing(sqlite3.connect(str(journal).removesuffix("-wal"), timeout=_TIMEOUT_S)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


if __name__ == "__main__":
    main()
