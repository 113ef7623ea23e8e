"""Tell the kind of pictures that a source's images are by the source's kind alone: no source is imported for it."""

from collections.abc import Mapping
from dataclasses import dataclass

from shards.core.errors import ConfigError
from shards.core.params import RegisteredSourceParams, SourceParams

OWN_KINDS = ("folder", "dicom")
"""Kinds of a user's own images: another site may call other people by the same ids."""
_FUNDUS = ("eyepacs", "drive", "drishti-gs", "refuge", "idrid")
_NAMES = {"chest": "chest radiographs", "fundus": "fundus photographs", None: "own images"}


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures says what the images of a shard set are.

    Attributes:
        kind: Kind of their source.
        channels: 1 for grey, 3 for coloured images.
        modality: What somebody said at `register` of images of their own; None for public datasets.
    """

    kind: str
    channels: int
    modality: str | None = None

    def __str__(self) -> str:
        modality = modality_of(self.kind, self.modality)
        return f"{_NAMES.get(modality, modality)}, {'grey' if self.channels == 1 else 'in colour'}"


def pictures_of(source: SourceParams) -> Pictures:
    """Return what the images of a batch are, as its file says."""
    said = source.modality if isinstance(source, RegisteredSourceParams) else None
    return Pictures(kind=source.kind, channels=source.channels, modality=said)


def modality_of(kind: str, said: str | None = None) -> str | None:
    """Return what the images of a kind of source are: `chest` radiographs or `fundus` photographs.

    Args:
        kind: Kind of the source.
        said: What somebody said of images of their own, which may be anything.

    Returns:
        None for a user's own images of which nothing was said.
    """
    if kind in OWN_KINDS:
        return said
    return "fundus" if kind in _FUNDUS else "chest"


def check_mixture(sets: Mapping[str, Pictures], *, is_accepted: bool) -> list[str]:
    """Refuse to train on several kinds of pictures, or on grey and coloured ones, unless somebody says yes.

    Args:
        sets: Batch of the training mix → its pictures.
        is_accepted: `pretrain.accept_mixed_images`.

    Returns:
        Names of the batches of which nobody said what their images are, if others of the mix are of a known kind.

    Raises:
        ConfigError: there are several, and nobody said yes.
    """
    known = {name: modality_of(pictures.kind, pictures.modality) for name, pictures in sets.items()}
    modalities = set(known.values()) - {None}
    colours = {pictures.channels for pictures in sets.values()}
    if is_accepted or max(len(modalities), len(colours)) < 2:
        return [name for name, modality in known.items() if modality is None and modalities and not is_accepted]
    named = ", ".join(f"{name} ({pictures})" for name, pictures in sets.items())
    raise ConfigError(
        f"mix has batches of different pictures: {named}; expected one kind, since a cell of the grid should show "
        "the same anatomy in all of them. Take one out (`python -m shards remove NAME`), register it as a set to "
        "measure on (`--weight 0`), or say yes in params.yaml: pretrain.accept_mixed_images: true"
    )
