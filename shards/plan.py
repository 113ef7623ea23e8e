"""Which record becomes which sample of which shard: pseudonyms, splits, keys and order, before any image is read."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from shards.delivery import Delivery
from shards.errors import SourceError
from shards.format import MAX_KEY_LENGTH
from shards.identity import SPLITS, split_of
from shards.params import ShardParams
from shards.quality.judge import MOST_PROTECTED_FIRST
from shards.records import Record, Split, files_of
from shards.sample import Encoder, Task

_READ_BEFORE = ("phantom", "sources")
"""Packages whose work is done when a delivery is planned."""


@dataclass(frozen=True)
class ShardPlan:
    """One tar and the tasks whose samples it will hold, in order."""

    name: str
    split: Split
    tasks: tuple[Task, ...]


def plan_shards(delivery: Delivery, params: ShardParams, *, has_public_ids: bool) -> list[ShardPlan]:
    """Deal the records to shards: by split, then in the order of their keys.

    Args:
        delivery: The records.
        params: Section `shard`.
        has_public_ids: Keys and messages may show the ids, which hide nobody.

    Raises:
        SourceError: there are no records, or two have the same key.
    """
    official = delivery.official_splits
    tasks = sorted(
        (
            _task(
                entry.record,
                number,
                split_of(entry.position, params.splits, entry.record.split, official_splits=official),
                has_public_ids=has_public_ids,
            )
            for number, entry in enumerate(delivery.entries, start=1)
        ),
        key=lambda task: task.key,
    )
    if not tasks:
        raise SourceError("the source has no images")
    for first, second in pairwise(tasks):
        if first.key == second.key:
            raise SourceError(f"{first.place} and {second.place} have the same id; ids must be unique")
    if params.quality.exact_copies.action == "quarantine":
        tasks = _with_file_copies(tasks)
    return [
        ShardPlan(f"{split}-{number:06d}.tar", split, chunk)
        for split in SPLITS
        for number, chunk in enumerate(
            _chunks([task for task in tasks if task.split == split], params.num_images_per_shard)
        )
    ]


def fingerprint(plans: list[ShardPlan], encoder: Encoder) -> str:
    """Hex digest of everything that decides the bytes of the tars; unfinished work is reused only where it agrees.

    Files without a known hash (the phantom's) are recognised by size and time.
    """
    settings = {
        "batch": encoder.batch,
        "channels": encoder.channels,
        "spec": encoder.spec.to_json(),
        "shard": encoder.params.model_dump(mode="json", exclude={"max_quarantined_fraction", "quality"}),
        "libraries": [version(name) for name in ("numpy", "opencv-python-headless", "pillow")],
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        if path.parent.name not in _READ_BEFORE:
            digest.update(path.read_bytes())
    for plan in plans:
        for task in plan.tasks:
            digest.update(f"{plan.name} {task!r}".encode())
            for file in files_of(task.record):
                if file.sha256 is not None:
                    continue
                stat = (encoder.root / file.path).stat()
                digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _task(record: Record, number: int, split: Split, *, has_public_ids: bool) -> Task:
    if has_public_ids:
        return Task(record, public_key_of(record.source_id), record.image.path, split)
    return Task(record, record.source_id, f"manifest image {number}", split)


def _with_file_copies(tasks: list[Task]) -> list[Task]:
    """The tasks, with copies of a file marked: the first by split (`MOST_PROTECTED_FIRST`), then by key, is no copy."""
    first: dict[str, str] = {}
    for task in sorted(tasks, key=lambda task: (MOST_PROTECTED_FIRST.index(task.split), task.key)):
        if task.record.image.sha256 is not None and task.record.known_defect is None:
            first.setdefault(task.record.image.sha256, task.key)
    originals = ((task, first.get(task.record.image.sha256 or "", task.key)) for task in tasks)
    return [task if key == task.key else replace(task, copy_of=key) for task, key in originals]


def public_key_of(source_id: str) -> str:
    """A sample key that shows the source id: without a dot (WebDataset cuts names at the first), unique if it is."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", source_id)
    if name == source_id and len(name) <= MAX_KEY_LENGTH:
        return name
    digest = hashlib.sha256(source_id.encode()).hexdigest()[:16]
    return f"{name[: MAX_KEY_LENGTH - 17]}-{digest}"


def _chunks(tasks: list[Task], size: int) -> Iterator[tuple[Task, ...]]:
    for start in range(0, len(tasks), size):
        yield tuple(tasks[start : start + size])
