"""VinDr-CXR: DICOM radiographs read by three radiologists each, from PhysioNet or from Kaggle's VinBigData challenge.

Citation: H. Q. Nguyen et al., "VinDr-CXR: An open dataset of chest X-rays with radiologist's annotations", Scientific
Data 9, 2022, 429.
Licence: PhysioNet Credentialed Health Data License; Kaggle's competition rules.
Pages: https://physionet.org/content/vindr-cxr/1.0.0/ and
https://www.kaggle.com/c/vinbigdata-chest-xray-abnormalities-detection

Both are one dataset: Kaggle's 15,000 training images are PhysioNet's under the same names. An image has the same
source_id, patient and split from either, so that its pseudonyms agree; PhysioNet's lists are read where both are there.

One label a finding out of three readers, who often disagree: 1 where more than half of an image's readers marked it, 0
where none did, -1 (uncertain) where some did, but no more than half. PhysioNet's test labels are the consensus of
five readers in one row: 1 or 0. Boxes are those of every reader.

Layout:
    train/<image>.dicom
    test/<image>.dicom
    annotations/{image_labels,annotations}_{train,test}.csv (PhysioNet), or train.csv (Kaggle)

What is easily got wrong:
- `Other diseases` in the training labels is `Other disease` in the test labels: one name here, the first.
- The two do not count alike: Aortic enlargement has 3,067 images by any reader at Kaggle, 3,098 at PhysioNet.
- Kaggle's test images have no labels; they are kept with unknown ones.
- Patients are unknown: every image counts as one.
- Files end in .dicom; converted copies (.png, .jpg) are read as well. Boxes are in pixels of the DICOM files, and no
  list says how many these have: they hold for copies of full size only. Of 4,394 images with boxes none has all of them
  inside a copy of 512 x 512 pixels, and 29 inside one of 1024 x 1024.
- All radiographs are postero-anterior by the authors' selection.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.core.errors import SourceError
from shards.core.records import Box, File, Label, Record, Split
from shards.sources.base import Listing, SourceInfo, layout_in
from shards.sources.csv_tables import NamedRow, read_rows, with_lines
from shards.sources.dicom_facts import DicomFacts, read_all_facts
from shards.sources.files import find_list, folders_of, index_files, list_files
from shards.sources.listing import count_warnings, number_warnings, wrong_layout

_LAYOUT = layout_in(__doc__)
KIND = "vindr-cxr"
NO_FINDING = "No finding"
OTHER_DISEASES = "Other diseases"
LOCAL_FINDINGS = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Clavicle fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged PA",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Lung cavity",
    "Lung cyst",
    "Mediastinal shift",
    "Nodule/Mass",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    "Rib fracture",
    "Other lesion",
)
GLOBAL_FINDINGS = ("COPD", "Lung tumor", "Pneumonia", "Tuberculosis", OTHER_DISEASES, NO_FINDING)
KAGGLE_FINDINGS = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Consolidation",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Nodule/Mass",
    "Other lesion",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    NO_FINDING,
)
"""Findings in the order of Kaggle's class_id."""
KAGGLE_FILE = "train.csv"
SPLITS: tuple[Split, ...] = ("train", "test")

_VARIANTS = {"Other disease": OTHER_DISEASES}
_CORNERS = ("x_min", "y_min", "x_max", "y_max")
_CONSENSUS = "consensus"
_IMAGE = r"(?P<name>[^/]+)\.(?:dicom|dcm|png|jpe?g)"


@dataclass(frozen=True)
class Readings:
    """The findings that an image's readers marked.

    Attributes:
        labels: Finding → label.
        boxes: Boxes of every reader.
        split: The official one.
    """

    labels: Mapping[str, Label]
    boxes: tuple[Box, ...]
    split: Split


class VindrCxrSource:
    """Reads VinDr-CXR."""

    info = SourceInfo(
        name=KIND,
        title="VinDr-CXR (PhysioNet, or Kaggle's VinBigData challenge)",
        modality="chest X-ray",
        num_images=18_000,
        num_patients=None,
        tasks=("classification", "detection"),
        licence="PhysioNet credentialed, or Kaggle competition rules",
        is_redistributable=False,
        citation="H. Q. Nguyen et al., VinDr-CXR: An open dataset of chest X-rays with radiologist's annotations, "
        "Scientific Data 9, 2022",
        pages=(
            "https://physionet.org/content/vindr-cxr/1.0.0/",
            "https://www.kaggle.com/c/vinbigdata-chest-xray-abnormalities-detection",
        ),
        layout=_LAYOUT,
    )

    def read(self, root: Path) -> Listing:
        """List all images with labels, and Kaggle's unlabelled test images.

        Raises:
            SourceError: a list is missing or not what it should be; no image is there.
        """
        paths = list_files(root, self.info.num_images)
        lists = {split: find_list(root, paths, f"image_labels_{split}.csv") for split in SPLITS}
        is_physionet = any(path.is_file() for path in lists.values())
        findings = (*LOCAL_FINDINGS, *GLOBAL_FINDINGS) if is_physionet else KAGGLE_FINDINGS
        readings, num_skipped = (
            read_physionet(lists) if is_physionet else read_kaggle(find_list(root, paths, KAGGLE_FILE))
        )
        index = index_files(root, paths, _IMAGE)
        labelled = sorted(index.keys() & readings.keys())
        others = sorted(index.keys() - readings.keys())
        unlabelled = [] if is_physionet else [name for name in others if "test" in folders_of(index[name])]
        if not labelled and not unlabelled:
            raise wrong_layout(self.info, root, "no image of the lists is there")
        unknown = Readings(dict.fromkeys(findings), (), "test")
        facts = read_all_facts(root, {name: index[name] for name in (*labelled, *unlabelled)})
        records = tuple(_record(name, index[name], found, readings.get(name, unknown)) for name, found in facts.items())
        counts = {
            "images of the lists are not there": len(readings) - len(labelled),
            "images without labels were left out": len(others) - len(unlabelled),
            "boxes without an area, or of a finding or image that the labels lack, were left out": num_skipped,
        }
        return Listing(
            records=records,
            patient_grouping="image",
            warnings=(*count_warnings(self.info, records), *number_warnings(self.info, counts)),
        )


def vote(num_positive: int, num_readers: int) -> Label:
    """Return 1 where more than half of the readers agree on a finding, 0 where none has it, else -1."""
    if num_positive == 0:
        return 0
    return 1 if 2 * num_positive > num_readers else -1


def read_kaggle(path: Path) -> tuple[dict[str, Readings], int]:
    """Read Kaggle's list: one row a box or a reader without findings; and how many boxes were left out.

    Raises:
        SourceError: it is no such list.
    """
    rows = read_rows(path, ("image_id", "class_name", "rad_id", *_CORNERS), "VinDr-CXR's boxes of Kaggle")
    readers: dict[str, set[str]] = {}
    positive: dict[tuple[str, str], set[str]] = {}
    for number, row in with_lines(rows):
        if row["class_name"] not in KAGGLE_FINDINGS:
            raise SourceError(f"{path} line {number}: class_name is none of {', '.join(KAGGLE_FINDINGS)}")
        readers.setdefault(row["image_id"], set()).add(row["rad_id"])
        positive.setdefault((row["image_id"], row["class_name"]), set()).add(row["rad_id"])
    boxes, num_skipped = parse_boxes(rows, KAGGLE_FINDINGS, str(path))
    readings = {
        name: Readings(
            {finding: vote(len(positive.get((name, finding), ())), len(found)) for finding in KAGGLE_FINDINGS},
            boxes.get(name, ()),
            "train",
        )
        for name, found in readers.items()
    }
    return readings, num_skipped


def read_physionet(lists: Mapping[Split, Path]) -> tuple[dict[str, Readings], int]:
    """Read PhysioNet's lists of the splits that are there, and how many boxes were left out.

    Args:
        lists: Split → its labels, which may be missing; its boxes lie beside them.

    Raises:
        SourceError: a list is not what it should be, or an image is in both splits.
    """
    readings: dict[str, Readings] = {}
    num_skipped = 0
    findings = (*LOCAL_FINDINGS, *GLOBAL_FINDINGS)
    for split, path in lists.items():
        if not path.is_file():
            continue
        labels = parse_image_labels(_one_name(read_rows(path, ("image_id",), "VinDr-CXR's labels")), str(path))
        boxes_path = path.with_name(f"annotations_{split}.csv")
        rows = read_rows(boxes_path, ("image_id", "class_name", *_CORNERS), "VinDr-CXR's boxes")
        boxes, skipped = parse_boxes(rows, findings, str(boxes_path))
        num_skipped += skipped + sum(len(found) for name, found in boxes.items() if name not in labels)
        both = labels.keys() & readings.keys()
        if both:
            raise SourceError(f"{path}: {min(both)} is in the labels of train as well")
        readings |= {name: Readings(found, boxes.get(name, ()), split) for name, found in labels.items()}
    return readings, num_skipped


def parse_image_labels(rows: Sequence[Mapping[str, str]], where: str) -> dict[str, dict[str, Label]]:
    """Parse labels by image from PhysioNet's rows, one a reader of an image; without rad_id the one row is a consensus.

    Raises:
        SourceError: a finding has no column, a value is not 1 or 0, or a reader has two rows of an image.
    """
    findings = (*LOCAL_FINDINGS, *GLOBAL_FINDINGS)
    missing = [name for name in findings if rows and name not in rows[0]]
    if missing:
        raise SourceError(f"{where}: no column {missing[0]}; expected one for each of {', '.join(findings)}")
    readers: dict[str, set[str]] = {}
    positive: dict[str, dict[str, int]] = {}
    for number, row in with_lines(rows):
        name, reader = row["image_id"], row.get("rad_id", _CONSENSUS)
        if reader in readers.setdefault(name, set()):
            raise SourceError(f"{where} line {number}: an earlier row has the same image and reader")
        readers[name].add(reader)
        counts = positive.setdefault(name, dict.fromkeys(findings, 0))
        for finding in findings:
            if row[finding] not in ("0", "1", "0.0", "1.0"):
                raise SourceError(f"{where} line {number}: column {finding}: expected 1 or 0")
            counts[finding] += row[finding].startswith("1")
    return {
        name: {finding: vote(number, len(readers[name])) for finding, number in counts.items()}
        for name, counts in positive.items()
    }


def parse_boxes(
    rows: Sequence[Mapping[str, str]], findings: Iterable[str], where: str
) -> tuple[dict[str, tuple[Box, ...]], int]:
    """Parse boxes by image in the order of the rows, and how many were left out; rows without corners are no boxes.

    Raises:
        SourceError: a corner is no number, or only some corners are there.
    """
    names = {name.casefold(): name for name in findings} | {
        variant.casefold(): name for variant, name in _VARIANTS.items()
    }
    boxes: dict[str, list[Box]] = {}
    num_skipped = 0
    for number, row in with_lines(rows):
        corners = [row[name] for name in _CORNERS]
        if not any(corners):
            continue
        try:
            col0, row0, col1, row1 = map(float, corners)
        except ValueError:
            raise SourceError(f"{where} line {number}: {', '.join(_CORNERS)} must be numbers, or all empty") from None
        name = names.get(row["class_name"].casefold())
        is_finite = all(map(math.isfinite, (row0, col0, row1, col1)))
        if name is None or not is_finite or not (max(row0, 0) < row1 and max(col0, 0) < col1):
            num_skipped += 1
            continue
        boxes.setdefault(row["image_id"], []).append(
            Box(label=name, row0=max(row0, 0.0), col0=max(col0, 0.0), row1=row1, col1=col1)
        )
    return {name: tuple(found) for name, found in boxes.items()}, num_skipped


def _one_name(rows: Iterable[NamedRow]) -> list[NamedRow]:
    return [NamedRow.of(((_VARIANTS.get(name, name), value) for name, value in row.items()), row.line) for row in rows]


def _record(name: str, path: str, facts: DicomFacts, readings: Readings) -> Record:
    return Record(
        source_id=name,
        image=File(path),
        patient=f"{KIND}/{name}",
        view="PA",
        labels=readings.labels,
        boxes=readings.boxes,
        split=readings.split,
        sex=facts.sex,
        age_years=facts.age_years,
        spacing_mm=facts.spacing_mm,
    )


SOURCE = VindrCxrSource()
