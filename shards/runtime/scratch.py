"""Keep unfinished work for its next run: outside the work tree, keyed by a fingerprint of its inputs."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from shards.core.errors import ConfigError

SCRATCH_VARIABLE = "ACE_SCRATCH"


@contextmanager
def unfinished_work(stage: str, fingerprint: str, *, wait: bool = False) -> Iterator[Path]:
    """Hold the folder for the work of one stage with one fingerprint, which goes once the work is finished.

    DVC deletes a stage's out before the stage runs and copies the tree for `dvc exp run --temp`, so work that must
    survive a kill cannot lie in either: it lies below `ACE_SCRATCH` or, by default, below git's common directory. After
    an error or a kill the folder stays, and the next run with the same fingerprint gets it as it is.

    Args:
        stage: The stage's word, as `phantom`.
        fingerprint: Hex digest of everything that decides the result; work of another fingerprint is named on standard
            error and never used.
        wait: Wait for another process at the same work, instead of refusing.

    Raises:
        ConfigError: another process is at the same work, `ACE_SCRATCH` is not absolute, or it is unset and this is no
            git checkout.
    """
    folder = scratch_root() / stage / fingerprint
    # Not in the folder, which goes when the work is done, nor beside it, where other work is looked for.
    locks = scratch_root() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{stage.replace('/', '-')}-{fingerprint}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise ConfigError(
                f"another process is at work on this {stage} and holds {lock.lock_file}; wait for it or end it"
            ) from None
        print(f"waiting for another process at work on this {stage}, which holds {lock.lock_file}", file=sys.stderr)
        lock.acquire()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _announce_other_work(folder)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        with suppress(OSError):
            folder.rmdir()  # only if nothing was begun
        lock.release()


def _announce_other_work(folder: Path) -> None:
    others = sorted(str(path) for path in folder.parent.iterdir() if path != folder)
    if others:
        print(
            f"found unfinished work with other parameters, data or code, which is not used: {', '.join(others)}; "
            "delete it if nobody needs it",
            file=sys.stderr,
        )


def scratch_root() -> Path:
    """Return the folder that holds every stage's unfinished work.

    Raises:
        ConfigError: `ACE_SCRATCH` is not absolute, or it is unset and this is no git checkout.
    """
    configured = os.environ.get(SCRATCH_VARIABLE)
    if configured:
        root = Path(configured).expanduser()
        if not root.is_absolute():
            raise ConfigError(f"{SCRATCH_VARIABLE}={configured}: expected an absolute path outside of the work tree")
        return root
    command = ["git", "rev-parse", "--path-format=absolute", "--git-common-dir"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        raise ConfigError(
            f"found no folder for unfinished work, as {Path.cwd()} is no git checkout; set {SCRATCH_VARIABLE} to an "
            "absolute path"
        ) from None
    return Path(answer.stdout.strip()) / "ace-scratch"
