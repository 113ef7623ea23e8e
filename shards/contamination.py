"""Datasets that hold the same images: what was trained on must not be what is measured on, unless someone says so."""

from collections.abc import Mapping
from dataclasses import dataclass

from shards.errors import ContaminationError


@dataclass(frozen=True)
class Origin:
    """Where a shard set's images come from.

    Attributes:
        kind: Its dataset.
        shares_images_with: Datasets with some of the same images, which no mapping file told apart.
    """

    kind: str
    shares_images_with: tuple[str, ...]


def shared_images(trained: Mapping[str, Origin], measured: Origin) -> dict[str, tuple[str, ...]]:
    """Training batches that may hold images of the measured one → the datasets that they have in common.

    Two sets of one dataset and one way to call its patients are not among them: these have one split in all its
    batches. Nor is a pair that a mapping file told apart: then a patient has one pseudonym, and so one split, in both.

    Args:
        trained: Batch → origin.
        measured: Of the set whose patients are measured on.
    """
    found = {}
    for name, origin in trained.items():
        common = {origin.kind, *origin.shares_images_with} & {measured.kind, *measured.shares_images_with}
        if origin != measured and common:
            found[name] = tuple(sorted(common))
    return found


def check_shared_images(
    trained: Mapping[str, Origin], measured_name: str, measured: Origin, *, is_accepted: bool
) -> dict[str, tuple[str, ...]]:
    """The same, refused unless it is accepted.

    Raises:
        ContaminationError: images may be in both and nobody has said yes.
    """
    found = shared_images(trained, measured)
    if found and not is_accepted:
        named = "; ".join(f"{name} ({trained[name].kind}, by {', '.join(common)})" for name, common in found.items())
        raise ContaminationError(
            f"evaluate.batch {measured_name} ({measured.kind}) and training hold some of the same images: {named}. "
            "Give the dataset's mapping file when registering (`python -m shards sources KIND`), take the batch out of "
            "training (mix.weight: 0), or say yes: evaluate.accept_shared_images: true"
        )
    return found
