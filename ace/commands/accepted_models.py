"""`models list`, `models promote`, `models rollback` and so on: decide which model is accepted, and show why."""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ace.commands.options import add_branch_option, add_why_option
from ace.commands.text_table import text_table

if TYPE_CHECKING:
    from ace.operations.events import Actor, Event
    from ace.operations.history import Version
    from ace.operations.registry import Registry

MODELS_VARIABLE = "ACE_MODELS"
_CARD = "README.md"
_ENDS = (
    "The service's clone is this folder, or --repo. Models serve from $ACE_MODELS, or --models: read "
    "$ACE_MODELS/accepted, never models/ace, which a training deletes."
)


def add_registry_commands(models: argparse.ArgumentParser) -> None:
    """Add the commands of accepted models below `python -m ace models`, which alone lists shipped ones."""
    commands = models.add_subparsers(
        title="accepted models",
        metavar="COMMAND",
        description="Decide which model serves, and show who decided so and when. Without a command, shipped models "
        "are listed.",
    )

    def add(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=run.__doc__, epilog=_ENDS)
        add_registry_options(command)
        command.set_defaults(run=run)
        return command

    def add_decision(name: str, run: Callable[[argparse.Namespace], int | None], text: str) -> argparse.ArgumentParser:
        command = add(name, run, text)
        add_deciding_options(command)
        return command

    add_json(add("list", list_versions, "list the registered versions, which one is accepted, and holds"))
    command = add_json(add("show", show, "show one version: when and by whom it was decided about, and its files"))
    add_version(command, is_needed=False)

    command = add_decision("promote", promote, "make a version the accepted one, and let it serve")
    add_version(command, is_needed=False, default="the model that dvc.lock of the last commit records")

    command = add_decision("rollback", rollback, "return to an earlier version, and hold retraining")
    add_version(command)
    add_why_option(command)

    add("restore", restore, "bring lost folders of accepted models back, from DVC's cache")

    add_why_option(add_decision("hold", hold, "hold retraining and automatic promotion"))
    add_why_option(add_decision("release", release, "end a hold"))

    command = add_json(add("at", at, "say which version was the accepted one at a moment"))
    command.add_argument(
        "moment", type=moment, metavar="DATE", help="as 2026-11-30 (the end of that day), or 2026-11-30T14:05; UTC"
    )

    command = add("lineage", lineage, "say what a model was made from")
    command.add_argument(
        "model",
        type=_version_or_folder,
        metavar="MODEL",
        help="a version, as v3; the folder of any model, or of an export; or the name of a shipped model",
    )
    forms = command.add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="print JSON")
    forms.add_argument("--files", action="store_true", help="print the file of each training image, as CSV")
    command = add("card", card, "print the model card of a version")
    add_version(command, is_needed=False)
    command.add_argument(
        "--form", choices=("markdown", "chai"), default="markdown", help="default: markdown, the README of its folder"
    )

    command = add("checkout", checkout, "make a clone as it was when a version was registered")
    add_version(command)
    command.add_argument("out", type=Path, metavar="DIR", help="the new folder")

    add("audit", audit, "check the log, the tags and every byte that they name")


def add_registry_options(command: argparse.ArgumentParser) -> None:
    """Add the service's clone and the folder that models serve from."""
    command.add_argument(
        "--repo", type=Path, default=Path(), metavar="DIR", help="the service's clone; default: this folder"
    )
    command.add_argument(
        "--models", type=Path, metavar="DIR", help=f"folder that models serve from; default: ${MODELS_VARIABLE}"
    )


def add_deciding_options(command: argparse.ArgumentParser) -> None:
    """Add the branch of the clone, and whether a person decides."""
    add_branch_option(command)
    command.add_argument(
        "--automatic",
        action="store_true",
        help="record that the schedule decides, with nobody at the keyboard; otherwise the person whom git knows",
    )


def add_json(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add `--json`."""
    command.add_argument("--json", action="store_true", help="print JSON")
    return command


def add_version(
    command: argparse.ArgumentParser, *, is_needed: bool = True, default: str = "the accepted version"
) -> None:
    """Add the number of a version."""
    command.add_argument(
        "version",
        nargs=None if is_needed else "?",
        type=version_number,
        metavar="vN",
        help="the version, as v3" + ("" if is_needed else f"; default: {default}"),
    )


def version_number(text: str) -> int:
    """Parse a version, as v3."""
    if re.fullmatch(r"v?[1-9]\d*", text) is None:
        raise argparse.ArgumentTypeError(f"{text}: expected a version as v3; `python -m ace models list` has them")
    return int(text.removeprefix("v"))


def moment(text: str) -> datetime:
    """Parse a date, which stands for its end, or a date and time; without a time zone it is UTC."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected a date as 2026-11-30 or 2026-11-30T14:05") from None
    if len(text) <= len("2026-11-30"):
        parsed += timedelta(days=1, microseconds=-1)
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)


def list_versions(arguments: argparse.Namespace) -> None:
    """List the registered versions, the accepted one and the one that serves, and whether retraining is held."""
    from ace.operations import history

    registry = registry_of(arguments)
    events = registry.events()
    last, held, versions = history.accepted(events), history.hold(events), history.versions(events)
    number = None if last is None else last.facts["version"]
    if arguments.json:
        rows = [
            {"version": version.name, "commit": version.commit, "registered": version.event.time.isoformat()}
            for version in versions.values()
        ]
        state = {
            "accepted": None if number is None else f"v{number}",
            "served": registry.served,
            "held": None if held is None else held.model_dump(mode="json"),
            "versions": rows,
        }
        print(json.dumps(state, indent=2))
        return
    if not versions:
        print("no version is registered yet; `python -m ace models promote` registers the last commit's model")
    else:
        header = ("version", "registered (UTC)", "commit", "accepted", "serves")
        rows_of_text = [
            (
                version.name,
                f"{version.event.time:%Y-%m-%d %H:%M}",
                version.commit[:12],
                "yes" if version.number == number else "",
                "yes" if version.name == registry.served else "",
            )
            for version in versions.values()
        ]
        print(text_table([header, *rows_of_text]))
    if number is not None and registry.served != f"v{number}":
        print(f"v{number} is accepted and does not serve yet: python -m ace models promote v{number}", file=sys.stderr)
    if held is not None:
        print(f"held since {held.time:%Y-%m-%d %H:%M} UTC by {held.who}: {held.facts['why']}")


def show(arguments: argparse.Namespace) -> None:
    """Show a version: its commit, its files, and each decision about it with who made it, when and why."""
    from ace.operations import history

    registry = registry_of(arguments)
    version = _version(registry, arguments)
    decisions = [
        event
        for event in registry.events()
        if event == version.event or (history.acceptances([event]) and event.facts["version"] == version.number)
    ]
    if arguments.json:
        shown = {
            "version": version.name,
            "commit": version.commit,
            "md5": version.model.md5,
            "files": dict(version.files),
            "events": [event.model_dump(mode="json") for event in decisions],
        }
        print(json.dumps(shown, indent=2))
        return
    print(f"{version.name}: commit {version.commit}, md5 {version.model.md5}")
    for event in decisions:
        print(_line(event))
    for name, sha256 in version.files.items():
        print(f"  {name}  sha256 {sha256}")


def promote(arguments: argparse.Namespace) -> None:
    """Make a version the accepted one: log it, tag it, export it read-only, and point the symlink `accepted` at it.

    A model that no version has yet is registered first. Whatever is done already is left as it is, so after a kill the
    same command finishes what is missing.
    """
    registry = registry_of(arguments)
    version = registry.promote(actor_of(registry, arguments), arguments.version)
    print(f"{version.name} is the accepted model, and serves")


def rollback(arguments: argparse.Namespace) -> None:
    """Return to an earlier version: its bytes are checked by their sha256, and retraining is held until `release`.

    Nothing is undone: it is a new decision, with a new event and a new tag. After a kill give the same command again.
    """
    registry = registry_of(arguments)
    version = registry.rollback(arguments.version, actor_of(registry, arguments), arguments.why)
    print(f"{version.name} is the accepted model again, and serves")


def restore(arguments: argparse.Namespace) -> None:
    """Bring back the folders of models that were accepted, where they are lost, and let the accepted one serve.

    It decides nothing: the event log says which versions these are. Their bytes come from DVC's cache: `dvc fetch
    --all-commits models/ace` brings them there.
    """
    registry = registry_of(arguments)
    for version in registry.restore():
        print(f"{version.name} is back in {registry.models / version.name}")
    print(f"{registry.served} serves" if registry.served else "no model was accepted yet")


def hold(arguments: argparse.Namespace) -> None:
    """Hold retraining: no schedule trains or promotes a model until `release`. The accepted model goes on serving."""
    registry = registry_of(arguments)
    print(_line(registry.hold(actor_of(registry, arguments), arguments.why)))


def release(arguments: argparse.Namespace) -> None:
    """End a hold that `hold` or `rollback` has set."""
    registry = registry_of(arguments)
    print(_line(registry.release(actor_of(registry, arguments), arguments.why)))


def at(arguments: argparse.Namespace) -> int:
    """Say which version was the accepted one at a moment, and by which decision; exit code 1 if none was."""
    from ace.operations import history

    event = history.accepted(registry_of(arguments).events(), arguments.moment)
    if arguments.json:
        print(json.dumps(None if event is None else event.model_dump(mode="json"), indent=2))
    else:
        print("no version was accepted then" if event is None else f"v{event.facts['version']}: {_line(event)}")
    return int(event is None)


def lineage(arguments: argparse.Namespace) -> None:
    """Say what a model was made from: stages with params and hashes, batches with manifests, environment.

    A folder is recognised by its bytes, wherever it lies: as a version, or as a model that a commit's dvc.lock records.
    An export and a published model say which model they are of. For a folder $ACE_MODELS need not be set.

    `--files` prints a line for each image that the model was trained with: its batch, its key in the shards, and the
    path and sha256 of the file that was registered, by the manifests in `data/manifests`. These paths are the ones of
    your archive and may name patients. What is not known is empty, and stderr says why.
    """
    from ace.operations import history
    from ace.operations.lineage import trace, trace_folder, trace_text
    from ace.operations.source_files import source_files
    from ace.operations.tags import read_events
    from ace.zoo.shipped import find_model

    root, folder = _root(arguments), None
    if isinstance(arguments.model, int):
        registry = registry_of(arguments)
        traced = trace(registry, history.find_version(registry.events(), arguments.model))
    else:
        folder = find_model(arguments.model)
        traced = trace_folder(root, folder)
    if arguments.files:
        found = source_files(root, traced, folder)
        found.write(sys.stdout)
        for note in found.notes:
            print(f"note: {note}", file=sys.stderr)
    else:
        print(json.dumps(traced, indent=2) if arguments.json else trace_text(traced))
    if traced["version"] is not None:
        _warn_if_retired(read_events(root), version_number(traced["version"]))


def card(arguments: argparse.Namespace) -> None:
    """Print the model card of a version, after a look at its bytes; a note says if a withdrawal has retired it.

    `--form chai` writes the Applied Model Card of the Coalition for Health AI, as XML: with the figures of the
    version's commit, whether it is accepted or retired, and with what operations.card of params.yaml states now.
    """
    registry = registry_of(arguments)
    version = _version(registry, arguments)
    if arguments.form == "chai":
        from ace.operations.chai_card import chai_card
        from ace.operations.params import read_operations
        from ace.operations.work_tree import PARAMS

        sys.stdout.buffer.write(chai_card(registry, version, read_operations(registry.root / PARAMS).card))
        return
    print(registry.files(version)[_CARD].read_text(encoding="utf-8"), end="")
    _warn_if_retired(registry.events(), version.number)


def checkout(arguments: argparse.Namespace) -> None:
    """Make a clone at the commit of a version, with the version's model in it; `dvc pull` there brings the data.

    The service's clone stays as it is.
    """
    from ace.operations.checkout import check_out

    registry = registry_of(arguments)
    version = _version(registry, arguments)
    check_out(registry, version, arguments.out)
    print(f"wrote {arguments.out}: {version.name} at commit {version.commit}")


def audit(arguments: argparse.Namespace) -> int:
    """Check that every line of the log, every tag, and every byte that they name is as it was written.

    Exit code 1, and the first thing that is wrong, if one is not.
    """
    from ace.operations.audit import first_problem
    from ace.operations.withdrawal_state import withdrawals
    from shards.runtime.text import count_of

    registry = registry_of(arguments)
    problem = first_problem(registry)
    if problem is not None:
        print(problem, file=sys.stderr)
        return 1
    events = registry.events()
    print(f"OK: {count_of(len(events), 'event')}, their tags and the bytes that they name")
    for withdrawal in withdrawals(events).values():
        if withdrawal.erasing is not None:
            names = ", ".join(withdrawal.erasing.facts["batches"])
            print(f"erased by event {withdrawal.erasing.sequence}: earlier shards of {names}, and what showed them")
    return 0


def registry_of(arguments: argparse.Namespace) -> "Registry":
    """Open the registry that the options name."""
    from ace.operations.clone import BRANCH, Clone
    from ace.operations.errors import OperationsError
    from ace.operations.registry import Registry

    root = _root(arguments)
    given = arguments.models or os.environ.get(MODELS_VARIABLE)
    if not given or not Path(given).is_absolute() or Path(given).resolve().is_relative_to(root):
        raise OperationsError(
            f"{MODELS_VARIABLE} is {given or 'not set'}; set it to the absolute path of the folder that models serve "
            "from, outside the clone, or give --models"
        )
    return Registry(clone=Clone(root, getattr(arguments, "branch", BRANCH)), models=Path(given))


def actor_of(registry: "Registry", arguments: argparse.Namespace) -> "Actor":
    """Return whoever decides: the schedule, or the person whom git knows."""
    from ace.operations.clone import SCHEDULE

    return SCHEDULE if arguments.automatic else registry.clone.actor()


def _root(arguments: argparse.Namespace) -> Path:
    from ace.operations.clone import git

    return Path(git(arguments.repo, "rev-parse", "--show-toplevel").strip())


def _version_or_folder(text: str) -> int | str:
    """Parse a version, as v3, or leave the folder or the name of a shipped model as it is."""
    return version_number(text) if re.fullmatch(r"v?[1-9]\d*", text) else text


def _warn_if_retired(events: "Sequence[Event]", number: int) -> None:
    from ace.operations.withdrawal_state import retiring

    if retiring(events, number) is not None:
        print(f"v{number} is retired: a patient whom it was trained with has withdrawn", file=sys.stderr)


def _version(registry: "Registry", arguments: argparse.Namespace) -> "Version":
    from ace.operations import history
    from ace.operations.errors import OperationsError

    events = registry.events()
    if arguments.version is not None:
        return history.find_version(events, arguments.version)
    last = history.accepted(events)
    if last is None:
        raise OperationsError("no version is accepted yet; name one, as v1")
    return history.find_version(events, last.facts["version"])


def _line(event: "Event") -> str:
    why = f": {event.facts['why']}" if "why" in event.facts else ""
    return f"{event.kind.replace('_', ' ')} {event.time:%Y-%m-%d %H:%M} UTC by {event.who}{why}"
