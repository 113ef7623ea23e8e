"""Read from the DICOM headers of public datasets what their lists leave out: view, sex, age, spacing; nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shards.core.records import Sex
from shards.decode import UnreadableImageError
from shards.decode.dicom import DicomHeader, read_header
from shards.runtime.progress import progress

DICOM_SUFFIXES = (".dcm", ".dicom")
_OF_BREASTS = ("CC", "MLO", "ML", "LM", "LMO", "XCC", "XCCL", "XCCM", "FB", "SIO", "ISO")
_CODES = ("PA", "AP", "LL", "RL", "L", "RLD", "LLD", "RLO", "LLO", *_OF_BREASTS)
_OTHER_NAMES = {"LATERAL": "L", "LARGE LATERAL": "L"}
VIEWS = {code: code for code in _CODES} | _OTHER_NAMES
"""View Position → code: the standard's of radiographs (PS3.3 C.8.11.5) and of mammograms, and what some write."""
VIEWS_OF_CODES = {
    **{"399348003": "AP", "272479007": "PA", "399173006": "LL", "399198007": "RL", "399067008": "L"},
    **{"R-10206": "AP", "R-40888": "PA", "R-10236": "LL", "R-10232": "RL", "R-102CD": "L"},
    **{"399162004": "CC", "399368009": "MLO", "399260004": "ML", "399352003": "LM", "399099002": "LMO"},
    **{"399192008": "XCCL", "399101009": "XCCM", "399196006": "FB", "399188001": "SIO", "441555000": "ISO"},
    **{"R-10242": "CC", "R-10226": "MLO", "R-10224": "ML", "R-10228": "LM", "R-10230": "LMO"},
    **{"R-1024A": "XCCL", "R-1024B": "XCCM", "R-10244": "FB", "R-102D0": "SIO", "R-40AAA": "ISO"},
}
"""View Code Sequence → code: SNOMED's numbers, and those it had before (PS3.16 CID 4010 and 4014)."""
_LIMBS = (
    *("ANKLE", "ARM", "CALCANEUS", "CLAVICLE", "ELBOW", "EXTREMITY", "FEMUR", "FINGER", "FOOT", "FOREARM", "HAND"),
    *("HIP", "HUMERUS", "KNEE", "LEG", "RIB", "SCAPULA", "SHOULDER", "THUMB", "TOE", "WRIST"),
)
_TRUNK = ("ABDOMEN", "CSPINE", "HEAD", "LSPINE", "NECK", "PELVIS", "SKULL", "SPINE", "SSPINE", "TSPINE")
"""Words of Body Part Examined (PS3.16 L), with and without a left and a right; other words may be anybody's."""


@dataclass(frozen=True, kw_only=True)
class DicomFacts:
    """Facts of a header; None where it says nothing, or nothing that can be.

    Attributes:
        view: A short code, as PA.
        sex: F, M or O.
        age_years: 0 to 120.
        spacing_mm: (row, col) at the detector.
    """

    view: str | None = None
    sex: Sex | None = None
    age_years: float | None = None
    spacing_mm: tuple[float, float] | None = None


def read_all_facts(root: Path, images: Mapping[str, str]) -> dict[str, DicomFacts]:
    """Name → facts of the file, from name → path below `root`; with a bar, for thousands of headers take minutes."""
    items = progress(images.items(), total=len(images), description="reading headers", unit="image")
    return {name: read_facts(root / path) for name, path in items}


def read_facts(path: Path) -> DicomFacts:
    """Read the facts of a file's header; none for a file that is not DICOM, or damaged: decoding says so later."""
    if not path.name.lower().endswith(DICOM_SUFFIXES):
        return DicomFacts()
    try:
        header = read_header(path)
    except (OSError, UnreadableImageError):
        return DicomFacts()
    return DicomFacts(
        view=parse_view(header.view_position or ""),
        sex=header.sex,
        age_years=header.age_years,
        spacing_mm=header.spacing,
    )


def view_of(header: DicomHeader) -> str | None:
    """Name the view of an image: a code, behind body part and side where these tell images apart.

    As PA, R-MLO, HAND-L-PA. A chest is not named, nor is a breast or an eye; of an eye the side alone is enough. None
    if the view is not known.
    """
    view = _code_of(header)
    is_eye = (header.modality or "").upper() == "OP"
    part = "EYE" if is_eye else "BREAST" if view in _OF_BREASTS else (header.body_part or "").upper()
    side = (header.laterality or "").upper()
    if part not in (*_LIMBS, "BREAST", "EYE") or side not in ("L", "R"):
        side = ""
    if view is None and not (is_eye and side):
        return None
    named = part if part in (*_LIMBS, *_TRUNK) else ""
    return "-".join(word for word in (named, side, view) if word)


def body_part_of(header: DicomHeader) -> str | None:
    """Name the part of the body that an image shows, in a word of the standard; None if the header has no such word."""
    if (header.modality or "").upper() == "OP":
        return "EYE"
    if (header.modality or "").upper() == "MG" or _code_of(header) in _OF_BREASTS:
        return "BREAST"
    part = (header.body_part or "").strip().upper()
    return part if part in (*_LIMBS, *_TRUNK, "CHEST", "BREAST") else None


def _code_of(header: DicomHeader) -> str | None:
    return parse_view(header.view_position or "") or VIEWS_OF_CODES.get((header.view_code or "").upper())


def parse_view(value: str) -> str | None:
    """Parse a view's code; None for what is none."""
    return VIEWS.get(value.strip().upper())
