"""What the DICOM headers of public datasets say that their lists leave out: view, sex, age, spacing; nothing else."""

import math
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset

from shards.records import Sex
from shards.sources.image_index import DICOM_SUFFIXES

_TAGS = ["ViewPosition", "PatientSex", "PatientAge", "ImagerPixelSpacing", "PixelSpacing"]
_VIEWS = {"PA": "PA", "AP": "AP", "LL": "LL", "RL": "RL", "L": "L", "LATERAL": "L", "LARGE LATERAL": "L"}
_SEXES: dict[str, Sex] = {"F": "F", "M": "M", "O": "O"}
_AGE = re.compile(r"(\d{1,3})([YMWD]?)")
_PER_YEAR = {"": 1.0, "Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}
_MAX_AGE_YEARS = 120


@dataclass(frozen=True)
class DicomFacts:
    """What a header says; None where it says nothing, or nothing that can be.

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


def read_facts(path: Path) -> DicomFacts:
    """The facts of a file's header; none for a file that is not DICOM, or damaged: decoding says so later."""
    if not path.name.lower().endswith(DICOM_SUFFIXES):
        return DicomFacts()
    try:
        # Remarks on values that break the standard, as RSNA's ages do, would repeat them: as warnings and in the log.
        with warnings.catch_warnings(), disable_value_validation():
            warnings.simplefilter("ignore")
            header = dcmread(path, stop_before_pixels=True, specific_tags=_TAGS)
            return DicomFacts(
                parse_view(str(header.get("ViewPosition") or "")),
                parse_sex(str(header.get("PatientSex") or "")),
                parse_age(str(header.get("PatientAge") or "")),
                _spacing(header),
            )
    # The parser lets nearly any error through on damaged files.
    except Exception:
        return DicomFacts()


def parse_view(value: str) -> str | None:
    """A view's code; None for what is none."""
    return _VIEWS.get(value.strip().upper())


def parse_sex(value: str) -> Sex | None:
    """F, M or O; None for what is none."""
    return _SEXES.get(value.strip().upper())


def parse_age(value: str) -> float | None:
    """Years from `045Y`, `006M` or a bare number of years; None for what is none, or more than a life."""
    match = _AGE.fullmatch(value.strip())
    if match is None:
        return None
    years = int(match[1]) / _PER_YEAR[match[2]]
    return years if years <= _MAX_AGE_YEARS else None


def _spacing(header: Dataset) -> tuple[float, float] | None:
    try:
        row_mm, col_mm = map(float, header.get("ImagerPixelSpacing") or header.get("PixelSpacing"))
    # A value that is no number is found when it is asked for; the other facts hold all the same.
    except (TypeError, ValueError, OverflowError):
        return None
    return (row_mm, col_mm) if 0 < row_mm < math.inf and 0 < col_mm < math.inf else None
