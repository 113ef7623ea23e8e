"""IDRiD: lesions, optic disc, fovea, and grades of diabetic retinopathy in fundus photographs.

Porwal P. et al., "Indian Diabetic Retinopathy Image Dataset (IDRiD): a database for diabetic retinopathy screening
research", Data 3(3), 25, 2018: https://ieee-dataport.org/open-access/indian-diabetic-retinopathy-image-dataset-idrid
(CC BY 4.0).

Layout:
    A. Segmentation/
      1. Original Images/a. Training Set/IDRiD_01.jpg
      2. All Segmentation Groundtruths/a. Training Set/1. Microaneurysms/IDRiD_01_MA.tif
    B. Disease Grading/
      1. Original Images/a. Training Set/IDRiD_001.jpg
      2. Groundtruths/a. IDRiD_Disease Grading_Training Labels.csv
    C. Localization/
      1. Original Images/a. Training Set/IDRiD_001.jpg
      2. Groundtruths/1. Optic Disc Center Location/a. IDRiD_OD_Center_Training Set_Markups.csv
    (any of A, B and C; b. Testing Set likewise)

- Three archives: A. Segmentation (54 training, 27 test images), B. Disease Grading (413, 103), C. Localization (the
  images of B). Kaggle's copy wraps each in a folder of an encoded name (`A.%20Segmentation/A. Segmentation`).
- Names are no identities. Segmentation counts in two digits (IDRiD_01), the others in three (IDRiD_001), and these
  begin again at 001 in their test sets: `source_id` has the task and, for three digits, the part.
- The tasks share photographs under different names, and so do parts of one task. Files of equal bytes become one record
  with the annotations of all: of segmentation before grading before localization, and within a task of the test set.
  Such a photograph counts as test if any task tests on it. Copies of other bytes are left to the quality pass.
- In segmentation a lesion without a mask file is known to be absent, wherever its folder is there for that part. The
  optic disc is never absent: without a file it is unknown.
- Lists have empty columns and rows at their ends, and column names with stray spaces.
- Places are in pixels of the published 4288 x 2848: a resized copy loses them.
- Grades become one label each (`DR grade 0` to `DR grade 4`, `DME risk 0` to `DME risk 2`), of which one is 1.
- Patients are unknown: patients are images.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from shards.core.errors import SourceError
from shards.core.records import File, Label, Mask, MaskFiles, Point, Record, Split
from shards.runtime.progress import progress
from shards.sources.base import Listing, SourceInfo, layout_in
from shards.sources.csv_tables import Row, read_columns, with_lines
from shards.sources.files import find_files, index_files, list_files
from shards.sources.listing import no_images, number_warnings, read_or_warn

_LAYOUT = layout_in(__doc__)
PARTS: dict[str, Split] = {"a. Training Set": "train", "b. Testing Set": "test"}
LESIONS = {
    "microaneurysms": ("1. Microaneurysms", "MA"),
    "haemorrhages": ("2. Haemorrhages", "HE"),
    "hard_exudates": ("3. Hard Exudates", "EX"),
    "soft_exudates": ("4. Soft Exudates", "SE"),
}
OPTIC_DISC = ("5. Optic Disc", "OD")
GRADES = {"DR grade": ("Retinopathy grade", 5), "DME risk": ("Risk of macular edema", 3)}
"""Label → column of the lists and number of grades, which count from 0."""
LANDMARKS = {"optic_disc_centre": "IDRiD_OD_Center", "fovea": "IDRiD_Fovea_Center"}

SIZE = (2848, 4288)
"""Height and width of every published image, in whose pixels the landmarks are."""

_TASKS = ("segmentation", "grading", "localization")
_TWO_DIGITS, _THREE_DIGITS = r"(?P<name>IDRiD_\d\d)", r"(?P<name>IDRiD_\d{3})"
_LOCALIZATION = r"C\.(?: |%20)Localization/(?:.*/)?"
# Compared one by one: how many photographs they are together depends on which of them the tasks share.
_PUBLISHED = {"segmentation": 81, "grading": 516, "localization": 516}

Value = TypeVar("Value")


class IdridSource:
    """Images by task, part and name."""

    info = SourceInfo(
        name="idrid",
        title="IDRiD, Indian Diabetic Retinopathy Image Dataset",
        modality="fundus photograph",
        num_images=516,
        num_patients=None,
        tasks=("segmentation", "classification", "landmarks"),
        licence="CC BY 4.0",
        is_redistributable=True,
        citation="Porwal et al., Indian Diabetic Retinopathy Image Dataset (IDRiD): a database for diabetic "
        "retinopathy screening research, Data 3(3), 25, 2018",
        pages=("https://ieee-dataport.org/open-access/indian-diabetic-retinopathy-image-dataset-idrid",),
        layout=_LAYOUT,
    )

    def read(self, root: Path) -> Listing:
        """List all images of the three tasks; reads the files of equal size to find those of equal bytes.

        Raises:
            SourceError: there are none, two of one name, or a list has values that it cannot have.
        """
        paths = list_files(root)
        counts: defaultdict[str, int] = defaultdict(int)
        warnings: list[str] = []
        found = [
            *_segmentation(root, paths, counts),
            *_grading(root, paths, counts, warnings),
            *_localization(root, paths, counts, warnings),
        ]
        if not found:
            raise no_images(self.info, root)
        for task, number in _PUBLISHED.items():
            num_found = sum(record.source_id.startswith(task) for record in found)
            if num_found != number:
                counts[f"images of {task} found, {number:,} published"] = num_found
        groups = _equal_files(root, found)
        counts["photographs that several names share: one record each"] = sum(len(group) > 1 for group in groups)
        counts["of them in training and in test: they count as test"] = sum(
            len({record.split for record in group}) > 1 for group in groups
        )
        records = tuple(_merge(group) for group in groups)
        return Listing(
            records=records, patient_grouping="image", warnings=(*warnings, *number_warnings(self.info, counts))
        )


def parse_grades(row: Mapping[str, str], where: str) -> dict[str, Label]:
    """Make one label a grade of a row of the lists; an empty cell is unknown.

    Raises:
        SourceError: a grade that there is not.
    """
    labels: dict[str, Label] = {}
    for label, (column, num_grades) in GRADES.items():
        levels = [str(level) for level in range(num_grades)]
        if row[column] not in (*levels, ""):
            raise SourceError(f"{where}: {column} is '{row[column]}'; expected one of {', '.join(levels)}")
        labels |= {f"{label} {level}": None if row[column] == "" else int(row[column] == level) for level in levels}
    return labels


def _images(root: Path, paths: Iterable[str], part: str, name: str) -> dict[str, str]:
    return index_files(root, paths, rf"1\. Original Images/{re.escape(part)}/{name}\.jpe?g")


def _record(
    task: str,
    name: str,
    path: str,
    split: Split,
    labels: Mapping[str, Label] | None = None,
    masks: Mapping[str, Mask] | None = None,
    landmarks: Mapping[str, Point] | None = None,
) -> Record:
    source_id = f"{task}/{name}" if task == "segmentation" else f"{task}/{split}/{name}"
    unknown = parse_grades({column: "" for column, _ in GRADES.values()}, source_id)
    return Record(
        source_id=source_id,
        image=File(path),
        patient=f"idrid/{source_id}",
        labels=labels or unknown,
        masks=masks or {},
        landmarks=landmarks or {},
        split=split,
        size=SIZE,
    )


def _segmentation(root: Path, paths: list[str], counts: defaultdict[str, int]) -> list[Record]:
    records = []
    for part, split in PARTS.items():
        images = _images(root, paths, part, _TWO_DIGITS)
        masks = {
            structure: index_files(root, paths, rf"{re.escape(part)}/{re.escape(folder)}/{_TWO_DIGITS}_{suffix}\.tiff?")
            for structure, (folder, suffix) in {**LESIONS, "optic_disc": OPTIC_DISC}.items()
        }
        for structure, found in masks.items():
            counts["masks without an image"] += len(found.keys() - images.keys())
            counts[f"images of {split} whose {structure.replace('_', ' ')} are unknown: no folder of masks"] += (
                len(images) if structure in LESIONS and not found else 0
            )
        counts["images of segmentation without an optic disc"] += len(images.keys() - masks["optic_disc"].keys())
        for name, path in images.items():
            drawn: dict[str, Mask] = {
                structure: MaskFiles(files=(File(found[name]),) if name in found else ())
                for structure, found in masks.items()
                if name in found or (found and structure in LESIONS)
            }
            records.append(_record("segmentation", name, path, split, masks=drawn))
    return records


def _grading(root: Path, paths: list[str], counts: defaultdict[str, int], warnings: list[str]) -> list[Record]:
    elsewhere = {path for _, path in find_files(paths, rf"{_LOCALIZATION}[^/]+")}
    columns = ("Image name", *(column for column, _ in GRADES.values()))
    records = []
    for part, split in PARTS.items():
        images = _images(root, [path for path in paths if path not in elsewhere], part, _THREE_DIGITS)
        word = part.split()[1]
        labels: dict[str, dict[str, Label]] = {}
        for _, path in find_files(paths, rf"(?:[ab]\. )?IDRiD_Disease Grading_{word} Labels\.csv"):
            for number, (name, *grades) in with_lines(_rows(root / path, columns, warnings)):
                where = f"{path} line {number}"
                if name in labels:
                    raise SourceError(f"{where}: {name} is listed twice; expected it once")
                labels[name] = parse_grades(dict(zip(columns[1:], grades, strict=True)), where)
        counts["rows of grades without an image"] += len(labels.keys() - images.keys())
        counts["images of grading without a row: their grades are unknown"] += len(images.keys() - labels.keys())
        records += [_record("grading", name, path, split, labels=labels.get(name)) for name, path in images.items()]
    return records


def _localization(root: Path, paths: list[str], counts: defaultdict[str, int], warnings: list[str]) -> list[Record]:
    records = []
    for part, split in PARTS.items():
        images = index_files(
            root, paths, rf"{_LOCALIZATION}1\. Original Images/{re.escape(part)}/{_THREE_DIGITS}\.jpe?g"
        )
        centers = _centers(root, paths, part.split()[1], warnings)
        counts["rows of places without an image"] += len(centers.keys() - images.keys())
        counts["images of localization without both places"] += sum(
            len(centers.get(name, {})) < len(LANDMARKS) for name in images
        )
        records += [
            _record("localization", name, path, split, landmarks=centers.get(name)) for name, path in images.items()
        ]
    return records


def _centers(root: Path, paths: list[str], word: str, warnings: list[str]) -> dict[str, dict[str, Point]]:
    """Name → landmark → place of one part; `word` is Training or Testing."""
    columns = ("Image No", "X- Coordinate", "Y - Coordinate")
    centers: dict[str, dict[str, Point]] = {}
    for landmark, stem in LANDMARKS.items():
        for _, path in find_files(paths, rf"(?:[ab]\. )?{stem}_{word}[ _]Set(?:_Markups)?\.csv"):
            for number, (name, x, y) in with_lines(_rows(root / path, columns, warnings)):
                where = f"{path} line {number}"
                if not all(re.fullmatch(r"\d+(?:\.\d+)?", value) for value in (x, y)):
                    raise SourceError(f"{where}: expected a position in pixels; found '{x}', '{y}'")
                if landmark in centers.setdefault(name, {}):
                    raise SourceError(f"{where}: {name} is listed twice; expected it once")
                centers[name][landmark] = (float(y), float(x))
    return centers


def _rows(path: Path, columns: tuple[str, ...], warnings: list[str]) -> list[Row]:
    return read_or_warn(lambda: read_columns(path, columns, "IDRiD's list", is_ragged=True), warnings)


def _equal_files(root: Path, records: list[Record]) -> list[list[Record]]:
    """Group the records of files with equal bytes; groups and what is in them in the order of `records`."""
    sizes: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        sizes[(root / record.image.path).stat().st_size].append(record)
    same_size = {record.source_id for group in sizes.values() if len(group) > 1 for record in group}
    hashes = {
        record.source_id: _sha256(root / record.image.path)
        for record in progress(
            [record for record in records if record.source_id in same_size],
            total=len(same_size),
            description="comparing photographs",
            unit="file",
        )
    }
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[hashes.get(record.source_id, record.source_id)].append(record)
    return list(groups.values())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _merge(group: list[Record]) -> Record:
    """Merge the records of a photograph, with what each of its names adds."""
    ordered = sorted(group, key=_rank)
    graded = next((record for record in ordered if any(v is not None for v in record.labels.values())), ordered[0])
    return replace(
        ordered[0],
        labels=graded.labels,
        masks=_first_wins(record.masks for record in ordered),
        landmarks=_first_wins(record.landmarks for record in ordered),
        split="test" if any(record.split == "test" for record in group) else "train",
    )


def _rank(record: Record) -> tuple[int, bool, str]:
    return _TASKS.index(record.source_id.partition("/")[0]), record.split != "test", record.source_id


def _first_wins(parts: Iterable[Mapping[str, Value]]) -> dict[str, Value]:
    """Merge entries; of those with one name, the first counts."""
    merged: dict[str, Value] = {}
    for part in parts:
        merged = {**part, **merged}
    return merged


SOURCE = IdridSource()
