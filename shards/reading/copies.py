"""Pictures of a measured set that a model was trained on in another set: copies of another size, format or name.

`register` knows copies of files, and the shards of one batch have no picture in two splits. Between batches the quality
reports of the sets tell: an evaluation asks them before it measures. The sets are those that the model's folder names,
so that what is read of them follows from the model, on which the stage depends.
"""

import csv
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from shards.core.errors import IndexFormatError
from shards.quality.report import QUALITY, NearDuplicate, near_copies_of
from shards.reading.lineage import TRAINING_IMAGES
from shards.reading.reader import ShardIndex
from shards.store.location import LocalStore


def find_trained_copies(
    model: Path, index: ShardIndex, keys: Collection[str], locate: Callable[[str], Path | str]
) -> list[NearDuplicate] | None:
    """Find images of a set, the first of each pair, whose picture the model was trained on in another set.

    Args:
        model: Folder of the model.
        index: The set that is measured.
        keys: Keys of the set's images that are in question.
        locate: Batch → where its shard set lies.

    Returns:
        None where there is nothing to compare with: the model does not say what it was trained on, or it was trained on
        no other set, or none of these is here, of which a warning tells.
    """
    trained = _trained_keys(model)
    trained.pop(index.name, None)
    if not trained:
        return None
    reports = {}
    for name, of_batch in trained.items():
        report = _report_of(locate(name))
        if report is None or not isinstance(index.store, LocalStore):
            print(
                f"warning: {locate(name)}: found no shard set in a local folder, although the model was trained on it; "
                f"so {index.name} is not searched for copies of its images",
                file=sys.stderr,
            )
        else:
            reports[report] = of_batch
    return near_copies_of(index.root / QUALITY, keys, reports) if reports else None


def _trained_keys(model: Path) -> dict[str, set[str]]:
    """Read the keys of the images that the model was trained on, by batch."""
    found: dict[str, set[str]] = {}
    if (model / TRAINING_IMAGES).is_file():
        with (model / TRAINING_IMAGES).open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                found.setdefault(row["batch"], set()).add(row["key"])
    return found


def _report_of(location: Path | str) -> Path | None:
    try:
        index = ShardIndex.open(location, check_tars=False)
    except IndexFormatError:
        return None
    return index.root / QUALITY if isinstance(index.store, LocalStore) else None
