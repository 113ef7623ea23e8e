"""Open-I, the Indiana University chest X-ray collection: frontal and lateral radiographs with indexed reports.

Citation: D. Demner-Fushman et al., "Preparing a collection of radiology examinations for distribution and retrieval",
Journal of the American Medical Informatics Association 23(2), 2016, 304-310.
Licence: CC BY-NC-ND 4.0, as the reports say.
Pages: https://openi.nlm.nih.gov/faq

Labels are the major terms that indexers gave a report, out of a fixed vocabulary (`FINDINGS`): 1 where a term begins
with the name (`Opacity/lung/base/left` is an Opacity), 0 where the report was indexed without it, unknown where it was
not (`No Indexing`). A report's terms hold for each of its images. Nothing else of a report is read: its text is free
text about a person.

Layout:
    ecgen-radiology/<number>.xml (NLMCXR_reports.tgz)
    <image>.png at any depth (NLMCXR_png.tgz), or <image>.dcm (NLMCXR_dcm.tgz)
    nlmcxr_dicom_metadata.csv, nlmcxr_tsne_pa.csv (optional: views; from torchxrayvision; .gz as well)

What is easily got wrong:
- An image belongs to the report that names it (`parentImage`), not to the number in its file name; 104 name none.
- The first report's images have a number more than their DICOM files: CXR1_1_IM-0001-3001 is 1_IM-0001-3001.dcm.
- A report is the best proxy of a patient; a person may have several.
- Views: ViewPosition in the DICOM metadata is missing for a third and says PA of laterals. Where torchxrayvision's
  nlmcxr_tsne_pa.csv (told by the pictures, one a report) calls an image a lateral, it is one; its PA only fills gaps.
- Dates in the DICOM headers are surrogates and no age is stated: ages are unknown.
- Reports are XML: one with a document type, which could define entities that expand without bound, is refused.
"""

import xml.parsers.expat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shards.core.errors import SourceError
from shards.core.records import File, Label, Record
from shards.sources.base import Listing, SourceInfo, layout_in
from shards.sources.csv_tables import read_columns
from shards.sources.dicom_facts import DicomFacts, parse_view, read_all_facts
from shards.sources.files import find_file, find_files, index_files, list_files
from shards.sources.listing import count_warnings, number_warnings, wrong_layout

_LAYOUT = layout_in(__doc__)
KIND = "open-i"
FINDINGS = (
    "normal",
    "Airspace Disease",
    "Atherosclerosis",
    "Calcified Granuloma",
    "Calcinosis",
    "Cardiomegaly",
    "Catheters, Indwelling",
    "Cicatrix",
    "Consolidation",
    "Diaphragmatic Eventration",
    "Emphysema",
    "Fractures, Bone",
    "Granuloma",
    "Granulomatous Disease",
    "Hernia, Hiatal",
    "Implanted Medical Device",
    "Infiltrate",
    "Kyphosis",
    "Mass",
    "Nodule",
    "Opacity",
    "Osteophyte",
    "Pleural Effusion",
    "Pneumonia",
    "Pneumothorax",
    "Pulmonary Atelectasis",
    "Pulmonary Congestion",
    "Pulmonary Disease, Chronic Obstructive",
    "Pulmonary Edema",
    "Pulmonary Emphysema",
    "Pulmonary Fibrosis",
    "Scoliosis",
    "Spondylosis",
    "Surgical Instruments",
)
"""The major terms that are findings or devices and not places, of 15 reports or more."""
NOT_INDEXED = "No Indexing"

_ALIASES = {"CXR1_IM-0001-3001": "CXR1_1_IM-0001-3001", "CXR1_IM-0001-4001": "CXR1_1_IM-0001-4001"}
_LATERAL = "L"
_REPORT = r"ecgen-radiology/[^/]+\.xml"
_IMAGE = r"(?P<name>[^/]+)\.(?:png|dcm|dicom)"
_TAGS = r"nlmcxr_dicom_metadata\.csv(?:\.gz)?"
_SEEN = r"nlmcxr_tsne_pa\.csv(?:\.gz)?"
_MAX_REPORT_BYTES = 2**20
_ID_PATH = ["eCitation", "uId"]
_IMAGE_PATH = ["eCitation", "parentImage"]
_TERM_PATH = ["eCitation", "MeSH", "major"]


@dataclass(frozen=True)
class Report:
    """The parts of a report that are read.

    Attributes:
        report_id: Id of the report, as CXR1000.
        images: Names of its images, without .png.
        terms: First parts of its major terms.
    """

    report_id: str
    images: tuple[str, ...]
    terms: frozenset[str]


class OpenISource:
    """Reads Open-I."""

    info = SourceInfo(
        name=KIND,
        title="Open-I (Indiana University chest X-rays)",
        modality="chest X-ray",
        num_images=7_470,
        num_patients=3_851,
        tasks=("classification",),
        licence="CC BY-NC-ND 4.0",
        is_redistributable=False,
        citation="D. Demner-Fushman et al., Preparing a collection of radiology examinations for distribution and "
        "retrieval, Journal of the American Medical Informatics Association 23(2), 2016",
        pages=("https://openi.nlm.nih.gov/faq",),
        layout=_LAYOUT,
    )

    def read(self, root: Path) -> Listing:
        """List all images that a report names.

        Raises:
            SourceError: reports are missing or not what they should be; no image is there.
        """
        paths = list_files(root)
        reports = read_reports(root, paths)
        index = index_by_image(root, paths)
        names = sorted(index.keys() & reports.keys())
        if not names:
            raise wrong_layout(self.info, root, "no image of a report is there")
        tags = read_views(find_file(root, paths, _TAGS), "View Position")
        seen = read_views(find_file(root, paths, _SEEN), "tsne-view")
        facts = read_all_facts(root, {name: index[name] for name in names})
        records = tuple(
            _record(name, index[name], reports[name], found, tags.get(name), seen.get(name))
            for name, found in facts.items()
        )
        counts = {
            "images that reports name are not there": len(reports) - len(names),
            "images that no report names were left out": len(index) - len(names),
        }
        return Listing(
            records=records,
            patient_grouping="patient",
            warnings=(*count_warnings(self.info, records), *number_warnings(self.info, counts)),
        )


def read_reports(root: Path, paths: Iterable[str]) -> dict[str, Report]:
    """Read the reports: image → the report that names it.

    Raises:
        SourceError: there are no reports, one is not a report, or two name one image.
    """
    found = [root / path for _, path in find_files(paths, _REPORT)]
    if not found:
        raise SourceError(f"{root}: no reports; expected ecgen-radiology/<number>.xml, from NLMCXR_reports.tgz")
    reports: dict[str, Report] = {}
    for report in map(_read_report, found):
        for image in report.images:
            if image in reports:
                raise SourceError(
                    f"{root}: two reports name one image of {report.report_id}; expected every image once"
                )
            reports[image] = report
    return reports


def _read_report(path: Path) -> Report:
    if path.stat().st_size > _MAX_REPORT_BYTES:
        raise SourceError(f"{path}: a report of more than {_MAX_REPORT_BYTES:,} bytes; expected one of Open-I's")
    return parse_report(path.read_bytes(), str(path))


def parse_report(data: bytes, where: str) -> Report:
    """Parse id, images and major terms of a report; its text is passed over.

    Raises:
        SourceError: it is no well-formed XML, has a document type, or has no id.
    """
    found = _Handler(where)
    parser = xml.parsers.expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = found.refuse
    parser.StartElementHandler = found.start
    parser.EndElementHandler = found.end
    parser.CharacterDataHandler = found.text
    try:
        parser.Parse(data, True)
    # The last two: an encoding that Python does not know.
    except (xml.parsers.expat.ExpatError, LookupError, ValueError):
        raise SourceError(f"{where}: not well-formed XML; expected a report of Open-I") from None
    if not found.report_id:
        raise SourceError(f"{where}: no id (eCitation/uId); expected a report of Open-I")
    heads = frozenset(term.split("/")[0].strip() for term in found.terms)
    return Report(found.report_id, tuple(found.images), heads - {""})


class _Handler:
    """Keeps the three things that are read of a report, and where in it the parser is."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._open: list[str] = []
        self.report_id = ""
        self.images: list[str] = []
        self.terms: list[str] = []

    def refuse(self, *_: object) -> None:
        raise SourceError(f"{self._where}: a document type, which reports of Open-I do not have; it is not read")

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        self._open.append(name)
        if self._open == _ID_PATH:
            self.report_id = attributes.get("id", "").strip()
        elif self._open == _IMAGE_PATH:
            self.images += [name] if (name := attributes.get("id", "").strip()) else []
        elif self._open == _TERM_PATH:
            self.terms.append("")

    def end(self, _: str) -> None:
        self._open.pop()

    def text(self, text: str) -> None:
        if self._open == _TERM_PATH:
            self.terms[-1] += text


def labels_of(terms: frozenset[str]) -> dict[str, Label]:
    """Make one label a finding of the vocabulary; all unknown where the report was not indexed."""
    if not terms or NOT_INDEXED in terms:
        return dict.fromkeys(FINDINGS)
    return {finding: int(finding in terms) for finding in FINDINGS}


def index_by_image(root: Path, paths: Iterable[str]) -> dict[str, str]:
    """Map each image, as the reports name it, to its path; a DICOM file's name lacks the `CXR` in front.

    Raises:
        SourceError: two files are the same image.
    """
    index: dict[str, str] = {}
    for name, path in index_files(root, paths, _IMAGE).items():
        image = name if name.startswith("CXR") else f"CXR{name}"
        image = _ALIASES.get(image, image)
        if index.setdefault(image, path) != path:
            raise SourceError(f"{root}: {index[image]} and {path} are the same image; keep the PNG or the DICOM files")
    return index


def read_views(path: Path | None, column: str) -> dict[str, str]:
    """Read views from one of torchxrayvision's lists: image → view; nothing where it is not there, or says none.

    Raises:
        SourceError: it is no CSV file with these columns.
    """
    rows = read_columns(path, ("imageid", column), "torchxrayvision's list of views") if path else ()
    views = {image: parse_view(view) for image, view in rows}
    return {_ALIASES.get(image, image): view for image, view in views.items() if view is not None}


def choose_view(tag: str | None, seen: str | None) -> str | None:
    """Choose the tag's view, unless a look at the image says lateral, or there is no tag."""
    if tag is None or (seen == _LATERAL and tag in ("PA", "AP")):
        return seen
    return tag


def _record(name: str, path: str, report: Report, facts: DicomFacts, tag: str | None, seen: str | None) -> Record:
    return Record(
        source_id=name,
        image=File(path),
        patient=f"{KIND}/{report.report_id}",
        study=report.report_id,
        view=choose_view(tag or facts.view, seen),
        labels=labels_of(report.terms),
        sex=facts.sex,
        spacing_mm=facts.spacing_mm,
    )


SOURCE = OpenISource()
