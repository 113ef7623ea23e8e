"""One record becomes one sample: read, check, decode, place on the canvas, describe, encode."""

import hashlib
import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from shards.canvas import (
    DAMAGED_MASK,
    Cells,
    Pixels,
    Placement,
    UnreadableImageError,
    cell_statistics,
    decode_image,
    is_coloured,
    with_channels,
)
from shards.format import FORMAT_VERSION, HALF_SUFFIX, LANDMARKS_SUFFIX, MASK_SUFFIX, META_SUFFIX
from shards.grid import GridSpec, crop_bank
from shards.identity import Split
from shards.jpeg import encode_canvas
from shards.params import ShardParams
from shards.sources.base import Record

_BOUND_OF_MASKS = 2**31


@dataclass(frozen=True)
class Task:
    """A record with what may be published about it.

    Attributes:
        record: What the source says; its ids stay behind.
        key: The sample's key.
        source_id: Name in the source, or its keyed hash.
        patient: Pseudonym.
        study: Study id or its keyed hash.
        split: The patient's.
    """

    record: Record
    key: str
    source_id: str
    patient: str
    study: str | None
    split: Split


@dataclass(frozen=True)
class Encoded:
    """A sample ready to be written.

    Attributes:
        members: (suffix, data) in the order of the tar: description, image, others.
        counted: What the index adds up: labels, view, foreground (sum, sum of squares, number of values),
            lost_colour.
    """

    members: tuple[tuple[str, bytes], ...]
    counted: dict[str, Any]


@dataclass(frozen=True)
class Rejected:
    """A record that gives no sample, and why."""

    reason: str
    has_changed: bool = False


@dataclass(frozen=True)
class Encoder:
    """Tasks to samples, with what all samples of a batch share."""

    batch: str
    channels: int
    spec: GridSpec
    params: ShardParams

    def __call__(self, task: Task) -> Encoded | Rejected:
        """Encode one task; a file that cannot be used is a result, not an error."""
        record = task.record
        try:
            data = record.image.read_bytes()
            masks = {structure: path.read_bytes() for structure, path in sorted(record.masks.items())}
        except OSError:
            return Rejected("missing or not readable", has_changed=True)
        if record.sha256 is not None and hashlib.sha256(data).hexdigest() != record.sha256:
            return Rejected("changed since it was registered", has_changed=True)
        try:
            image = decode_image(data, self.params.max_source_megapixels * 1e6)
            return self._encode(task, image, masks)
        except UnreadableImageError as error:
            return Rejected(str(error))

    def _encode(self, task: Task, image: Pixels, masks: dict[str, bytes]) -> Encoded:
        placement = Placement(self.spec.canvas_px, *image.shape[:2])
        canvas = placement.place_image(with_channels(image, self.channels))
        cells = cell_statistics(canvas, self.spec, self.params.foreground)
        meta = self._meta(task, placement, cells)
        members = [(META_SUFFIX, _json_bytes(meta)), *self._images(canvas)]
        points = {name: placement.place_point(point) for name, point in sorted(task.record.landmarks.items())}
        if points:
            members.append((LANDMARKS_SUFFIX, _json_bytes(points)))
        for structure, mask_data in masks.items():
            mask = _read_mask(mask_data, image.shape[:2])
            placed = _png_bytes(Image.fromarray(placement.place_mask(mask)))
            members.append((MASK_SUFFIX.format(structure=structure), placed))
        counted = {
            "labels": meta["labels"],
            "view": meta["view"],
            "foreground": [cells.total, cells.total_squares, cells.num_values],
            "lost_colour": self.channels == 1 and is_coloured(image),
        }
        return Encoded(tuple(members), counted)

    def _meta(self, task: Task, placement: Placement, cells: Cells) -> dict[str, Any]:
        record, spec = task.record, self.spec
        bank = crop_bank(spec, task.key, self.params.seed, self.params.num_bank_pairs)
        return {
            "format_version": FORMAT_VERSION,
            "key": task.key,
            "batch": self.batch,
            "source_id": task.source_id,
            "patient": task.patient,
            "study": task.study,
            "view": record.view,
            "labels": dict(sorted(record.labels.items())),
            "original": {
                "height": placement.source_height,
                "width": placement.source_width,
                "spacing_mm": record.spacing_mm,
            },
            "grid": {
                "n": spec.n,
                "cell_px": spec.cell_px,
                "t": spec.t,
                "affine": placement.affine,
                "mean": cells.mean.tolist(),
                "std": cells.std.tolist(),
                "foreground": cells.foreground.astype(int).tolist(),
                "bank": [
                    pair.to_json()
                    | {"overlap_fine": pair.overlap_fine(spec.t), "overlap_coarse": pair.overlap_coarse(spec.t)}
                    for pair in bank
                ],
            },
        }

    def _images(self, canvas: Pixels) -> list[tuple[str, bytes]]:
        image, quality = Image.fromarray(canvas), self.params.jpg_quality
        if self.params.image_format == "png":
            return [("png", _png_bytes(image))]
        members = [("jpg", encode_canvas(canvas, quality))]
        if self.spec.canvas_px % 2 == 0 and any(min(scale.k, scale.l) >= 2 for scale in self.spec.scales):
            members.append((HALF_SUFFIX, encode_canvas(np.asarray(image.reduce(2)), quality)))
        return members


def _read_mask(data: bytes, size: tuple[int, ...]) -> np.ndarray:
    try:
        mask = with_channels(decode_image(data, _BOUND_OF_MASKS), 1)
    except UnreadableImageError:
        raise UnreadableImageError(DAMAGED_MASK) from None
    if mask.shape != size:
        raise UnreadableImageError(DAMAGED_MASK)
    return mask


def _png_bytes(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=4)  # as small as 6 on radiographs, in half the time
    return file.getvalue()


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
