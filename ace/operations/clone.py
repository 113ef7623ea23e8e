"""The service's clone: the one checkout in which data is committed and models are accepted, never a person's."""

import os
import subprocess
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock

from ace.operations.errors import OperationsError
from ace.operations.events import LOG, Actor

BRANCH = "service"
"""Branch of the service's clone."""
SCHEDULE = Actor("schedule", automatic=True)
_NUM_NAMED = 5


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


@dataclass(frozen=True)
class Clone:
    """A checkout that may be the service's.

    Attributes:
        root: Top folder of the checkout.
        branch: Branch that the service's clone is on.
    """

    root: Path
    branch: str = BRANCH

    def check(self) -> None:
        """Refuse to decide anything in a checkout that is not the service's, or for nobody.

        Raises:
            OperationsError: it is on another branch, `root` is not its top, or git does not know who decides.
        """
        found = git(self.root, "branch", "--show-current").strip()
        if found != self.branch:
            raise OperationsError(
                f"{self.root} is on {f'the branch {found!r}' if found else 'no branch'}; data is committed and models "
                f"are accepted only in the service's own clone, which is on '{self.branch}'. Give the command there"
                + (f", or name the branch of this clone: --branch {found}" if found else "")
            )
        top = Path(git(self.root, "rev-parse", "--show-toplevel").strip())
        if top != self.root.resolve():
            raise OperationsError(f"{self.root}: found a folder of the checkout {top}; expected its top, {top}")
        self.actor()

    @contextmanager
    def locked(self, what: str) -> Iterator[None]:
        """Let one process at a time do something in the service's clone; a second one waits.

        Args:
            what: Name of what is done, as `registry`.

        Raises:
            OperationsError: as `check`.
        """
        self.check()
        folder = git(self.root, "rev-parse", "--path-format=absolute", "--git-common-dir").strip()
        with FileLock(Path(folder) / f"ace-{what}.lock"):
            yield

    def actor(self) -> Actor:
        """Return the person whom git knows; GIT_COMMITTER_NAME and GIT_COMMITTER_EMAIL win over its configuration.

        Raises:
            OperationsError: git knows nobody.
        """
        try:
            identity = git(self.root, "-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT")
        except OperationsError:
            raise OperationsError(
                f"{self.root}: git does not know who you are, and every decision has a name; tell it: git config "
                "user.name NAME and git config user.email ADDRESS, or set GIT_COMMITTER_NAME and GIT_COMMITTER_EMAIL"
            ) from None
        return Actor(identity[: identity.rindex(">") + 1])

    def check_unmodified(self, known: Collection[str] = ()) -> None:
        """Refuse to decide anything while work is uncommitted: every state of the service is a commit.

        Args:
            known: Names of tracked files that may be modified, as the event log always may.

        Raises:
            OperationsError: another tracked file is modified.
        """
        found = git(self.root, "--no-optional-locks", "diff", "--name-only", "--no-renames", "-z", "HEAD", "--")
        modified = sorted({*found.split("\0")} - {"", LOG.as_posix(), *known})
        if modified:
            more = len(modified) - _NUM_NAMED
            names = ", ".join(modified[:_NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
            raise OperationsError(
                f"{self.root}: tracked files are modified: {names}. If a delivery or a training is under "
                "way, wait for its end. Otherwise commit them, for every state of the service is a commit, or undo "
                "them: git restore FILE"
            )

    def committed(self, path: str) -> str | None:
        """Return the text of a file in the last commit; None if it has none."""
        return git(self.root, "show", f"HEAD:{path}") if self.names_in(path) else None

    def names_in(self, path: str) -> list[str]:
        """List the committed files of a folder (its path ends in `/`), or the file itself."""
        return git(self.root, "ls-tree", "--name-only", "-z", "HEAD", "--", path).split("\0")[:-1]

    def commit(self, paths: Collection[str], message: str) -> None:
        """Commit these files and the event log as they are now, and no others; a file that is gone is removed."""
        self._drop_stale_locks()
        if (self.root / LOG).is_file():
            paths = [*paths, LOG.as_posix()]
        git(self.root, "add", "--all", "--", *paths)
        git(self.root, "commit", "--quiet", "--message", message, "--", *paths)

    def unstage(self, path: str) -> None:
        """Take a file that no commit has out of the next one, where a killed call had put it."""
        self._drop_stale_locks()
        git(self.root, "rm", "--cached", "--quiet", "--ignore-unmatch", "--", path)

    def _drop_stale_locks(self) -> None:
        """Remove what a git that was killed left behind, so that the next one can begin.

        Only while no git is at work here: git's own locks are files, which outlive it.
        """
        folder = Path(git(self.root, "rev-parse", "--absolute-git-dir").strip())
        names = ("index.lock", "HEAD.lock", f"refs/heads/{self.branch}.lock", "next-index-*.lock")
        locks = [path for name in names for path in folder.glob(name)]
        if locks and not _git_is_at_work(self.root):
            for lock in locks:
                lock.unlink(missing_ok=True)


def _git_is_at_work(root: Path) -> bool:
    """Tell whether a git process runs in a folder or below it."""
    for process in psutil.process_iter():
        try:
            if process.name() == "git" and Path(process.cwd()).is_relative_to(root.resolve()):
                return True
        except (psutil.Error, OSError):
            continue
    return False
