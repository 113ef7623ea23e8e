"""Files and folders that appear whole or not at all: written under a temporary name, then renamed.

A kill leaves no target half written. Nor does a power cut where the target is a file, which is synced before it is
renamed; the files of a folder are not synced.
"""

import errno
import glob
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shards.core.errors import NoSpaceError, UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ADVICE = "make room there, or choose another place"
_TEXTS_OF_FULL = tuple(map(os.strerror, _FULL))


def check_room(folder: Path, num_bytes: float, what: str, advice: str = _ADVICE) -> None:
    """Refuse work whose result does not fit on the disk, before the work is done.

    Args:
        folder: Folder of the result; it may be missing yet.
        num_bytes: Estimated size of the result.
        what: The result, in the plural, as the message names it.
        advice: Advice at the end of the message.

    Raises:
        NoSpaceError: the disk of the folder has less room.
    """
    free = _free_bytes(folder)
    if free < num_bytes:
        raise NoSpaceError(f"{folder}: {size(free)} free, {what} need about {size(num_bytes)}; {advice}")


@contextmanager
def clear_when_full(*folders: Path, num_bytes: float | None = None) -> Iterator[None]:
    """Say in one line which disk is full, what it has and what is needed, instead of ending in a traceback.

    Args:
        folders: The folders that the block writes to. Few errors tell where they come from: the one on the fullest disk
            is named.
        num_bytes: Estimated size of what the block writes, where it is known.

    Raises:
        NoSpaceError: a disk is full, a quota is used up, or files may not be as large.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _reason_if_full(error)
        if reason is None:
            raise
        fullest = min(folders, key=_free_bytes, default=None)
        disk = f"{_lasting(fullest)} ({_free(fullest)} free)" if fullest else "this command writes to a full disk"
        needed = "more is needed" if num_bytes is None else f"about {size(num_bytes)} are needed"
        is_limit = reason == os.strerror(errno.EFBIG)
        remedy = "raise the limit on the size of a file (`ulimit -f`)" if is_limit else "make room there"
        raise NoSpaceError(
            f"{disk}: {reason}, {needed}; what was finished is kept, nothing "
            f"is half written: {remedy} and give the same command again"
        ) from None


def size(num_bytes: float) -> str:
    """Return a number of bytes as people read it."""
    for unit, num_bytes_of_unit in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= num_bytes_of_unit:
            return f"{num_bytes / num_bytes_of_unit:,.1f} {unit}"
    return f"{num_bytes / 1e3:,.1f} kB"


def _reason_if_full(error: BaseException) -> str | None:
    if isinstance(error, OSError) and error.errno in _FULL:
        return os.strerror(error.errno)
    if isinstance(error.__context__, OSError):  # as `torch.save` fails: at closing what a write had failed for
        return _reason_if_full(error.__context__)
    # Libraries that write past Python, and `shutil.copytree`, tell the error's number in words.
    return next((text for text in _TEXTS_OF_FULL if text in str(error)), None)


def _lasting(folder: Path) -> Path:
    """Return the folder itself, or the one around what `atomic_directory` removes after an error."""
    return folder.parent if re.fullmatch(r"\..*\.tmp", folder.name) else folder


def _free(folder: Path) -> str:
    found = os.statvfs(_existing(folder))
    has_inodes = found.f_favail > 0 or found.f_files == 0  # some file systems count none
    return size(_free_bytes(folder)) + ("" if has_inodes else " and no inode")


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


@contextmanager
def atomic_path(target: Path, num_bytes: float | None = None) -> Iterator[Path]:
    """Give a temporary path beside `target` to write a file to, which replaces it when the block ends without an error.

    Several processes may write one target: the last one wins. What a killed one left is removed by the next.

    Args:
        target: The file.
        num_bytes: Estimated size of it, where it is known, for the message.

    Raises:
        NoSpaceError: the disk is full.
    """
    with clear_when_full(target.parent, num_bytes=num_bytes):
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


@contextmanager
def atomic_directory(target: Path, num_bytes: float | None = None) -> Iterator[Path]:
    """Give a new temporary folder beside `target`, which replaces it when the block ends without an error.

    After an error the temporary folder is removed.

    Args:
        target: The folder.
        num_bytes: Estimated size of its files, where it is known: looked for before the block begins.

    Raises:
        NoSpaceError: the disk is full, or has too little room.
    """
    # Beside the target: a rename needs one file system.
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    if num_bytes is not None:
        check_room(target.parent, num_bytes, f"the files of {target.name}")
    with clear_when_full(target.parent, num_bytes=num_bytes):
        try:
            temporary.mkdir(parents=True)
            yield temporary
            replace_directory(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(target: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(target, len(text.encode())) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_private_text(target: Path, text: str) -> None:
    """Write UTF-8 text atomically to a file that its owner alone may read."""
    with atomic_path(target, len(text.encode())) as temporary:
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
