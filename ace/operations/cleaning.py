"""Remove what nobody needs any more: objects of DVC's cache, unfinished work, old logs and runs, refused images.

What is about to go is written to the event log before the first file goes. Each removal can be cut off anywhere: the
next call looks again, and finds what is left.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ace.operations.alone import alone
from ace.operations.clone import Clone
from ace.operations.dagster_runs import HOME_VARIABLE, runs_before
from ace.operations.deliveries import Deliveries
from ace.operations.delivery import BUILD_LOG, FETCHING, IMAGES
from ace.operations.due import DELIVERIES, QUARANTINE
from ace.operations.durable import sync_folder
from ace.operations.equal_weights import TEMPORARY
from ace.operations.erasure_plan import Plan as ErasurePlan
from ace.operations.errors import BusyError, OperationsError
from ace.operations.events import LOG, Actor, Event, EventLog
from ace.operations.growth import size_of
from ace.operations.params import read_operations
from ace.operations.publishing import PUBLISHING
from ace.operations.repro import at_work
from ace.operations.retention import needed_objects
from ace.operations.retraining_state import open_retraining
from ace.operations.tags import read_events
from ace.operations.work_tree import LOCK, PARAMS, is_torn
from shards.core.errors import NoSpaceError
from shards.runtime.atomic import size
from shards.runtime.scratch import scratch_root
from shards.runtime.text import count_of

CLEANED = "cleaned"
"""Kind of the event."""
OBJECTS, WORK, REFUSED, LOGS, RUNS = "objects", "unfinished_work", "refused_images", "logs", "dagster_runs"
"""Kinds of what goes."""
_WORDS = {
    OBJECTS: "DVC object",
    WORK: "folder",
    REFUSED: "folder",
    LOGS: "build log",
    RUNS: "Dagster run",
}
_OF = {OBJECTS: " in the cache", WORK: " of unfinished work", REFUSED: " of refused images"}
_GOING = ".going"
"""Name of a folder of refused images from the moment on at which it goes."""
_TEMPORARY = ("answers-*", "compared-*", f"{TEMPORARY}*")
"""Folders in scratch that a killed command left, and that no lock belongs to."""


@dataclass(frozen=True)
class Plan:
    """A plan says what goes.

    Attributes:
        found: Kind → path, or id of a run of Dagster → bytes.
        before: Runs of Dagster that ended before this go; None where its home is not known.
    """

    found: Mapping[str, Mapping[str, int]]
    before: datetime | None

    @property
    def totals(self) -> dict[str, dict[str, int]]:
        """Number and bytes of each kind of which something goes."""
        return {kind: {"number": len(of), "bytes": sum(of.values())} for kind, of in self.found.items() if of}

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON has it."""
        return {"totals": self.totals, **{kind: dict(of) for kind, of in self.found.items()}}

    def to_text(self) -> str:
        """Write the plan for people: a line for each kind, and for each path that is no object of DVC's."""
        lines = []
        for kind, total in self.totals.items():
            lines.append(f"{count_of(total['number'], _WORDS[kind])}{_OF.get(kind, '')}, {size(total['bytes'])}")
            if kind in (WORK, REFUSED, LOGS):
                lines += [f"  {path}, {size(number)}" for path, number in self.found[kind].items()]
        lines = lines or ["nothing is to go"]
        if self.before is None:
            lines.append(f"${HOME_VARIABLE} is not set, so runs of Dagster were not looked at")
        return "\n".join(lines)


@dataclass(frozen=True)
class Cleaning:
    """The clean-up of one service.

    Attributes:
        clone: The service's clone.
    """

    clone: Clone

    @contextmanager
    def deciding(self) -> Iterator[None]:
        """Let nothing else change, publish or make anything meanwhile.

        Raises:
            BusyError: a retraining, a call about deliveries, or a dvc is at work.
            OperationsError: this is not the service's clone, or the erasure of a patient is not finished.
        """
        from dvc.lock import LockError
        from dvc.repo import Repo

        root = self.clone.root
        with self.clone.locked(PUBLISHING), alone(self.clone):
            if ErasurePlan.read(root) is not None:
                raise OperationsError(
                    "the erasure of a patient is not finished, and it knows what has to go; give that command again "
                    "first: python -m ace withdraw --list says which"
                )
            try:
                with Repo(str(root)) as repo, repo.lock:
                    for out, process in at_work(root).items():
                        raise BusyError(f"a dvc is at work on {out} (process {process}); wait for its end")
                    yield
            except LockError:
                raise BusyError("another dvc is at work in the service's clone; wait for its end") from None

    def plan(self, now: datetime) -> Plan:
        """Look for what may go; nothing is changed.

        Args:
            now: What the clock shows.

        Raises:
            OperationsError: what has to be kept is not known, as of a version whose commit is gone.
            ConfigError: params.yaml is wrong.
        """
        root, operations = self.clone.root, read_operations(self.clone.root / PARAMS)
        params, events = operations.retention, read_events(root)
        _check_whole(self.clone)
        needed = needed_objects(root, events, params, now)
        is_training = open_retraining(events) is not None  # its checkpoints may be as old as a hold
        before = now - timedelta(days=31 * params.logs_months)
        is_home_known = HOME_VARIABLE in os.environ
        deliveries = Deliveries.open(root / PARAMS, self.clone.branch) if operations.deliveries else None
        paths = {
            OBJECTS: [path for md5, path in _objects(root) if md5 not in needed],
            WORK: [] if is_training else _unfinished(self._scratch, now - timedelta(days=params.scratch_days)),
            REFUSED: _refused(deliveries, now, params.quarantine_days) if deliveries else [],
            LOGS: _logs(deliveries.folder, before) if deliveries else [],
        }
        found = {kind: {str(path): size_of(path) for path in of} for kind, of in paths.items()}
        found[RUNS] = runs_before(before) if is_home_known else {}
        return Plan(found, before if is_home_known else None)

    def remove(self, plan: Plan, actor: Actor, now: datetime) -> Event | None:
        """Remove what a plan names, after the event log has it.

        Args:
            plan: What goes.
            actor: Whoever wants it.
            now: What the clock shows.

        Returns:
            The event; None if nothing goes.

        Raises:
            OperationsError: Dagster does not remove its runs.
        """
        if not plan.totals:
            return None
        log = EventLog(self.clone.root / LOG)
        try:
            event = log.append(CLEANED, plan.totals, actor=actor, now=now)
        except NoSpaceError:  # the disk has no room for a line of the log
            _unlink(plan.found[OBJECTS])
            event = log.append(CLEANED, plan.totals, actor=actor, now=now)
        _unlink([*plan.found[OBJECTS], *plan.found[LOGS]])
        for path in map(Path, plan.found[WORK]):
            # Somebody may have gone on with it since it was found, or finished it.
            with suppress(Timeout, FileNotFoundError), FileLock(_lock(path, self._scratch), timeout=0):
                shutil.rmtree(path)
        for path in map(Path, plan.found[REFUSED]):
            going = path.with_name(_GOING)
            if path != going:
                path.rename(going)  # in one step, or somebody could accept what is left of them
                sync_folder(going.parent)
            shutil.rmtree(going)
        if plan.before is not None and plan.found[RUNS]:
            runs_before(plan.before, "--remove")
        return event

    @property
    def _scratch(self) -> Path:
        with chdir(self.clone.root):
            return scratch_root()


def _check_whole(clone: Clone) -> None:
    """Refuse to go by a dvc.lock that dvc was killed over: what is cut off is needed all the same.

    Raises:
        OperationsError: it is one.
    """
    path = clone.root / LOCK
    if path.is_file() and is_torn(path.read_text(encoding="utf-8"), clone.committed(LOCK) or ""):
        raise OperationsError(
            f"{path} was half written by a dvc that was killed, so what has to be kept is not known, and nothing is "
            f"removed. Give the command again that was at work then; after a `dvc repro`: git restore {LOCK}, and the "
            "same dvc repro"
        )


def _objects(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the md5 and the file of each object of DVC's cache, lists of folders first."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        cache = Path(repo.cache.local.path)
    found = [(path.parent.name + path.name, path) for path in cache.glob("[0-9a-f][0-9a-f]/[0-9a-f]*")]
    yield from sorted(found, key=lambda item: (not item[0].endswith(".dir"), item))


def _unfinished(scratch: Path, before: datetime) -> Iterator[Path]:
    """Yield the unfinished work that nobody has touched since, and that no process is at work on."""
    locked = {path for depth in ("*", "*/*", "*/*/*") for path in scratch.glob(depth) if _lock(path, scratch).exists()}
    temporary = {path for pattern in _TEMPORARY for path in scratch.glob(pattern)}
    for path in sorted(path for path in locked | temporary if path.is_dir()):
        # Of what is locked the files alone: a removal that was killed has changed the times of its folders.
        files = [inner for inner in path.rglob("*") if not inner.is_dir()]
        if all(_is_older(inner, before) for inner in (*files, *({path} & temporary))):
            with suppress(Timeout), FileLock(_lock(path, scratch), timeout=0):
                yield path


def _refused(deliveries: Deliveries, now: datetime, days: int | None) -> Iterator[Path]:
    """Yield the images of deliveries that were refused so many days ago."""
    for delivery in deliveries.taken() if days is not None else ():
        is_refused, decision = delivery.state == "refused" and not delivery.is_open, delivery.decision
        if is_refused and decision and datetime.fromisoformat(decision.at) < now - timedelta(days=days or 0):
            yield from (path for name in (IMAGES, FETCHING, _GOING) if (path := delivery.folder / name).exists())


def _logs(folder: Path, before: datetime) -> Iterator[Path]:
    """Yield what dvc said while it built the shards of deliveries, if that was before a moment."""
    logs = [path for place in (DELIVERIES, QUARANTINE) for path in folder.glob(f"{place}/*/{BUILD_LOG}")]
    yield from (path for path in sorted(logs) if _is_older(path, before))


def _lock(work: Path, scratch: Path) -> Path:
    """Return the file that a process locks while it is at some work (`unfinished_work`)."""
    return scratch / "locks" / f"{'-'.join(work.relative_to(scratch).parts)}.lock"


def _unlink(paths: Iterable[str]) -> None:
    for path in paths:
        Path(path).unlink(missing_ok=True)


def _is_older(path: Path, before: datetime) -> bool:
    return path.lstat().st_mtime < before.timestamp()
