"""Command-line helpers of `shards` and `ace`: the params file, overrides, and errors without a traceback."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from shards.core.config import DEFAULT_PARAMS, read_params
from shards.core.errors import ConfigError, OutOfReachError, UserError
from shards.core.params import BatchParams
from shards.delivery.batches import batch_path, read_batches
from shards.runtime.atomic import clear_when_full


def add_params_options(parser: argparse.ArgumentParser) -> None:
    """Add `--params FILE` and `--set SECTION.KEY=VALUE`."""
    parser.add_argument("--params", type=Path, default=DEFAULT_PARAMS, metavar="FILE", help="default: params.yaml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="use this value instead of the file's, for a run outside DVC; may be repeated. With DVC use dvc exp run "
        "-S SECTION.KEY=VALUE",
    )


def count(text: str) -> int:
    """Parse an option that counts from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a whole number, at least 1")
    return int(text)


def values_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read the params file and apply the overrides.

    Raises:
        ConfigError: an override is not of the form SECTION.KEY=VALUE or names a section that is not there.
    """
    return _overridden(read_params(arguments.params), arguments.set, str(arguments.params))


def batch_of(arguments: argparse.Namespace, name: str) -> BatchParams:
    """Read the file of a batch that the params file names, and apply the overrides of its `grid` and `shard`.

    Raises:
        ConfigError: as `read_batches`, or an override is not of the form SECTION.KEY=VALUE or of another section.
    """
    batch = read_batches(arguments.params, read_params(arguments.params), [name])[name]
    if not arguments.set:
        return batch
    path = batch_path(name, arguments.params.parent)
    sections = _overridden(batch.model_dump(mode="json", include={"grid", "shard"}), arguments.set, str(path))
    changed = BatchParams.from_params({**batch.model_dump(mode="json"), **sections}, str(path))
    return batch.model_copy(update={"grid": changed.grid, "shard": changed.shard})


def _overridden(values: dict[str, Any], assignments: Sequence[str], where: str) -> dict[str, Any]:
    for assignment in assignments:
        path, separator, text = assignment.partition("=")
        *parents, key = path.split(".")
        if not separator or not parents:
            raise ConfigError(f"--set {assignment}: expected SECTION.KEY=VALUE, as pretrain.epochs=10")
        section: Any = values
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            raise ConfigError(
                f"--set {assignment}: {where} has no section '{'.'.join(parents)}'; expected one of {', '.join(values)}"
            )
        section[key] = YAML(typ="safe", pure=True).load(text)
    return values


def run_command(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parse, call the subcommand's function, print a user's mistake as one message; returns the exit code.

    A command returns its own exit code, or None for 0. A mistake, which the same command would make again, gives 2.
    """
    arguments = parser.parse_args(argv)
    command: Callable[[argparse.Namespace], int | None] = arguments.run
    try:
        with clear_when_full():
            code = command(arguments)
            sys.stdout.flush()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        _drop_unwritten_output()
        return 1 if isinstance(error, OutOfReachError) else 2
    except KeyboardInterrupt:
        print("interrupted; finished work is kept: the same command goes on from it", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever reads the output, as `head`, has had enough
        _drop_unwritten_output()
        return 141
    return code or 0


def _drop_unwritten_output() -> None:
    """Drop output that nobody takes: Python would write it at its end, and end in a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
