"""What the DICOM headers of public datasets say that their lists leave out: view, sex, age, spacing; nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shards.decode import UnreadableImageError
from shards.decode.dicom import read_header
from shards.progress import progress
from shards.records import Sex

DICOM_SUFFIXES = (".dcm", ".dicom")
_CODES = ("PA", "AP", "LL", "RL", "L", "RLD", "LLD", "RLO", "LLO", "CC", "MLO", "ML", "LM", "LMO", "XCCL", "XCCM")
_OTHER_NAMES = {"LATERAL": "L", "LARGE LATERAL": "L"}
VIEWS = {code: code for code in _CODES} | _OTHER_NAMES
"""View Position → code: the standard's of radiographs (PS3.3 C.8.11.5) and of mammograms, and what some write."""


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


def read_all_facts(root: Path, images: Mapping[str, str]) -> dict[str, DicomFacts]:
    """Name → facts of the file, from name → path below `root`; with a bar, for thousands of headers take minutes."""
    items = progress(images.items(), total=len(images), description="reading headers", unit="image")
    return {name: read_facts(root / path) for name, path in items}


def read_facts(path: Path) -> DicomFacts:
    """The facts of a file's header; none for a file that is not DICOM, or damaged: decoding says so later."""
    if not path.name.lower().endswith(DICOM_SUFFIXES):
        return DicomFacts()
    try:
        header = read_header(path)
    except (OSError, UnreadableImageError):
        return DicomFacts()
    return DicomFacts(parse_view(header.view_position or ""), header.sex, header.age_years, header.spacing)


def parse_view(value: str) -> str | None:
    """A view's code; None for what is none."""
    return VIEWS.get(value.strip().upper())
