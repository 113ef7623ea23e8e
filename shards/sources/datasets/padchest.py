"""PadChest.

Bustos et al., "PadChest: A large chest x-ray image dataset with multi-label annotated reports", Medical Image Analysis
66, 2020. Research use by BIMCV's agreement: no passing on, no attempt to identify anyone.
https://bimcv.cipf.es/bimcv-projects/padchest/

Layout:
    PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv (or .csv.gz)
    0/*.png to 54/*.png as unpacked from 0.zip to 54.zip, or all in one folder

What is easily got wrong:
- The images are 16-bit PNG of which 12 or 10 bits are used (`BitsStored_DICOM`): over 65535 they are nearly black.
- PatientID has up to 39 digits and StudyID up to 51: they are text, never numbers. One StudyID is used for two
  patients; a study here is a patient's.
- `Labels` is the text of a Python list, with stray spaces and empty strings in it, and `nan` where there is none.
  Labels are compared whole: `nodule` is not `pseudonodule`.
- `Projection` is the view; `ViewPosition_DICOM` is missing in 69,085 rows.
- The archives' number is the folder `ImageDir`; many copies have all images in one folder. Images are found by name.
- Dates, years of birth and reports are in the table; they are never read, and so no age is known. Physicians labelled
  39,053 images and a network the rest, often both of one patient: there is no official split.
- 21 images of the table are missing from the archives or damaged in them.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shards.core.errors import SourceError
from shards.core.records import File, Label, Record, Sex
from shards.sources.base import Listing, SourceInfo, layout_in
from shards.sources.csv_tables import read_columns, with_lines
from shards.sources.files import find_file, index_files, list_files
from shards.sources.listing import build_listing, wrong_layout

# fmt: off
LABELS = (
    "adenopathy", "air bronchogram", "air fluid level", "air trapping", "alveolar pattern", "aortic atheromatosis",
    "aortic button enlargement", "aortic elongation", "apical pleural thickening", "artificial aortic heart valve",
    "artificial heart valve", "artificial mitral heart valve", "ascendent aortic elongation", "atelectasis",
    "atypical pneumonia", "axial hyperostosis", "azygos lobe", "bone metastasis", "bronchiectasis",
    "bronchovascular markings", "bullas", "calcified adenopathy", "calcified densities", "calcified granuloma",
    "calcified pleural plaques", "calcified pleural thickening", "callus rib fracture", "cardiomegaly", "cavitation",
    "central vascular redistribution", "central venous catheter", "central venous catheter via jugular vein",
    "central venous catheter via subclavian vein", "central venous catheter via umbilical vein", "cervical rib",
    "chest drain tube", "chronic changes", "clavicle fracture", "consolidation", "COPD signs",
    "costochondral junction hypertrophy", "costophrenic angle blunting", "dai", "descendent aortic elongation",
    "diaphragmatic eventration", "dual chamber device", "emphysema", "end on vessel", "endotracheal tube", "exclude",
    "fibrotic band", "fissure thickening", "flattened diaphragm", "goiter", "granuloma", "ground glass pattern",
    "gynecomastia", "heart insufficiency", "heart valve calcified", "hemidiaphragm elevation", "hiatal hernia",
    "hilar congestion", "hilar enlargement", "humeral fracture", "humeral prosthesis", "hyperinflated lung",
    "hypoexpansion", "hypoexpansion basal", "increased density", "infiltrates", "interstitial pattern", "kerley lines",
    "kyphosis", "laminar atelectasis", "lobar atelectasis", "loculated fissural effusion", "loculated pleural effusion",
    "lung metastasis", "lung vascular paucity", "mammary prosthesis", "mastectomy", "mediastinal enlargement",
    "mediastinal mass", "mediastinic lipomatosis", "metal", "miliary opacities", "minor fissure thickening",
    "multiple nodules", "nipple shadow", "nodule", "non axial articular degenerative changes", "normal", "NSG tube",
    "osteopenia", "osteoporosis", "osteosynthesis material", "pacemaker", "pectum excavatum", "pleural effusion",
    "pleural thickening", "pneumonia", "pneumothorax", "post radiotherapy changes", "pseudonodule",
    "pulmonary artery enlargement", "pulmonary edema", "pulmonary fibrosis", "pulmonary hypertension", "pulmonary mass",
    "reservoir central venous catheter", "reticular interstitial pattern", "reticulonodular interstitial pattern",
    "rib fracture", "sclerotic bone lesion", "scoliosis", "segmental atelectasis", "single chamber device",
    "soft tissue mass", "sternotomy", "subcutaneous emphysema", "suboptimal study", "superior mediastinal enlargement",
    "supra aortic elongation", "surgery", "surgery breast", "surgery lung", "surgery neck", "suture material",
    "thoracic cage deformation", "tracheal shift", "tracheostomy tube", "tuberculosis", "tuberculosis sequelae",
    "unchanged", "vascular hilar enlargement", "vascular redistribution", "vertebral anterior compression",
    "vertebral compression", "vertebral degenerative changes", "vertebral fracture", "volume loss",
)
"""Findings of at least 100 of the published images: fewer say nothing in a test split."""
RARE_LABELS = (
    "abnormal foreign body", "abscess", "aortic aneurysm", "aortic endoprosthesis", "asbestosis signs",
    "atelectasis basal", "azygoesophageal recess shift", "blastic bone lesion", "bone cement", "breast mass",
    "calcified fibroadenoma", "calcified mediastinal adenopathy", "catheter", "Chilaiditi sign", "cyst", "dextrocardia",
    "double J stent", "electrical device", "empyema", "endoprosthesis", "esophagic dilatation", "external foreign body",
    "fracture", "gastrostomy tube", "hydropneumothorax", "lepidic adenocarcinoma", "lipomatosis",
    "lymphangitis carcinomatosa", "lytic bone lesion", "major fissure thickening", "mass", "mediastinal shift",
    "nephrostomy tube", "obesity", "pectum carinatum", "pericardial effusion", "pleural mass", "pleural plaques",
    "pneumomediastinum", "pneumoperitoneo", "prosthesis", "pulmonary artery hypertension",
    "pulmonary venous hypertension", "respiratory distress", "right sided aortic arch", "round atelectasis",
    "sternoclavicular junction hypertrophy", "subacromial space narrowing", "surgery heart", "surgery humeral",
    "total atelectasis", "ventriculoperitoneal drain tube",
)
"""The others; not given as labels, and a report is none the less conclusive for them."""
# fmt: on
_VOCABULARY = frozenset((*LABELS, *RARE_LABELS))
INCONCLUSIVE = frozenset({"unchanged", "suboptimal study", "exclude"})
"""Labels of reports that do not say everything: what is not listed beside them is unknown, not absent."""

MISSING = frozenset(
    {
        "216840111366964012283393834152009033102258826_00-059-087.png",
        "216840111366964012339356563862009072111404053_00-043-192.png",
        "216840111366964012373310883942009117084022290_00-064-025.png",
        "216840111366964012373310883942009170084120009_00-097-074.png",
        "216840111366964012558082906712009327122220177_00-102-064.png",
        "216840111366964012819207061112010306085429121_04-020-102.png",
        "216840111366964012819207061112010307142602253_04-014-084.png",
        "216840111366964012819207061112010315104455352_04-024-184.png",
        "216840111366964012959786098432011033083840143_00-176-115.png",
        "216840111366964012989926673512011074122523403_00-163-058.png",
        "216840111366964013076187734852011291090445391_00-196-188.png",
    }
)
"""Images of the table that the archives lack."""
DAMAGED = frozenset(
    {
        "216840111366964012373310883942009152114636712_00-102-045.png",
        "216840111366964012487858717522009280135853083_00-075-001.png",
        "216840111366964012819207061112010281134410801_00-129-131.png",
        "216840111366964012989926673512011083134050913_00-168-009.png",
        "216840111366964012989926673512011151082430686_00-157-045.png",
        "216840111366964013590140476722013043111952381_02-065-198.png",
        "216840111366964013590140476722013058110301622_02-056-111.png",
        "216840111366964013686042548532013208193054515_02-026-007.png",
        "216840111366964013829543166512013353113303615_02-092-190.png",
        "216840111366964013962490064942014134093945580_01-178-104.png",
    }
)
"""Images that are truncated or broken in the archives. Both lists: torchxrayvision's PadChest data set."""

_NUM_IMAGES = 160_861
_INFO = SourceInfo(
    name="padchest",
    title="PadChest",
    modality="chest X-ray",
    num_images=_NUM_IMAGES,
    num_patients=67_625,
    tasks=("classification",),
    licence="BIMCV research use agreement: no redistribution",
    is_redistributable=False,
    citation=(
        "Bustos et al., PadChest: A large chest x-ray image dataset with multi-label annotated reports, "
        "Medical Image Analysis 66, 2020"
    ),
    pages=("https://bimcv.cipf.es/bimcv-projects/padchest/",),
    layout=layout_in(__doc__),
    shares_images_with=("covid-qu-ex",),
)
_IMAGE = r"(?P<name>[^/]+\.png)"
_TABLE = r"PADCHEST_chest_x_ray_images_labels_160K[^/]*\.csv(\.gz)?"
_COLUMNS = ("ImageID", "StudyID", "PatientID", "PatientSex_DICOM", "Projection", "Labels")
_VIEWS = ("PA", "L", "AP_horizontal", "AP", "COSTAL", "EXCLUDE", "UNK")
_SEXES: dict[str, Sex | None] = {"F": "F", "M": "M", "O": "O", "nan": None, "": None}
_NO_LABELS = ("", "nan")


@dataclass(frozen=True, kw_only=True)
class PadchestRow:
    """A row of the table; the fields are those of a record."""

    patient: str
    study: str
    view: str | None
    labels: Mapping[str, Label]
    sex: Sex | None


class PadChestSource:
    """160,861 radiographs of several projections, with findings from Spanish reports."""

    info = _INFO

    def read(self, root: Path) -> Listing:
        """List all images that the table names and the folder has.

        Raises:
            SourceError: no image or table, an image that is there twice, a value that no row may have.
        """
        paths = list_files(root, _NUM_IMAGES)
        images = index_files(root, paths, _IMAGE)
        table = find_file(root, paths, _TABLE)
        if not table:
            raise wrong_layout(
                _INFO, root, "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv not found at any depth"
            )
        entries = read_entries(table)
        records = (
            Record(
                source_id=name,
                image=File(images[name]),
                patient=entry.patient,
                study=entry.study,
                view=entry.view,
                labels=entry.labels,
                sex=entry.sex,
                known_defect=known_defect(name),
            )
            for name, entry in entries.items()
            if name in images
        )
        return build_listing(_INFO, root, records, num_rows=len(entries), num_files=len(images))


def known_defect(image: str) -> str | None:
    """Say why a published image cannot be used, by its name."""
    if image in MISSING:
        return "PadChest's archives lack this image; a file of its name is not the published one"
    if image in DAMAGED:
        return "this image is damaged in PadChest's archives"
    return None


def read_entries(table: Path) -> dict[str, PadchestRow]:
    """Read the table: ImageID → its row.

    Raises:
        SourceError: a column is missing, an image repeats or does not begin with its study, a value is none that its
            column may have.
    """
    entries: dict[str, PadchestRow] = {}
    labels: dict[str, Mapping[str, Label]] = {}
    rows = read_columns(table, _COLUMNS, "PadChest's labels")
    for number, (name, study, patient, sex, view, findings) in with_lines(rows):
        where = f"{table} line {number}"
        if name in entries or not patient or not study or not name.startswith(study):
            raise SourceError(f"{where}: expected an image once, with a patient, and named after its study")
        if sex not in _SEXES or view not in _VIEWS:
            raise SourceError(f"{where}: sex or projection unknown; expected {', '.join(_VIEWS)} and F, M, O or nan")
        if findings not in labels:
            labels[findings] = labels_of(parse_findings(findings, where))
        entries[name] = PadchestRow(
            patient=f"{_INFO.name}/{patient}",
            study=f"{_INFO.name}/{patient}/{study}",
            view=None if view == "UNK" else view.upper(),
            labels=labels[findings],
            sex=_SEXES[sex],
        )
    return entries


def parse_findings(text: str, where: str) -> frozenset[str]:
    """Parse the findings that the text of a Python list names; empty where none is known.

    Raises:
        SourceError: it is no list of texts, or a name is none of PadChest's; `where` names the row.
    """
    if text in _NO_LABELS:
        return frozenset()
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise SourceError(f"{where}: column Labels: expected the text of a Python list, as ['nodule', 'scoliosis']")
    names = frozenset(name.strip() for name in found) - {""}
    unknown = names - _VOCABULARY
    if unknown:
        raise SourceError(
            f"{where}: column Labels: {min(unknown)!r} is none of PadChest's {len(_VOCABULARY)} labels; "
            "expected the table of 01.02.19"
        )
    return names


def labels_of(findings: frozenset[str]) -> dict[str, Label]:
    """Label listed findings as present, and all others as absent.

    They are unknown instead if nothing is listed or the report is inconclusive.
    """
    is_conclusive = bool(findings - INCONCLUSIVE) and not findings & INCONCLUSIVE
    labels: dict[str, Label] = dict.fromkeys(LABELS, 0 if is_conclusive else None)
    return labels | {name: 1 for name in LABELS if name in findings}


SOURCE = PadChestSource()
