"""Masks, boxes and landmarks of an image on its canvas, and what of them is lost on the way there."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool

from shards.core.canvas import Placement, connected_parts
from shards.core.records import Box, File, MaskPolygons, Point, Record
from shards.decode import UnreadableImageError
from shards.decode.masks import draw

OTHER_SIZE = "given for an image of another size"
OUTSIDE = "outside the image, as if given for one of another size"
CUT_OFF = "in the dark edges that were cut off"
PARTLY_CUT_OFF = "partly in the dark edges that were cut off"

_MAX_OVERHANG = 0.01
"""Largest overhang, as a share of the image's longer side: annotators' tools round, and boxes go a little too far."""

Inside = Bool[np.ndarray, "height width"]


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A mask, box or landmark that the sample does not have, or not all of.

    Attributes:
        name: Kind and name of the annotation, as `mask haemorrhages`, `box Nodule`, `landmark fovea`.
        reason: One of this module's, or why the file of a mask cannot be used.
        num_pixels: Pixels of the image that a mask loses to the cut.
        num_parts: Connected parts (lesions) of a mask of which nothing is left.
    """

    name: str
    reason: str
    num_pixels: int = 0
    num_parts: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@dataclass(kw_only=True)
class Annotations:
    """The annotations of an image, on its canvas.

    Attributes:
        masks: Structure → the canvas's pixels inside it.
        areas: Structure → share of the image inside its mask; also of masks that the cut leaves nothing of.
        boxes: Boxes in continuous canvas pixels.
        landmarks: Landmark → (row, col) in continuous canvas pixels.
        losses: Annotations that are not among these, or not all of them.
    """

    masks: dict[str, Bool[np.ndarray, "side side"]] = field(default_factory=dict)
    areas: dict[str, float] = field(default_factory=dict)
    boxes: list[Box] = field(default_factory=list)
    landmarks: dict[str, Point] = field(default_factory=dict)
    losses: list[Loss] = field(default_factory=list)


def place_annotations(
    record: Record, placement: Placement, read: Callable[[File], bytes], max_pixels: float
) -> Annotations:
    """Place what a record says of an image on its canvas; what cannot be used is a loss, and the image stays.

    Args:
        record: Record of the image.
        placement: Placement of the image on the canvas.
        read: Gives the content of a mask's file; decides what a missing or changed one means.
        max_pixels: A mask's file with more pixels is not decoded.
    """
    found = Annotations()
    misfit = misfit_of(record, (placement.source_height, placement.source_width))
    for box in record.boxes:
        _place_box(found, box, placement, misfit)
    for name, point in sorted(record.landmarks.items()):
        _place_landmark(found, name, point, placement, misfit)
    for structure, mask in sorted(record.masks.items()):
        if misfit and isinstance(mask, MaskPolygons) and mask.rings:
            found.losses.append(Loss(name=f"mask {structure}", reason=misfit))
            continue
        try:
            drawn = draw(mask, (placement.source_height, placement.source_width), read, max_pixels)
        except UnreadableImageError as error:
            found.losses.append(Loss(name=f"mask {structure}", reason=str(error)))
        else:
            _place_mask(found, structure, drawn, placement)
    return found


def misfit_of(record: Record, size: tuple[int, int]) -> str | None:
    """Say why the coordinates of a record do not hold for its image; None if they do, or if it has none.

    One coordinate outside the image shows that all were given for another.

    Args:
        record: Record of the image.
        size: (height, width) of the image as it was decoded.
    """
    points = list(_points_of(record))
    if not points:
        return None
    if record.size not in (None, size):
        return OTHER_SIZE
    slack = _MAX_OVERHANG * max(size)
    is_inside = all(
        -slack <= value <= side + slack for point in points for value, side in zip(point, size, strict=True)
    )
    return None if is_inside else OUTSIDE


def has_coordinates(record: Record) -> bool:
    """Tell whether a record has boxes, landmarks or polygons."""
    return next(_points_of(record), None) is not None


def _points_of(record: Record) -> Iterator[Point]:
    for box in record.boxes:
        yield box.row0, box.col0
        yield box.row1, box.col1
    yield from record.landmarks.values()
    for mask in record.masks.values():
        if isinstance(mask, MaskPolygons):
            for ring in mask.rings:
                yield from ring


def _place_box(found: Annotations, box: Box, placement: Placement, misfit: str | None) -> None:
    name = f"box {box.label}"
    if misfit:
        found.losses.append(Loss(name=name, reason=misfit))
        return
    whole = _clipped(box, (0, 0, placement.source_height, placement.source_width))
    kept = _clipped(box, placement.box)
    if _is_empty(kept):
        found.losses.append(Loss(name=name, reason=OUTSIDE if _is_empty(whole) else CUT_OFF))
        return
    if kept != whole:
        found.losses.append(Loss(name=name, reason=PARTLY_CUT_OFF))
    (row0, col0), (row1, col1) = map(placement.place_point, ((kept.row0, kept.col0), (kept.row1, kept.col1)))
    found.boxes.append(Box(label=box.label, row0=row0, col0=col0, row1=row1, col1=col1))


def _clipped(box: Box, part: tuple[int, int, int, int]) -> Box:
    row0, col0, row1, col1 = part
    return Box(
        label=box.label,
        row0=max(box.row0, row0),
        col0=max(box.col0, col0),
        row1=min(box.row1, row1),
        col1=min(box.col1, col1),
    )


def _is_empty(box: Box) -> bool:
    return box.row0 >= box.row1 or box.col0 >= box.col1


def _place_landmark(found: Annotations, landmark: str, point: Point, placement: Placement, misfit: str | None) -> None:
    row0, col0, row1, col1 = placement.box
    # Within the overhang that `misfit_of` allows, a point beyond the border stands for the border.
    row, col = min(max(point[0], 0), placement.source_height), min(max(point[1], 0), placement.source_width)
    is_placed = row0 <= row <= row1 and col0 <= col <= col1
    if misfit or not is_placed:
        found.losses.append(Loss(name=f"landmark {landmark}", reason=misfit or CUT_OFF))
    else:
        found.landmarks[landmark] = placement.place_point((row, col))


def _place_mask(found: Annotations, structure: str, drawn: Inside, placement: Placement) -> None:
    found.areas[structure] = float(np.count_nonzero(drawn) / drawn.size)
    row0, col0, row1, col1 = placement.box
    part = drawn[row0:row1, col0:col1]
    num_pixels = int(np.count_nonzero(drawn)) - int(np.count_nonzero(part))
    if num_pixels:
        num_parts, parts = connected_parts(drawn)
        num_left = int(np.count_nonzero(np.unique(parts[row0:row1, col0:col1])))
        reason = PARTLY_CUT_OFF if num_left else CUT_OFF
        found.losses.append(
            Loss(name=f"mask {structure}", reason=reason, num_pixels=num_pixels, num_parts=num_parts - num_left)
        )
        if not num_left:
            return  # an empty mask would say that the structure is known to be absent
    found.masks[structure] = placement.place_mask(drawn)
