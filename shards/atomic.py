"""Files and folders that appear whole or not at all: written under a temporary name, then renamed.

A kill leaves no target half written. Nor does a power cut where the target is a file, which is synced before it is
renamed; the files of a folder are not synced.
"""

import errno
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.errors import NoSpaceError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def clear_when_full(*folders: Path) -> Iterator[None]:
    """What a full disk stops is said in one line; what was finished is kept.

    Args:
        folders: That are written to: few errors tell where they come from.

    Raises:
        NoSpaceError: a disk is full, a quota is used up, or files may not be as large.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise NoSpaceError(
            f"{os.strerror(error.errno)}, below {' or '.join(map(str, folders))}; what was finished is kept: make room "
            "and give the same command again"
        ) from None


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary sibling of `target` to write a file to; renamed onto it when the block ends without an error.

    Several processes may write one target: the last one wins. What a killed one left is removed by the next.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_private_text(target: Path, text: str) -> None:
    """Write UTF-8 text atomically to a file that its owner alone may read."""
    with atomic_path(target) as temporary:
        temporary.touch()
        temporary.chmod(0o600)
        temporary.write_text(text, encoding="utf-8")


def make_private_folder(folder: Path) -> None:
    """Make a folder that its owner alone may enter, or close one that is there; somebody else's stays as it is."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(PermissionError):
        folder.chmod(0o700)


def replace_directory(finished: Path, target: Path) -> None:
    """Move a finished folder onto `target`; both must be on one file system.

    No folder can be renamed onto another one, so an existing target is first set aside as `.NAME.old`, and removed
    last. A kill between the two renames leaves no target, and `finished` as it was: the caller makes sure that its next
    run finds or makes a finished folder again, and this function removes what was set aside.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    finished.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(target: Path) -> None:
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        pid = path.name.split(".")[-2]
        if pid.isdecimal() and not _is_running(int(pid)):
            path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 asks and sends nothing
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True
