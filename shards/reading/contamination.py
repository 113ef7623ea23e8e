"""Datasets that hold the same images: what was trained on must not be what is measured on, unless someone says so."""

from collections.abc import Mapping
from dataclasses import dataclass

from shards.core.errors import ContaminationError


@dataclass(frozen=True)
class Origin:
    """The dataset that a shard set's images come from.

    Attributes:
        kind: Name of the dataset.
        shares_images_with: Datasets with some of the same images, which no mapping file told apart.
    """

    kind: str
    shares_images_with: tuple[str, ...]


def shared_images(trained: Mapping[str, Origin], measured: Origin) -> tuple[str, ...]:
    """Name the training batches that may hold images of the measured one.

    A pair that a mapping file told apart is none of them: there a patient has one pseudonym in both, and
    `shards.reading.lineage` compares patients. Nor are two batches of one dataset, unless a mapping named the patients
    of only one of them.

    Args:
        trained: Batch → origin.
        measured: Origin of the set whose patients are measured on.
    """
    return tuple(name for name, origin in trained.items() if _may_share(origin, measured))


def _may_share(one: Origin, other: Origin) -> bool:
    if one.kind == other.kind:
        return bool(one.shares_images_with) != bool(other.shares_images_with)
    return one.kind in other.shares_images_with or other.kind in one.shares_images_with


def check_shared_images(
    trained: Mapping[str, Origin], measured_name: str, measured: Origin, *, is_accepted: bool
) -> tuple[str, ...]:
    """Raise if training and evaluation batches may share images, unless that is accepted.

    Raises:
        ContaminationError: images may be in both and nobody has said yes.
    """
    found = shared_images(trained, measured)
    if found and not is_accepted:
        named = ", ".join(f"{name} ({trained[name].kind})" for name in found)
        raise ContaminationError(
            f"evaluate.batch {measured_name} ({measured.kind}) and training hold some of the same images: {named}. "
            "Give the dataset's mapping file when registering (`python -m shards sources KIND`), take the batch out of "
            "training (mix.weight: 0), or say yes: evaluate.accept_shared_images: true"
        )
    return found
