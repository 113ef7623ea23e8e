"""Change what is excluded of a batch (shards.format.exclusion), with keys held against those there are."""

import difflib
import secrets
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from shards.core.config import read_params
from shards.core.errors import ConfigError, SourceError
from shards.core.params import BatchParams, RegisteredSourceParams
from shards.delivery.batches import read_batches
from shards.delivery.manifest import iterate_manifest, key_of
from shards.delivery.project import Project
from shards.delivery.yaml_lines import SHARDS, set_dep
from shards.format.exclusion import (
    PATIENT,
    Exclusion,
    exclusion_dep,
    exclusion_path,
    format_exclusion,
    list_path,
    missing_list,
    parse_list,
    read_exclusion,
)
from shards.format.layout import MANIFESTS
from shards.reading.reader import ShardIndex
from shards.runtime.atomic import clear_when_full, make_private_folder, write_private_text, write_text
from shards.runtime.text import count_of

_RANDOM = "# random, so that the list's hash does not tell whom it names: "


def exclude_images(
    name: str, keys: Sequence[str], patients: Sequence[str] = (), project: Project | None = None, *, undo: bool = False
) -> None:
    """Exclude images of a batch from all that reads it, as `set_excluded` does, and say what that leaves to be done."""
    project = project or Project()
    excluded, others = set_excluded(name, keys, patients, project, undo=undo)
    print(
        f"{list_path(name, project.root)} excludes {count_of(len(excluded.keys), 'image')} and "
        f"{count_of(len(excluded.patients), 'patient')} of {name}; its shards stay as they are. Now run `dvc repro`",
        file=sys.stderr,
    )
    for other, found in others.items():
        left = [patient for patient in found if patient not in read_exclusion(other, project.root).patients]
        if left:
            command = " ".join(f"--patient {patient}" for patient in left)
            print(
                f"warning: {other} has images of the same patients; `python -m shards exclude {other} {command}` "
                "excludes them there",
                file=sys.stderr,
            )


def set_excluded(
    name: str, keys: Sequence[str], patients: Sequence[str], project: Project, *, undo: bool = False
) -> tuple[Exclusion, dict[str, list[str]]]:
    """Exclude images of a batch from all that reads it; its shards stay as they are.

    Without keys, take the list as somebody has edited it.

    Args:
        name: Name of the batch.
        keys: Keys of its images.
        patients: Pseudonyms of patients, all of whose images in the batch are meant.
        project: The project's params.yaml and dvc.yaml.
        undo: Take them off the list instead.

    Returns:
        What is excluded of the batch now, and which of these patients each other batch has.

    Raises:
        ConfigError: there is no such batch, or dvc.yaml is not as expected.
        SourceError: the list is lost, the batch has no image or patient of a key, or a key is not on the list that it
            is taken off.
    """
    with project.editing():
        batches = read_batches(project.params, read_params(project.params))
        if name not in batches:
            raise ConfigError(
                f"{project.params}: has no batch '{name}'; expected one of its batches: {', '.join(batches)}"
            )
        path, tracked = list_path(name, project.root), exclusion_path(name, project.root)
        if tracked.is_file() and not path.is_file():
            raise missing_list(name, project.root)
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        lines = [*keys, *(f"{PATIENT} {patient}" for patient in patients)]
        text = _without_lines(text, lines, path) if undo else _with_lines(text, lines)
        if parse_list(text):
            text = _with_random(text)
        excluded = parse_list(text)
        known_keys, known_patients = _known_of(name, batches[name], project)
        check_known(excluded.keys, known_keys, f"image of {name}", path)
        check_known(excluded.patients, known_patients, f"patient of {name}", path)
        dvc_text = set_dep(project.dvc.read_text(encoding="utf-8"), exclusion_dep(name), name, wanted=bool(excluded))
        others = {
            other: sorted(excluded.patients & _known_of(other, batch, project)[1])
            for other, batch in batches.items()
            if excluded.patients and other != name and isinstance(batch.source, RegisteredSourceParams)
        }
        # A list that its record does not name stops whatever would read the batch, and so does, for DVC, a dependency
        # that is not there: after a kill at any moment the same command has to be given again.
        with clear_when_full(project.root):
            make_private_folder(project.root / MANIFESTS)
            if excluded:
                write_text(project.dvc, dvc_text)
            write_private_text(path, text)
            if excluded:
                write_text(tracked, format_exclusion(name, excluded))
            else:
                tracked.unlink(missing_ok=True)
                write_text(project.dvc, dvc_text)
    return excluded, others


def _with_lines(text: str, lines: Sequence[str]) -> str:
    there = {line.partition("#")[0].strip() for line in text.splitlines()}
    text += "\n" if text and not text.endswith("\n") else ""
    return text + "".join(f"{line}\n" for line in dict.fromkeys(lines) if line not in there)


def _with_random(text: str) -> str:
    """Give a list a random line: git has the list's hash, and whoever has the shards could try all their patients."""
    return text if _RANDOM in text else f"{_RANDOM}{secrets.token_hex(16)}\n{text}"


def _without_lines(text: str, lines: Sequence[str], path: Path) -> str:
    kept = text.splitlines()
    for line in lines:
        left = [other for other in kept if " ".join(other.partition("#")[0].split()) != line]
        if len(left) == len(kept):
            raise SourceError(
                f"{path}: has no line '{line}', so there is nothing to undo; `python -m shards exclude NAME --list` "
                "prints the lines that can be taken off"
            )
        kept = left
    return "".join(f"{line}\n" for line in kept)


def _known_of(name: str, batch: BatchParams, project: Project) -> tuple[set[str], set[str]]:
    """Return the keys of a batch's images and the pseudonyms of its patients."""
    if isinstance(batch.source, RegisteredSourceParams):
        header, entries = iterate_manifest(project.root / batch.source.dep)
        records = [entry.record for _, entry in entries]
        return {key_of(record, header) for record in records}, {record.patient for record in records}
    rows = ShardIndex.open(project.root / SHARDS / name).rows
    return set(rows["key"].astype(str).tolist()), set(rows["patient"].astype(str).tolist())


def check_known(keys: frozenset[str], known: Collection[str], what: str, path: Path) -> None:
    """Refuse keys that are of nothing, and name the closest that there is.

    Raises:
        SourceError: there are some.
    """
    unknown = sorted(keys - set(known))
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; the closest is '{close[0]}'" if close else ""
        raise SourceError(
            f"{path}: {len(unknown)} of {len(keys)} keys belong to no {what}, first '{unknown[0]}'{hint}. Expected "
            "keys as in quality.parquet, or as `python -m shards show` prints them"
        )
