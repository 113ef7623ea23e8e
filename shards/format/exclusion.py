"""Images that a project no longer reads of a batch, whose shards stay as they are: `python -m shards exclude`.

The list is private and lies beside the manifest, `data/manifests/NAME.exclude.txt`: the key of an image a line, or
`patient` and the key of a patient; what follows a `#` is for people. `batches/NAME.exclude.yaml` names it by its sha256
and is a dependency of the stages that read the set, so that another list makes these stale, and no shard.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from ruamel.yaml import YAML

from shards.core.errors import SourceError
from shards.format.layout import BATCHES, MANIFESTS

PATIENT = "patient"
"""Word of a list before the key of a patient."""


@dataclass(frozen=True)
class Exclusion:
    """Images of a batch that nothing reads.

    Attributes:
        keys: Keys of images.
        patients: Pseudonyms of patients, all of whose images are meant.
        sha256: Hash of the list; empty where there is none.
    """

    keys: frozenset[str] = field(default_factory=frozenset)
    patients: frozenset[str] = field(default_factory=frozenset)
    sha256: str = ""

    def __bool__(self) -> bool:
        return bool(self.keys or self.patients)

    def of(self, rows: np.ndarray) -> Bool[np.ndarray, "num_rows"]:
        """Tell which rows of an index are excluded."""
        keys, patients = (np.array(sorted(names), "S64") for names in (self.keys, self.patients))
        return np.isin(rows["key"], keys) | np.isin(rows["patient"], patients)


NOTHING = Exclusion()


def parse_list(text: str) -> Exclusion:
    """Read the text of a list."""
    lines = [line.partition("#")[0].split() for line in text.splitlines()]
    patients = frozenset(words[1] for words in lines if len(words) == 2 and words[0] == PATIENT)
    keys = frozenset(word for words in lines if words[:1] != [PATIENT] for word in words)
    return Exclusion(keys, patients, hashlib.sha256(text.encode()).hexdigest())


def list_path(name: str, project: Path) -> Path:
    """Return the path of a batch's private list."""
    return project / MANIFESTS / f"{name}.exclude.txt"


def exclusion_path(name: str, project: Path) -> Path:
    """Return the path of the file that names the list and that stages depend on; it is there where a list is."""
    return project / BATCHES / f"{name}.exclude.yaml"


def exclusion_dep(name: str) -> str:
    """Return that path as dvc.yaml has it."""
    return exclusion_path(name, Path()).as_posix()


def format_exclusion(name: str, exclusion: Exclusion) -> str:
    """Write the file that stages depend on."""
    return (
        f"# What nothing reads of {name}, written by `python -m shards exclude`; the list itself is private.\n"
        f"list_sha256: {exclusion.sha256}\n"
    )


def read_exclusion(name: str, project: Path) -> Exclusion:
    """Read what a project excludes of a batch, wherever its shard set lies.

    Args:
        name: Name of the batch.
        project: The folder of params.yaml.

    Raises:
        SourceError: the project excludes images of it and the list is missing, or not the one that is named; or there
            is a list that nothing names.
    """
    tracked, path = exclusion_path(name, project), list_path(name, project)
    found = parse_list(path.read_text(encoding="utf-8")) if path.is_file() else None
    if not tracked.is_file():
        if found:
            raise SourceError(
                f"{path}: names images of {name} to exclude, and there is no {tracked}; run `python -m shards exclude "
                f"{name}` to exclude them, or remove the list"
            )
        return NOTHING
    expected = YAML(typ="safe", pure=True).load(tracked.read_text(encoding="utf-8"))["list_sha256"]
    if found is None:
        raise missing_list(name, project)
    if found.sha256 != expected:
        raise SourceError(
            f"{path}: sha256 {found.sha256}, {tracked} expects {expected} (list_sha256), and nothing else says which "
            f"images of {name} are excluded; restore the list, or run `python -m shards exclude {name}` to take it as "
            "it is"
        )
    return found


def missing_list(name: str, project: Path) -> SourceError:
    """Return the error for a list that is lost: no command makes a shorter one of it."""
    tracked, path = exclusion_path(name, project), list_path(name, project)
    return SourceError(
        f"{path}: not found, and {tracked} says that images of {name} are excluded; restore the list from a copy of "
        f"{path.parent}. Only if it is lost for good: make the file again with what is to be excluded, and run "
        f"`python -m shards exclude {name}`"
    )
