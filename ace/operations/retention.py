"""Say which objects of DVC a service still needs: those of its work tree, its tags, and the versions of its log."""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from ace.operations import history
from ace.operations.clone import git
from ace.operations.dvc_objects import Stores, made_since
from ace.operations.errors import OperationsError
from ace.operations.events import Event
from ace.operations.history import Version
from ace.operations.model_files import read_lock
from ace.operations.params import RetentionParams
from ace.operations.retraining_state import open_retraining
from ace.operations.tags import ARTIFACT

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

    These are the objects of the work tree, of the last commit, of experiments, of each tag that is not the registry's,
    of each registered version, and of what a retraining has made that has not ended; of a version that has been out of
    use for `models_years`, only its model and its report.

    Raises:
        OperationsError: DVC's remote cannot be reached, or what has to be kept is not known.
    """
    versions, stores = history.versions(events).values(), Stores.open(root)
    documents = [_documents(root, version, stores) for version in versions]
    since = now - timedelta(days=366 * params.models_years)
    times = {version.commit: last_in_use(events, version) for version in versions}
    old = {commit for commit, time in times.items() if time is not None and time < since}
    own = [f"--exclude={ARTIFACT}{pattern}" for pattern in ("@v*", "#*")]
    tagged = git(root, "rev-list", "--no-walk", *own, "--tags").split()
    head = git(root, "rev-parse", "HEAD").strip()
    began = open_retraining(events)
    # Also what a dvc.lock has lost that dvc was killed over: the next call takes it from the cache.
    made = set() if began is None else made_since(root, began.time)
    return stores.expand(_used(root, sorted({head, *tagged, *(times.keys() - old)})).union(made, *documents))


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

    Raises:
        OperationsError: DVC cannot read what one of them records.
    """
    from dvc.exceptions import RevCollectionError
    from dvc.repo import Repo

    logger = logging.getLogger("dvc")
    level = logger.level
    with Repo(str(root)) as repo:
        try:
            logger.setLevel(logging.ERROR)  # it warns of each out that was never made
            # By force, since lists that were erased, or are of a tag of the project from before this service, are
            # nowhere.
            used = repo.used_objs(revs=revisions, all_experiments=True, force=True)
        except RevCollectionError as error:
            where, remedy = "the work tree", "`dvc status` says what is wrong"
            if error.rev != "workspace":
                where, remedy = f"the commit {error.rev}", f"if nobody needs it: git tag --points-at {error.rev}"
                remedy += " names the tags to delete"
            raise OperationsError(
                f"DVC cannot read what {where} records, so nothing is removed: {error.__cause__}; {remedy}"
            ) from None
        finally:
            logger.setLevel(level)
        return {item.value for items in used.values() for item in items if item.value}
