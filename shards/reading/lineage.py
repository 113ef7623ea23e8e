"""Tell whether a model was trained on what it is measured on, by the lists of images and datasets that it carries."""

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shards.core.errors import ContaminationError
from shards.core.records import Split
from shards.reading.contamination import Origin, check_shared_images
from shards.reading.reader import ShardIndex

TRAINING_IMAGES, TRAINING_DATASETS = "training_images.csv", "training_datasets.json"
COLUMNS = ("batch", "key", "patient")
_MAX_NAMED = 5


def write_lineage(model: Path, indexes: Mapping[str, ShardIndex], start: Path | None = None) -> None:
    """Write what a model was trained on into its folder: a row for each image, and the dataset of each batch.

    Without lists in the folder of the model that it started from, nothing is written: what it was trained on is not
    known then.

    Args:
        model: The folder.
        indexes: Batch → shard set.
        start: Folder of the model whose weights it started from, whose images and datasets it has therefore seen too.
    """
    if start is not None and not _has_lineage(start):
        return
    datasets = {name: index.dataset.to_json() for name, index in indexes.items()}
    rows = {
        (name, _text(row["key"]), _text(row["patient"])): None
        for name, index in indexes.items()
        for row in index.rows[index.select("train")]
    }
    if start is not None:
        earlier = json.loads((start / TRAINING_DATASETS).read_text(encoding="utf-8"))
        names = {name: _name_beside(datasets, name, dataset) for name, dataset in earlier.items()}
        datasets |= {names[name]: dataset for name, dataset in earlier.items()}
        rows |= {(names[row["batch"]], row["key"], row["patient"]): None for row in _rows(start / TRAINING_IMAGES)}
    (model / TRAINING_DATASETS).write_text(json.dumps(datasets, indent=1) + "\n", encoding="utf-8")
    with (model / TRAINING_IMAGES).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def check_independence(model: Path, index: ShardIndex, *, is_accepted: bool, split: Split = "test") -> dict[str, Any]:
    """Compare the patients of one split of a shard set, and its dataset, with those that a model was trained on.

    Args:
        model: Folder of the model.
        index: Index of the set whose patients are measured.
        is_accepted: Shared patients and datasets are told rather than refused.
        split: The split whose patients are measured.

    Returns:
        num_test_patients (named after the split), num_training_patients, num_shared_patients and
        batches_that_may_share_images; the last three None where the model does not say what it was trained on (an
        imported one). Where there are any, batches_without_patients: of those trained on and the measured one, whose
        images may be of the same patients though none is shared.

    Raises:
        ContaminationError: there are shared patients, or datasets with some of the same images that no mapping told
            apart, and nobody has said yes.
    """
    measured_patients = {_text(patient) for patient in index.rows["patient"][index.select(split)]}
    count = {f"num_{split}_patients": len(measured_patients)}
    own = {index.name: index.dataset.to_json()}
    if not _has_lineage(model):
        return (
            count
            | {"num_training_patients": None, "num_shared_patients": None, "batches_that_may_share_images": None}
            | _without_patients(own)
        )
    datasets = json.loads((model / TRAINING_DATASETS).read_text(encoding="utf-8"))
    trained_on = {name: _origin(dataset) for name, dataset in datasets.items()}
    measured = _origin(own[index.name])
    found = check_shared_images(trained_on, index.name, measured, is_accepted=is_accepted)
    batches: dict[str, set[str]] = {}
    for row in _rows(model / TRAINING_IMAGES):
        batches.setdefault(row["patient"], set()).add(row["batch"])
    shared = sorted(measured_patients & batches.keys())
    if shared and not is_accepted:
        trained = sorted({name for patient in shared for name in batches[patient]})
        raise ContaminationError(
            f"{len(shared)} of {len(measured_patients)} {split} patients of {index.name} are among the model's "
            f"training patients (of {', '.join(trained)}), as {', '.join(shared[:_MAX_NAMED])}: it was trained with "
            "other splits. Train on this project's batches, or say yes: evaluate.accept_shared_images: true"
        )
    return count | {
        "num_training_patients": len(batches),
        "num_shared_patients": len(shared),
        "batches_that_may_share_images": list(found),
        **_without_patients(own | datasets),
    }


def warn_of_unknown_patients(batches: Sequence[str], consequence: str) -> None:
    """Print a warning to stderr if there are batches that are split by image, since their patients are unknown.

    Args:
        batches: Their names.
        consequence: What follows from it, as the end of the sentence.
    """
    if batches:
        print(
            f"warning: {', '.join(batches)}: patients are unknown (patient_grouping: image), so images of one patient "
            f"may be in several splits: {consequence}. Where you know the patients, register the images with them "
            "(docs/register.md)",
            file=sys.stderr,
        )


def names_without_patients(datasets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Name the batches that are split by image, from the section `dataset` of each one's index."""
    return sorted(name for name, dataset in datasets.items() if dataset.get("patient_grouping") == "image")


def _has_lineage(model: Path) -> bool:
    return all((model / name).is_file() for name in (TRAINING_IMAGES, TRAINING_DATASETS))


def _name_beside(datasets: Mapping[str, object], name: str, dataset: object) -> str:
    """Return a batch's name, with its number behind it where another dataset is called so already."""
    number, free = 1, name
    while free in datasets and datasets[free] != dataset:
        number += 1
        free = f"{name} ({number})"
    return free


def _without_patients(datasets: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    names = names_without_patients(datasets)
    return {"batches_without_patients": names} if names else {}


def _origin(dataset: Mapping[str, Any]) -> Origin:
    return Origin(dataset["kind"], tuple(dataset["shares_images_with"]))


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _text(value: np.bytes_ | np.str_) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
