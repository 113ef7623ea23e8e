"""One record becomes one sample: read, check, decode, place on the canvas, describe, encode."""

import hashlib
import io
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic_core import to_json

from shards.build.summary import Tallied
from shards.core.canvas import Cells, Pixels, Placement, cell_statistics, is_coloured, with_channels
from shards.core.errors import SourceError
from shards.core.grid import GridSpec, crop_bank
from shards.core.params import ShardParams
from shards.core.records import File, Record, Split, is_drawn, locate, structure_of
from shards.decode import Decoded, Facts, UnreadableImageError, decode
from shards.decode.annotations import Annotations, place_annotations
from shards.decode.patience import read_patiently
from shards.delivery.manifest import age_bucket
from shards.format.jpeg import encode_canvas, encode_half
from shards.format.layout import FORMAT_VERSION, HALF_SUFFIX, LANDMARKS_SUFFIX, MASK_SUFFIX, META_SUFFIX
from shards.quality.measure import ImageMeasures, measure
from shards.quality.reasons import SAME_FILE


class ChangedFileError(Exception):
    """A file is not the one that was registered."""


@dataclass(frozen=True, kw_only=True)
class PlannedSample:
    """Describes a sample before it is encoded: the image, its names and its split.

    Attributes:
        record: The image, with nothing but what may be kept of it (`shards.delivery.manifest.Entry`).
        key: Key of the sample.
        display_name: Name of the image in messages and in quarantine.csv, free of anything that could name a patient.
        split: Split of the patient.
        copy_of: Key of the image with the same file that is kept instead of this one; None if this one is kept.
    """

    record: Record
    key: str
    display_name: str
    split: Split
    copy_of: str | None = None


@dataclass(frozen=True)
class EncodedSample:
    """Holds a sample ready to be written.

    Attributes:
        members: (suffix, data) in the order of the tar: description, image, others.
        tallied: The part of it that the index adds up.
        measured: Measures of the image for the quality pass.
    """

    members: tuple[tuple[str, bytes], ...]
    tallied: Tallied
    measured: ImageMeasures


@dataclass(frozen=True)
class Rejected:
    """Says why a record gives no sample."""

    reason: str
    has_changed: bool = False


@dataclass(frozen=True, kw_only=True)
class SampleEncoder:
    """Encodes planned samples.

    Attributes:
        batch: Name of the batch.
        kind: Name of its source.
        root: Folder of its images.
        channels: Channels of a canvas, 1 or 3.
        spec: Grid of the canvas.
        params: Section `shard`.
    """

    batch: str
    kind: str
    root: Path
    channels: Literal[1, 3]
    spec: GridSpec
    params: ShardParams

    @property
    def max_pixels(self) -> float:
        """A larger image is quarantined before it is decoded."""
        return self.params.max_source_megapixels * 1e6

    def __call__(self, planned: PlannedSample) -> EncodedSample | Rejected:
        """Encode one image; a file that cannot be used is a result, not an error."""
        record = planned.record
        if record.known_defect is not None:
            return Rejected(record.known_defect)
        if planned.copy_of is not None:
            return Rejected(SAME_FILE)
        try:
            data = self._read(record.image, planned.display_name)
            return self._encode(planned, decode(data, max_pixels=self.max_pixels, raw=record.raw))
        except ChangedFileError as error:
            return Rejected(str(error), has_changed=True)
        except UnreadableImageError as error:
            return Rejected(str(error))

    def _read(self, file: File, display_name: str) -> bytes:
        try:
            data = read_patiently(locate(self.root, file, display_name), self.max_pixels)
        except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError):
            raise ChangedFileError("missing or not readable") from None
        except OSError as error:  # whose own text names the file
            raise SourceError(
                f"{display_name}: cannot be read ({error.strerror}); finished tars are kept: give the same command "
                "again when the raw files are within reach"
            ) from None
        if file.sha256 is not None and hashlib.sha256(data).hexdigest() != file.sha256:
            raise ChangedFileError("changed since it was registered")
        return data

    def _encode(self, planned: PlannedSample, decoded: Decoded) -> EncodedSample:
        record, image = planned.record, decoded.pixels
        placement = Placement.of(image, self.spec.canvas_px, self.spec.trim_level)
        canvas = placement.place_image(with_channels(image, self.channels))
        cells = cell_statistics(canvas, self.spec, self.params.foreground)
        found = place_annotations(
            record, placement, partial(self._read, display_name=planned.display_name), self.max_pixels
        )
        meta = self._meta(planned, placement, cells, decoded.facts, found)
        members = [(META_SUFFIX, _json_bytes(meta)), *self._images(canvas)]
        if found.landmarks:
            members.append((LANDMARKS_SUFFIX, _json_bytes(found.landmarks)))
        for structure, placed in found.masks.items():
            members.append((MASK_SUFFIX.format(structure=structure), _png_bytes(Image.fromarray(placed))))
        tallied = Tallied(
            labels=meta["labels"],
            foreground=(cells.total, cells.total_squares, cells.num_values),
            num_values=canvas.size,
            lost_colour=self.channels == 1 and is_coloured(image),
            losses=tuple(found.losses),
            areas={name: area for name, area in found.areas.items() if is_drawn(record.masks[name])},
        )
        labels = {structure_of(name): label for name, label in record.labels.items()}
        is_burned_in = decoded.facts.is_annotation_burned_in
        measured = measure(with_channels(image, 1), members[1][1], found.areas, labels, is_burned_in=is_burned_in)
        return EncodedSample(tuple(members), tallied, measured)

    def _meta(
        self, planned: PlannedSample, placement: Placement, cells: Cells, facts: Facts, found: Annotations
    ) -> dict[str, Any]:
        record, spec = planned.record, self.spec
        lost = {"lost": [loss.to_json() for loss in found.losses]} if found.losses else {}
        bank = crop_bank(spec, planned.key, self.params.seed, self.params.num_bank_pairs)
        return {
            "format_version": FORMAT_VERSION,
            "key": planned.key,
            "batch": self.batch,
            "dataset": self.kind,
            "source_id": record.source_id,
            "patient": record.patient,
            "study": record.study,
            "view": record.view,
            "sex": record.sex,
            "age": age_bucket(record.age_years),
            "labels": dict(sorted(record.labels.items())),
            "boxes": [asdict(box) for box in found.boxes],
            **lost,
            "original": {
                "height": placement.source_height,
                "width": placement.source_width,
                "spacing_mm": _spacing_of(record, facts, placement),
                "bits_stored": facts.bits_stored,
                "photometric": facts.photometric,
                "window": facts.window,
                "window_rule": facts.window_rule,
                "flags": facts.flags,
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
        quality = self.params.jpg_quality
        if self.params.image_format == "png":
            return [("png", _png_bytes(Image.fromarray(canvas)))]
        members = [("jpg", encode_canvas(canvas, quality))]
        if self.spec.canvas_px % 2 == 0 and any(min(scale.k, scale.l) >= 2 for scale in self.spec.scales):
            members.append((HALF_SUFFIX, encode_half(canvas, quality)))
        return members


def _spacing_of(record: Record, facts: Facts, placement: Placement) -> tuple[float, float] | None:
    if record.spacing_mm == "unusable" or record.size not in (None, (placement.source_height, placement.source_width)):
        return None
    return record.spacing_mm or facts.spacing_mm


def _png_bytes(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=4)  # as small as 6 on radiographs, in half the time
    return file.getvalue()


def _json_bytes(value: Any) -> bytes:
    return to_json(value, inf_nan_mode="null")
