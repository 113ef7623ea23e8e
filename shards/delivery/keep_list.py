"""The keep list of a batch: images that a person keeps in its shards although the quality pass would leave them out.

A private file beside the manifest, `NAME.keep.txt`: the key of an image a line; what follows a `#` is for people.
`source.keep_sha256` in batches/NAME.yaml names it, so that another list makes the batch's shards stale.
"""

import hashlib
from pathlib import Path

from shards.core.errors import SourceError
from shards.core.params import SourceParams


def read_list(name: str, source: SourceParams) -> frozenset[str]:
    """Read the keys of the images that are kept; none where the batch's file names no list.

    Raises:
        SourceError: the list is missing, or not the one that the batch's file names.
    """
    if source.keep_sha256 is None:
        return frozenset()
    path = path_of_list(name, source)
    text = path.read_text(encoding="utf-8") if path.is_file() else None
    if text is None or sha256_of_list(text) != source.keep_sha256:
        found = "not found" if text is None else f"sha256 {sha256_of_list(text)}"
        raise SourceError(
            f"{path}: {found}, batches/{name}.yaml expects {source.keep_sha256} (source.keep_sha256); restore "
            f"the list, or run `python -m shards keep {name}` to take it as it is"
        )
    return keys_of(text)


def path_of_list(name: str, source: SourceParams) -> Path:
    """Return the path of a batch's list, which lies beside the manifest."""
    return Path(source.dep).with_name(f"{name}.keep.txt")


def keys_of(text: str) -> frozenset[str]:
    """Return the keys that the text of a list names."""
    words = (line.partition("#")[0].strip() for line in text.splitlines())
    return frozenset(word for word in words if word)


def sha256_of_list(text: str) -> str:
    """Hash the text of a list, as the batch's file names it."""
    return hashlib.sha256(text.encode()).hexdigest()
