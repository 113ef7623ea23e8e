"""`withdraw`: a patient withdraws; nothing reads the images any more, and the log keeps what becomes of the models."""

import argparse
import getpass
import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ace.commands.accepted_models import add_json, add_registry_options, registry_of, version_number
from ace.commands.options import add_branch_option, add_why_option
from ace.commands.text_table import text_table

if TYPE_CHECKING:
    from ace.operations.events import Event
    from ace.operations.withdrawal import Decision, Patient, Withdrawals
    from ace.operations.withdrawal_state import Withdrawal


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `withdraw` to the command line."""
    command = commands.add_parser(
        "withdraw",
        help="take a patient out of everything that reads images, and say what becomes of models",
        description=withdraw.__doc__,
    )
    add_registry_options(command)
    add_branch_option(command)
    what = command.add_mutually_exclusive_group()
    what.add_argument("--trace", action="store_true", help="only show what was made from the patient's images")
    what.add_argument(
        "--settle", type=int, metavar="N", help="decide about models of withdrawal N, which --list shows; no patient"
    )
    what.add_argument("--list", action="store_true", help="list all withdrawals and what is left to do; no patient")
    add_json(command).add_argument(
        "--pseudonym", metavar="P", help="the patient's pseudonym, as manifests have it, in place of the id on stdin"
    )
    command.add_argument(
        "--erase",
        action="store_true",
        help="also remove the images: from the shards, DVC's cache and remote, and what was made from them",
    )
    command.add_argument("--site", metavar="NAME", help="site that gave the id; default: that of all batches")
    command.add_argument(
        "--received", type=_moment, metavar="DATE", help="when the wish came, as 2026-11-30T14:05 (UTC); default: now"
    )
    command.add_argument(
        "--action",
        choices=["retire", "retrain", "keep"],
        help="what becomes of models that were trained with the patient. retire: none of them may be accepted any "
        "more. retrain: they serve until a model without the patient is accepted. keep: they serve on",
    )
    command.add_argument(
        "--version",
        type=version_number,
        action="append",
        default=[],
        metavar="vN",
        help="decide about this version, may be repeated; default: all that nobody has decided about",
    )
    add_why_option(command, is_required=False)
    command.set_defaults(run=withdraw)


def withdraw(arguments: argparse.Namespace) -> int:
    """Exclude a patient's images from all that reads them, and keep in the event log what becomes of the models.

    The patient's id is read from stdin, where neither the list of processes nor the shell's history shows it. Shards
    stay as they are, and stages that read them are stale. If models were trained with the patient, say what becomes of
    them, now or later (--action). A call that was killed is finished by the same command. If a retraining or a call
    about deliveries is at work, the exit code is 75: try again later.
    """
    from ace.engine.stop import EXIT_CODE
    from ace.operations.errors import BusyError, OperationsError
    from ace.operations.withdrawal import Withdrawals

    if (arguments.action is None) != (arguments.why is None) or (arguments.version and arguments.action is None):
        raise OperationsError("--action and --why go together, and --version goes with them: a decision has a reason")
    if (arguments.list or arguments.trace) and arguments.action:
        raise OperationsError("--list and --trace only show, and decide about no model: leave out --action and --why")
    if (arguments.list or arguments.trace or arguments.settle is not None) and (arguments.erase or arguments.received):
        raise OperationsError(
            "--erase and --received go with the withdrawal of a patient: without --list, --trace, --settle"
        )
    withdrawals = Withdrawals(registry_of(arguments))
    try:
        if arguments.list:
            _list(withdrawals, as_json=arguments.json)
        elif arguments.settle is not None:
            _settle(withdrawals, arguments)
        elif arguments.trace:
            _trace(withdrawals, arguments)
        else:
            _withdraw(withdrawals, arguments)
    except BusyError as error:
        print(error, file=sys.stderr)
        return EXIT_CODE
    return 0


def _withdraw(withdrawals: "Withdrawals", arguments: argparse.Namespace) -> None:
    from ace.operations.erasure import erase

    registry = withdrawals.registry
    received, actor = arguments.received or registry.clock(), registry.clone.actor()
    patient = _patient(arguments)
    for line in withdrawals.withdraw(patient, received, actor, _decision(arguments)):
        print(line, flush=True)
    if arguments.erase:
        for line in erase(withdrawals, patient, actor):
            print(line, flush=True)


def _settle(withdrawals: "Withdrawals", arguments: argparse.Namespace) -> None:
    from ace.operations.errors import OperationsError

    decision = _decision(arguments)
    if decision is None:
        raise OperationsError(f"--settle {arguments.settle}: say what becomes of the models: --action and --why")
    for line in withdrawals.settle(arguments.settle, decision, withdrawals.registry.clone.actor()):
        print(line, flush=True)


def _trace(withdrawals: "Withdrawals", arguments: argparse.Namespace) -> None:
    found = withdrawals.trace(_patient(arguments))
    print(json.dumps(found.to_json(), indent=2) if arguments.json else found.to_text())


def _list(withdrawals: "Withdrawals", *, as_json: bool) -> None:
    events, known = withdrawals.registry.events(), withdrawals.known().values()
    if as_json:
        print(json.dumps([_as_json(found, found.todo(events)) for found in known], indent=2))
        return
    if not known:
        print("nobody has withdrawn")
        return
    rows = [("withdrawal", "received (UTC)", "batches", "versions", "completed (UTC)", "left to do")]
    for found in known:
        versions = ", ".join(f"v{number} {found.action(number) or 'open'}" for number in found.versions)
        completed = "" if found.completed is None else f"{found.completed.time:%Y-%m-%d %H:%M}"
        todo = "; ".join(found.todo(events))
        rows.append(
            (
                str(found.number),
                _time_of(found)[:16],
                ", ".join(found.batches) or "none",
                versions or "none",
                completed,
                todo,
            )
        )
    print(text_table(rows))


def _as_json(found: "Withdrawal", todo: list[str]) -> dict[str, object]:
    def time_of(event: "Event | None") -> str | None:
        return None if event is None else event.time.isoformat()

    return {
        "withdrawal": found.number,
        "received": _time_of(found),
        "excluded": time_of(found.excluded),
        "completed": time_of(found.completed),
        "batches": found.batches,
        "versions": {f"v{number}": found.action(number) for number in found.versions},
        "todo": todo,
    }


def _time_of(found: "Withdrawal") -> str:
    return str(found.received.facts["received"])


def _decision(arguments: argparse.Namespace) -> "Decision | None":
    from ace.operations.withdrawal import Decision

    if arguments.action is None:
        return None
    return Decision(arguments.action, arguments.why, tuple(arguments.version))


def _patient(arguments: argparse.Namespace) -> "Patient":
    """Name the patient: by the pseudonym that was given, or else by the id on stdin.

    Raises:
        OperationsError: there is no id, or more than a line.
    """
    from ace.operations.errors import OperationsError
    from ace.operations.withdrawal import Patient

    if arguments.pseudonym is not None:
        return Patient(pseudonym=arguments.pseudonym)
    text = getpass.getpass("the patient's id (not shown): ") if sys.stdin.isatty() else sys.stdin.read()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) != 1:
        raise OperationsError(f"found {len(lines)} lines on stdin; expected one, with the patient's id")
    return Patient(identifier=lines[0], site=arguments.site)


def _moment(text: str) -> datetime:
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected a date as 2026-11-30 or 2026-11-30T14:05") from None
    return (parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)).astimezone(UTC)
