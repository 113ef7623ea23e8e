"""Which record becomes which sample of which shard: pseudonyms, splits, keys and order, before any image is read."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from shards.errors import SourceError
from shards.format import MAX_KEY_LENGTH
from shards.identity import SPLITS, IdKey, Split, split_of
from shards.params import ShardParams
from shards.sample import Encoder, Task
from shards.sources.base import Record


@dataclass(frozen=True)
class ShardPlan:
    """One tar and the tasks whose samples it will hold, in order."""

    name: str
    split: Split
    tasks: tuple[Task, ...]


def plan_shards(records: list[Record], key: IdKey, params: ShardParams) -> list[ShardPlan]:
    """Deal the records to shards: by split, then in the order of their keys.

    Raises:
        SourceError: there are no records, or two have the same key.
    """
    tasks = sorted((_task(record, key, params) for record in records), key=lambda task: task.key)
    if not tasks:
        raise SourceError("the source has no images")
    for first, second in pairwise(tasks):
        if first.key == second.key:
            raise SourceError(f"{first.record.place} and {second.record.place} have the same id; ids must be unique")
    return [
        ShardPlan(f"{split}-{number:06d}.tar", split, chunk)
        for split in SPLITS
        for number, chunk in enumerate(
            _chunks([task for task in tasks if task.split == split], params.num_images_per_shard)
        )
    ]


def fingerprint(plans: list[ShardPlan], encoder: Encoder, key: IdKey) -> str:
    """Hex digest of everything that decides the bytes of the tars; unfinished work is reused only where it agrees.

    Files without a known hash (the images of a source without a manifest, all masks) are recognised by size and time.
    """
    settings = {
        "batch": encoder.batch,
        "channels": encoder.channels,
        "spec": encoder.spec.to_json(),
        "shard": encoder.params.model_dump(mode="json", exclude={"max_quarantined_fraction"}),
        "id_key": key.fingerprint,
        "libraries": [version(name) for name in ("numpy", "pillow")],
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    package = Path(__file__).parent
    for path in sorted([*package.glob("*.py"), *package.glob("sources/*.py")]):
        digest.update(path.read_bytes())
    for plan in plans:
        for task in plan.tasks:
            digest.update(f"{plan.name} {task!r}".encode())
            for path in _files_without_hash(task.record):
                stat = path.stat()
                digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _files_without_hash(record: Record) -> list[Path]:
    images = [record.image] if record.sha256 is None else []
    return [*images, *record.masks.values()]


def _task(record: Record, key: IdKey, params: ShardParams) -> Task:
    split = split_of(record.patient, key, params.splits)
    patient = key.pseudonym("patient", record.patient)
    if key.is_public:
        return Task(record, public_key_of(record.source_id), record.source_id, patient, record.study, split)
    source_id = key.pseudonym("source", record.source_id)
    # Study ids may be unique within a patient only.
    study = key.pseudonym("study", f"{record.patient}/{record.study}") if record.study else None
    return Task(record, source_id, source_id, patient, study, split)


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
