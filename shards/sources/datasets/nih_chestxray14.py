"""NIH ChestX-ray14.

Wang et al., "ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks", CVPR 2017. Use is unrestricted; cite the
paper, name the NIH Clinical Center and link to its download page. Original: https://nihcc.app.box.com/v/ChestXray-NIHCC;
mirror: https://www.kaggle.com/datasets/nih-chest-xrays/data.

Layout:
    Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv, with the older labels)
    train_val_list.txt, test_list.txt (both or none)
    BBox_List_2017.csv (optional)
    images/*.png, or images_001/images/*.png to images_012/images/*.png: 1024 x 1024, no resized copy

What is easily got wrong:
- `Follow-up #` is not the number in the file name (24,106 rows differ); images are joined by `Image Index` alone.
- The header splits `OriginalImage[Width,Height]` at its comma. The Kaggle mirror ends its header with a comma and has
  the labels of 2017 (v1), which differ from those of 2020, and ages up to 411.
- The boxes say `Infiltrate` where the labels say `Infiltration`; here both are `Infiltration`. The header of their
  table has three columns more than its rows.
- All images are resized to 1024 x 1024, whatever the aspect of the original: a pixel is not square. Spacing and boxes
  hold for that size only.
- RSNA, SIIM-ACR and ChestX-Det are made of these images, COVID-QU-Ex of some of them.

The official lists have no validation part: `train_val_list.txt` is `train` here.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from shards.core.errors import SourceError
from shards.core.records import Box, File, Label, Record, Sex, Split
from shards.sources.base import Listing, SourceInfo, layout_in
from shards.sources.csv_tables import read_columns, with_lines
from shards.sources.datasets.nih_identity import NIH, SPLIT_FILES, find_nih_splits, is_nih_image, nih_patient, relatives
from shards.sources.files import find_file, index_files, list_files
from shards.sources.listing import build_listing, number_warnings, wrong_layout

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
LABELS = ("No Finding", *FINDINGS)
SIDE_PX = 1024
"""Height and width of every published image."""

_NUM_IMAGES = 112_120
_INFO = SourceInfo(
    name=NIH,
    title="NIH ChestX-ray14",
    modality="chest X-ray",
    num_images=_NUM_IMAGES,
    num_patients=30_805,
    tasks=("classification", "localisation"),
    licence="unrestricted use; cite, name the NIH Clinical Center, link to its page",
    is_redistributable=True,
    citation="Wang et al., ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks, CVPR 2017",
    pages=("https://nihcc.app.box.com/v/ChestXray-NIHCC", "https://www.kaggle.com/datasets/nih-chest-xrays/data"),
    layout=layout_in(__doc__),
    shares_images_with=relatives(NIH),
)
_IMAGE = r"(?P<name>\d{8}_\d{3}\.png)"
_NEW_TABLE = r"Data_Entry_2017_v2020\.csv(\.gz)?"
_OLD_TABLE = r"Data_Entry_2017\.csv(\.gz)?"
_BOXES = r"BBox_List_2017\.csv(\.gz)?"
_COLUMNS = (
    "Image Index",
    "Finding Labels",
    "Patient ID",
    "Patient Age",
    "View Position",
    "OriginalImage[Width",
    "Height]",
    "OriginalImagePixelSpacing[x",
    "y]",
)
_SEX_COLUMNS = ("Patient Gender", "Patient Sex")
_BOX_COLUMNS = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
_BOX_LABELS = {**{name: name for name in FINDINGS}, "Infiltrate": "Infiltration"}
_AGE = re.compile(r"0*(\d{1,3})Y?")
_MAX_AGE_YEARS = 120
_PNG_START = re.compile(rb"\x89PNG\r\n\x1a\n....IHDR(....)(....)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class NihRow:
    """A row of the table of labels; the fields are those of a record."""

    patient: str
    labels: dict[str, Label]
    view: str
    sex: Sex | None
    age_years: float | None
    spacing_mm: tuple[float, float] | None


class NihSource:
    """112,120 frontal radiographs with labels mined from reports, boxes for 880 of them."""

    info = _INFO

    def read(self, root: Path) -> Listing:
        """List all images that the table names and the folder has.

        Raises:
            SourceError: no image or table, a name that is there twice, lists that contradict the table or each other,
                images of another size.
        """
        paths = list_files(root, _NUM_IMAGES)
        images = index_files(root, paths, _IMAGE)
        table, table_warnings = _find_entries(root, paths)
        entries = read_entries(table)
        splits, split_warnings = _find_splits(root, paths, entries)
        boxes_table = find_file(root, paths, _BOXES)
        boxes = read_boxes(boxes_table) if boxes_table else {}
        no_boxes = () if boxes_table else (f"{_INFO.name}: no BBox_List_2017.csv; no boxes",)
        stray = {"images with boxes are not in the table; left out": len(boxes.keys() - entries.keys())}
        if images:
            _check_size(root / min(images.values()))
        records = (
            Record(
                source_id=name,
                image=File(images[name]),
                patient=entry.patient,
                view=entry.view,
                labels=entry.labels,
                boxes=boxes.get(name, ()),
                split=splits.get(name),
                sex=entry.sex,
                age_years=entry.age_years,
                size=(SIDE_PX, SIDE_PX),
                spacing_mm=entry.spacing_mm,
            )
            for name, entry in entries.items()
            if name in images
        )
        return build_listing(
            _INFO,
            root,
            records,
            num_rows=len(entries),
            num_files=len(images),
            warnings=(*table_warnings, *split_warnings, *no_boxes, *number_warnings(_INFO, stray)),
        )


def read_entries(table: Path) -> dict[str, NihRow]:
    """Read the table of labels, whichever version it is: image name → its row.

    Raises:
        SourceError: a column is missing, an image repeats, its name and `Patient ID` differ, a value is none that its
            column may have.
    """
    entries: dict[str, NihRow] = {}
    labels: dict[str, dict[str, Label]] = {}
    rows = read_columns(table, _COLUMNS, "the labels of NIH ChestX-ray14", _SEX_COLUMNS)
    for number, (name, findings, patient, age, view, *size, gender, sex) in with_lines(rows):
        where = f"{table} line {number}"
        if name in entries:
            raise SourceError(f"{where}: {name} is there twice")
        if not is_nih_image(name) or name[:8] != patient.zfill(8):
            raise SourceError(f"{where}: image '{name}' of patient '{patient}'; expected 00000001_000.png of patient 1")
        if findings not in labels:
            labels[findings] = _parse_findings(findings, where)
        if view not in ("PA", "AP"):
            raise SourceError(f"{where}: view '{view}'; expected PA or AP")
        entries[name] = NihRow(
            patient=nih_patient(name, where),
            labels=labels[findings],
            view=view,
            sex=_parse_sex(gender or sex, where),
            age_years=_parse_age(age),
            spacing_mm=_spacing(*size),
        )
    return entries


def read_boxes(table: Path) -> dict[str, tuple[Box, ...]]:
    """Read the boxes of each image, by its name, in pixels of the published 1024 x 1024 image.

    Raises:
        SourceError: a column is missing, a finding is unknown, a coordinate is no number.
    """
    boxes: dict[str, tuple[Box, ...]] = {}
    rows = read_columns(table, _BOX_COLUMNS, "the boxes of NIH ChestX-ray14")
    for number, (name, finding, *corner_and_size) in with_lines(rows):
        where = f"{table} line {number}"
        if finding not in _BOX_LABELS:
            raise SourceError(f"{where}: no finding '{finding}'; expected one of {', '.join(_BOX_LABELS)}")
        try:
            col, row, width, height = map(float, corner_and_size)
        except ValueError:
            raise SourceError(f"{where}: expected numbers for x, y, w and h") from None
        box = Box(label=_BOX_LABELS[finding], row0=row, col0=col, row1=row + height, col1=col + width)
        boxes[name] = (*boxes.get(name, ()), box)
    return boxes


def _find_entries(root: Path, paths: list[str]) -> tuple[Path, tuple[str, ...]]:
    new, old = find_file(root, paths, _NEW_TABLE), find_file(root, paths, _OLD_TABLE)
    if new:
        return new, ()
    if old:
        return old, (f"{_INFO.name}: {old.name} has the labels of 2017, which differ from those of 2020",)
    raise wrong_layout(_INFO, root, "Data_Entry_2017_v2020.csv not found at any depth")


def _find_splits(root: Path, paths: list[str], entries: dict[str, NihRow]) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Find the split of each image, by its name, and what is worth a word."""
    splits = find_nih_splits(root, paths)
    if not splits:
        return {}, (f"{_INFO.name}: no {' and '.join(SPLIT_FILES)}; no official split",)
    unlisted = [name for name in entries if name not in splits]
    if unlisted:
        raise SourceError(
            f"{root}: {len(unlisted):,} images of the table, as {unlisted[0]}, are in neither "
            f"{' nor '.join(SPLIT_FILES)}; restore the published lists, or remove both for no official split"
        )
    unknown = len(splits.keys() - entries.keys())
    return splits, (f"{_INFO.name}: {unknown:,} images of the lists are not in the table",) if unknown else ()


def _parse_findings(text: str, where: str) -> dict[str, Label]:
    found = {name.strip() for name in text.split("|")}
    if not found <= set(LABELS):
        raise SourceError(f"{where}: findings '{text}'; expected names among {', '.join(LABELS)}, with '|' between")
    return {name: int(name in found) for name in LABELS}


def _parse_sex(text: str, where: str) -> Sex | None:
    known: dict[str, Sex | None] = {"M": "M", "F": "F", "": None}
    if text not in known:
        raise SourceError(f"{where}: sex '{text}'; expected M or F")
    return known[text]


def _parse_age(text: str) -> float | None:
    """Parse an age to years; one that nobody has, as the 411 of the older table, or in other units is unknown."""
    found = _AGE.fullmatch(text)
    return float(found[1]) if found and int(found[1]) <= _MAX_AGE_YEARS else None


def _spacing(width: str, height: str, spacing_col: str, spacing_row: str) -> tuple[float, float] | None:
    """Return the spacing of the published image: the original's, stretched as the image was to 1024 x 1024."""
    try:
        sides_mm = float(height) * float(spacing_row), float(width) * float(spacing_col)
    except ValueError:
        return None
    return (sides_mm[0] / SIDE_PX, sides_mm[1] / SIDE_PX) if min(sides_mm) > 0 else None


def _check_size(image: Path) -> None:
    """Check the size of one image, since in a resized copy every box would be elsewhere.

    A file that is no PNG is found later.
    """
    with image.open("rb") as file:
        start = _PNG_START.match(file.read(24))
    if not start:
        return
    width, height = (int.from_bytes(side, "big") for side in start.groups())
    if (height, width) != (SIDE_PX, SIDE_PX):
        raise SourceError(
            f"{image}: {height} x {width} pixels; expected the published {SIDE_PX} x {SIDE_PX}: boxes and spacing do "
            "not hold for a resized copy"
        )


SOURCE = NihSource()
