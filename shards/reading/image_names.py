"""Tell whether a published model was trained on what it is measured on, by the file names of its training images.

A published model carries no patients, since their pseudonyms would mean nothing under another identity key. It names
its training images as their dataset does, and the manifests of a project say whose images have these names there.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from shards.core.errors import ContaminationError
from shards.core.identity import PUBLIC_KEY
from shards.core.records import Split
from shards.delivery.manifest import iterate_manifest
from shards.reading.reader import ShardIndex

IMAGE_NAMES = "images.txt"
"""File in the folder of a published model with the file names of its training images, one a line."""
_MAX_NAMED = 5
_SUFFIX = re.compile(r"\.(png|jpe?g|jpe|jfif|tiff?|bmp|dib|gif|webp|dcm|dicom)$")


def check_image_names(
    model: Path, index: ShardIndex, manifests: Path, *, is_accepted: bool, split: Split = "test"
) -> dict[str, Any]:
    """Compare the patients of one split of a shard set with those whose images a model names as its training images.

    Two names are the same if one path ends in the other, whatever kind of image file and in whatever case, as those of
    `images/00000013_004.png` and `00000013_004.jpg`. Images that were renamed are not found, nor are patients none of
    whose training images was ever registered here. What was compared, or why nothing could be, is said on stderr.

    Args:
        model: Folder of the model.
        index: Index of the set whose patients are measured.
        manifests: Folder of the project's manifests; those under the set's identity key are read.
        is_accepted: Shared patients are told rather than refused.
        split: The split whose patients are measured.

    Returns:
        num_named_images, num_named_images_found (here) and num_shared_patients; nothing where the model names no images
        or the set has no manifest.

    Raises:
        ContaminationError: there are shared patients and nobody has said yes.
        SourceError: a manifest is damaged.
    """
    measured = set(index.rows["patient"][index.select(split)].astype(str).tolist())
    if not (model / IMAGE_NAMES).is_file():
        _warn(
            f"{model} does not say which images it was trained on: nothing tells whether the {len(measured)} {split} "
            f"patients of {index.name} are among them; make sure that they are not"
        )
        return {}
    names = set((model / IMAGE_NAMES).read_text(encoding="utf-8").split("\n")) - {""}
    known = _named_patients(index, manifests)
    if known is None:
        _warn(
            f"{model} names the {len(names)} images that it was trained on, and nothing says which images "
            f"{index.name} has: expected {manifests / index.name}.jsonl, as `python -m shards register` wrote it. "
            "Restore it, or make sure that none of these images is measured"
        )
        return {}
    found = list(_same(names, known))  # several images may have one name, in other folders or batches
    shared = sorted(measured & {patient for _, patient in found})
    num_found = len({name for name, _ in found})
    if shared and not is_accepted:
        raise ContaminationError(
            f"{len(shared)} of {len(measured)} {split} patients of {index.name}, as {', '.join(shared[:_MAX_NAMED])}, "
            f"have images among the {len(names)} that {model} was trained on, by the file names in its {IMAGE_NAMES}; "
            "expected none. Measure other patients, or say yes: evaluate.accept_shared_images: true"
        )
    print(
        f"{model}: {num_found} of the {len(names)} images that it was trained on are registered here, by their names; "
        f"they show {len(shared)} of the {len(measured)} {split} patients of {index.name}",
        file=sys.stderr,
    )
    return {
        "num_named_images": len(names),
        "num_named_images_found": num_found,
        "num_shared_patients": len(shared),
    }


def _named_patients(index: ShardIndex, manifests: Path) -> list[tuple[str, str]] | None:
    """Name and patient of every image that is registered under the set's key; None without the set's own manifest."""
    fingerprint = index.description.id_key_fingerprint
    if fingerprint == PUBLIC_KEY.fingerprint:  # the phantom has no manifest, and its keys are its images' names
        return list(zip(*(index.rows[field].astype(str).tolist() for field in ("key", "patient")), strict=True))
    known: dict[str, list[tuple[str, str]]] = {}
    for path in sorted(manifests.glob("*.jsonl")):
        header, entries = iterate_manifest(path)
        if header.id_key_fingerprint == fingerprint:
            known[path.stem] = [(entry.record.image.path, entry.record.patient) for _, entry in entries]
    return [pair for pairs in known.values() for pair in pairs] if index.name in known else None


def _same(names: Iterable[str], known: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Yield those of `known`, as name and patient, that are among the names."""
    whole = {_plain(name) for name in names}
    ends = {end for name in whole for end in _ends(name)}
    for name, patient in known:
        plain = _plain(name)
        if plain in ends or not whole.isdisjoint(_ends(plain)):
            yield plain, patient


def _plain(name: str) -> str:
    """Return the path without the kind of file, and alike however it is written."""
    return _SUFFIX.sub("", re.sub(r"[/\\]+", "/", name.strip()).casefold())


def _ends(name: str) -> Iterator[str]:
    """Yield the path, then the path without its first folder, and so on to the file's name."""
    parts = name.split("/")
    return ("/".join(parts[start:]) for start in range(len(parts)))


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
