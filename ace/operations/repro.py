"""Run a stage with dvc from a process that may be killed meanwhile, and tell what other ones are at work on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

RWLOCK = ".dvc/tmp/rwlock"
"""File in which every dvc of a clone writes which outs it is at work on, and its process."""
_READINGS, _READ_AGAIN_S = 4, 0.25
"""Unreadable that often, with so many seconds between, this file was left by a kill in the middle of writing it."""
_LAST_LINES = 15


def repro(stage: str | None, project: Path, log: Path) -> str | None:
    """Run one stage or all with dvc, which waits for other ones and passes over what has not changed.

    Args:
        stage: Name of the stage; None: the whole graph.
        project: Folder of the project.
        log: File that gets all that dvc says.

    Returns:
        The last lines of what dvc said, if it failed.
    """
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *(["-s", stage] if stage else [])]
    drop_torn_rwlock(project)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    with log.open("wb") as file:
        # dvc runs commands with $SHELL, which for a service's account may run none.
        environment = {**os.environ, "PATH": path, "SHELL": "/bin/sh"}
        done = subprocess.run(
            command,
            cwd=project,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            check=False,
            close_fds=False,  # it holds the lock on the deliveries as long as it lives
        )
    if not done.returncode:
        return None
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:])


def at_work(root: Path) -> dict[str, int]:
    """Find what living dvc processes write, by their own record: out → id of the process."""
    try:
        busy = json.loads((root / RWLOCK).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    writers = {os.path.relpath(out, root): info["pid"] for out, info in busy.get("write", {}).items()}
    return {out: pid for out, pid in writers.items() if psutil.pid_exists(pid)}


def drop_torn_rwlock(root: Path) -> None:
    """Remove DVC's file of busy outs if it is no JSON.

    A dvc that is killed while it writes the file leaves it empty or cut off, and every later dvc would refuse to run.

    Args:
        root: Top of the DVC repository.
    """
    path = root / RWLOCK
    for _ in range(_READINGS):  # another dvc may be writing it just now
        try:
            json.loads(path.read_text(encoding="utf-8"))
            return
        except FileNotFoundError:
            return
        except ValueError:
            time.sleep(_READ_AGAIN_S)
    path.unlink(missing_ok=True)
