"""What a run logs: metrics.jsonl in its scratch folder, DVCLive under metrics/, and Dagster when it is listening."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dvclive import Live

from ace.training.pipes import Report, open_reporter
from shards.atomic import write_text

logging.getLogger("dvclive").setLevel(logging.ERROR)
NOT_PLOTTED = ("step", "epoch", "images")


class RunLog:
    """One row of named numbers per logged step, kept through kills: rows past the resumed step are dropped."""

    def __init__(self, path: Path, live: Live, report: Report) -> None:
        self.path, self._live, self._report = path, live, report

    def rows(self) -> list[dict[str, float]]:
        """All rows so far, oldest first."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A kill may have cut the last line.
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def resume(self, step: int) -> None:
        """Keep the rows of the first `step` steps and give them to DVCLive again: DVC removed its folder."""
        kept = [row for row in self.rows() if row["step"] < step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        for row in kept:
            self._to_live(row)

    def add(self, row: Mapping[str, float]) -> None:
        """Append one row and pass it on."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(row)) + "\n")
        self._to_live(row)
        self._report(row)

    def _to_live(self, row: Mapping[str, float]) -> None:
        self._live.step = int(row["step"])
        for name, value in row.items():
            self._live.log_metric(name, value, plot=name not in NOT_PLOTTED)
        self._live.make_summary()


@contextmanager
def open_log(path: Path, metrics_dir: Path) -> Iterator[RunLog]:
    """The log of one run; DVCLive writes `metrics.json` and `plots/` below `metrics_dir`."""
    live = Live(str(metrics_dir), resume=False, save_dvc_exp=False, report=None, dvcyaml=None, monitor_system=False)
    with live, open_reporter() as report:
        yield RunLog(path, live, report)
