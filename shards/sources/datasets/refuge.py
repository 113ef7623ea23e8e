"""REFUGE: glaucoma, optic disc and cup, and fovea in fundus photographs, MICCAI challenge of 2018.

Orlando J.I. et al., "REFUGE Challenge: a unified framework for evaluating automated methods for glaucoma assessment
from fundus photographs", Med. Image Anal. 59, 2020: https://refuge.grand-challenge.org (registration; research).

Layout:
    Training400/Glaucoma/g0001.jpg, Training400/Non-Glaucoma/n0001.jpg
    Annotation-Training400/Disc_Cup_Masks/Glaucoma/g0001.bmp, .../Fovea_location.xlsx
    REFUGE-Validation400/V0001.jpg
    REFUGE-Validation400-GT/Disc_Cup_Masks/V0001.bmp, .../Fovea_locations.xlsx
    Test400/T0001.jpg
    REFUGE-Test-GT/Disc_Cup_Masks/G/T0001.bmp, .../Glaucoma_label_and_Fovea_location.xlsx

- 400 images each for training (40 glaucoma, 360 not; Zeiss camera), validation and test (Canon): the camera changes
  with the split. Names begin with g, n, V and T.
- In a mask 0 is the cup, 128 the rim and 255 the background, the opposite of what one expects: the disc is 0 to 150,
  the cup 0 to 100.
- Training labels are the folders Glaucoma and Non-Glaucoma (an early release had a third, AMD: unknown here). Those of
  validation and test are in the workbooks beside the masks, whose column is called `Glaucoma Label` or
  `Label(Glaucoma=1)`; the masks of test lie in folders G and N as well. The workbooks give the fovea too, in pixels
  of the published sizes (2124 x 2056 for training, 1634 x 1634): a resized copy loses it.
- Archives unpacked by different programs have one folder more or less, and REFUGE2's archive has all three parts in
  `Train/REFUGE1-*`: parts are told by the innermost folder of the three.
- Patients are unknown: patients are images.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from shards.core.records import File, Label, MaskFiles, Point, Record, Split
from shards.sources.base import Listing, SourceInfo, layout_in
from shards.sources.files import find_files, index_files, list_files
from shards.sources.listing import count_warnings, no_images, number_warnings, read_or_warn
from shards.sources.workbook import read_workbook

_LAYOUT = layout_in(__doc__)
MAX_DISC_LEVEL = 150
MAX_CUP_LEVEL = 100
PARTS: dict[str, Split] = {"Training400": "train", "Validation400": "val", "Test400": "test"}
SIZES = {"Training400": (2056, 2124), "Validation400": (1634, 1634), "Test400": (1634, 1634)}
"""Height and width of the published images of each part, in whose pixels the foveae are."""
_FOLDER_LABELS: dict[str, Label] = {"glaucoma": 1, "g": 1, "non-glaucoma": 0, "n": 0}
_COLUMNS = ("ImgName", "Fovea_X", "Fovea_Y")
_LABEL_COLUMNS = ("Glaucoma Label", "Label(Glaucoma=1)")


@dataclass(frozen=True)
class RefugeRow:
    """The row of an image in a workbook.

    Attributes:
        label: Glaucoma.
        fovea: Position of the fovea, (row, col) in source pixels; None where it is unknown.
    """

    label: Label = None
    fovea: Point | None = None


class RefugeSource:
    """Images by name; labels from folders and workbooks."""

    info = SourceInfo(
        name="refuge",
        title="REFUGE, Retinal Fundus Glaucoma Challenge 2018",
        modality="fundus photograph",
        num_images=1_200,
        num_patients=None,
        tasks=("classification", "segmentation", "landmarks"),
        licence="research, registration",
        is_redistributable=False,
        citation="Orlando et al., REFUGE Challenge: a unified framework for evaluating automated methods for glaucoma "
        "assessment from fundus photographs, Med. Image Anal. 59, 2020",
        pages=("https://refuge.grand-challenge.org",),
        layout=_LAYOUT,
    )

    def read(self, root: Path) -> Listing:
        """List all images in the folders of the three parts.

        Raises:
            SourceError: there are none, or two of one name.
        """
        paths = list_files(root)
        images = {
            part: index_files(root, paths, rf"(?:REFUGE-)?{part}/(?:[^/]+/)?(?P<name>[a-z]\d{{4}})\.jpe?g")
            for part in PARTS
        }
        if not any(images.values()):
            raise no_images(self.info, root)
        masks = index_files(root, paths, r"Disc_Cup_Masks/(?:[^/]+/)?(?P<name>[a-z]\d{4})\.bmp")
        warnings: list[str] = []
        rows = _rows(root, paths, warnings)
        known = {
            name: {_folder_label(path), _folder_label(masks.get(name, "")), rows.get(name, RefugeRow()).label} - {None}
            for found in images.values()
            for name, path in found.items()
        }
        records = tuple(
            Record(
                source_id=name,
                image=File(path),
                patient=f"refuge/{name}",
                labels={"Glaucoma": next(iter(known[name])) if len(known[name]) == 1 else None},
                masks=_masks(masks[name]) if name in masks else {},
                landmarks={"fovea": fovea} if (fovea := rows.get(name, RefugeRow()).fovea) is not None else {},
                split=PARTS[part],
                size=SIZES[part],
            )
            for part, found in images.items()
            for name, path in found.items()
        )
        counts = {
            "images without a mask": sum(not record.masks for record in records),
            "masks without an image": len(masks.keys() - known.keys()),
            "rows of the workbooks without an image": len(rows.keys() - known.keys()),
            "images on whose label folders and workbooks disagree: it stays unknown": sum(
                len(labels) > 1 for labels in known.values()
            ),
            "images of which nothing says whether they show glaucoma": sum(not labels for labels in known.values()),
        }
        warnings += [*count_warnings(self.info, records), *number_warnings(self.info, counts)]
        return Listing(records=records, patient_grouping="image", warnings=tuple(warnings))


def _folder_label(path: str) -> Label:
    return next((_FOLDER_LABELS[part] for part in path.lower().split("/")[-2:-1] if part in _FOLDER_LABELS), None)


def _masks(path: str) -> dict[str, MaskFiles]:
    file = (File(path),)
    return {
        "optic_disc": MaskFiles(files=file, low=0, high=MAX_DISC_LEVEL),
        "optic_cup": MaskFiles(files=file, low=0, high=MAX_CUP_LEVEL),
    }


def _rows(root: Path, paths: Iterable[str], warnings: list[str]) -> dict[str, RefugeRow]:
    """Name → what the workbooks say; one in another form is added to `warnings`."""
    found = find_files(paths, r"(?:Fovea_locations?|Glaucoma_label_and_Fovea_location)\.xlsx")
    files = [root / path for _, path in found]
    return {
        PurePosixPath(values["ImgName"]).stem: _row(values)
        for file in files
        for values in read_or_warn(partial(read_workbook, file, _COLUMNS, "REFUGE's labels"), warnings)
    }


def _row(values: dict[str, str]) -> RefugeRow:
    stated = next((values[column] for column in _LABEL_COLUMNS if values.get(column)), "")
    labels: dict[float | None, Label] = {0.0: 0, 1.0: 1}
    x, y = _number(values["Fovea_X"]), _number(values["Fovea_Y"])
    return RefugeRow(labels.get(_number(stated)), (y, x) if x is not None and y is not None else None)


def _number(value: str) -> float | None:
    """Parse a number of a workbook, in any notation; what is none, or cannot be a position, is unknown."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


SOURCE = RefugeSource()
