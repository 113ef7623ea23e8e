"""Rows reach every place once, whatever was killed and resumed, and other people's loggers are like our own."""

import json
import math
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest

from ace.journal.log import open_log
from ace.journal.loggers import Row, find_logger
from shards.core.errors import ConfigError
from tests.ace.pretrain.conftest import ROOT
from tests.ace.pretrain.runs import finish
from tests.support.forked import Forked

REASON = "TensorBoard is not installed, so NOTHING of its logger is tested: pip install -e '.[tensorboard]'"
THIRD_PARTY = f"{__name__}:ListLogger"
NOT_A_FACTORY = 3

KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from ace.journal.log import open_log
root = Path(sys.argv[1])
with open_log(root / "metrics.jsonl", root / "live", loggers=["tensorboard"]) as log:
    log.resume(0)
    for step in range(5):
        log.add({"step": step, "loss": 100.0 + step})
    os.kill(os.getpid(), signal.SIGKILL)
"""


class ListLogger:
    """Someone else's logger: it writes what it is told to a file of its own."""

    def __init__(self, folder: Path, rows: Sequence[Row]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "told.jsonl"
        self._tell({"opened after": [row["step"] for row in rows]})

    def log(self, row: Row) -> None:
        self._tell(dict(row))

    def close(self) -> None:
        self._tell("closed")

    def _tell(self, what: object) -> None:
        with self._file.open("a") as file:
            file.write(json.dumps(what) + "\n")


class FailingLogger(ListLogger):
    def log(self, row: Row) -> None:
        raise OSError("the disk is full")


def told(folder: Path) -> list[object]:
    return [json.loads(line) for line in (folder / "told.jsonl").read_text().splitlines()]


def add_rows(root: Path, first: int, steps: Iterable[int], loggers: Sequence[str], loss: float = 0.0) -> None:
    """One process's part of a run that goes on after `first` steps."""
    with open_log(root / "metrics.jsonl", root / "live", loggers=loggers) as log:
        log.resume(first)
        for step in steps:
            log.add({"step": step, "loss": loss + step})


def live_rows(root: Path, name: str) -> list[tuple[int, float]]:
    lines = (root / f"live/plots/metrics/{name}.tsv").read_text().splitlines()[1:]
    return [(int(step), float(value)) for step, value in (line.split("\t") for line in lines)]


def tensorboard_points(folder: Path, name: str) -> list[tuple[int, float]]:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason=REASON
    ).EventAccumulator(str(folder))
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


def test_rows_go_to_the_file_to_dvclive_and_to_every_logger(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    path = tmp_path / "metrics.jsonl"
    with open_log(path, tmp_path / "live", loggers=[THIRD_PARTY], loggers_dir=folder) as log:
        log.resume(0)
        log.add({"step": 0, "loss": 2.0, "probe_knn_auroc_of/nodule": 0.5, "probe_knn_auroc": 0.5})
        log.add({"step": 5, "loss": 1.0})
        rows = log.rows()
    assert [row["loss"] for row in rows] == [2.0, 1.0]
    assert live_rows(tmp_path, "loss") == [(0, 2.0), (5, 1.0)]
    assert live_rows(tmp_path, "probe_knn_auroc_of/nodule") == [(0, 0.5)]
    summary = json.loads((tmp_path / "live/metrics.json").read_text())
    assert (summary["loss"], summary["step"]) == (1.0, 5)
    assert told(folder / THIRD_PARTY.replace(":", ".")) == [{"opened after": []}, *rows, "closed"]


def test_a_resumed_run_drops_void_rows_and_gives_dvclive_and_loggers_the_kept_ones(tmp_path: Path) -> None:
    add_rows(tmp_path, 0, range(4), [THIRD_PARTY])
    add_rows(tmp_path, 2, range(2, 5), [THIRD_PARTY], loss=10.0)
    expected = [(0, 0.0), (1, 1.0), (2, 12.0), (3, 13.0), (4, 14.0)]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == expected
    assert live_rows(tmp_path, "loss") == expected
    openings = [item for item in told(tmp_path / "loggers" / THIRD_PARTY.replace(":", ".")) if "opened after" in item]
    assert openings == [{"opened after": []}, {"opened after": [0, 1]}]


def test_tensorboard_shows_each_step_once_after_a_kill_and_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason=REASON)
    folder = tmp_path / "loggers/tensorboard"
    finish([Forked(KILLED_RUN, [str(tmp_path)], env=os.environ, cwd=ROOT)], -9)
    assert tensorboard_points(folder, "loss") == [(step, 100.0 + step) for step in range(5)]
    time.sleep(1.01 - time.time() % 1)  # event files are read in the order of the second in their names
    add_rows(tmp_path, 3, range(3, 6), ["tensorboard"])
    expected = [(0, 100.0), (1, 101.0), (2, 102.0), (3, 3.0), (4, 4.0), (5, 5.0)]
    assert tensorboard_points(folder, "loss") == expected


def test_tensorboard_is_given_the_whole_run_again_where_its_files_are_gone(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason=REASON)
    add_rows(tmp_path, 0, range(3), [])
    add_rows(tmp_path, 2, range(2, 4), ["tensorboard"], loss=10.0)
    points = tensorboard_points(tmp_path / "loggers/tensorboard", "loss")
    assert points == [(0, 0.0), (1, 1.0), (2, 12.0), (3, 13.0)]


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with (
        pytest.raises(ConfigError, match=r"optional extra: pip install 'ace-pretraining\[tensorboard\]'"),
        open_log(tmp_path / "metrics.jsonl", tmp_path / "live", loggers=["tensorboard"]),
    ):
        pass
    assert not list(tmp_path.iterdir()), "refused before anything is written"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tensorbord", "there are 'tensorboard' and your own 'package.module:factory'"),
        ("no.such.module:make", "No module named 'no'"),
        (f"{__name__}:absent", "has no attribute 'absent'"),
        (f"{__name__}:NOT_A_FACTORY", "found a int, expected a function"),
    ],
)
def test_a_name_that_gives_no_logger_is_explained(name: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        find_logger(name)


def test_loggers_are_closed_when_the_run_fails(tmp_path: Path) -> None:
    names = [THIRD_PARTY, f"{__name__}:FailingLogger"]
    with pytest.raises(OSError, match="the disk is full"):
        add_rows(tmp_path, 0, range(2), names)
    for name in names:
        assert told(tmp_path / "loggers" / name.replace(":", "."))[-1] == "closed"


def test_numbers_that_are_not_finite_leave_valid_json_and_come_back_as_nan(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    with open_log(tmp_path / "metrics.jsonl", tmp_path / "live") as log:
        log.resume(0)
        log.add({"step": 0, "loss": math.nan, "grad_norm": math.inf})
        (row,) = log.rows()
    assert row["step"] == 0
    assert math.isnan(row["loss"])
    assert math.isnan(row["grad_norm"])
    parsed: Mapping[str, object] = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert parsed == {"step": 0, "loss": None, "grad_norm": None}
