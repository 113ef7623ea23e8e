"""`ops publish`: bring what the service has committed to others."""

import argparse
from pathlib import Path

from ace.commands.options import add_branch_option


def add_publish_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `publish` to the commands of `ops`."""
    command = commands.add_parser(
        "publish", help="push data, commits and the registry's tags", description=publish.__doc__
    )
    command.add_argument(
        "--repo", type=Path, default=Path(), metavar="DIR", help="the service's clone; default: this folder"
    )
    add_branch_option(command)
    command.set_defaults(run=publish)


def publish(arguments: argparse.Namespace) -> None:
    """Push what is committed: the data to DVC's remote, then the branch and the registry's tags to `origin`.

    New lines of the event log are committed first; no other tracked file may be modified. What is there already is
    passed over, so after a kill, or once a remote can be reached again, give the same command again.
    """
    from ace.operations.clone import Clone, git
    from ace.operations.publishing import publish as steps

    root = Path(git(arguments.repo, "rev-parse", "--show-toplevel").strip())
    for line in steps(Clone(root, arguments.branch)):
        print(line, flush=True)
