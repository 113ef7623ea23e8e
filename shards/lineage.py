"""Whether a model has been trained on the patients it is measured on: by the list of images that it carries."""

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shards.errors import ContaminationError
from shards.read import ShardIndex

TRAINING_IMAGES = "training_images.csv"
COLUMNS = ("batch", "key", "patient")
_MAX_NAMED = 5


def write_training_images(path: Path, indexes: Mapping[str, ShardIndex]) -> None:
    """The training images of some shard sets: batch, key and pseudonym of the patient, a row an image."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name, index in indexes.items():
            for row in index.rows[index.select("train")]:
                writer.writerow((name, _text(row["key"]), _text(row["patient"])))


def check_independence(model: Path, index: ShardIndex, *, is_accepted: bool) -> dict[str, Any]:
    """Compare the test patients of a shard set with the patients that a model was trained on.

    Args:
        model: Folder of the model.
        index: Of the set whose test patients are measured.
        is_accepted: Shared patients are counted rather than refused.

    Returns:
        num_test_patients, num_training_patients and num_shared_patients; the last two None where the model does not say
        what it was trained on (an imported one).

    Raises:
        ContaminationError: there are shared patients and nobody has said yes.
    """
    tested = {_text(patient) for patient in index.rows["patient"][index.select("test")]}
    path = model / TRAINING_IMAGES
    if not path.is_file():
        return {"num_test_patients": len(tested), "num_training_patients": None, "num_shared_patients": None}
    batches: dict[str, set[str]] = {}
    for row in _rows(path):
        batches.setdefault(row["patient"], set()).add(row["batch"])
    shared = sorted(tested & batches.keys())
    if shared and not is_accepted:
        trained = sorted({name for patient in shared for name in batches[patient]})
        raise ContaminationError(
            f"{len(shared)} of {len(tested)} test patients of {index.name} are among the model's training patients "
            f"(of {', '.join(trained)}), as {', '.join(shared[:_MAX_NAMED])}: other splits held when it was trained. "
            "Train on this project's batches, or say yes: evaluate.accept_shared_images: true"
        )
    return {
        "num_test_patients": len(tested),
        "num_training_patients": len(batches),
        "num_shared_patients": len(shared),
    }


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _text(value: np.bytes_ | np.str_) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
