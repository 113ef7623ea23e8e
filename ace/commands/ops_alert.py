"""`ops test-alert`: see that alerts arrive before something goes wrong."""

import argparse
import sys
from pathlib import Path

from shards.core.config import DEFAULT_PARAMS


def add_alert_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `test-alert` to the commands of `ops`."""
    command = commands.add_parser(
        "test-alert", help="send a test message to whoever is told what goes wrong", description=test_alert.__doc__
    )
    command.add_argument(
        "--params", type=Path, default=DEFAULT_PARAMS, metavar="FILE", help=f"default: {DEFAULT_PARAMS}"
    )
    command.set_defaults(run=test_alert)


def test_alert(arguments: argparse.Namespace) -> int:
    """Send a test message by each way that operations.alerts and $ACE_ALERT_WEBHOOK name, and ping $ACE_PING_URL.

    Exit code 1 if one of them failed. Give it where Dagster runs, with the same environment variables.
    """
    from ace.operations.alerts import PING, Message, NotSentError, open_channels, ping
    from ace.operations.params import read_operations
    from shards.core.errors import ConfigError

    params = read_operations(arguments.params).alerts
    if params is None:
        raise ConfigError(f"{arguments.params}: operations.alerts is empty; expected at least `alerts: {{}}`")
    message = Message("this is a test", ["nothing is wrong"], "docs/operations.md, Alerts")
    has_failed = False
    for channel in open_channels(params):
        try:
            channel.send(message)
            print(f"{channel.name}: sent; see that it has arrived")
        except NotSentError as error:
            has_failed = True
            print(f"not sent: {error}", file=sys.stderr)
    try:
        print("ping: answered" if ping() else f"ping: {PING} is not set, so nobody notices when the service is dead")
    except NotSentError as error:
        has_failed = True
        print(f"no ping: {error}", file=sys.stderr)
    return int(has_failed)
