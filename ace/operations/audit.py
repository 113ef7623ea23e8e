"""Check that the log, the tags, the exported models and the deliveries' files are as they were written, and agree."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ace.operations import history
from ace.operations.clone import git
from ace.operations.dvc_objects import is_list_of_erased
from ace.operations.events import LOG, SET_ASIDE, Event, check_lines
from ace.operations.model_files import first_difference
from ace.operations.patients import first_unexcluded
from ace.operations.registry import ACCEPTED, Registry
from ace.operations.tags import accepted_by_tags, read_tags, tag_heads, tag_name
from ace.operations.withdrawal_state import withdrawals
from shards.format.layout import sha256_of


def first_problem(registry: Registry) -> str | None:
    """Return the first thing that is wrong, or None: first lines of the log, then tags, then bytes."""
    tags = read_tags(registry.root)
    problem = check_lines(registry.log.read(), tag_heads(tags))
    if problem is not None:
        return f"{LOG}: {problem.text}"
    events = registry.events()
    return next(_problems(registry, events), None)


def _problems(registry: Registry, events: tuple[Event, ...]) -> Iterator[str]:
    yield from _problems_of_tags(registry, events)
    for event in events:
        if event.kind == SET_ASIDE:
            yield from _problems_of_files(registry.log.path.parent, event, event.files)
    deliveries, withdrawn = history.deliveries(events).values(), withdrawals(events).values()
    excluded = [found.excluded for found in withdrawn if found.excluded is not None]
    erasures = [found.erasing for found in withdrawn if found.erasing is not None]
    for event in deliveries:
        yield from _problems_of_files(registry.root, event, _files_since(event, erasures))
    for event in erasures:
        lists = {name: sha256 for name, sha256 in event.files.items() if is_list_of_erased(name)}
        yield from _problems_of_files(registry.root, event, lists)
    committed = [*deliveries, *excluded, *erasures]
    commits = set(git(registry.root, "rev-list", "HEAD").split()) if committed else set()
    for event in committed:
        commit = event.facts.get("commit")
        if commit is not None and commit not in commits:
            yield f"commit {commit}: not in the history of this branch, and event {event.sequence} names it"
    unexcluded = first_unexcluded({found.mark for found in withdrawn if found.excluded is not None}, registry.root)
    if unexcluded is not None:
        yield (
            f"{unexcluded}: has images of a patient who has withdrawn, and they are not excluded; give `python -m ace "
            "withdraw` again for that patient"
        )
    used = {event.facts["version"] for event in history.acceptances(events)}
    for version in history.versions(events).values():
        folder = registry.models / version.name
        if version.number in used or folder.exists():
            difference = first_difference(folder, version.files)
            if difference is not None:
                yield f"{folder}: {difference}"
    last = history.accepted(events)
    expected = None if last is None else f"v{last.facts['version']}"
    if registry.served != expected:
        yield (
            f"{registry.models / ACCEPTED} leads to {registry.served}, and the accepted version is {expected}; the "
            "command that was interrupted, given again, sets it"
        )


def _problems_of_tags(registry: Registry, events: tuple[Event, ...]) -> Iterator[str]:
    tags = read_tags(registry.root)
    names = {name: event for event in events if (name := tag_name(event)) is not None}
    for name, event in names.items():
        if name not in tags:
            yield f"tag {name}: missing, and event {event.sequence} made it"
            continue
        commit = history.find_version(events, event.facts["version"]).commit
        if tags[name].commit != commit:
            yield f"tag {name}: is on commit {tags[name].commit}, recorded is {commit}"
        if tags[name].sequence != event.sequence:
            yield f"tag {name}: names event {tags[name].sequence}, and event {event.sequence} made it"
    for name in sorted(set(tags) - set(names)):
        yield f"tag {name}: no event of the log made it"
    last = history.accepted(events)
    expected = None if last is None else last.facts["version"]
    if accepted_by_tags(registry.root) != expected:
        yield f"the tags say that v{accepted_by_tags(registry.root)} is accepted, and the log says v{expected}"


def _files_since(event: Event, erasures: Sequence[Event]) -> dict[str, str]:
    """Return the files that an event recorded, with the sha256 that later erasures of patients have given them."""
    files = dict(event.files)
    for erasure in erasures:
        if erasure.sequence > event.sequence:
            files |= {name: erasure.files[name] for name in files if name in erasure.files}
    return files


def _problems_of_files(folder: Path, event: Event, files: Mapping[str, str]) -> Iterator[str]:
    for name, sha256 in files.items():
        path = folder / name
        if not path.is_file():
            yield f"{path}: missing, and event {event.sequence} names it"
        elif sha256_of(path) != sha256:
            yield f"{path}: has the sha256 {sha256_of(path)}, event {event.sequence} recorded {sha256}"
