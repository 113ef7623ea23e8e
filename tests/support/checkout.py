"""A clone of this repository as it stands in the work tree, to run the whole graph in without touching the checkout."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from ace.config import use

ROOT = Path(__file__).parents[2]
MAKE = ("make", *(f"-o{sys.prefix}/{stamp}" for stamp in (".installed", ".installed-dev")), f"VENV={sys.prefix}")
"""make with the environment of the running tests instead of a new one: -o takes an installation as done."""


_KEPT = ("HOME", "LANG", "TMPDIR")
_KEPT_PREFIXES = ("ACE_", "DVC_", "MKL_", "OMP_")


def clone_checkout(clone: Path) -> Path:
    """Clone, commit what differs from HEAD here, and choose the configuration `smoke`."""
    git(ROOT, "clone", "--quiet", str(ROOT), str(clone))
    names = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in filter(None, names):
        target = clone / name
        target.unlink(missing_ok=True)
        if (ROOT / name).exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    # `dvc exp run` stashes what differs from HEAD, and git asks who does so.
    git(clone, "config", "user.name", "test")
    git(clone, "config", "user.email", "test@localhost")
    commit(clone)
    use("smoke", clone / "params.yaml", clone / "configs")
    return clone


def copy_project(folder: Path) -> None:
    """Copy the files of the project that commands which change batches read."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "batches", folder / "batches")


def commit(clone: Path) -> None:
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--allow-empty", "-m", "work tree")


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def run(clone: Path, *command: str) -> str:
    """Run a command in the clone as in a new terminal, where the environment was activated for all but make.

    Nothing of the tests' own environment helps: neither its PATH nor a PYTHONPATH.
    """
    kept = {name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    if command[0] != "make":
        activate = shlex.quote(f"{sys.prefix}/bin/activate")
        command = ("bash", "-ec", f'source {activate}; exec "$@"', "bash", *command)
    environment = {**kept, "PATH": "/usr/local/bin:/usr/bin:/bin"}
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout
