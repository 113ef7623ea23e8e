"""RSNA Pneumonia Detection Challenge, Kaggle's stage 2: DICOM radiographs, three classes, boxes of opacities.

Citation: G. Shih et al., "Augmenting the National Institutes of Health Chest Radiograph Dataset with Expert Annotations
of Possible Pneumonia", Radiology: Artificial Intelligence 1(1), 2019, e180041.
Licence: the competition's rules; the images are NIH ChestX-ray14's.
Pages: https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data and
https://www.rsna.org/rsnai/ai-image-challenge/rsna-pneumonia-detection-challenge-2018 (the mapping to NIH).

Layout:
    stage_2_train_images/<patientId>.dcm
    stage_2_test_images/<patientId>.dcm (optional: unlabelled)
    stage_2_train_labels.csv
    stage_2_detailed_class_info.csv (optional: tells Normal from Not Normal)
    pneumonia-challenge-dataset-mappings_2018.json (optional: patients, from the RSNA's page)
    train_val_list.txt, test_list.txt of NIH ChestX-ray14 (optional, with the mapping: its official split)

What is easily got wrong:
- `patientId` names an image, not a patient: NIH has up to 184 images of one patient. Only the mapping file tells them.
- An image has one row a box in stage_2_train_labels.csv, and as many equal rows in stage_2_detailed_class_info.csv,
  copies of which circulate without their header.
- Target 1 is the class `Lung Opacity`, and exactly that; one label a class is given, and no further one for Target.
- The pixel spacing in the headers is that of NIH's originals, before they were resized to 1024 x 1024: it is not used.
- Boxes hold for 1024 x 1024 pixels: a resized copy loses them.
- The 3,000 images of Kaggle's test set have no labels; they are kept with unknown ones. They are no official split in
  the sense of this package, for they share patients with the others.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shards.core.errors import SourceError
from shards.core.records import Box, File, Label, Record
from shards.sources.base import Listing, SourceInfo, layout_in
from shards.sources.csv_tables import read_columns, read_lines, with_lines
from shards.sources.datasets.nih_identity import list_nih_images, parse_mapping, relatives
from shards.sources.dicom_facts import DicomFacts, read_all_facts
from shards.sources.files import find_list, folders_of, index_files, list_files
from shards.sources.listing import count_warnings, number_warnings, wrong_layout

_LAYOUT = layout_in(__doc__)
KIND = "rsna-pneumonia"
OPACITY = "Lung Opacity"
CLASSES = ("Normal", "No Lung Opacity / Not Normal", OPACITY)
LABELS_FILE = "stage_2_train_labels.csv"
CLASSES_FILE = "stage_2_detailed_class_info.csv"
MAPPING_FILE = "pneumonia-challenge-dataset-mappings_2018.json"
TEST_FOLDER = "stage_2_test_images"

COLUMNS = ("patientId", "x", "y", "width", "height", "Target")
SIDE_PX = 1024
_IMAGE = r"(?P<name>[^/]+)\.(?:dcm|png)"
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Opacities:
    """The rows of an image in stage_2_train_labels.csv: its Target, and a box for each opacity."""

    target: int
    boxes: tuple[Box, ...]


class RsnaPneumoniaSource:
    """Reads RSNA Pneumonia."""

    info = SourceInfo(
        name=KIND,
        title="RSNA Pneumonia Detection Challenge (stage 2)",
        modality="chest X-ray",
        num_images=26_684,
        num_patients=None,
        tasks=("classification", "detection"),
        licence="Kaggle competition rules; NIH's terms for the images",
        is_redistributable=False,
        citation="G. Shih et al., Augmenting the National Institutes of Health Chest Radiograph Dataset with Expert "
        "Annotations of Possible Pneumonia, Radiology: Artificial Intelligence 1(1), 2019",
        pages=(
            "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data",
            "https://www.rsna.org/rsnai/ai-image-challenge/rsna-pneumonia-detection-challenge-2018",
        ),
        layout=_LAYOUT,
        shares_images_with=relatives(KIND),
    )

    def read(self, root: Path) -> Listing:
        """List all images with a row, and the unlabelled ones of the test folder.

        Raises:
            SourceError: a file is missing or not what it should be; the labels and the classes contradict each other.
        """
        paths = list_files(root, self.info.num_images)
        boxes, groups, pairs = (find_list(root, paths, name) for name in (LABELS_FILE, CLASSES_FILE, MAPPING_FILE))
        opacities = parse_labels(read_columns(boxes, COLUMNS, "RSNA's boxes"), str(boxes))
        classes = read_classes(groups) if groups.is_file() else {}
        check_classes(opacities, classes, str(groups))
        index = index_files(root, paths, _IMAGE)
        labelled = sorted(index.keys() & opacities.keys())
        others = sorted(index.keys() - opacities.keys())
        unlabelled = [name for name in others if TEST_FOLDER in folders_of(index[name])]
        if not labelled and not unlabelled:
            raise wrong_layout(self.info, root, f"no image of {LABELS_FILE} is there")
        facts = read_all_facts(root, {name: index[name] for name in (*labelled, *unlabelled)})
        records = tuple(
            _record(name, index[name], found, opacities.get(name), classes.get(name)) for name, found in facts.items()
        )
        mapping = read_mapping(pairs) if pairs.is_file() else None
        counts = {
            f"images of {LABELS_FILE} are not there": len(opacities) - len(labelled),
            f"images without a row in {LABELS_FILE} were left out": len(others) - len(unlabelled),
            f"file is missing: {CLASSES_FILE}; Normal and Not Normal are unknown": 0 if classes else 1,
        }
        warnings = (
            *count_warnings(self.info, records[: len(labelled)]),
            *number_warnings(self.info, counts),
        )
        return list_nih_images(self.info, root, paths, records, mapping, warnings)


def parse_labels(rows: Iterable[tuple[str, ...]], where: str) -> dict[str, Opacities]:
    """Parse Target and boxes by image, from rows of the columns `COLUMNS`; boxes in the order of the rows.

    Raises:
        SourceError: an image has both targets, or a box is there without Target 1 or the other way round.
    """
    targets: dict[str, int] = {}
    boxes: dict[str, list[Box]] = {}
    for number, (name, *numbers, stated) in with_lines(rows):
        if stated not in ("0", "1") or (stated == "1") != all(numbers) or any(numbers) != all(numbers):
            raise SourceError(f"{where} line {number}: expected Target 1 with x, y, width, height, or Target 0 alone")
        target = int(stated)
        if targets.setdefault(name, target) != target:
            raise SourceError(f"{where} line {number}: an earlier row of the image has the other Target")
        if target:
            boxes.setdefault(name, []).append(_box(numbers, f"{where} line {number}"))
    return {name: Opacities(target, tuple(boxes.get(name, ()))) for name, target in targets.items()}


def _box(numbers: list[str], where: str) -> Box:
    try:
        col, row, width, height = map(float, numbers)
    except ValueError:
        raise SourceError(f"{where}: x, y, width, height must be numbers") from None
    if not (row >= 0 and col >= 0 and width > 0 and height > 0):
        raise SourceError(f"{where}: expected a box inside the image, with width and height above 0")
    return Box(label=OPACITY, row0=row, col0=col, row1=row + height, col1=col + width)


def read_classes(path: Path) -> dict[str, str]:
    """Read the class of each image; the header `patientId,class` may be missing.

    Raises:
        SourceError: a line is not an image and one of the three classes, or an image has two classes.
    """
    classes: dict[str, str] = {}
    for number, line in with_lines(read_lines(path, "RSNA's classes")):
        if number == 1 and line == ("patientId", "class"):
            continue
        if len(line) != 2 or not _UUID.fullmatch(line[0]) or line[1] not in CLASSES:
            raise SourceError(f"{path} line {number}: expected a patientId and one of {', '.join(CLASSES)}")
        if classes.setdefault(line[0], line[1]) != line[1]:
            raise SourceError(f"{path} line {number}: an earlier line gives the image another class")
    return classes


def check_classes(opacities: Mapping[str, Opacities], classes: Mapping[str, str], where: str) -> None:
    """Check that the class Lung Opacity is Target 1, and that every image has a class if any has.

    Raises:
        SourceError: they contradict each other; names the first image.
    """
    for name, found in opacities.items():
        if classes and name not in classes:
            raise SourceError(f"{where}: no class for {name}, which {LABELS_FILE} has; use files of one stage")
        if classes and (found.target == 1) != (classes[name] == OPACITY):
            raise SourceError(f"{where}: {name} contradicts its Target in {LABELS_FILE}; use files of one stage")


def read_mapping(path: Path) -> dict[str, str]:
    """Read the mapping from Kaggle's image to NIH's file name, from the RSNA's list of objects.

    Raises:
        SourceError: it is no such list, or an image has two NIH images.
    """
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
        pairs = [(str(item["subset_img_id"]), str(item["img_id"])) for item in items]
    except (ValueError, TypeError, KeyError):
        raise SourceError(f"{path}: expected the RSNA's list of objects with subset_img_id and img_id") from None
    return parse_mapping(((name, image) for name, image in pairs if name), str(path))


def _record(name: str, path: str, facts: DicomFacts, opacities: Opacities | None, group: str | None) -> Record:
    return Record(
        source_id=name,
        image=File(path),
        patient=f"{KIND}/{name}",
        view=facts.view,
        labels=_labels(None if opacities is None else opacities.target, group),
        boxes=() if opacities is None else opacities.boxes,
        sex=facts.sex,
        age_years=facts.age_years,
        size=(SIDE_PX, SIDE_PX),
        spacing_mm="unusable",
    )


def _labels(target: int | None, group: str | None) -> dict[str, Label]:
    """Make one label per class.

    If only the Target is known, an image with opacities is in neither of the other classes.
    """
    if target is None:
        return dict.fromkeys(CLASSES)
    if group is not None:
        return {name: int(name == group) for name in CLASSES}
    return {name: target if name == OPACITY else (0 if target else None) for name in CLASSES}


SOURCE = RsnaPneumoniaSource()
