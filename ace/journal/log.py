"""Log a run to all places that it is told in.

These are metrics.jsonl in its scratch folder, DVCLive under metrics/, Dagster when it is listening, and the loggers
that were asked for.
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dvclive import Live

from ace.journal.loggers import Logger, find_logger, open_loggers
from ace.journal.pipes import Report, open_reporter
from shards.runtime.atomic import write_text

logging.getLogger("dvclive").setLevel(logging.ERROR)
NOT_PLOTTED = ("step", "epoch", "images")


class RunLog:
    """One row of named numbers per logged step, kept through kills: rows past the resumed step are dropped."""

    def __init__(self, path: Path, live: Live, report: Report, loggers: Sequence[str], loggers_dir: Path) -> None:
        self.path, self._live, self._report = path, live, report
        self._names, self._loggers_dir = loggers, loggers_dir
        self._loggers: list[Logger] = []

    def rows(self) -> list[dict[str, float]]:
        """Return all rows so far, oldest first."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A kill may have cut the last line.
        return [_parse(line) for line in lines if line.endswith("\n")]

    def resume(self, step: int) -> None:
        """Begin after `step` finished steps; to be called once, before the first row, with 0 for a new run.

        Keeps the rows of those steps, gives them to DVCLive again (DVC removed its folder), and opens the loggers.
        """
        kept = [row for row in self.rows() if row["step"] < step]
        write_text(self.path, "".join(_format(row) for row in kept))
        for row in kept:
            self._to_live(row)
        self._live.make_summary()
        self._loggers = open_loggers(self._names, self._loggers_dir, kept)

    def add(self, row: Mapping[str, float]) -> None:
        """Append one row and pass it on."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_format(row))
        self._to_live(row)
        self._live.make_summary()
        for logger in self._loggers:
            logger.log(row)
        self._report(row)

    def close(self) -> None:
        """Close the loggers, all of them even if one fails."""
        with ExitStack() as stack:
            for logger in self._loggers:
                stack.callback(logger.close)

    def _to_live(self, row: Mapping[str, float]) -> None:
        self._live.step = int(row["step"])
        for name, value in row.items():
            self._live.log_metric(name, value, plot=name not in NOT_PLOTTED)


@contextmanager
def open_log(
    path: Path, metrics_dir: Path, *, loggers: Sequence[str] = (), loggers_dir: Path | None = None
) -> Iterator[RunLog]:
    """Open the log of one run; call its `resume` first.

    Args:
        path: File of the rows, metrics.jsonl; survives kills.
        metrics_dir: DVCLive writes `metrics.json` and `plots/` below it.
        loggers: Names of more loggers (ace.journal.loggers).
        loggers_dir: Each has a folder below it, which must survive kills too; None for `loggers` beside `path`.

    Raises:
        ConfigError: there is no logger of a name; before anything is written.
    """
    for name in loggers:
        find_logger(name)
    live = Live(str(metrics_dir), resume=False, save_dvc_exp=False, report=None, dvcyaml=None, monitor_system=False)
    with live, open_reporter() as report:
        log = RunLog(path, live, report, loggers, loggers_dir or path.with_name("loggers"))
        try:
            yield log
        finally:
            log.close()


def _format(row: Mapping[str, float]) -> str:
    """Format one line of JSON, in which null stands for NaN and infinity."""
    return json.dumps({name: value if math.isfinite(value) else None for name, value in row.items()}) + "\n"


def _parse(line: str) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in json.loads(line).items()}
