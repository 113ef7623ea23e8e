"""The registry's git tags as GTO reads them: `ace@v3.0.0` registers version 3, `ace#accepted#12` accepts one.

Git writes them, since GTO writes no date but the clock's; GTO reads them. Versions of GTO have three numbers, of which
ours use the first. The number after `accepted` is that of the event in the log.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from ace.operations.clone import git
from ace.operations.errors import OperationsError
from ace.operations.events import LOG, Event, EventLog
from ace.operations.history import REGISTERED, acceptances, find_version

ARTIFACT, STAGE = "ace", "accepted"
_PATTERNS = (f"refs/tags/{ARTIFACT}@v*", f"refs/tags/{ARTIFACT}#*")
_FORMAT = "%(refname:strip=2)%00%(*objectname)%00%(taggerdate:unix)%00%(contents)%00"
_HEAD = re.compile(r"^event (\d+)\nsha256 ([0-9a-f]{64})$", re.M)


@dataclass(frozen=True, kw_only=True)
class RegistryTag:
    """A tag of the registry.

    Attributes:
        name: Name of the tag in git, as `ace@v3.0.0`.
        commit: The commit that it is on.
        date: Date of its tagger, in seconds since 1970.
        sequence: Number of the event that it stands for; 0 if its message names none.
        sha256: sha256 of the line of the event; empty likewise.
    """

    name: str
    commit: str
    date: int
    sequence: int
    sha256: str


def tag_name(event: Event) -> str | None:
    """Return the name of an event's tag, or None for an event that has none."""
    if event.kind == REGISTERED:
        return f"{ARTIFACT}@v{event.facts['version']}.0.0"
    return f"{ARTIFACT}#{STAGE}#{event.sequence}" if acceptances([event]) else None


def read_tags(root: Path) -> dict[str, RegistryTag]:
    """Read the registry's tags by name; tags without a tagger are none, as for GTO."""
    tags = {}
    for record in git(root, "for-each-ref", f"--format={_FORMAT}", *_PATTERNS).split("\0\n")[:-1]:
        name, commit, date, message = record.split("\0")
        if date:
            head = _HEAD.search(message)
            sequence, sha256 = (int(head[1]), head[2]) if head else (0, "")
            tags[name] = RegistryTag(name=name, commit=commit, date=int(date), sequence=sequence, sha256=sha256)
    return tags


def tag_heads(tags: dict[str, RegistryTag]) -> dict[int, str]:
    """Return the sha256 of lines of the log that tags keep, by number of the line."""
    return {tag.sequence: tag.sha256 for tag in tags.values() if tag.sequence}


def read_events(root: Path) -> tuple[Event, ...]:
    """Return the events of a clone's log, the oldest first.

    Raises:
        OperationsError: a line is not as it was written, or a line that a tag names is missing.
    """
    return EventLog(root / LOG).events(tag_heads(read_tags(root)))


def write_missing_tags(root: Path, events: tuple[Event, ...]) -> None:
    """Write the tags of the newest events that have none yet, as after a kill.

    GTO goes by the taggers' dates, and the last one wins. So each tag is dated later than all others, whatever the
    clock shows, and it is read again after it was written.

    Raises:
        OperationsError: an older event has lost its tag, or GTO does not see what was written.
    """
    tags = read_tags(root)
    last = max((tag.sequence for tag in tags.values()), default=0)
    for event in events:
        name = tag_name(event)
        if name is None or name in tags:
            continue
        if event.sequence < last:
            raise OperationsError(
                f"{root}: the tag {name} of event {event.sequence} is missing, though later ones are there; fetch it "
                "again: git fetch origin --tags"
            )
        date = max(int(event.time.timestamp()), 1 + max((tag.date for tag in tags.values()), default=0))
        commit = find_version(events, int(event.facts["version"])).commit
        text = f"v{event.facts['version']} {event.kind}\n\nevent {event.sequence}\nsha256 {event.sha256}"
        git(root, "tag", "--annotate", "-m", text, name, commit, environment={"GIT_COMMITTER_DATE": f"@{date} +0000"})
        tags[name] = RegistryTag(name=name, commit=commit, date=date, sequence=event.sequence, sha256=event.sha256)
        if read_tags(root).get(name) != tags[name]:
            raise OperationsError(f"{root}: the tag {name} was written, and git reads it otherwise: git show '{name}'")
    newest = acceptances(events)[-1:]
    if newest and accepted_by_tags(root) != newest[0].facts["version"]:
        raise OperationsError(
            f"{root}: by its tags v{accepted_by_tags(root)} is the accepted model, by its event log "
            f"v{newest[0].facts['version']}; python -m ace models audit names the first tag that is wrong"
        )


def accepted_by_tags(root: Path) -> int | None:
    """Return the number of the version that GTO says is accepted, or None if it says of none."""
    from gto.constants import VersionSort
    from gto.registry import GitRegistry

    with GitRegistry.from_url(str(root)) as registry:
        artifact = registry.find_artifact(ARTIFACT, create_new=True)
    # By time, as `gto show`: by default, as in `which`, the highest version would be taken, and no rollback be seen.
    newest = artifact.get_vstages(sort=VersionSort.Timestamp).get(STAGE)
    return int(newest[0].version.removeprefix("v").split(".")[0]) if newest else None
