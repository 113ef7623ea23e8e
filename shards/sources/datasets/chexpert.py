"""CheXpert, in full resolution and as CheXpert-small.

Irvin et al., "CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and Expert Comparison", AAAI 2019.
Stanford's research use agreement: registration, no redistribution. https://aimi.stanford.edu/datasets/chexpert-chest-x-rays;
the test set came later with CheXlocalize, https://stanfordaimi.azurewebsites.net.

Layout:
    small: CheXpert-v1.0-small/{train.csv,valid.csv},
           CheXpert-v1.0-small/{train,valid}/patientNNNNN/studyN/viewN_{frontal,lateral}.jpg
    full: 'CheXpert-v1.0 batch 1 (validate & csv)'/{train.csv,valid.csv,valid/patientNNNNN/...},
          'CheXpert-v1.0 batch N (train N-1)'/patientNNNNN/... with N = 2, 3, 4
    test set: test/patientNNNNN/... with test.csv or test_labels.csv
    at any depth; not small and full together

What is easily got wrong:
- The tables say `CheXpert-v1.0/train/patientNNNNN/...`, or `CheXpert-v1.0-small/...`, or nothing before `test/`; the
  full images lie in `CheXpert-v1.0 batch 2 (train 1)/patientNNNNN/...`, without `train/`. No patient is in two of the
  sets, so patient, study and view name an image wherever it lies.
- 17 images are called frontal and have the view LL or RL: their view is kept as LL and RL.
- Blank is not absent: of 14 labels most are blank. -1 is uncertain. `shards/reading/policies.py` makes targets of them.
- The test set's table has neither sex, age nor view.
- The paper's 224,316 images of 65,240 patients are train, valid and test together.
- train_cheXbert.csv and train_visualCheXbert.csv have other labels for the same images and are not read.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from shards.core.errors import SourceError
from shards.core.records import File, Label, Record, Sex, Split
from shards.sources.base import Listing, SourceInfo, layout_in, parse_label
from shards.sources.csv_tables import read_columns, with_lines
from shards.sources.files import find_file, index_files, list_files
from shards.sources.listing import build_listing, wrong_layout

LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)

_NUM_IMAGES = 224_316
_INFO = SourceInfo(
    name="chexpert",
    title="CheXpert",
    modality="chest X-ray",
    num_images=_NUM_IMAGES,
    num_patients=65_240,
    tasks=("classification",),
    licence="Stanford research use agreement: registration, no redistribution",
    is_redistributable=False,
    citation=(
        "Irvin et al., CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and Expert Comparison, "
        "AAAI 2019"
    ),
    pages=("https://aimi.stanford.edu/datasets/chexpert-chest-x-rays", "https://stanfordaimi.azurewebsites.net"),
    layout=layout_in(__doc__),
)
_IMAGE = r"(?P<name>patient\d+/study\d+/view\d+_(?:frontal|lateral)\.jpg)"
_PATH = re.compile(rf"(?:.*/)?{_IMAGE}")
_TABLES: dict[Split, str] = {
    "train": r"train\.csv(\.gz)?",
    "val": r"(valid|val_labels)\.csv(\.gz)?",
    "test": r"(test|test_labels)\.csv(\.gz)?",
}
_DESCRIPTION = ("Sex", "Age", "Frontal/Lateral", "AP/PA")
_NO_DESCRIPTION = re.compile(r"(val_labels|test|test_labels)\.csv(\.gz)?")
"""Tables that may say nothing of patient and view."""
_VIEWS = ("AP", "PA", "LL", "RL")
_SEXES: dict[str, Sex | None] = {"Female": "F", "Male": "M", "Unknown": None, "": None}


@dataclass(frozen=True, kw_only=True)
class ChexpertRow:
    """A row of a table; the fields are those of a record."""

    patient: str
    study: str
    view: str
    labels: dict[str, Label]
    sex: Sex | None
    age_years: float | None
    split: Split


class CheXpertSource:
    """224,316 radiographs with 14 labels mined from reports: present, absent, uncertain or not mentioned."""

    info = _INFO

    def read(self, root: Path) -> Listing:
        """List all images that the tables name and the folder has, in whichever layout.

        Raises:
            SourceError: no image or table, small and full together, a table that contradicts itself or another.
        """
        paths = list_files(root, _NUM_IMAGES)
        images = index_files(root, paths, _IMAGE)
        entries: dict[str, ChexpertRow] = {}
        for split, name in _TABLES.items():
            table = find_file(root, paths, name)
            for image, entry in (read_entries(table, split) if table else {}).items():
                if image in entries:
                    raise SourceError(f"{table}: {image} is also in the table of {entries[image].split}")
                entries[image] = entry
        if not entries:
            raise wrong_layout(_INFO, root, "train.csv, valid.csv or test.csv not found at any depth")
        records = (
            Record(
                source_id=name,
                image=File(images[name]),
                patient=entry.patient,
                study=entry.study,
                view=entry.view,
                labels=entry.labels,
                split=entry.split,
                sex=entry.sex,
                age_years=entry.age_years,
            )
            for name, entry in entries.items()
            if name in images
        )
        return build_listing(_INFO, root, records, num_rows=len(entries), num_files=len(images))


def read_entries(table: Path, split: Split) -> dict[str, ChexpertRow]:
    """Read the table: `patientNNNNN/studyN/viewN_….jpg` → its row.

    Raises:
        SourceError: a column is missing, a path is none of an image or repeats, the view contradicts the path, a value
            is none that its column may have.
    """
    is_bare = _NO_DESCRIPTION.fullmatch(table.name) is not None
    required = ("Path", *LABELS) if is_bare else ("Path", *LABELS, *_DESCRIPTION)
    rows = read_columns(table, required, "CheXpert's labels", _DESCRIPTION if is_bare else ())
    entries: dict[str, ChexpertRow] = {}
    labels: dict[tuple[str, ...], dict[str, Label]] = {}
    for number, (path, *values, sex, age, side, projection) in with_lines(rows):
        where = f"{table} line {number}"
        found = _PATH.fullmatch(path)
        if not found or found[1] in entries:
            raise SourceError(
                f"{where}: '{path}' is {'there twice' if found else 'no path of an image'}; expected "
                ".../patientNNNNN/studyN/viewN_frontal.jpg or _lateral.jpg, each once"
            )
        if sex not in _SEXES:
            raise SourceError(f"{where}: sex '{sex}'; expected Female, Male or Unknown")
        if tuple(values) not in labels:
            labels[tuple(values)] = _parse_labels(values, where)
        patient, study, view = found[1].split("/")
        entries[found[1]] = ChexpertRow(
            patient=f"{_INFO.name}/{patient}",
            study=f"{_INFO.name}/{patient}/{study}",
            view=_parse_view(view, side, projection, where),
            labels=labels[tuple(values)],
            sex=_SEXES[sex],
            age_years=_parse_age(age, where),
            split=split,
        )
    return entries


def _parse_labels(values: list[str], where: str) -> dict[str, Label]:
    return {name: parse_label(value, f"{where}: {name}") for name, value in zip(LABELS, values, strict=True)}


def _parse_view(file_name: str, side: str, projection: str, where: str) -> str:
    """Parse the projection; L for a lateral without one, FRONTAL for a frontal image of a table without views."""
    is_lateral = file_name.endswith("_lateral.jpg")
    if side not in ("", "Lateral" if is_lateral else "Frontal"):
        raise SourceError(f"{where}: the column Frontal/Lateral says '{side}' of {file_name}")
    if projection not in ("", *_VIEWS):
        raise SourceError(f"{where}: view '{projection}'; expected {', '.join(_VIEWS)} or nothing")
    return projection or ("L" if is_lateral else "FRONTAL")


def _parse_age(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        return float(int(text))
    except ValueError:
        raise SourceError(f"{where}: expected the age in whole years, or nothing") from None


SOURCE = CheXpertSource()
