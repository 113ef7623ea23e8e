"""Take in folders that others write: whether one is complete, and whether all of it lies inside."""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from shards.core.errors import SourceError
from shards.core.records import is_below

MARKER = "_COMPLETE"
"""File that whoever sends images puts into their folder last: from then on the folder is complete."""
CLOCK_S = 60
"""Seconds by which two clocks may differ, as that of a file server and one's own."""
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, kw_only=True)
class Arriving:
    """A folder in incoming/.

    Attributes:
        path: The folder.
        is_complete: It may be taken.
        text: How far it is, for people.
        settles_s: Time before which it is not complete without the marker, in seconds as files have it.
    """

    path: Path
    is_complete: bool
    text: str
    settles_s: float = 0


def arriving(
    incoming: Path, settle_s: float, now_s: float, settling: Mapping[str, float] | None = None
) -> list[Arriving]:
    """List what lies in incoming/, by name.

    Args:
        incoming: The folder incoming/.
        settle_s: Seconds for which a folder without the marker must have stayed as it is.
        now_s: The time, in seconds as files have it.
        settling: Name of a folder → its `settles_s`, as an earlier call found it: until then its files need no look,
            unless the clock was set back since.
    """
    settling = settling or {}
    found: list[Arriving] = []
    for path in sorted(incoming.glob("*")):
        if path.name.startswith("."):
            continue
        if path.is_symlink() or not path.is_dir():
            found.append(Arriving(path=path, is_complete=False, text="no folder: not taken"))
        elif (path / MARKER).is_file():
            found.append(Arriving(path=path, is_complete=True, text=f"complete, it has {MARKER}"))
        elif now_s < settling.get(path.name, 0) <= now_s + settle_s + CLOCK_S:
            settles_s = settling[path.name]
            found.append(
                Arriving(
                    path=path,
                    is_complete=False,
                    text=f"complete in {settles_s - now_s:.0f} s at the earliest",
                    settles_s=settles_s,
                )
            )
        else:
            found.append(_settling(path, settle_s, now_s))
    return found


def check_tree(images: Path) -> None:
    """Refuse a delivered folder with anything but files and folders that lie in it.

    Raises:
        SourceError: there is a link that leads out, a device, a pipe, another file system, or a name with control
            characters; says how many, and no name.
    """
    if images.is_symlink() or not images.is_dir():
        raise SourceError("the delivery is a link or no folder; expected a folder of images")
    root, device = images.resolve(), images.stat().st_dev
    faults: dict[str, int] = {}
    for entry in _entries(images):
        status = entry.stat(follow_symlinks=False)
        fault = None
        if CONTROL.search(entry.name):
            fault = "names with control characters"
        elif stat.S_ISLNK(status.st_mode):
            leads_in = is_below(root, Path(entry.path)) and not Path(entry.path).readlink().is_absolute()
            fault = None if leads_in else "symbolic links that lead out of it"
        elif not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            fault = "devices, pipes or sockets"
        elif status.st_dev != device:
            fault = "mounts of another file system"
        if fault:
            faults[fault] = faults.get(fault, 0) + 1
    if faults:
        found = ", ".join(f"{number} {fault}" for fault, number in faults.items())
        raise SourceError(f"the delivery has {found}; expected files and folders alone")


def shown(name: str) -> str:
    """Write the name of a file so that it can stand in a line of text."""
    return name if name.isprintable() else ascii(name)


def _settling(path: Path, settle_s: float, now_s: float) -> Arriving:
    try:
        num, changed_s = _last_change(path)
    except OSError as error:  # files come and go, or it is closed to the service
        return Arriving(path=path, is_complete=False, text=f"cannot be looked through ({error.strerror})")
    quiet_s = now_s - changed_s
    text = f"unchanged for {max(quiet_s, 0):.0f} of {settle_s:.0f} s, without {MARKER}"
    if quiet_s < -CLOCK_S:
        text = f"changed at a time that is {-quiet_s:.0f} s ahead of the clock, without {MARKER}"
    is_complete = num > 0 and quiet_s >= settle_s
    return Arriving(
        path=path, is_complete=is_complete, text=text if num else "empty", settles_s=changed_s + settle_s if num else 0
    )


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """Yield everything in a folder at any depth; links are yielded and not followed."""
    with os.scandir(folder) as found:
        entries = list(found)
    for entry in entries:
        yield entry
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path))


def _last_change(folder: Path) -> tuple[int, float]:
    """Count the files below a folder, and tell when anything in it last changed, in seconds as files have it.

    By the time that a system keeps itself: a copy that keeps the times of its files does not look old.
    """
    statuses = [(entry.is_file(follow_symlinks=False), entry.stat(follow_symlinks=False)) for entry in _entries(folder)]
    changed_s = max([folder.stat().st_ctime, *(status.st_ctime for _, status in statuses)])
    return sum(is_file for is_file, _ in statuses), changed_s
