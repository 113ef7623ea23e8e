"""The service's own clone: the one git work tree in which data commits are made, and never a person's checkout."""

import os
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from shards.core.errors import ConfigError

BRANCH = "service"
"""Branch that the service's clone is on, and nobody else's work tree."""
_ASKED = ("user.name", "user.email")


@dataclass(frozen=True)
class Clone:
    """The service's clone.

    Attributes:
        root: The folder of params.yaml, at the top of the work tree.
    """

    root: Path

    def check(self) -> None:
        """Check that commits may be made here.

        Raises:
            ConfigError: this is no work tree on the service's branch, or git does not know who commits.
        """
        found = self._git("symbolic-ref", "--quiet", "--short", "HEAD", may_fail=True).strip()
        if found != BRANCH:
            raise ConfigError(
                f"{self.root}: found {f'the branch {found}' if found else 'no branch of git'}; expected the service's "
                f"own clone on the branch {BRANCH}, as nothing is ever committed in a person's checkout: `git clone` "
                f"the project for the service, then `git switch --create {BRANCH}` there"
            )
        top = Path(self._git("rev-parse", "--show-toplevel").strip())
        if top != self.root.resolve():
            raise ConfigError(f"{self.root}: found a folder of the work tree {top}; expected params.yaml at its top")
        for key in _ASKED:
            variable = f"GIT_COMMITTER_{key.removeprefix('user.').upper()}"
            if not (os.environ.get(variable) or self._git("config", key, may_fail=True).strip()):
                raise ConfigError(f"git does not know {key} in {self.root}; `git config {key} …` tells it who commits")

    def modified(self) -> list[str]:
        """List the tracked files that differ from the last commit."""
        answer = self._git("--no-optional-locks", "diff", "--name-only", "--no-renames", "-z", "HEAD", "--")
        return sorted(filter(None, answer.split("\0")))

    def committed(self, path: str) -> str | None:
        """Return the text of a file in the last commit; None if it has none."""
        return self._git("show", f"HEAD:{path}") if self.names_in(path) else None

    def names_in(self, path: str) -> list[str]:
        """List the committed files of a folder (its path ends in `/`), or the file itself."""
        return self._git("ls-tree", "--name-only", "-z", "HEAD", "--", path).split("\0")[:-1]

    def commit(self, paths: Collection[str], message: str) -> None:
        """Commit these files as they are now, and no others; a file that is gone is removed."""
        self._drop_stale_locks()
        self._git("add", "--all", "--", *paths)
        self._git("commit", "--quiet", "--message", message, "--", *paths)

    def unstage(self, path: str) -> None:
        """Take a file that no commit has out of the next one, where a killed call had put it."""
        self._drop_stale_locks()
        self._git("rm", "--cached", "--quiet", "--ignore-unmatch", "--", path)

    def _drop_stale_locks(self) -> None:
        """Remove what a git that was killed left behind, so that the next one can begin.

        Only while no git is at work here: git's own locks are files, which outlive it.
        """
        folder = Path(self._git("rev-parse", "--absolute-git-dir").strip())
        names = ("index.lock", "HEAD.lock", f"refs/heads/{BRANCH}.lock", "next-index-*.lock")
        locks = [path for name in names for path in folder.glob(name)]
        if locks and not _git_is_at_work(self.root):
            for lock in locks:
                lock.unlink(missing_ok=True)

    def _git(self, *arguments: str, may_fail: bool = False) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.root, capture_output=True, text=True, check=False)
        if done.returncode and not may_fail:
            raise ConfigError(f"git {arguments[0]} in {self.root}: {_last_line(done.stderr)}")
        return "" if done.returncode else done.stdout


def _last_line(text: str) -> str:
    lines: Sequence[str] = text.strip().splitlines()
    return lines[-1] if lines else "it failed and said nothing"


def _git_is_at_work(root: Path) -> bool:
    """Tell whether a git process runs in a folder or below it."""
    for process in psutil.process_iter():
        try:
            if process.name() == "git" and Path(process.cwd()).is_relative_to(root.resolve()):
                return True
        except (psutil.Error, OSError):
            continue
    return False
