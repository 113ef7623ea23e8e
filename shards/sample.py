"""One record becomes one sample: read, check, decode, place on the canvas, describe, encode."""

import hashlib
import io
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.canvas import (
    Cells,
    Pixels,
    Placement,
    UnreadableImageError,
    cell_statistics,
    decode_image,
    is_coloured,
    with_channels,
)
from shards.delivery import age_bucket
from shards.format import FORMAT_VERSION, LANDMARKS_SUFFIX, MASK_SUFFIX, META_SUFFIX
from shards.grid import GridSpec, crop_bank
from shards.masks import draw_mask
from shards.params import ShardParams
from shards.quality.measure import Measured, measure
from shards.quality.reasons import SAME_FILE
from shards.records import Box, File, Record, Split, locate


class ChangedFileError(Exception):
    """A file is not the one that was registered."""


@dataclass(frozen=True)
class Task:
    """A record and where its sample goes.

    Attributes:
        record: What may be kept of the image (`shards.delivery.Entry`).
        key: The sample's key.
        place: What messages and quarantine.csv call it: free of anything that could name a patient.
        split: The patient's.
        copy_of: Key of the task with the same file, which is the one that is kept.
    """

    record: Record
    key: str
    place: str
    split: Split
    copy_of: str | None = None


@dataclass(frozen=True)
class Encoded:
    """A sample ready to be written.

    Attributes:
        members: (suffix, data) in the order of the tar: description, image, others.
        counted: What the index adds up: labels, view, foreground (sum, sum of squares, number of values),
            lost_colour.
        measured: For the quality pass.
    """

    members: tuple[tuple[str, bytes], ...]
    counted: dict[str, Any]
    measured: Measured


@dataclass(frozen=True)
class Rejected:
    """A record that gives no sample, and why."""

    reason: str
    has_changed: bool = False


@dataclass(frozen=True)
class Encoder:
    """Tasks to samples, with what all samples of a batch share."""

    batch: str
    kind: str
    root: Path
    channels: int
    spec: GridSpec
    params: ShardParams

    def __call__(self, task: Task) -> Encoded | Rejected:
        """Encode one task; a file that cannot be used is a result, not an error."""
        record = task.record
        if record.known_defect is not None:
            return Rejected(record.known_defect)
        if task.copy_of is not None:
            return Rejected(SAME_FILE)
        try:
            data = self._read(record.image, task.place)
            image = decode_image(data, self.params.max_source_megapixels * 1e6)
            return self._encode(task, image)
        except ChangedFileError as error:
            return Rejected(str(error), has_changed=True)
        except UnreadableImageError as error:
            return Rejected(str(error))

    def _read(self, file: File, place: str) -> bytes:
        try:
            data = locate(self.root, file, place).read_bytes()
        except OSError:
            raise ChangedFileError("missing or not readable") from None
        if file.sha256 is not None and hashlib.sha256(data).hexdigest() != file.sha256:
            raise ChangedFileError("changed since it was registered")
        return data

    def _encode(self, task: Task, image: Pixels) -> Encoded:
        record = task.record
        placement = Placement(self.spec.canvas_px, *image.shape[:2])
        canvas = placement.place_image(with_channels(image, self.channels))
        cells = cell_statistics(canvas, self.spec, self.params.foreground)
        meta = self._meta(task, placement, cells)
        members = [(META_SUFFIX, _json_bytes(meta)), (self.params.image_format, self._image_bytes(canvas))]
        points = {name: placement.place_point(point) for name, point in sorted(record.landmarks.items())}
        if points:
            members.append((LANDMARKS_SUFFIX, _json_bytes(points)))
        areas = {}
        for structure, mask in sorted(record.masks.items()):
            drawn = draw_mask(mask, image.shape[:2], partial(self._read, place=task.place))
            areas[structure] = float(np.count_nonzero(drawn) / drawn.size)
            placed = _png_bytes(Image.fromarray(placement.place_mask(drawn)))
            members.append((MASK_SUFFIX.format(structure=structure), placed))
        counted = {
            "labels": meta["labels"],
            "view": meta["view"],
            "foreground": [cells.total, cells.total_squares, cells.num_values],
            "lost_colour": self.channels == 1 and is_coloured(image),
        }
        measured = measure(with_channels(image, 1), members[1][1], areas, record.labels, is_burned_in=None)
        return Encoded(tuple(members), counted, measured)

    def _meta(self, task: Task, placement: Placement, cells: Cells) -> dict[str, Any]:
        record, spec = task.record, self.spec
        bank = crop_bank(spec, task.key, self.params.seed, self.params.num_bank_pairs)
        return {
            "format_version": FORMAT_VERSION,
            "key": task.key,
            "batch": self.batch,
            "dataset": self.kind,
            "source_id": record.source_id,
            "patient": record.patient,
            "study": record.study,
            "view": record.view,
            "sex": record.sex,
            "age": age_bucket(record.age_years),
            "labels": dict(sorted(record.labels.items())),
            "boxes": [_placed_box(box, placement) for box in record.boxes],
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

    def _image_bytes(self, canvas: Pixels) -> bytes:
        image = Image.fromarray(canvas)
        if self.params.image_format == "png":
            return _png_bytes(image)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=self.params.jpg_quality, subsampling=0)
        return file.getvalue()


def _placed_box(box: Box, placement: Placement) -> dict[str, Any]:
    """On the canvas, in continuous pixels."""
    (row0, col0), (row1, col1) = (
        placement.place_point((box.row0, box.col0)),
        placement.place_point((box.row1, box.col1)),
    )
    return {"label": box.label, "row0": row0, "col0": col0, "row1": row1, "col1": col1}


def _png_bytes(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=4)  # as small as 6 on radiographs, in half the time
    return file.getvalue()


def _json_bytes(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
