"""`ops clean`: make room, without touching what has to be kept."""

import argparse
import json
import os
import sys
from pathlib import Path

from ace.commands.accepted_models import add_json
from ace.commands.options import add_branch_option


def add_clean_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `clean` to the commands of `ops`."""
    command = commands.add_parser(
        "clean", help="show what nobody needs any more, and remove it with --yes", description=clean.__doc__
    )
    command.add_argument(
        "--repo", type=Path, default=Path(), metavar="DIR", help="the service's clone; default: this folder"
    )
    command.add_argument("--yes", action="store_true", help="remove it; without it, nothing is changed")
    add_json(command)
    add_branch_option(command)
    command.set_defaults(run=clean)


def clean(arguments: argparse.Namespace) -> int:
    """Show what nobody needs any more, with sizes; --yes removes it, after the event log has it.

    These are objects of DVC's cache that neither the work tree, a tag nor a registered version names, old unfinished
    work, old logs of builds, old runs of Dagster (with $DAGSTER_HOME), and refused images if operations.retention says
    so. The event log is never cut, and each registered version can still be accepted. Exit code 75: something is at
    work, try again later.
    """
    from ace.engine.stop import EXIT_CODE
    from ace.operations.cleaning import Cleaning
    from ace.operations.clone import Clone, git
    from ace.operations.errors import BusyError
    from ace.operations.registry import utc_now

    root = Path(git(arguments.repo, "rev-parse", "--show-toplevel").strip())
    clone = Clone(root, arguments.branch)
    cleaning, now = Cleaning(clone), utc_now()
    try:
        with cleaning.deciding():
            plan = cleaning.plan(now)
            print(json.dumps(plan.to_json(), indent=2) if arguments.json else plan.to_text(), flush=True)
            event = cleaning.remove(plan, clone.actor(), now) if arguments.yes else None
    except BusyError as error:
        print(error, file=sys.stderr)
        return EXIT_CODE
    if not arguments.json and plan.totals:
        print(f"removed, as event {event.sequence} says" if event else "nothing was changed; --yes removes it")
    return os.EX_OK
