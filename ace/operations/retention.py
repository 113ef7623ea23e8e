"""Say which objects of DVC a service still needs: those of its work tree, its tags, and the versions of its log."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from ace.operations import history
from ace.operations.clone import git
from ace.operations.dvc_objects import Stores
from ace.operations.errors import OperationsError
from ace.operations.events import Event
from ace.operations.history import Version
from ace.operations.model_files import read_lock
from ace.operations.params import RetentionParams

REPORTS = "reports/"
"""Folder of the reports among the outs of dvc.lock; a version's other documents lie in its folder and in git."""


def last_in_use(events: Sequence[Event], version: Version) -> datetime | None:
    """Return when a version stopped being the accepted one, or was registered if it never was; None while it is."""
    found = history.acceptances(events)
    times = [version.event.time]
    for event, following in zip(found, (*found[1:], None), strict=True):
        if event.facts["version"] == version.number:
            if following is None:
                return None
            times.append(following.time)
    return max(times)


def needed_objects(root: Path, events: Sequence[Event], params: RetentionParams, now: datetime) -> set[str]:
    """Return the md5 of each object that DVC's cache has to keep.

    These are the objects of the work tree, of the last commit, of experiments, of each tag and of each registered
    version; of a version that has been out of use for `models_years`, only its model and its report.

    Raises:
        OperationsError: DVC's remote cannot be reached, or what a version needs is not known.
    """
    versions, stores = history.versions(events).values(), Stores.open(root)
    documents = [_documents(root, version, stores) for version in versions]
    since = now - timedelta(days=366 * params.models_years)
    times = {version.commit: last_in_use(events, version) for version in versions}
    old = {commit for commit, time in times.items() if time is not None and time < since}
    tagged = git(root, "rev-list", "--no-walk", "--tags").split()
    head = git(root, "rev-parse", "HEAD").strip()
    revisions = sorted({head, *times, *tagged} - (old - {head}))
    return stores.expand(_used(root, revisions).union(*documents))


def _documents(root: Path, version: Version, stores: Stores) -> set[str]:
    """Return the objects of a version's model, in which card and lineage are, and of the report of its commit.

    Raises:
        OperationsError: they are not known, so that everything might be one of them.
    """
    try:
        stages = read_lock(root, version.commit)
    except OperationsError as error:
        raise OperationsError(
            f"{version.name}: what its commit records is not known, so nothing is removed. Bring the commit back: git "
            f"fetch origin --tags. {error}"
        ) from None
    if not stores.listing(version.model.md5):
        raise OperationsError(
            f"{version.name}: the list of the files of {version.model.path} (md5 {version.model.md5}) is neither in "
            "DVC's cache nor at its remote, so they cannot be told from files that nobody needs, and nothing is "
            "removed. Bring it back from a backup of either"
        )
    outs = [out for stage in stages.values() for out in stage.get("outs", ())]
    return {version.model.md5, *(out["md5"] for out in outs if out["path"].startswith(REPORTS))}


def _used(root: Path, revisions: Sequence[str]) -> set[str]:
    """Return the objects that the work tree, experiments and some commits record, as `dvc gc` looks for them.

    `dvc gc` itself takes one commit alone.
    """
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        # By force, since lists that were erased, or are of a tag of the project from before this service, are nowhere.
        used = repo.used_objs(revs=revisions, all_experiments=True, force=True)
        return {item.value for items in used.values() for item in items if item.value}
