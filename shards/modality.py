"""What kind of pictures a source's images are, told by its kind alone: no source is imported for it."""

from typing import Literal

from shards.sources.base import OWN_KINDS

Modality = Literal["chest", "fundus"]
_FUNDUS = ("eyepacs", "drive", "drishti-gs", "refuge", "idrid")


def modality_of(kind: str) -> Modality | None:
    """Return what the images of a kind of source are: `chest` radiographs or `fundus` photographs; None for your own,
    which may be anything."""
    if kind in OWN_KINDS:
        return None
    return "fundus" if kind in _FUNDUS else "chest"
