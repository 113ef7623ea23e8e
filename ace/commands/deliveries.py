"""`deliveries`: take new images in, look at them, and overrule the judge."""

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ace.commands.accepted_models import add_json
from ace.commands.options import add_branch_option, add_why_option
from ace.commands.text_table import text_table
from shards.core.config import DEFAULT_PARAMS

if TYPE_CHECKING:
    from ace.operations.attempts import Verdict


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `deliveries` to the command line."""
    deliveries = commands.add_parser(
        "deliveries", help="take new images in, look at them, and overrule the judge"
    ).add_subparsers(required=True, metavar="COMMAND")
    for word, function, text in (
        ("run", run, "do whatever is due, once"),
        ("list", list_, "list what has come, and how far it is"),
        ("due", due, "say whether a delivery on S3 is complete"),
        ("accept", accept, "accept a delivery that was refused"),
        ("refuse", refuse, "refuse a delivery"),
    ):
        command = deliveries.add_parser(word, help=text, description=function.__doc__)
        command.add_argument(
            "--params", type=Path, default=DEFAULT_PARAMS, metavar="FILE", help=f"default: {DEFAULT_PARAMS}"
        )
        if word in ("accept", "refuse"):
            command.add_argument("name", metavar="NAME", help="name of the batch, as clinic-b003")
            add_why_option(command)
        if word == "due":
            add_json(command)
        if word in ("run", "accept", "refuse"):
            add_branch_option(command)
        command.set_defaults(run=function)


def run(arguments: argparse.Namespace) -> None:
    """Do whatever is due once: finish the deliveries that have begun, then take complete ones of incoming/ and of S3.

    On S3 they are the prefixes below operations.deliveries.incoming. A delivery is complete once it has the file
    `_COMPLETE`, or has stayed as it is for operations.deliveries.settle_s seconds. It becomes a batch that is accepted,
    in one commit, or refused, with a report in quarantine/. A call that was killed is finished by the next one. If
    another call is at work or the service is stopped, this one says so and ends.
    """
    from ace.operations.deliveries import Deliveries
    from ace.operations.errors import BusyError, StoppedError

    has_done = False
    try:
        for line in Deliveries.open(arguments.params, arguments.branch).run():
            print(line, flush=True)
            has_done = True
    except (BusyError, StoppedError) as error:
        print(error, file=sys.stderr)
        return
    if not has_done:
        print("nothing is due")


def list_(arguments: argparse.Namespace) -> None:
    """List what has come to incoming/ and on S3, and all deliveries, with their states and what was tried last."""
    from ace.operations.deliveries import Deliveries
    from ace.operations.incoming import shown
    from shards.core.errors import StoreError

    deliveries = Deliveries.open(arguments.params)
    rows = [("batch", "delivered as", "state", "what happened last")]
    rows += [("", shown(item.path.name), "incoming", item.text) for item in deliveries.arriving(time.time())]
    try:
        rows += [("", shown(item.url), "on S3", item.text) for item in deliveries.sent(time.time())]
    except StoreError as error:
        rows.append(("", "", "on S3", str(error).replace("\n", " ")))
    rows += [(item.name, shown(item.sent_as), item.state, item.last) for item in deliveries.taken()]
    print(text_table(rows) if len(rows) > 1 else "no deliveries")


def due(arguments: argparse.Namespace) -> None:
    """Say whether a delivery on S3 is complete and was not taken yet; Dagster asks this, and names none."""
    from ace.operations.deliveries import Deliveries

    sent = Deliveries.open(arguments.params).sent(time.time())
    complete = [[item.url, item.mark] for item in sent if item.is_complete]
    reason = f"{len(complete)} complete of {len(sent)} on S3 that were not taken"
    key = hashlib.sha256(json.dumps(complete).encode()).hexdigest()[:16]
    answer = {"due": bool(complete), "reason": reason, "run_key": key}
    print(json.dumps(answer) if arguments.json else reason)


def accept(arguments: argparse.Namespace) -> int:
    """Accept a delivery whatever its judge says; who says so, as git knows you, and why, is kept.

    Images that cannot be read, or of which no shards can be built, are refused all the same: exit code 1.
    """
    return _overrule(arguments, "accepted")


def refuse(arguments: argparse.Namespace) -> int:
    """Refuse a delivery whatever its judge says, an accepted one too; who says so, as git knows you, and why, is kept.

    The models that were trained with an accepted one stay as they are.
    """
    return _overrule(arguments, "refused")


def _overrule(arguments: argparse.Namespace, verdict: "Verdict") -> int:
    """Return 0 if the delivery is now as was said."""
    from ace.operations.deliveries import Deliveries

    deliveries = Deliveries.open(arguments.params, arguments.branch)
    for line in deliveries.overrule(arguments.name, verdict, deliveries.clone.actor(), arguments.why):
        print(line, flush=True)
    states = {delivery.name: delivery.state for delivery in deliveries.taken()}
    return int(states[arguments.name] != verdict)
