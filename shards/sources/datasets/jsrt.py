"""JSRT: chest radiographs with and without a lung nodule, and SCR, their segmentation.

Shiraishi J. et al., "Development of a digital image database for chest radiographs with and without a lung nodule",
AJR 174, 2000: http://db.jsrt.or.jp/eng.php (registration). van Ginneken B., Stegmann M.B., Loog M., "Segmentation of
anatomical structures in chest radiographs using supervised methods", Med. Image Anal. 10, 2006 (SCR):
https://www.isi.uu.nl/Research/Databases/SCR/ (research and education, no redistribution); a later release in another
form: https://zenodo.org/records/7056076. Lung masks of other hands: http://imgcom.jsrt.or.jp/minijsrtdb/
(Segmentation01, segmentation02).

Layout:
    ANY_FOLDER/JPCLN001.IMG, JPCNN001.IMG (or converted: .png .jpg .bmp .tif)
    scratch/fold1/masks/left lung/JPCLN001.gif (SCR: fold1, fold2; five structures)
    CLNDAT_EN.txt, CNNDAT_EN.TXT (optional: age, sex, nodule)
    or instead Segmentation01/train/org/NAME.png, Segmentation01/train/label/NAME.png

- `.IMG` files have no header: 2048 x 2048 big-endian 16-bit values, 12 of them grey levels (some values are greater),
  0 is white. Files that others converted (PNG, JPEG, BMP, TIFF) are upright already and are read as they are: which of
  the two it is, only the extension says. Where both are there, the `.IMG` file is used.
- JPCLN are cases with a nodule (154), JPCNN without (93); one image a patient.
- SCR's masks are GIF files of 1024 x 1024 pixels in folders whose names have spaces. Left and right are the patient's:
  the right lung is on the left of the image. `lungs` is the union.
- SCR's two folds (cases of odd and of even number) are its official cross-validation. One direction of it becomes the
  split: fold1 train, fold2 test. Copies without folds of SCR have no official split.
- SCR's release at Zenodo has other files of the same names: `masks/JPCLN001.tif` is one mask a case, of no stated
  structure, and left; `jpg/JPCLN001.jpg` is a picture of 256 pixels with the outlines drawn into it, which a warning
  says where no `.IMG` file takes its place.
- CLNDAT_EN.txt and CNNDAT_EN.txt are tables without a header, in which lines have run together: a case is what follows
  its file's name and has the known form. The diagnosis is free text and never read. The nodule's box is the square of
  its stated size around its stated centre, in pixels of the `.IMG` file; other files have none.
- Names in miniJSRT are case numbers of its own, which nothing maps to JSRT's: the two must not be mixed, and as a batch
  it says that it shares images with jsrt. Its two archives may show one patient each under its own number. Its
  Segmentation01 has lung masks; what the grey levels of segmentation02's masks mean is not known, so they are left.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shards.core.errors import SourceError
from shards.core.records import Box, File, Label, Mask, MaskFiles, RawLayout, Record, Sex, Split
from shards.sources.base import Listing, SourceInfo, layout_in
from shards.sources.files import find_files, folders_of, index_files, list_files
from shards.sources.listing import count_warnings, no_images, number_warnings

_LAYOUT = layout_in(__doc__)
RAW = RawLayout(height=2048, width=2048, dtype=">u2", max_value=4095, is_inverted=True)
SPACING_MM = 0.175
STRUCTURES = ("heart", "left_clavicle", "right_clavicle", "left_lung", "right_lung")
FOLDS: dict[str, Split] = {"fold1": "train", "fold2": "test"}

_NAME = r"(?P<name>JPC(?:LN|NN)\d{3})"
_CONVERTED = r"\.(?:png|jpe?g|bmp|tiff?)"
# The masks of SCR and of its copies have the images' names: their folders tell them, as `left lung` or `heart_png`.
_STRUCTURE_FOLDER = r"(?P<structure>heart|(?:left|right)[ _](?:clavicle|lung))(?:_png)?"
_MASK_FOLDERS = {"mask", "masks"}
_SEPARATOR = r"[\s,]+"
_NODULE = re.compile(
    _SEPARATOR.join(
        (
            r"(?P<name>JPCLN\d{3})\.IMG",
            r"\d",
            r"(?P<size_mm>\d+(?:\.\d+)?)",
            r"(?P<age>\d{1,3}|\?|-)",
            r"(?P<sex>male|female)",
            r"(?P<col>\d{1,4})",
            r"(?P<row>\d{1,4})",
            r"(?P<state>malignant|benign)",
        )
    ),
    re.IGNORECASE,
)
_NO_NODULE = re.compile(
    _SEPARATOR.join((r"(?P<name>JPCNN\d{3})\.IMG", r"(?P<age>\d{1,3}|\?|-)", r"(?P<sex>male|female)")), re.IGNORECASE
)


@dataclass(frozen=True, kw_only=True)
class Clinical:
    """A case in the clinical tables; None where they say nothing.

    Attributes:
        sex: Sex of the patient, as recorded.
        age_years: Age of the patient, as recorded.
        is_malignant: The nodule is malignant; False without one.
        nodule: Square of the nodule, in pixels of the .IMG file.
    """

    sex: Sex | None = None
    age_years: float | None = None
    is_malignant: bool | None = None
    nodule: Box | None = None


class JsrtSource:
    """Images by name; masks by name and folder."""

    info = SourceInfo(
        name="jsrt",
        title="JSRT digital image database, with SCR's segmentation",
        modality="chest X-ray",
        num_images=247,
        num_patients=247,
        tasks=("classification", "segmentation", "detection"),
        licence="JSRT: registration; SCR: research and education only",
        is_redistributable=False,
        citation="Shiraishi et al., Development of a digital image database for chest radiographs with and without a "
        "lung nodule, AJR 174, 2000; van Ginneken et al., Segmentation of anatomical structures in chest radiographs "
        "using supervised methods, Med. Image Anal. 10, 2006 (SCR)",
        pages=(
            "http://db.jsrt.or.jp/eng.php",
            "https://www.isi.uu.nl/Research/Databases/SCR/",
            "http://imgcom.jsrt.or.jp/minijsrtdb/",
        ),
        layout=_LAYOUT,
        shares_images_with=("jsrt",),
    )

    def read(self, root: Path) -> Listing:
        """List all images named JPCLNnnn or JPCNNnnn; without any, those of miniJSRT.

        Raises:
            SourceError: there are neither, both, or two of one name.
        """
        paths = list_files(root)
        mask_files = list(find_files(paths, rf"{_STRUCTURE_FOLDER}/{_NAME}\.(?:gif|png|bmp|tiff?)"))
        others = sorted(set(paths) - {path for _, path in mask_files})
        unnamed = [path for path in others if folders_of(path) & _MASK_FOLDERS]
        others = [path for path in others if not folders_of(path) & _MASK_FOLDERS]
        raw = _index_images(root, others, r"\.IMG")
        converted = _index_images(root, others, _CONVERTED)
        mini = _read_mini(paths)
        if not raw and not converted and not mini:
            raise no_images(self.info, root)
        if mini and (raw or converted):
            raise SourceError(
                f"{root}: found JSRT's own images and miniJSRT's, which are the same under names that no list maps; "
                "expected one of them: register one of the folders"
            )
        if mini:
            counts = {"images of segmentation02, whose masks are left": sum(not record.masks for record in mini)}
            warnings = count_warnings(self.info, mini) + number_warnings(self.info, counts)
            return Listing(
                records=mini,
                patient_grouping="image",
                warnings=warnings,
                shares_images_with=self.info.shares_images_with,
            )
        masks, folds = _index_masks(mask_files)
        clinical = parse_clinical(_texts(root, paths))
        images = {**converted, **raw}
        records = tuple(
            _record(
                name, images[name], name in raw, masks.get(name, {}), folds.get(name), clinical.get(name, Clinical())
            )
            for name in sorted(images)
        )
        counts = {
            "converted images passed over beside their .IMG files": len(raw.keys() & converted.keys()),
            "images in a folder jpg: SCR's release at Zenodo has its outlines drawn into them": sum(
                path.lower().split("/")[-2:-1] == ["jpg"] for path in images.values()
            ),
            "masks that name no structure were left": sum(1 for _ in find_files(unnamed, _NAME + _CONVERTED)),
            "images without SCR masks": sum(not record.masks for record in records),
            "SCR masks without an image": sum(len(found) for name, found in masks.items() if name not in images),
            "images of which the clinical tables say nothing": len(images.keys() - clinical.keys()),
        }
        return Listing(
            records=records,
            patient_grouping="patient",
            warnings=count_warnings(self.info, records) + number_warnings(self.info, counts),
        )


def _index_images(root: Path, paths: list[str], suffix: str) -> dict[str, str]:
    # A name in lower case is the same case, and its letters are its label.
    return {name.upper(): path for name, path in index_files(root, paths, _NAME + suffix).items()}


def parse_clinical(text: str) -> dict[str, Clinical]:
    """Name → what CLNDAT_EN.txt and CNNDAT_EN.txt say; cases in another form are passed over."""
    with_nodule = {
        match["name"].upper(): Clinical(
            sex=_sex(match["sex"]),
            age_years=_age(match["age"]),
            is_malignant=match["state"].lower() == "malignant",
            nodule=_square(float(match["row"]), float(match["col"]), float(match["size_mm"]) / SPACING_MM),
        )
        for match in _NODULE.finditer(text)
    }
    without = {
        match["name"].upper(): Clinical(sex=_sex(match["sex"]), age_years=_age(match["age"]), is_malignant=False)
        for match in _NO_NODULE.finditer(text)
    }
    return {**with_nodule, **without}


def _sex(word: str) -> Sex:
    return "F" if word.lower() == "female" else "M"


def _age(word: str) -> float | None:
    return float(word) if word.isdigit() and int(word) <= 120 else None


def _square(row: float, col: float, side_px: float) -> Box | None:
    half = side_px / 2
    box = Box(
        label="Nodule",
        row0=max(row - half, 0.0),
        col0=max(col - half, 0.0),
        row1=min(row + half, float(RAW.height)),
        col1=min(col + half, float(RAW.width)),
    )
    return box if box.row0 < box.row1 and box.col0 < box.col1 else None


def _texts(root: Path, paths: list[str]) -> str:
    found = find_files(paths, r"C[LN]NDAT_EN\.txt")
    return "\n".join((root / path).read_text(encoding="utf-8", errors="replace") for _, path in found)


def _index_masks(
    found: Iterable[tuple[re.Match[str], str]],
) -> tuple[dict[str, dict[str, str]], dict[str, Split]]:
    """Name → structure → path, and name → split where the masks lie in SCR's folds."""
    masks: dict[str, dict[str, str]] = {}
    folds: dict[str, Split] = {}
    for match, path in found:
        name = match["name"].upper()
        structure = match["structure"].lower().replace(" ", "_")
        if structure in masks.setdefault(name, {}):
            raise SourceError(
                f"{masks[name][structure]} and {path}: two files for {name}'s {structure}; expected one, so register "
                "a folder with one copy of the masks"
            )
        masks[name][structure] = path
        fold = next((part for part in path.lower().split("/") if part in FOLDS), None)
        if fold is not None and folds.setdefault(name, FOLDS[fold]) != FOLDS[fold]:
            raise SourceError(f"{path}: masks of {name} lie in both folds of SCR; expected each case in one")
    return masks, folds


def _masks(paths: Mapping[str, str]) -> dict[str, Mask]:
    masks: dict[str, Mask] = {
        name: MaskFiles(files=(File(paths[name]),), is_scaled=True) for name in STRUCTURES if name in paths
    }
    if {"left_lung", "right_lung"} <= paths.keys():
        masks["lungs"] = MaskFiles(files=(File(paths["left_lung"]), File(paths["right_lung"])), is_scaled=True)
    return masks


def _record(
    name: str, path: str, is_raw: bool, masks: Mapping[str, str], split: Split | None, clinical: Clinical
) -> Record:
    has_nodule = name.startswith("JPCLN")
    malignant: Label = None if clinical.is_malignant is None else int(clinical.is_malignant)
    return Record(
        source_id=name,
        image=File(path),
        patient=f"jsrt/{name}",
        view="PA",
        labels={"Nodule": int(has_nodule), "Malignant nodule": malignant if has_nodule else 0},
        masks=_masks(masks),
        boxes=(clinical.nodule,) if is_raw and clinical.nodule is not None else (),
        split=split,
        sex=clinical.sex,
        age_years=clinical.age_years,
        size=(RAW.height, RAW.width) if is_raw else None,
        spacing_mm=(SPACING_MM, SPACING_MM) if is_raw else None,
        raw=RAW if is_raw else None,
    )


def _read_mini(paths: list[str]) -> tuple[Record, ...]:
    """Read images of miniJSRT's two segmentation archives, with its split into train and test."""
    labels = {
        (match["part"].lower(), match["name"]): path
        for match, path in find_files(paths, r"Segmentation01/(?P<part>train|test)/label/(?P<name>[^/]+)\.png")
    }
    first = find_files(paths, r"Segmentation01/(?P<part>train|test)/org/(?P<name>[^/]+)\.png")
    second = find_files(paths, r"segmentation02/segmentation/org_(?P<part>train|test)/(?P<name>[^/]+)\.bmp")
    splits: dict[str, Split] = {"train": "train", "test": "test"}
    return tuple(
        Record(
            source_id=f"{archive}/{match['part'].lower()}/{match['name']}",
            image=File(path),
            patient=f"jsrt/{archive}/{match['part'].lower()}/{match['name']}",
            view="PA",
            labels={"Nodule": None, "Malignant nodule": None},
            masks={"lungs": MaskFiles(files=(File(label),))} if label is not None else {},
            split=splits[match["part"].lower()],
        )
        for archive, found in (("segmentation01", first), ("segmentation02", second))
        for match, path in found
        for label in [labels.get((match["part"].lower(), match["name"])) if archive == "segmentation01" else None]
    )


SOURCE = JsrtSource()
