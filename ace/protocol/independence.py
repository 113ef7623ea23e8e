"""Find out whether a model has seen whom it is to be measured on, by all that its folder says."""

from pathlib import Path
from typing import Any

from shards.core.records import Split
from shards.format.layout import MANIFESTS
from shards.reading.image_names import check_image_names
from shards.reading.lineage import check_independence
from shards.reading.reader import ShardIndex


def check_model(model: Path, index: ShardIndex, project: Path, *, split: Split, is_accepted: bool) -> dict[str, Any]:
    """Compare the patients of one split with those that a model was trained on, or else with its images' names.

    Args:
        model: Folder of the model.
        index: The set whose patients are measured.
        project: The folder of params.yaml, whose manifests say how the set's images are called.
        split: The split whose patients are measured.
        is_accepted: Shared patients are told rather than refused.

    Returns:
        What `check_independence` and, where a model names no patients, `check_image_names` return.

    Raises:
        ContaminationError: there are shared patients, or may be, and nobody has said yes.
    """
    found = check_independence(model, index, is_accepted=is_accepted, split=split)
    if found["num_shared_patients"] is None:
        found |= check_image_names(model, index, project / MANIFESTS, is_accepted=is_accepted, split=split)
    return found
