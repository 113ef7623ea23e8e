"""Drishti-GS1: optic disc and cup in fundus photographs, with glaucoma diagnoses.

Sivaswamy J. et al., "Drishti-GS: retinal image dataset for optic nerve head (ONH) segmentation", ISBI 2014:
https://cvit.iiit.ac.in/projects/mip/drishti-gs/mip-dataset2/Home.php (registration; research).

Layout:
    Drishti-GS1_files/Training/Images/drishtiGS_002.png
    Drishti-GS1_files/Training/GT/drishtiGS_002/SoftMap/drishtiGS_002_ODsegSoftmap.png, drishtiGS_002_cupsegSoftmap.png
    Drishti-GS1_files/Test/Images/drishtiGS_001.png, Test/Test_GT/drishtiGS_001/SoftMap/...
    Drishti-GS1_files/Drishti-GS1_diagnosis.xlsx (optional: diagnosis, patients)

- 50 training images and 51 test images, RGB of some 2,050 x 1,755 pixels (2,045 to 2,468 x 1,748 to 1,845). The ground
  truth of the test images lies in `Test_GT`, that of the training images in `GT`.
- A soft map shows how many of four annotators drew a pixel inside: grey levels near 0, 64, 128, 191 and 255. Inside is
  what at least three drew: every level from 160, half way between two and three, so that rounding does not matter.
  (Where levels are divided by 255 and compared with .75, the 191 of three annotators falls out.)
- `Drishti-GS1_diagnosis.xlsx` has a diagnosis (`Total`: Normal or Glaucomatous) and a patient id for each image. Where
  it is there, patients are known: 68, of whom 33 have two images. 18 have one on each side of the official split, and
  all images of such a patient count as test, which leaves 32 to train on. Without the workbook patients are images and
  the official split is taken as it is.
- Kaggle's copies have folders `glaucoma` and `normal` below `Images`, which are not read as diagnoses.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from shards.core.errors import SourceError
from shards.core.records import File, Label, Mask, MaskFiles, Record, Split
from shards.sources.base import Listing, SourceInfo, layout_in
from shards.sources.files import find_file, index_files, list_files
from shards.sources.listing import count_warnings, no_images, number_warnings, read_or_warn
from shards.sources.workbook import read_workbook

_LAYOUT = layout_in(__doc__)
MAJORITY_LEVEL = 160
PARTS: dict[str, tuple[str, Split]] = {"Training": ("GT", "train"), "Test": ("Test_GT", "test")}
_STRUCTURES = {"optic_disc": "ODsegSoftmap", "optic_cup": "cupsegSoftmap"}
_DIAGNOSES: dict[str, Label] = {"normal": 0, "glaucomatous": 1}
WORKBOOK = "Drishti-GS1_diagnosis.xlsx"
_COLUMNS = ("Drishti-GS File", "Patient ID", "Total")
_NAME = r"(?P<name>drishtiGS_\d{3})"


@dataclass(frozen=True)
class Diagnosis:
    """A row of the workbook.

    Attributes:
        patient: The dataset's id; empty where the cell is.
        label: Glaucoma.
    """

    patient: str
    label: Label


class DrishtiGsSource:
    """Images by name; masks from soft maps."""

    info = SourceInfo(
        name="drishti-gs",
        title="Drishti-GS1",
        modality="fundus photograph",
        num_images=101,
        num_patients=None,
        tasks=("segmentation", "classification"),
        licence="research, registration",
        is_redistributable=False,
        citation="Sivaswamy et al., Drishti-GS: retinal image dataset for optic nerve head (ONH) segmentation, ISBI "
        "2014",
        pages=("https://cvit.iiit.ac.in/projects/mip/drishti-gs/mip-dataset2/Home.php",),
        layout=_LAYOUT,
    )

    def read(self, root: Path) -> Listing:
        """List all images below `Training/Images` and `Test/Images`.

        Raises:
            SourceError: there are none, two of one name, or two rows for one.
        """
        paths = list_files(root)
        images = {part: index_files(root, paths, rf"{part}/Images/(?:[^/]+/)?{_NAME}\.png") for part in PARTS}
        if not any(images.values()):
            raise no_images(self.info, root)
        warnings: list[str] = []
        diagnoses = _diagnoses(root, paths, warnings)
        names = {name for found in images.values() for name in found}
        has_patients = all(name in diagnoses and diagnoses[name].patient for name in names)
        official = tuple(
            Record(
                source_id=name,
                image=File(path),
                patient=f"drishti-gs/{diagnoses[name].patient if has_patients else name}",
                labels={"Glaucoma": diagnoses[name].label if name in diagnoses else None},
                masks=masks.get(name, {}),
                split=split,
            )
            for part, (folder, split) in PARTS.items()
            for masks in [_masks(root, paths, f"{part}/{folder}")]
            for name, path in images[part].items()
        )
        records = _keep_patients_together(official)
        counts = {
            "images without both soft maps": sum(len(record.masks) < len(_STRUCTURES) for record in records),
            f"images without a row in {WORKBOOK}: their diagnosis is unknown": len(names - diagnoses.keys()),
            f"images whose Total in {WORKBOOK} is neither Normal nor Glaucomatous: it stays unknown": sum(
                diagnosis.label is None for diagnosis in diagnoses.values()
            ),
            f"rows of {WORKBOOK} without an image": len(diagnoses.keys() - names),
            "official training images that count as test, for their patients have test images": sum(
                before.split != after.split for before, after in zip(official, records, strict=True)
            ),
        }
        warnings += [*count_warnings(self.info, records), *number_warnings(self.info, counts)]
        return Listing(
            records=records, patient_grouping="patient" if has_patients else "image", warnings=tuple(warnings)
        )


def _masks(root: Path, paths: list[str], folder: str) -> dict[str, dict[str, Mask]]:
    """Name → structure → mask, of one part of the dataset."""
    masks: dict[str, dict[str, Mask]] = {}
    for structure, suffix in _STRUCTURES.items():
        found = index_files(root, paths, rf"{folder}/[^/]+/SoftMap/{_NAME}_{suffix}\.png")
        for name, path in found.items():
            masks.setdefault(name, {})[structure] = MaskFiles(files=(File(path),), low=MAJORITY_LEVEL)
    return masks


def _diagnoses(root: Path, paths: list[str], warnings: list[str]) -> dict[str, Diagnosis]:
    """Name → row of the workbook; nothing without one, or with one in another form, which is added to `warnings`."""
    path = find_file(root, paths, re.escape(WORKBOOK))
    if path is None:
        return {}
    rows = read_or_warn(lambda: read_workbook(path, _COLUMNS, "Drishti-GS1's diagnoses"), warnings)
    diagnoses: dict[str, Diagnosis] = {}
    for number, row in enumerate(rows, start=1):
        # The names of the files end in an apostrophe there.
        name, patient, total = (row[column].strip("'’ ") for column in _COLUMNS)
        if not name:
            continue
        if name in diagnoses:
            raise SourceError(f"{path} row {number} below the header: {name} is listed twice; expected it once")
        diagnoses[name] = Diagnosis(patient, _DIAGNOSES.get(total.lower()))
    return diagnoses


def _keep_patients_together(records: tuple[Record, ...]) -> tuple[Record, ...]:
    """Put a patient with any test image into the test split: what is tested on is never trained on."""
    tested = {record.patient for record in records if record.split == "test"}
    return tuple(replace(record, split="test" if record.patient in tested else "train") for record in records)


SOURCE = DrishtiGsSource()
