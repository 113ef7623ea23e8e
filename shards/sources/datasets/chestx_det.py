"""ChestX-Det: radiographs of NIH ChestX-ray14 with boxes and polygons of 13 findings.

Citation: J. Lian et al., "A Structure-Aware Relation Network for Thoracic Diseases Detection and Segmentation", IEEE
Transactions on Medical Imaging 40(8), 2021, 2042-2052.
Licence: Apache 2.0 for the lists; NIH's terms for the images.
Pages: https://github.com/Deepwise-AILab/ChestX-Det-Dataset, and its issue 2 for mapping.json.

Layout:
    train_data/<number>.png
    test_data/<number>.png
    ChestX_Det_train.json
    ChestX_Det_test.json
    mapping.json (optional: patients, from issue 2 of the authors' repository)
    train_val_list.txt, test_list.txt of NIH ChestX-ray14 (optional, with the mapping: its official split)

What is easily got wrong:
- The images were renumbered: the patient follows from the authors' mapping.json only, which lacks 35 images (the
  repository's issue 11).
- `syms`, `boxes` and `polygons` are parallel lists, one entry an instance; all empty: no finding (611 images).
- A polygon is one ring, with repeated points in places; most end at their first point, the others are closed all the
  same. Rings without an area are dropped: the published lists have none. Instances of one finding are OR-ed.
- Boxes and polygons hold for NIH's 1024 x 1024 pixels: a resized copy loses them.
- ChestX-Det10 is an earlier set of 3,543 images and 10 findings with other lists.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from shards.core.errors import SourceError
from shards.core.records import Box, File, Mask, MaskPolygons, Point, Record, Split, check_inside, structure_of
from shards.sources.base import Listing, SourceInfo, layout_in
from shards.sources.datasets.nih_identity import is_nih_image, list_nih_images, parse_mapping, relatives
from shards.sources.files import find_list, index_files, list_files
from shards.sources.listing import count_warnings, number_warnings, wrong_layout

_LAYOUT = layout_in(__doc__)
KIND = "chestx-det"
FINDINGS = (
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Consolidation",
    "Diffuse Nodule",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Fracture",
    "Mass",
    "Nodule",
    "Pleural Thickening",
    "Pneumothorax",
)
SIDE_PX = 1024
MAPPING_FILE = "mapping.json"
PARTS: tuple[tuple[Split, str, str], ...] = (
    ("train", "ChestX_Det_train.json", "train_data"),
    ("test", "ChestX_Det_test.json", "test_data"),
)


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """The annotations of an image in the lists.

    Attributes:
        present: Findings that are present.
        boxes: One an instance.
        rings: Finding → polygons, one an instance.
        num_dropped: Polygons and boxes without an area.
    """

    present: frozenset[str]
    boxes: tuple[Box, ...]
    rings: Mapping[str, tuple[tuple[Point, ...], ...]]
    num_dropped: int


class ChestXDetSource:
    """Reads ChestX-Det."""

    info = SourceInfo(
        name=KIND,
        title="ChestX-Det",
        modality="chest X-ray",
        num_images=3_578,
        num_patients=None,
        tasks=("classification", "detection", "segmentation"),
        licence="Apache 2.0 for the lists; NIH's terms for the images",
        is_redistributable=False,
        citation="J. Lian et al., A Structure-Aware Relation Network for Thoracic Diseases Detection and Segmentation, "
        "IEEE Transactions on Medical Imaging 40(8), 2021",
        pages=("https://github.com/Deepwise-AILab/ChestX-Det-Dataset",),
        layout=_LAYOUT,
        shares_images_with=relatives(KIND),
    )

    def read(self, root: Path) -> Listing:
        """List all images of both lists that are there.

        Raises:
            SourceError: a list is missing or not what it should be; no image is there.
        """
        paths = list_files(root, self.info.num_images)
        lists = [(split, find_list(root, paths, name), folder) for split, name, folder in PARTS]
        parts = [part for part in lists if part[1].is_file()]
        records: list[Record] = []
        num_missing = num_unlisted = num_dropped = 0
        for split, path, folder in parts:
            annotations = read_annotations(path)
            found = index_files(root, paths, rf"{folder}/(?:.*/)?(?P<name>[^/]+\.png)")
            names = sorted(annotations.keys() & found.keys())
            records += [_record(name, found[name], annotations[name], split) for name in names]
            num_missing += len(annotations) - len(names)
            num_unlisted += len(found) - len(names)
            num_dropped += sum(annotations[name].num_dropped for name in names)
        if not records:
            raise wrong_layout(self.info, root, "no list with its images is there")
        if len({record.source_id for record in records}) != len(records):
            raise SourceError(f"{root}: the two lists name the same image; expected those of one release")
        pairs = find_list(root, paths, MAPPING_FILE)
        mapping = read_mapping(pairs) if pairs.is_file() else None
        counts = {
            "images of the lists are not there": num_missing,
            "images in no list were left out": num_unlisted,
            "polygons or boxes without an area were dropped": num_dropped,
        }
        warnings = (*count_warnings(self.info, tuple(records)), *number_warnings(self.info, counts))
        return list_nih_images(self.info, root, paths, tuple(records), mapping, warnings)


def read_annotations(path: Path) -> dict[str, Annotation]:
    """Read the annotations of a list, by file name.

    Raises:
        SourceError: it is no such list, a finding is none of the 13, or an image is listed twice.
    """
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
        annotations = {item["file_name"]: _parse(item, f"{path}: {item['file_name']}") for item in items}
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        raise SourceError(
            f"{path}: expected a list of objects with file_name, syms, boxes [[x1, y1, x2, y2]] and polygons "
            "[[[x, y]]], the last three of one length"
        ) from None
    if len(annotations) != len(items):
        raise SourceError(f"{path}: an image is listed twice; expected each once")
    return annotations


def _parse(item: Mapping[str, Any], where: str) -> Annotation:
    check_inside(item["file_name"], where)
    instances = list(zip(item["syms"], item["boxes"], item["polygons"], strict=True))
    unknown = {name for name, _, _ in instances} - set(FINDINGS)
    if unknown:
        raise SourceError(f"{where}: {sorted(unknown)[0]!r} is none of ChestX-Det's findings: {', '.join(FINDINGS)}")
    boxes = [_box(name, corners) for name, corners, _ in instances]
    kept = [box for box in boxes if 0 <= box.row0 < box.row1 and 0 <= box.col0 < box.col1]
    rings: dict[str, list[tuple[Point, ...]]] = {}
    num_rings = 0
    for name, _, polygon in instances:
        ring = _ring(polygon)
        if has_area(ring):
            rings.setdefault(name, []).append(ring)
            num_rings += 1
    return Annotation(
        present=frozenset(name for name, _, _ in instances),
        boxes=tuple(kept),
        rings={name: tuple(found) for name, found in rings.items()},
        num_dropped=2 * len(instances) - len(kept) - num_rings,
    )


def _box(label: str, corners: Iterable[Any]) -> Box:
    col0, row0, col1, row1 = map(_finite, corners)
    return Box(label=label, row0=row0, col0=col0, row1=row1, col1=col1)


def _ring(points: Iterable[Iterable[Any]]) -> tuple[Point, ...]:
    """Convert the list's (x, y) to (row, col); a point that repeats the one before is left out."""
    ring: list[Point] = []
    for x, y in points:
        point = _finite(y), _finite(x)
        if not ring or point != ring[-1]:
            ring.append(point)
    return tuple(ring)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def has_area(ring: tuple[Point, ...]) -> bool:
    """Tell whether three points of a ring are not on one line.

    The area does not tell it: a ring that crosses itself may enclose as much left as right.
    """
    if len(set(ring)) < 3:
        return False
    (row0, col0), (row1, col1) = ring[0], next(point for point in ring if point != ring[0])
    return any((row1 - row0) * (col - col0) != (col1 - col0) * (row - row0) for row, col in ring)


def read_mapping(path: Path) -> dict[str, str]:
    """Read the mapping from a number (a file name without .png) to NIH's file name.

    The file is an object or a list of pairs, in either direction: the side with NIH's names is told by their form.

    Raises:
        SourceError: it is no such mapping, or an image has two NIH images.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sides = [(str(a), str(b)) for a, b in (content.items() if isinstance(content, dict) else content)]
    except (ValueError, TypeError):
        sides = []
    pairs = [pair if is_nih_image(pair[1]) else pair[::-1] for pair in sides]
    if not pairs or not all(is_nih_image(image) for _, image in pairs):
        raise SourceError(
            f"{path}: expected the authors' mapping of ChestX-Det's file names to NIH ChestX-ray14's, as "
            "00000001_000.png"
        )
    return parse_mapping(((PurePosixPath(name).name.removesuffix(".png"), image) for name, image in pairs), str(path))


def _record(name: str, path: str, annotation: Annotation, split: Split) -> Record:
    number = name.removesuffix(".png")
    return Record(
        source_id=number,
        image=File(path),
        patient=f"{KIND}/{number}",
        labels={finding: int(finding in annotation.present) for finding in FINDINGS},
        masks=_masks(annotation),
        boxes=annotation.boxes,
        split=split,
        size=(SIDE_PX, SIDE_PX),
    )


def _masks(annotation: Annotation) -> dict[str, Mask]:
    """Make a mask for every finding but those that are present without a polygon that has an area."""
    return {
        structure_of(finding): MaskPolygons(annotation.rings.get(finding, ()))
        for finding in FINDINGS
        if finding in annotation.rings or finding not in annotation.present
    }


SOURCE = ChestXDetSource()
