"""Send a run's numbers elsewhere too: to TensorBoard, or to a logger that someone else wrote, by name.

`metrics.jsonl`, DVCLive and Dagster are not among them: every run has those (ace.journal.log).
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from shards.core.errors import ConfigError

Row = Mapping[str, float]
"""Named numbers of one logged step; `step` is among them."""


class Logger(Protocol):
    """Takes the rows of a run; an error that it raises ends the run."""

    def log(self, row: Row) -> None:
        """Take the newest row."""

    def close(self) -> None:
        """Write out what is left; called once, after an error too."""


LoggerFactory = Callable[[Path, Sequence[Row]], Logger]
"""Opens a logger: given its folder, and the rows that a killed run goes on after, none for a new one.

The folder outlives the process. What an earlier process logged there at later steps is void and comes again.
"""


def find_logger(name: str) -> LoggerFactory:
    """Find the factory of a name: `tensorboard`, or `package.module:factory` for one of your own.

    Raises:
        ConfigError: it is neither, cannot be imported, or its extra is not installed.
    """
    if name == "tensorboard":
        return _find_tensorboard()
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ConfigError(f"logger '{name}': unknown; there are 'tensorboard' and your own 'package.module:factory'")
    try:
        factory = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"logger '{name}': {error}; it must be importable where the run is started") from None
    if not callable(factory):
        raise ConfigError(
            f"logger '{name}': found a {type(factory).__name__}, expected a function of (folder, rows) → logger"
        )
    found: LoggerFactory = factory
    return found


def open_loggers(names: Sequence[str], root: Path, rows: Sequence[Row]) -> list[Logger]:
    """Open each logger on a folder of its own below `root`, named as it is, with a dot for the colon.

    Args:
        names: As for `find_logger`.
        root: Folder of all the run's loggers.
        rows: The run's rows so far.

    Raises:
        ConfigError: as for `find_logger`, before any is opened.
    """
    factories = {name: find_logger(name) for name in names}
    return [factory(root / name.replace(":", "."), rows) for name, factory in factories.items()]


class TensorBoardLogger:
    """Event files that `tensorboard --logdir FOLDER` shows, one point a row, on disk when `log` returns."""

    def __init__(self, folder: Path, rows: Sequence[Row], writer: Callable[..., Any]) -> None:
        has_events = any(folder.glob("events.out.tfevents.*"))
        # TensorBoard forgets what lies at this step and after in the files of earlier processes: those whose names hold
        # an earlier second.
        self._writer = writer(str(folder), purge_step=int(rows[-1]["step"]) + 1 if rows else 0)
        for row in () if has_events else rows:
            self._add(row)

    def log(self, row: Row) -> None:
        """Write one point of each name; flushed, since a killed process writes nothing out."""
        self._add(row)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def _add(self, row: Row) -> None:
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))


def _find_tensorboard() -> LoggerFactory:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            f"logger 'tensorboard': {error}; it is an optional extra: pip install 'ace-pretraining[tensorboard]'"
        ) from None
    return lambda folder, rows: TensorBoardLogger(folder, rows, SummaryWriter)
