"""Where unfinished work waits for its next run: outside the work tree, keyed by a fingerprint of its inputs."""

import os
import subprocess
import sys
from pathlib import Path

from shards.errors import ConfigError

SCRATCH_VARIABLE = "ACE_SCRATCH"


def scratch_dir(stage: str, fingerprint: str) -> Path:
    """The folder for the unfinished work of one stage with one fingerprint; created when missing, always absolute.

    DVC deletes a stage's out before the stage runs and copies the tree for `dvc exp run --temp`, so work that must
    survive a kill cannot lie in either: it lies below `ACE_SCRATCH` or, by default, below git's common directory.

    Args:
        stage: the stage's word, as `phantom`.
        fingerprint: hex digest of everything that decides the result; work of another fingerprint is never used.

    Raises:
        ConfigError: `ACE_SCRATCH` is not absolute, or it is unset and this is no git checkout.
    """
    folder = scratch_root() / stage / fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def announce_other_work(scratch: Path) -> None:
    """Name the unfinished work of other fingerprints beside `scratch` on standard error: it is never used."""
    others = sorted(str(path) for path in scratch.parent.iterdir() if path != scratch)
    if others:
        print(
            f"unfinished work of other parameters, data or code, not used here: {', '.join(others)}; delete it if "
            "nobody goes on with it",
            file=sys.stderr,
        )


def scratch_root() -> Path:
    """The folder that holds every stage's unfinished work.

    Raises:
        ConfigError: as `scratch_dir`.
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
            f"no place for unfinished work: {Path.cwd()} is no git checkout; set {SCRATCH_VARIABLE} to an absolute path"
        ) from None
    return Path(answer.stdout.strip()) / "ace-scratch"
