"""Tell in one screen what the service does, what waits and what was not accepted, and why; Dagster need not run."""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from ace.operations import history
from ace.operations.clone import Clone, git
from ace.operations.deliveries import Deliveries
from ace.operations.delivery import Delivery
from ace.operations.events import Event
from ace.operations.growth import Growth, full_at, growth_of_deliveries, growth_of_versions
from ace.operations.history import Version
from ace.operations.incoming import Arriving, shown
from ace.operations.publishing import published_commit
from ace.operations.registry import Registry
from ace.operations.repro import at_work
from ace.operations.retraining_state import is_at_work, last_rejection, open_retraining
from ace.operations.service import stopped
from ace.operations.tags import read_events
from ace.operations.withdrawal_state import withdrawals
from ace.operations.work_tree import PARAMS
from shards.core.config import parse_yaml
from shards.core.errors import IndexFormatError
from shards.delivery.yaml_lines import SHARDS
from shards.format.layout import INDEX
from shards.reading.reader import ShardIndex
from shards.runtime.atomic import size
from shards.runtime.text import count_of

NUM_REFUSED = 5
"""Refused deliveries that the screen shows, the newest ones; `deliveries list` has all."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """The state of a service at one moment.

    Attributes:
        stopped: The event that stopped the service; None while it may begin things.
        held: The event that holds retraining; None while nothing does.
        began: The event by which a retraining began that has not ended; None if there is none.
        is_training: A process works on a retraining now.
        rejected: The event of the last model that the gate did not accept; None if there is none.
        withdrawals: Number of a withdrawal that is not complete → what is left to do.
        accepted: The event by which a version is the accepted one; None before the first.
        serves: The accepted version serves; None where the folder that models serve from is not known.
        last: The last event of the log; None if it is empty.
        published: The commit that was published last; None if none was.
        new_images: Batch → training images, of batches that the accepted version was not trained with; None where the
            shards are not here.
        at_work: Out that a dvc is making now → id of its process.
        arriving: What lies in incoming/.
        deliveries: All deliveries that were taken.
        free: Folder → free bytes on its disk.
        growth: `version` and `delivery` → what one has cost lately; None where that is not known yet.
        full: Folder → when its disk is full if that goes on; None where that is not known or very far.
    """

    stopped: Event | None
    held: Event | None
    began: Event | None
    is_training: bool
    rejected: Event | None
    withdrawals: Mapping[int, Sequence[str]]
    accepted: Event | None
    serves: bool | None
    last: Event | None
    published: str | None
    new_images: Mapping[str, int | None]
    at_work: Mapping[str, int]
    arriving: Sequence[Arriving]
    deliveries: Sequence[Delivery]
    free: Mapping[str, int]
    growth: Mapping[str, Growth | None]
    full: Mapping[str, datetime | None]

    def to_json(self) -> dict[str, Any]:
        """Return the status as JSON has it."""
        events = {name: getattr(self, name) for name in ("stopped", "held", "began", "rejected", "accepted", "last")}
        return {
            **{name: event and event.model_dump(mode="json") for name, event in events.items()},
            "is_training": self.is_training,
            "withdrawals": {str(number): list(todo) for number, todo in self.withdrawals.items()},
            "serves": self.serves,
            "published": self.published,
            "new_images": dict(self.new_images),
            "at_work": dict(self.at_work),
            "incoming": [
                {"folder": shown(item.path.name), "is_complete": item.is_complete, "text": item.text}
                for item in self.arriving
            ],
            "deliveries": [
                {"batch": item.name, "state": item.state, "now": word, "why": why}
                for item in self.deliveries
                for word, why in [_now(item)]
            ],
            "free_bytes": dict(self.free),
            "cost": {
                kind: growth and {"number": growth.number, "mean_bytes": round(growth.mean)}
                for kind, growth in self.growth.items()
            },
            "full": {folder: moment and moment.isoformat() for folder, moment in self.full.items()},
        }

    def to_text(self) -> str:
        """Write the status for people."""
        rows = [("service", f"stopped {_since(self.stopped)}" if self.stopped else "on")]
        rows.append(("accepted model", self._model()))
        rows.append(("retraining", f"held {_since(self.held)}" if self.held else "not held"))
        if self.began is not None:
            how = "at work" if self.is_training else "no process is at work on it, and the next run goes on"
            rows.append(("retraining", f"began {_when(self.began)} and has not ended: {how}"))
        if self.rejected is not None:
            rows.append(("rejected", f"{self.rejected.time:%Y-%m-%d %H:%M} UTC: {self.rejected.facts['sentence']}"))
        rows += [("withdrawal", f"{number}: {'; '.join(todo)}") for number, todo in self.withdrawals.items()]
        if self.last is not None:
            rows.append(("last event", _line(self.last)))
        rows.append(("published", self.published[:12] if self.published else "none yet"))
        rows.append(("new images", self._new()))
        rows += [("at work", f"dvc makes {out} (process {pid})") for out, pid in self.at_work.items()]
        rows.append(("cost", "; ".join(_cost(kind, growth) for kind, growth in self.growth.items())))
        for folder, number in self.free.items():
            moment = self.full[folder]
            when = f"full about {moment:%Y-%m-%d} at this rate" if moment else "when it is full is not known yet"
            rows.append(("disk", f"{number / 1e9:,.1f} GB free in {folder}; {when}"))
        rows += [("incoming", f"{shown(item.path.name)}: {item.text}") for item in self.arriving]
        words = [(item, *_now(item)) for item in self.deliveries]
        refused = [item for item in words if item[1] == "refused"]
        due = [item for item in words if item[1] not in ("refused", "accepted")]
        for item, word, why in [*due, *refused[-NUM_REFUSED:]]:
            rows.append((word, f"{item.name}: {why}"))
        numbers = f"{len(words) - len(due) - len(refused)} accepted, {len(refused)} refused, {len(due)} on the way"
        rows.append(("deliveries", numbers))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name.ljust(width)}  {text}" for name, text in rows)

    def _model(self) -> str:
        if self.accepted is None:
            return "none yet"
        if self.serves is None:
            return _line(self.accepted)
        promote = f"python -m ace models promote v{self.accepted.facts['version']}"
        return f"{_line(self.accepted)}; it {'serves' if self.serves else f'does not serve yet: {promote}'}"

    def _new(self) -> str:
        since = f" since v{self.accepted.facts['version']}" if self.accepted else ""
        if not self.new_images:
            return f"none{since}"
        absent = [name for name, number in self.new_images.items() if number is None]
        number = sum(number or 0 for number in self.new_images.values())
        text = f"{number:,} to train on{since}, in {count_of(len(self.new_images), 'shard set')}"
        return text + (f"; the shards of {', '.join(absent)} are not here, dvc pull brings them" if absent else "")


def read_status(root: Path, models: Path | None, deliveries: Deliveries | None) -> Status:
    """Look at the log, the clone and the folders; nothing is changed.

    Args:
        root: The service's clone.
        models: Folder that models serve from; None if it is not known.
        deliveries: The deliveries of the clone; None where none are taken in.

    Raises:
        OperationsError: a line of the log is not as it was written.
    """
    events = read_events(root)
    last = history.accepted(events)
    version = None if last is None else history.find_version(events, int(last.facts["version"]))
    served = None if models is None else Registry(clone=Clone(root), models=models).served
    folders = [root, *([models] if models else []), *([deliveries.folder] if deliveries else [])]
    free, now = _free(folders), time.time()
    growth = {
        "version": growth_of_versions(root, models, events) if models else None,
        "delivery": growth_of_deliveries(root, deliveries.folder, events) if deliveries else None,
    }
    return Status(
        stopped=stopped(events),
        held=history.hold(events),
        began=open_retraining(events),
        is_training=is_at_work(root),
        rejected=last_rejection(events),
        withdrawals={number: todo for number, found in withdrawals(events).items() if (todo := found.todo(events))},
        accepted=last,
        serves=None if models is None or version is None else served == version.name,
        last=events[-1] if events else None,
        published=published_commit(root),
        new_images=_new_images(root, version),
        at_work=at_work(root),
        arriving=[] if deliveries is None else deliveries.arriving(now),
        deliveries=[] if deliveries is None else deliveries.taken(),
        free=free,
        growth=growth,
        full={
            folder: full_at(Path(folder), number, growth.values(), datetime.fromtimestamp(now, UTC))
            for folder, number in free.items()
        },
    )


def _cost(kind: str, growth: Growth | None) -> str:
    """Say what one version or delivery has cost lately."""
    if growth is None:
        return f"what a {kind} costs is not known yet"
    return f"a {kind} {size(growth.mean)} (mean of the last {growth.number})"


def _since(event: Event) -> str:
    return f"since {_when(event)}: {event.facts['why']}"


def _when(event: Event) -> str:
    return f"{event.time:%Y-%m-%d %H:%M} UTC by {event.who}"


def _line(event: Event) -> str:
    """Write an event for people."""
    facts = event.facts
    about = facts["batch"] if "batch" in facts else f"v{facts['version']}" if "version" in facts else None
    text = f"{event.kind.replace('_', ' ')} {_when(event)}"
    return (f"{about} " if about else "") + text + (f": {facts['why']}" if "why" in facts else "")


def _now(delivery: Delivery) -> tuple[str, str]:
    """Tell in a word what becomes of a delivery at this moment, and why."""
    if not delivery.is_open:
        return delivery.state, delivery.outcome.removeprefix("refused: ")
    last = delivery.attempts.last()
    if "started" in last:
        is_alive = psutil.pid_exists(last["pid"])
        return ("running", delivery.last) if is_alive else ("interrupted", f"{delivery.last}; the next run goes on")
    return ("held" if last.get("error") else "waiting"), delivery.last


def _new_images(root: Path, version: Version | None) -> dict[str, int | None]:
    """Count the training images of each batch that is trained on now and was not when a version was made."""
    known = _trained(root, version.commit) if version else set()
    return {name: _num_training_images(root, name) for name in sorted(_trained(root, "HEAD") - known)}


def _trained(root: Path, commit: str) -> set[str]:
    if not git(root, "ls-tree", "--name-only", commit, "--", PARAMS):
        return set()
    mix = parse_yaml(git(root, "show", f"{commit}:{PARAMS}")).get("mix") or {}
    return {name for name, item in mix.items() if item["weight"] > 0}


def _num_training_images(root: Path, batch: str) -> int | None:
    folder = root / SHARDS / batch
    if not (folder / INDEX).is_file():
        return None
    try:
        return len(ShardIndex.open(folder, check_tars=False).without_excluded(root).select("train"))
    except IndexFormatError:
        return None


def _free(folders: Sequence[Path]) -> dict[str, int]:
    """Return what is free on each disk, by the first of the folders that lies there."""
    found: dict[int, Path] = {}
    for folder in folders:
        if folder.is_dir():
            found.setdefault(folder.stat().st_dev, folder.resolve())
    return {str(folder): shutil.disk_usage(folder).free for folder in found.values()}
