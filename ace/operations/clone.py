"""The service's clone: the one checkout in which data is committed and models are accepted."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from ace.operations.errors import OperationsError
from ace.operations.events import LOG, Actor

BRANCH = "service"
"""Branch of the service's clone."""
SCHEDULE = Actor("schedule", automatic=True)


def git(root: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Run git in a folder and return what it prints.

    Raises:
        OperationsError: git fails or is not installed.
    """
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, **(environment or {})},
        )
    except FileNotFoundError:
        raise OperationsError("git is not installed, or not on PATH; install it") from None
    except subprocess.CalledProcessError as error:
        raise OperationsError(f"{root}: git {arguments[0]} failed: {error.stderr.strip()}") from None
    return done.stdout


def check_branch(root: Path, branch: str) -> None:
    """Refuse to decide anything in a checkout that is not the service's.

    Args:
        root: The checkout.
        branch: Branch that the service's clone is on.

    Raises:
        OperationsError: it is on another branch.
    """
    found = git(root, "rev-parse", "--abbrev-ref", "HEAD").strip()
    if found != branch:
        raise OperationsError(
            f"{root} is on the branch '{found}'; models are accepted only in the service's clone, which is on "
            f"'{branch}'. Give the command there, or name the branch of this clone: --branch {found}"
        )


def check_unmodified(root: Path) -> None:
    """Refuse to decide anything while work is uncommitted: a version is a commit.

    Raises:
        OperationsError: a tracked file other than the event log is modified.
    """
    # Each entry is two letters, a space and the name.
    status = git(root, "status", "--porcelain", "--no-renames", "--untracked-files=no", "-z").split("\0")
    modified = [entry[3:] for entry in status if entry and entry[3:] != LOG.as_posix()]
    if modified:
        names = ", ".join(modified[:5]) + (f" and {len(modified) - 5} more" if modified[5:] else "")
        raise OperationsError(
            f"{root}: tracked files are modified: {names}. A version is a commit, so commit them first, or undo them: "
            "git restore FILE"
        )


def actor_of(root: Path) -> Actor:
    """Return the person whom git knows here; GIT_COMMITTER_NAME and GIT_COMMITTER_EMAIL win over its configuration.

    Raises:
        OperationsError: git knows nobody.
    """
    try:
        identity = git(root, "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT")
    except OperationsError:
        raise OperationsError(
            f"{root}: git does not know who you are, and every decision about models has a name; tell it: git config "
            "user.name NAME and git config user.email ADDRESS, or set GIT_COMMITTER_NAME and GIT_COMMITTER_EMAIL"
        ) from None
    return Actor(identity[: identity.rindex(">") + 1])
