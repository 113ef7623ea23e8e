"""Bring what the service has committed to others: first the data, then commits and tags.

The order is what a clone depends on: whoever sees a commit at `origin` can pull its data. Each step finds what an
earlier run of it did, so a kill anywhere is finished by the same command. Publishing is no event of the log, or there
would always be one more line to publish: a ref of this clone, `refs/ace/published`, says how far it got.
"""

import os
import subprocess
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from ace.operations import history
from ace.operations.clone import Clone, git
from ace.operations.dvc_objects import erased_objects
from ace.operations.errors import OperationsError
from ace.operations.events import LOG, SET_ASIDE
from ace.operations.registry import LOCK
from ace.operations.tags import read_events, read_tags, write_missing_tags
from shards.core.errors import OutOfReachError
from shards.runtime.text import count_of

PUBLISHED = "refs/ace/published"
"""The last commit that is at `origin` with all its data; a ref of the service's clone that is pushed nowhere."""
ORIGIN = "origin"
PUBLISHING = "publishing"
"""Name of the lock under which one process at a time publishes (`Clone.locked`)."""
_REMOTE = "DVC's remote"
PAUSES_S = (2.0, 10.0, 60.0)
"""Pauses in seconds before what cannot be reached is tried again."""
_Result = TypeVar("_Result")


def published_commit(root: Path) -> str | None:
    """Return the commit of a clone that was published last, without asking the network; None if none was."""
    return git(root, "for-each-ref", "--format=%(objectname)", PUBLISHED).strip() or None


def publish(clone: Clone, pauses_s: Sequence[float] = PAUSES_S) -> Iterator[str]:
    """Commit the event log, push what dvc.lock records to DVC's remote, then the branch and the registry's tags.

    Of earlier commits, those of registered versions are meant too: a rollback needs their data.

    Args:
        clone: The service's clone.
        pauses_s: Pauses in seconds before what cannot be reached is tried again.

    Yields:
        A line for everything that was done, and before each pause.

    Raises:
        OperationsError: this is not the service's clone, a tracked file other than the event log is modified, the log
            is not as it was written, no remote is named, data is missing, or `origin` refuses what is pushed.
        OutOfReachError: a remote cannot be reached; what was pushed is kept, and the next call goes on from there.
    """
    with clone.locked(PUBLISHING):
        if not git(clone.root, "config", "--default", "", "--get", f"remote.{ORIGIN}.url").strip():
            raise OperationsError(
                f"{clone.root}: git has no remote '{ORIGIN}' to publish to; name a bare repository: git remote add "
                f"{ORIGIN} URL"
            )
        with clone.locked(LOCK):  # not longer: a rollback does not wait for the network
            clone.check_unmodified()
            events = read_events(clone.root)
            write_missing_tags(clone.root, events)
            if _commit_log(clone, len(events)):
                yield f"committed {LOG}"
            commit = git(clone.root, "rev-parse", "HEAD").strip()
            tags = read_tags(clone.root)
        last = published_commit(clone.root)
        unpublished = git(clone.root, "rev-list", commit, *([f"^{last}"] if last else [])).split()
        versions = {version.commit for version in history.versions(events).values()}.intersection(unpublished)
        revisions = sorted(versions | {commit})
        num_files = yield from _patiently(lambda: _push_data(clone.root, revisions), pauses_s)
        yield f"data: {count_of(num_files, 'file')} pushed, and all are at DVC's remote"
        yield from _patiently(lambda: _push_commits(clone, commit, tags), pauses_s)
        yield f"commits: {count_of(len(unpublished), 'new commit')}; {ORIGIN} has '{clone.branch}' up to {commit[:12]}"
        git(clone.root, "update-ref", PUBLISHED, commit)


def _commit_log(clone: Clone, num_events: int) -> bool:
    """Commit what was appended to the event log, and the half lines that were set aside; tell whether there was any."""
    paths = [path.as_posix() for path in (LOG, LOG.with_name(SET_ASIDE)) if (clone.root / path).exists()]
    is_new = bool(paths) and bool(git(clone.root, "status", "--porcelain", "--untracked-files=all", "--", *paths))
    if is_new:
        clone.commit(paths, f"The event log up to event {num_events}")
    return is_new


def _patiently(step: Callable[[], _Result], pauses_s: Sequence[float]) -> Generator[str, None, _Result]:
    """Try a step again, after a pause that a line announces, while what it needs cannot be reached."""
    for pause_s in pauses_s:
        try:
            return step()
        except OutOfReachError as error:
            yield f"{error}; trying again in {pause_s:g} s"
            time.sleep(pause_s)
    try:
        return step()
    except OutOfReachError as error:
        raise OutOfReachError(
            f"{error}. Nothing is lost, and what was pushed stays; the next `python -m ace ops publish` goes on from "
            "there"
        ) from error


def _push_data(root: Path, revisions: Sequence[str]) -> int:
    """Push what these commits record, and see that it is there; returns how many files were pushed.

    DVC's own push of commits takes the remote that each one names, where a relative folder is another one, and only
    warns of files that it does not find.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root), _wait_for_lock=True) as repo, repo.lock:
            remote = repo.cloud.get_remote(command="push")
            # DVC would make the folder anew, on the disk below one that is not mounted.
            if remote.fs.protocol == "local" and not Path(remote.path).is_dir():
                raise _unreachable(_REMOTE, f"{remote.path} is not there; mount its disk, or make it if it is new")
            objects = set()
            for _ in repo.brancher(revs=revisions, workspace=False):
                outs = [out for out in repo.index.outs if out.use_cache and out.can_push and not out.stage.is_import]
                # `used_objs` passes over a folder whose list is lost, and this must not.
                objects |= {out.hash_info for out in outs if out.hash_info}
                objects |= repo.index.used_objs(force=True, push=True).get(None, set())
            num_pushed = len(repo.cloud.push(objects).transferred)
            found = repo.cloud.status(objects)
    except DvcException as error:
        raise OperationsError(f"{root}: nothing can be pushed to DVC's remote: {error}") from error
    except OutOfReachError:
        raise
    except Exception as error:  # each kind of remote has errors of its own
        raise _unreachable(_REMOTE, error) from error
    missing = {item.value for item in found.missing} - erased_objects(root, read_events(root))
    if missing:
        first = min(missing)
        raise OperationsError(
            f"{root}: dvc.lock records data that is neither in DVC's cache nor at its remote, as md5 {first}. Nothing "
            f"was pushed to {ORIGIN}; make the data again (dvc repro), or bring back the cache or the remote"
        )
    if found.new:
        raise _unreachable(_REMOTE, f"it did not take {count_of(len(found.new), 'file')}; is its disk full?")
    return num_pushed


def _push_commits(clone: Clone, commit: str, tags: Collection[str]) -> None:
    """Push a commit as the branch, and tags, all or none."""
    references = [f"{commit}:refs/heads/{clone.branch}", *(f"refs/tags/{tag}" for tag in tags)]
    done = subprocess.run(
        ["git", "-C", str(clone.root), "push", "--porcelain", "--atomic", ORIGIN, *references],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
    )
    if not done.returncode:
        return
    refused = [line.split("\t") for line in done.stdout.splitlines() if line.startswith("!\t")]
    if not refused:  # git had no answer about any of them
        raise _unreachable(ORIGIN, " ".join(done.stderr.split()))
    # The others are refused because of the first one that is refused for itself.
    _, names, why = next((line for line in refused if "atomic push" not in line[2]), refused[0])
    name = names.partition(":")[2].removeprefix("refs/heads/")
    if name != clone.branch:
        name = name.removeprefix("refs/tags/")
        advice = f"the tag '{name}' is another one there; compare: git ls-remote --tags {ORIGIN} and git show '{name}'"
    elif why.startswith("[rejected]"):
        advice = (
            f"it has commits that this clone has not, so somebody else pushed to '{name}'. Look at them: git fetch "
            f"--no-tags {ORIGIN} && git log --stat ..{ORIGIN}/{name}; take them in: git merge {ORIGIN}/{name}, or, if "
            f"they change {LOG}, pass over them: git merge --strategy ours {ORIGIN}/{name}; then publish again"
        )
    else:
        advice = f"what it says: {done.stderr.strip()}"
    raise OperationsError(f"{ORIGIN} refuses '{name}' and was left as it was: {why}; {advice}")


def _unreachable(what: str, why: Exception | str) -> OutOfReachError:
    return OutOfReachError(f"{what} cannot be reached: {why}")
