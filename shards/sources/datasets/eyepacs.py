"""EyePACS: diabetic retinopathy in fundus photographs, Kaggle's competition of 2015.

Kaggle and EyePACS, "Diabetic Retinopathy Detection", 2015:
https://www.kaggle.com/c/diabetic-retinopathy-detection/data (competition rules: research, no redistribution).

Layout:
    train/10_left.jpeg
    test/1_right.jpeg
    trainLabels.csv
    retinopathy_solution.csv (grades of test)

- The archives come in pieces (`train.zip.001` to `.005`, `test.zip.001` to `.007`), about 88 GB; `trainLabels.csv` is
  an archive of its own. The grades of the test images came out after the competition as `retinopathy_solution.csv`.
- The patient is the number before `_left` and `_right`: two eyes a patient, 17,563 patients in training and 26,788 in
  test. The column Usage of the second list is of the competition's two boards (Public, Private) and not read.
- Images of grades 0 to 4: 25,810, 2,443, 5,292, 873 and 708 in training; 39,533, 3,762, 7,861, 1,214 and 1,206 in test.
- Grades 0 none, 1 mild, 2 moderate, 3 severe, 4 proliferative: one label a grade, `DR grade 0` to `DR grade 4`, of
  which one is 1.
- Photographs have black borders, sizes from 400 to 5,184 pixels and many devices; some stand on their heads, some are
  black: quality is a matter of the stage `shard`.
"""

import re
from pathlib import Path

from shards.core.errors import SourceError
from shards.core.records import File, Label, Record, Split
from shards.sources.base import Listing, SourceInfo, layout_in
from shards.sources.csv_tables import read_columns, with_lines
from shards.sources.files import find_file, index_files, list_files
from shards.sources.listing import count_warnings, no_images, number_warnings

_LAYOUT = layout_in(__doc__)
GRADES = ("0", "1", "2", "3", "4")
LABEL_FILES: dict[Split, str] = {"train": "trainLabels.csv", "test": "retinopathy_solution.csv"}


class EyepacsSource:
    """Images by name, grades from two lists."""

    info = SourceInfo(
        name="eyepacs",
        title="EyePACS, Kaggle Diabetic Retinopathy Detection 2015",
        modality="fundus photograph",
        num_images=88_702,
        num_patients=44_351,
        tasks=("classification",),
        licence="Kaggle competition rules",
        is_redistributable=False,
        citation="Kaggle and EyePACS, Diabetic Retinopathy Detection, 2015",
        pages=("https://www.kaggle.com/c/diabetic-retinopathy-detection/data",),
        layout=_LAYOUT,
    )

    def read(self, root: Path) -> Listing:
        """List all images in folders `train` and `test`.

        Raises:
            SourceError: there are none, two of one name, or a list of grades is not as published.
        """
        paths = list_files(root)
        images = {part: _images(root, paths, part) for part in LABEL_FILES}
        if not any(images.values()):
            raise no_images(self.info, root)
        grades = {part: _grades(root, paths, LABEL_FILES[part]) for part in LABEL_FILES}
        records = tuple(
            Record(
                source_id=name,
                image=File(path),
                patient=f"eyepacs/{patient_of(name)}",
                view=name.partition("_")[2].upper(),
                labels=grade_labels(grades[part].get(name)),
                split=part,
            )
            for part, found in images.items()
            for name, path in found.items()
        )
        _check_patients(images)
        counts: dict[str, int] = {}
        for part, name in LABEL_FILES.items():
            counts[f"rows of {name} without an image"] = len(grades[part].keys() - images[part].keys())
            counts[f"images of {part} without a row of {name}: their grade is unknown"] = len(
                images[part].keys() - grades[part].keys()
            )
        return Listing(
            records=records,
            patient_grouping="patient",
            warnings=count_warnings(self.info, records) + number_warnings(self.info, counts),
        )


def patient_of(name: str) -> int:
    """Return the number before the eye, as 10 of `10_left`."""
    return int(name.partition("_")[0])


def grade_labels(grade: str | None) -> dict[str, Label]:
    """Make one label a grade; all unknown without one."""
    return {f"DR grade {level}": None if grade is None else int(level == grade) for level in GRADES}


def read_grades(path: Path) -> dict[str, str]:
    """Read the grade of each image.

    Raises:
        SourceError: columns are missing, an image is listed twice, a grade is none of 0 to 4.
    """
    grades: dict[str, str] = {}
    for number, (image, grade) in with_lines(read_columns(path, ("image", "level"), "EyePACS' grades")):
        if grade not in GRADES:
            raise SourceError(f"{path} line {number}: level is '{grade}'; expected one of {', '.join(GRADES)}")
        if image in grades:
            raise SourceError(f"{path} line {number}: {image} is listed twice; expected every image once")
        grades[image] = grade
    return grades


def _images(root: Path, paths: list[str], part: str) -> dict[str, str]:
    return index_files(root, paths, rf"{part}/(?P<name>\d+_(?:left|right))\.(?:jpe?g|png)")


def _grades(root: Path, paths: list[str], name: str) -> dict[str, str]:
    path = find_file(root, paths, rf"{re.escape(name)}(?:\.gz)?")
    return read_grades(path) if path else {}


def _check_patients(images: dict[Split, dict[str, str]]) -> None:
    patients = {part: {patient_of(name) for name in found} for part, found in images.items()}
    if both := sorted(patients["train"] & patients["test"]):
        raise SourceError(
            f"patient {both[0]} and {len(both) - 1} others are in train and in test; expected the competition's "
            "folders, which share no patient"
        )


SOURCE = EyepacsSource()
