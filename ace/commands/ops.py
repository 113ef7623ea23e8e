"""`ops`: look at the service, stop it, start it, publish its commits, make room, try alerts, compare weights."""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ace.commands.accepted_models import MODELS_VARIABLE, add_json
from ace.commands.ops_alert import add_alert_command
from ace.commands.ops_clean import add_clean_command
from ace.commands.ops_equal_weights import add_equal_weights_command
from ace.commands.ops_publish import add_publish_command
from ace.commands.options import add_branch_option, add_why_option
from shards.core.config import DEFAULT_PARAMS

if TYPE_CHECKING:
    from ace.operations.clone import Clone


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `ops` to the command line."""
    ops = commands.add_parser(
        "ops",
        help="look at the service, stop it, start it, publish what it has committed, make room, try its alerts, and "
        "show that an upgrade leaves the weights as they are",
    ).add_subparsers(required=True, metavar="COMMAND")
    for word, function, text in (
        ("status", status, "say what runs, waits, is held, refused or rejected, and why"),
        ("stop", stop, "let nothing begin by itself until `start`"),
        ("start", start, "let the service go on"),
    ):
        command = ops.add_parser(word, help=text, description=function.__doc__)
        command.add_argument(
            "--params", type=Path, default=DEFAULT_PARAMS, metavar="FILE", help=f"default: {DEFAULT_PARAMS}"
        )
        if word == "status":
            add_json(command)
        else:
            add_why_option(command)
            add_branch_option(command)
        command.set_defaults(run=function)
    add_publish_command(ops)
    add_clean_command(ops)
    add_alert_command(ops)
    add_equal_weights_command(ops)


def status(arguments: argparse.Namespace) -> None:
    """Say in one screen what runs, waits, is held, refused or rejected and why, what is accepted and what is published.

    It reads the service's clone alone, so that it also works while Dagster does not. With $ACE_MODELS it says whether
    the accepted model serves.
    """
    from ace.operations.deliveries import Deliveries
    from ace.operations.params import read_operations
    from ace.operations.status import read_status

    params = arguments.params.resolve()
    deliveries = Deliveries.open(params) if read_operations(params).deliveries else None
    models = os.environ.get(MODELS_VARIABLE)
    found = read_status(params.parent, Path(models) if models else None, deliveries)
    print(json.dumps(found.to_json(), indent=2) if arguments.json else found.to_text())


def stop(arguments: argparse.Namespace) -> None:
    """Stop the service: no delivery is taken and no training begins until `start`; the accepted model goes on serving.

    What is at work is finished: a training, or the delivery that was begun. To end that too, end its run in Dagster.
    """
    from ace.operations import service
    from ace.operations.registry import utc_now

    clone = _clone(arguments)
    event = service.stop(clone, clone.actor(), arguments.why, utc_now())
    print(f"{event.who} has stopped the service at {event.time:%Y-%m-%d %H:%M} UTC: {event.facts['why']}")


def start(arguments: argparse.Namespace) -> None:
    """Let the service go on; who says so, as git knows you, and why, is kept."""
    from ace.operations import service
    from ace.operations.registry import utc_now

    clone = _clone(arguments)
    service.start(clone, clone.actor(), arguments.why, utc_now())
    print("the service goes on")


def _clone(arguments: argparse.Namespace) -> "Clone":
    from ace.operations.clone import Clone

    return Clone(arguments.params.parent.resolve(), arguments.branch)
