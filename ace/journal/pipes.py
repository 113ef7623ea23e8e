"""Live training metrics in Dagster: sent over Pipes when a Dagster step started the process, otherwise nowhere."""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from dagster_pipes import DAGSTER_PIPES_CONTEXT_ENV_VAR, open_dagster_pipes

REPORT_EVERY_S = 1.0

Report = Callable[[Mapping[str, float]], None]


@contextmanager
def open_reporter() -> Iterator[Report]:
    """Return a function that reports the newest metrics; it may be called often, and sends at most one a second.

    Under plain `dvc repro` it does nothing. Open it once per process, and only on rank 0.
    """
    if DAGSTER_PIPES_CONTEXT_ENV_VAR not in os.environ:
        yield lambda metrics: None
        return
    with open_dagster_pipes() as pipes:
        unsent: dict[str, float] = {}
        due = time.monotonic()

        def report(metrics: Mapping[str, float]) -> None:
            nonlocal due
            unsent.update(metrics)
            if time.monotonic() >= due:
                due = time.monotonic() + REPORT_EVERY_S
                pipes.report_custom_message({"metrics": dict(unsent)})
                unsent.clear()

        try:
            yield report
        finally:
            if unsent:
                pipes.report_custom_message({"metrics": unsent})
