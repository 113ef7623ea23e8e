"""Ask Dagster, which this package does not import, about its runs, and let it remove some."""

import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from ace.operations.errors import OperationsError

HOME_VARIABLE = "DAGSTER_HOME"


def runs_before(before: datetime, *options: str) -> dict[str, int]:
    """Ask Dagster for its runs that ended before a moment, or let it remove them.

    Raises:
        OperationsError: it does not answer.
    """
    found: dict[str, int] = _ask("pipelines.old_runs", before.astimezone(UTC).isoformat(), *options)
    return found


def erase_runs(texts: Sequence[str]) -> dict[str, list[str]]:
    """Let Dagster remove the output of runs that have some texts, and runs with these in their events.

    Args:
        texts: The texts, in hex.

    Returns:
        Ids of runs: `output`, whose output alone was removed, `removed`, and `running`, which have not ended and are
        left.

    Raises:
        OperationsError: it does not answer.
    """
    found: dict[str, list[str]] = _ask("pipelines.erased_runs", stdin=json.dumps(list(texts)))
    return found


def _ask(module: str, *arguments: str, stdin: str = "") -> Any:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, input=stdin, check=False)
    if done.returncode:
        why = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise OperationsError(f"Dagster's runs in ${HOME_VARIABLE} cannot be looked at or removed: {why}")
    return json.loads(done.stdout)
