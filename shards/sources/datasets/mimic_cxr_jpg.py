"""MIMIC-CXR-JPG 2.0.0 and 2.1.0.

Johnson et al., "MIMIC-CXR-JPG, a large publicly available database of labeled chest radiographs", arXiv:1901.07042,
2019. PhysioNet Credentialed Health Data License: training, agreement, no redistribution.
https://physionet.org/content/mimic-cxr-jpg/

Layout:
    mimic-cxr-2.0.0-split.csv.gz, mimic-cxr-2.0.0-metadata.csv.gz, mimic-cxr-2.0.0-chexpert.csv.gz
    (or unpacked, not both)
    files/p1N/pNNNNNNNN/sNNNNNNNN/DICOM_ID.jpg, with or without p1N

What is easily got wrong:
- Labels are per study and a study has several images: they are joined by (subject_id, study_id). 8 studies have no
  report and so no labels.
- The validation part is called `validate`. 15,769 images have no ViewPosition.
- Images are found by dicom_id, for some copies lack the folders p10 to p19.
- The JPEGs are 8 bit, already inverted where the DICOM file was MONOCHROME1, and histogram-equalised: their grey levels
  are not those of other datasets.
- Two programs labelled the reports; CheXpert's labels are read, NegBio's are not. Neither are the radiologists' labels
  of 2.1.0's test-set-labeled.csv: 687 studies, with `Airspace Opacity` for `Lung Opacity`.
- The metadata has dates and times of studies; they are never read.
"""

import re
from collections import Counter
from pathlib import Path

from shards.core.errors import SourceError
from shards.core.records import File, Label, Record, Split
from shards.sources.base import Listing, SourceInfo, layout_in, parse_label
from shards.sources.csv_tables import read_columns, with_lines
from shards.sources.files import find_file, index_files, list_files
from shards.sources.listing import build_listing, wrong_layout

LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
Study = tuple[str, str]
"""(subject_id, study_id)."""

_NUM_IMAGES = 377_110
_INFO = SourceInfo(
    name="mimic-cxr-jpg",
    title="MIMIC-CXR-JPG",
    modality="chest X-ray",
    num_images=_NUM_IMAGES,
    num_patients=65_379,
    tasks=("classification",),
    licence="PhysioNet Credentialed Health Data License: no redistribution",
    is_redistributable=False,
    citation=(
        "Johnson et al., MIMIC-CXR-JPG, a large publicly available database of labeled chest radiographs, "
        "arXiv:1901.07042, 2019"
    ),
    pages=("https://physionet.org/content/mimic-cxr-jpg/",),
    layout=layout_in(__doc__),
)
_IMAGE = r"(?P<name>[0-9a-f]{8}(?:-[0-9a-f]{8}){4})\.jpg"
_SUBJECT = re.compile(r"1\d{7}")
_STUDY = re.compile(r"5\d{7}")
_SPLITS: dict[str, Split] = {"train": "train", "validate": "val", "test": "test"}
_NUM_PUBLISHED: dict[Split, int] = {"train": 368_960, "val": 2_991, "test": 5_159}
_NUM_WITHOUT_VIEW = 15_769
_VIEWS = {"": None, "LATERAL": "L"}
_VIEW = re.compile(r"[A-Z0-9 _-]{1,16}")


class MimicSource:
    """377,110 radiographs of an emergency department, with 14 labels mined from reports."""

    info = _INFO

    def read(self, root: Path) -> Listing:
        """List all images that the list of splits names and the folder has.

        Raises:
            SourceError: no image, a table is missing, two tables contradict each other.
        """
        paths = list_files(root, _NUM_IMAGES)
        images = index_files(root, paths, _IMAGE)
        tables = {what: _find(root, paths, what) for what in ("split", "metadata", "chexpert")}
        splits = read_splits(tables["split"])
        views = read_views(tables["metadata"])
        labels = read_labels(tables["chexpert"])
        lost = splits.keys() - views.keys()
        if lost:
            raise SourceError(
                f"{tables['metadata']}: {len(lost):,} images of {tables['split'].name} are missing, as {min(lost)}; "
                "restore the published tables"
            )
        unlabelled: dict[str, Label] = dict.fromkeys(LABELS)
        records = (
            Record(
                source_id=image,
                image=File(images[image]),
                patient=f"{_INFO.name}/{subject}",
                study=f"{_INFO.name}/{study}",
                view=views[image],
                labels=labels.get((subject, study), unlabelled),
                split=split,
            )
            for image, ((subject, study), split) in splits.items()
            if image in images
        )
        return build_listing(
            _INFO,
            root,
            records,
            num_rows=len(splits),
            num_files=len(images),
            warnings=_table_warnings(Counter(split for _, split in splits.values()), list(views.values())),
        )


def read_splits(table: Path) -> dict[str, tuple[Study, Split]]:
    """Read the list of splits: dicom_id → its study and split.

    Raises:
        SourceError: a column is missing, an id is none or repeats, a split is unknown.
    """
    splits: dict[str, tuple[Study, Split]] = {}
    rows = read_columns(table, ("dicom_id", "subject_id", "study_id", "split"), "the splits of MIMIC-CXR-JPG")
    for number, (image, subject, study, split) in with_lines(rows):
        where = f"{table} line {number}"
        if image in splits:
            raise SourceError(f"{where}: {image} is there twice")
        if not _SUBJECT.fullmatch(subject) or not _STUDY.fullmatch(study):
            raise SourceError(f"{where}: expected 8 digits that begin with 1 as subject_id, with 5 as study_id")
        if split not in _SPLITS:
            raise SourceError(f"{where}: split '{split}'; expected {', '.join(_SPLITS)}")
        splits[image] = (subject, study), _SPLITS[split]
    return splits


def read_views(table: Path) -> dict[str, str | None]:
    """Read the views: dicom_id → AP, PA, LL; L for LATERAL; None where it is not known or no short code.

    Raises:
        SourceError: a column is missing.
    """
    rows = read_columns(table, ("dicom_id", "ViewPosition"), "the metadata of MIMIC-CXR-JPG")
    return {image: _parse_view(view) for image, view in rows}


def read_labels(table: Path) -> dict[Study, dict[str, Label]]:
    """Read the labels of each study.

    Raises:
        SourceError: a column is missing, a study repeats, a value is none that a label may have.
    """
    labels: dict[Study, dict[str, Label]] = {}
    parsed: dict[tuple[str, ...], dict[str, Label]] = {}
    rows = read_columns(table, ("subject_id", "study_id", *LABELS), "the labels of MIMIC-CXR-JPG")
    for number, (subject, study, *values) in with_lines(rows):
        where = f"{table} line {number}"
        if (subject, study) in labels:
            raise SourceError(f"{where}: study {study} is there twice")
        if tuple(values) not in parsed:
            parsed[tuple(values)] = {
                name: parse_label(value, f"{where}: {name}") for name, value in zip(LABELS, values, strict=True)
            }
        labels[subject, study] = parsed[tuple(values)]
    return labels


def _find(root: Path, paths: list[str], what: str) -> Path:
    table = find_file(root, paths, rf"mimic-cxr-2\.\d\.\d-{what}\.csv(\.gz)?")
    if not table:
        raise wrong_layout(_INFO, root, f"mimic-cxr-2.0.0-{what}.csv.gz not found at any depth")
    return table


def _parse_view(text: str) -> str | None:
    code = text.upper()
    return _VIEWS.get(code, code if _VIEW.fullmatch(code) else None)


def _table_warnings(num_images: Counter[Split], views: list[str | None]) -> tuple[str, ...]:
    """Warn where the tables are not those of the documentation; a part, or a later version, may be right."""
    found = {**{f"images of {split}": num_images[split] for split in _NUM_PUBLISHED}, "without view": views.count(None)}
    published = {**{f"images of {split}": n for split, n in _NUM_PUBLISHED.items()}, "without view": _NUM_WITHOUT_VIEW}
    return tuple(
        f"{_INFO.name}: the tables list {found[what]:,} {what}, {number:,} documented"
        for what, number in published.items()
        if found[what] != number
    )


SOURCE = MimicSource()
