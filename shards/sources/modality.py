"""Tell the kind of pictures that a source's images are by the source's kind alone: no source is imported for it."""

from collections.abc import Mapping
from typing import Literal

from shards.errors import ConfigError
from shards.sources.base import OWN_KINDS

Modality = Literal["chest", "fundus"]
_FUNDUS = ("eyepacs", "drive", "drishti-gs", "refuge", "idrid")
_NAMES = {"chest": "chest radiographs", "fundus": "fundus photographs", None: "own images"}


def modality_of(kind: str) -> Modality | None:
    """Return what the images of a kind of source are: `chest` radiographs or `fundus` photographs; None for your own,
    which may be anything."""
    if kind in OWN_KINDS:
        return None
    return "fundus" if kind in _FUNDUS else "chest"


def check_mixture(sets: Mapping[str, tuple[str, int]], *, is_accepted: bool) -> None:
    """Refuse to train on several kinds of pictures, or on grey and coloured ones, unless somebody says yes.

    Args:
        sets: Batch of the training mix → kind of its source, and channels: 1 for grey, 3 for coloured images.
        is_accepted: `pretrain.accept_mixed_images`.

    Raises:
        ConfigError: there are several, and nobody said yes.
    """
    modalities = {modality_of(kind) for kind, _ in sets.values()} - {None}
    colours = {channels for _, channels in sets.values()}
    if is_accepted or max(len(modalities), len(colours)) < 2:
        return
    named = ", ".join(
        f"{name} ({_NAMES[modality_of(kind)]}, {'grey' if channels == 1 else 'in colour'})"
        for name, (kind, channels) in sets.items()
    )
    raise ConfigError(
        f"mix has batches of different pictures: {named}; expected one kind, since a place on the canvas should show "
        "the same anatomy in all of them. Train on them in projects of their own, take batches out of mix, or say "
        "yes in params.yaml: pretrain.accept_mixed_images: true"
    )
