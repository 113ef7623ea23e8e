"""Plan the tars of a batch before any image is read: which image becomes which sample of which tar."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from shards.build.encode import PlannedSample, SampleEncoder
from shards.core.errors import SourceError
from shards.core.identity import SPLITS, split_of
from shards.core.params import ShardParams
from shards.core.records import Record, Split, files_of
from shards.delivery.manifest import Header, iterate_manifest, key_of
from shards.quality.judge import MOST_PROTECTED_FIRST

VERSION = 1
"""Raised together with `shard` in versions.yaml whenever the stage writes other bytes for the same images, which makes
every batch stale; a golden test fails where they change and it is not raised."""
_MAX_NAMED = 10


class PlannedImage(NamedTuple):
    """An image of a tar. Its record stays in the manifest, so that a plan is small however many images there are.

    Attributes:
        number: Rank of its key among all keys of the batch, from 1.
        offset: First byte of its line in the manifest.
    """

    number: int
    offset: int


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """The images of one tar.

    Attributes:
        name: File name of the tar.
        split: Split of all its samples.
        images: Its images, in their order.
        copies: Position in `images` → key of the image with the same file that is kept instead of it.
    """

    name: str
    split: Split
    images: tuple[PlannedImage, ...]
    copies: Mapping[int, str]


@dataclass(frozen=True)
class BatchPlan:
    """The tars of a batch.

    Attributes:
        manifest: File with the records of the images.
        header: First line of the manifest.
        shards: The tars, by split, then in the order of their keys.
    """

    manifest: Path
    header: Header
    shards: list[ShardPlan]

    @property
    def num_images(self) -> int:
        """Number of images that all tars are planned with."""
        return sum(len(shard.images) for shard in self.shards)


def plan_batch(manifest: Path, root: Path, params: ShardParams, *, check_files: bool = True) -> BatchPlan:
    """Deal the images of a manifest to tars: by split, then in the order of their keys.

    Args:
        manifest: Manifest of the batch.
        root: Folder of its images.
        params: Section `shard`.
        check_files: Require that all files are there and of their sizes; otherwise they are looked at when they are
            read.

    Raises:
        SourceError: files are missing or of another size than when they were registered, or two images have one id.
    """
    header, lines = iterate_manifest(manifest)
    images: list[_Image] = []
    changed = set()
    first_paths: list[str] = []
    for offset, entry in lines:
        record = entry.record
        if len(first_paths) < _MAX_NAMED:
            first_paths.append(record.image.path)
        digest = bytes.fromhex(record.image.sha256) if record.image.sha256 and not record.known_defect else b""
        split = split_of(entry.position, params.splits, entry.splits)
        image = _Image(key_of(record, header), split, offset, digest)
        images.append(image)
        if (
            check_files
            and record.known_defect is None
            and any(_size_of(root / f.path) != f.num_bytes for f in files_of(record))
        ):
            changed.add(image.key)
    images.sort()
    if changed and not any((root / path).exists() for path in first_paths):
        raise SourceError(
            f"{root}: none of the first images of {manifest} is there; expected the folder that was registered. If it "
            f"was moved, say where it is: `python -m shards relocate {manifest.stem} FOLDER`"
        )
    if changed:
        numbers = [str(number) for number, image in enumerate(images, start=1) if image.key in changed]
        more = f" and {len(numbers) - _MAX_NAMED} more" if len(numbers) > _MAX_NAMED else ""
        raise SourceError(
            f"files of {len(numbers)} of {len(images)} images below {root} are missing or changed since the batch was "
            f"registered: {manifest} images {', '.join(numbers[:_MAX_NAMED])}{more}; restore them, or register the "
            "folder as a new batch"
        )
    for number, (first, second) in enumerate(pairwise(images), start=1):
        if first.key == second.key:
            raise SourceError(f"{manifest}: images {number} and {number + 1} have the same id")
    return BatchPlan(manifest, header, _deal(images, params))


class _Image(NamedTuple):
    """The properties of an image that decide its tar and its position there."""

    key: str
    split: Split
    offset: int
    digest: bytes


def _deal(images: list[_Image], params: ShardParams) -> list[ShardPlan]:
    dealt: dict[Split, list[_Image]] = {split: [] for split in SPLITS}
    numbers = {}
    for number, image in enumerate(images, start=1):
        dealt[image.split].append(image)
        numbers[image.key] = number
    originals = _originals(dealt) if params.quality.exact_copies.action == "quarantine" else {}
    size = params.num_images_per_shard
    return [
        ShardPlan(
            name=f"{split}-{start // size:06d}.tar",
            split=split,
            images=tuple(PlannedImage(numbers[image.key], image.offset) for image in chunk),
            copies={
                position: originals[image.digest]
                for position, image in enumerate(chunk)
                if originals.get(image.digest, image.key) != image.key
            },
        )
        for split, of_split in dealt.items()
        for start in range(0, len(of_split), size)
        for chunk in [of_split[start : start + size]]
    ]


def _originals(dealt: Mapping[Split, list[_Image]]) -> dict[bytes, str]:
    """Map the hash of a file to the key of the image that is kept of its copies: the first by split, then by key."""
    originals: dict[bytes, str] = {}
    for split in MOST_PROTECTED_FIRST:
        for image in dealt[split]:
            if image.digest:
                originals.setdefault(image.digest, image.key)
    return originals


def fingerprint(manifest_sha256: str, encoder: SampleEncoder) -> str:
    """Hash everything that decides the bytes of the tars; unfinished work is reused only where the hash agrees.

    The code is in it as a number, so that an upgrade that changes no byte throws no finished tar away.
    """
    settings = {
        "version": VERSION,
        "manifest": manifest_sha256,
        "batch": encoder.batch,
        "channels": encoder.channels,
        "spec": encoder.spec.to_json(),
        "shard": encoder.params.model_dump(mode="json", exclude={"max_quarantined_fraction", "quality"}),
        "exact_copies": encoder.params.quality.exact_copies.action,  # other bounds are judged after the tars
        "libraries": [version(name) for name in ("numpy", "opencv-python-headless", "pillow", "simplejpeg")],
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def planned_sample(plan: ShardPlan, position: int, record: Record, header: Header) -> PlannedSample:
    """Describe the sample that one image of a tar becomes.

    Where names are private, an image is called by its rank among the keys: in a manifest of earlier versions it has the
    rank of its path, and with a list of all paths that would tell which key is whose.
    """
    private_name = f"manifest image {plan.images[position].number}"
    return PlannedSample(
        record=record,
        key=key_of(record, header),
        display_name=record.image.path if header.has_public_ids else private_name,
        split=plan.split,
        copy_of=plan.copies.get(position),
    )


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
