import gzip
import re
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.sources.check import check_source
from shards.sources.csv_tables import read_columns
from shards.sources.datasets.open_i import (
    FINDINGS,
    SOURCE,
    Report,
    choose_view,
    index_by_image,
    labels_of,
    parse_report,
    read_reports,
    read_views,
)
from shards.sources.registry import open_source
from tests.shards.sources.trees import by_id, problem, write_dicom, write_lines, write_pixels

REPORT = """<?xml version="1.0" encoding="utf-8"?>
<eCitation>
   <meta type="rr"/>
   <uId id="{uid}"/>
   <MedlineCitation><Article><Abstract>
      <AbstractText Label="INDICATION">SECRET</AbstractText>
      <AbstractText Label="FINDINGS">No opacity &amp; no SECRET.</AbstractText>
   </Abstract></Article></MedlineCitation>
   <MeSH>
{terms}
      <automatic>Opacity</automatic>
   </MeSH>
{images}
</eCitation>"""


def report(uid: str, images: tuple[str, ...], terms: tuple[str, ...]) -> str:
    return REPORT.format(
        uid=uid,
        terms="\n".join(f"      <major>{term}</major>" for term in terms),
        images="\n".join(
            f'   <parentImage id="{name}"><panel><url>/{name}.jpg</url></panel></parentImage>' for name in images
        ),
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A healthy report of two images, a sick one, one without images, one not indexed; an image of no report."""
    reports = {
        "1.xml": report("CXR1", ("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"), ("normal",)),
        "2.xml": report(
            "CXR2", ("CXR2_IM-0652-1001",), ("Opacity/lung/base/left", "Cardiomegaly/mild", "Aorta/tortuous")
        ),
        "3.xml": report("CXR3", (), ("normal",)),
        "10.xml": report("CXR10", ("CXR10_IM-0002-1001", "CXR10_IM-0002-2001"), ("No Indexing",)),
    }
    for name, text in reports.items():
        write_lines(tmp_path / "ecgen-radiology" / name, text)
    for name in ("CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001", "CXR2_IM-0652-1001", "CXR10_IM-0002-1001", "CXR9_IM-1"):
        write_pixels(tmp_path / f"{name}.png")
    return tmp_path


def test_open_i_passes_the_battery(root: Path) -> None:
    check_source(open_source("open-i"), root)


def test_records_hold_what_the_reports_say(root: Path) -> None:
    listing = SOURCE.read(root)
    records = by_id(listing)
    assert {name: {key for key, value in record.labels.items() if value} for name, record in records.items()} == {
        "CXR1_1_IM-0001-3001": {"normal"},
        "CXR1_1_IM-0001-4001": {"normal"},
        "CXR2_IM-0652-1001": {"Opacity", "Cardiomegaly"},
        "CXR10_IM-0002-1001": set(),
    }
    assert set(records["CXR2_IM-0652-1001"].labels.values()) == {0, 1}
    assert set(records["CXR10_IM-0002-1001"].labels.values()) == {None}
    assert records["CXR2_IM-0652-1001"].patient == "open-i/CXR2"
    assert records["CXR2_IM-0652-1001"].study == "CXR2"
    assert {record.view for record in records.values()} == {None}
    assert listing.patient_grouping == "patient"


def test_no_word_of_a_report_enters(root: Path) -> None:
    assert "SECRET" not in repr(SOURCE.read(root))
    assert "tortuous" not in repr(SOURCE.read(root))


def test_what_is_missing_is_counted(root: Path) -> None:
    warnings = "\n".join(SOURCE.read(root).warnings)
    assert "4 images found, 7,470 published" in warnings
    assert "3 patients found, 3,851 published" in warnings
    assert "1 images that reports name are not there" in warnings
    assert "1 images that no report names were left out" in warnings


def test_views_come_from_the_lists_where_they_are_there(root: Path) -> None:
    write_lines(
        root / "nlmcxr_dicom_metadata.csv",
        "imageid,Patient ID,View Position",
        "CXR1_IM-0001-3001,1,PA",
        "CXR1_IM-0001-4001,1,LATERAL",
        "CXR2_IM-0652-1001,2,PA",
        "CXR10_IM-0002-1001,10,",
    )
    views = {name: record.view for name, record in by_id(SOURCE.read(root)).items()}
    assert list(views.values()) == [None, "PA", "L", "PA"]
    write_lines(root / "nlmcxr_tsne_pa.csv", "imageid,tsne-view", "CXR2_IM-0652-1001,L", "CXR10_IM-0002-1001,PA")
    assert {name: record.view for name, record in by_id(SOURCE.read(root)).items()} == {
        **views,
        "CXR2_IM-0652-1001": "L",
        "CXR10_IM-0002-1001": "PA",
    }


@pytest.mark.parametrize(
    ("tag", "seen", "expected"),
    [
        *(("PA", None, "PA"), ("PA", "PA", "PA"), ("AP", "PA", "AP"), ("PA", "L", "L"), ("AP", "L", "L")),
        *(("LL", "L", "LL"), ("RL", None, "RL"), (None, "L", "L"), (None, "PA", "PA"), (None, None, None)),
        ("LL", "PA", "LL"),
    ],
)
def test_a_lateral_by_eye_is_no_frontal(tag: str | None, seen: str | None, expected: str | None) -> None:
    assert choose_view(tag, seen) == expected


def test_dicom_files_stand_for_the_same_images(root: Path) -> None:
    for path in root.glob("*.png"):
        path.unlink()
    write_dicom(root / "1/1_IM-0001-3001.dcm", ViewPosition="PA", PatientBirthDate="19600101", StudyDate="20111122")
    write_dicom(root / "2/2_IM-0652-1001.dcm", PixelSpacing=[0.15, 0.15])
    records = by_id(SOURCE.read(root))
    assert list(records) == ["CXR1_1_IM-0001-3001", "CXR2_IM-0652-1001"]
    assert (records["CXR1_1_IM-0001-3001"].view, records["CXR1_1_IM-0001-3001"].age_years) == ("PA", None)
    assert records["CXR2_IM-0652-1001"].spacing_mm == (0.15, 0.15)
    write_pixels(root / "CXR2_IM-0652-1001.png")
    assert "are the same image" in problem(lambda: SOURCE.read(root))


BOMB = """<?xml version="1.0"?>
<!DOCTYPE eCitation [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;">]>
<eCitation><uId id="CXR1"/><MeSH><major>&c;</major></MeSH></eCitation>"""
OUTSIDE = """<!DOCTYPE eCitation [<!ENTITY a SYSTEM "file:///etc/passwd">]>
<eCitation><uId id="CXR1"/><MeSH><major>&a;</major></MeSH></eCitation>"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BOMB, "a document type"),
        (OUTSIDE, "a document type"),
        ('<!DOCTYPE eCitation SYSTEM "http://127.0.0.1/x.dtd"><eCitation/>', "a document type"),
        ("<eCitation><uId id='CXR1'/><MeSH><major>&c;</major></MeSH></eCitation>", "not well-formed"),
        ("<eCitation><uId id='CXR1'/>", "not well-formed"),
        ("", "not well-formed"),
        ('<?xml version="1.0" encoding="klingon"?><eCitation><uId id="CXR1"/></eCitation>', "not well-formed"),
        ("<eCitation><other/></eCitation>", "no id"),
        ("<other><uId id='CXR1'/></other>", "no id"),
    ],
)
def test_what_is_no_report_is_refused(text: str, expected: str) -> None:
    message = problem(lambda: parse_report(text.encode(), "1.xml"))
    assert message.startswith("1.xml: ")
    assert expected in message


def test_a_report_of_many_bytes_is_not_read(tmp_path: Path) -> None:
    write_lines(tmp_path / "ecgen-radiology/1.xml", report("CXR1", (), ()) + " " * 2**20)
    assert "more than 1,048,576 bytes" in problem(lambda: read_reports(tmp_path, ["ecgen-radiology/1.xml"]))


def test_reports_that_name_one_image_are_refused(root: Path) -> None:
    write_lines(root / "ecgen-radiology/4.xml", report("CXR4", ("CXR2_IM-0652-1001",), ("normal",)))
    assert "two reports name one image" in problem(lambda: SOURCE.read(root))


def test_a_term_counts_by_its_first_part_and_in_full() -> None:
    def present(*terms: str) -> set[str]:
        found = parse_report(report("CXR1", (), terms).encode(), "1.xml")
        return {name for name, value in labels_of(found.terms).items() if value}

    assert present("Fractures, Bone/ribs/right", "Nodules", "lung/Opacity") == {"Fractures, Bone"}
    assert present("Pulmonary Emphysema") == {"Pulmonary Emphysema"}
    assert set(labels_of(frozenset()).values()) == {None}


def test_another_folder_is_told_from_the_dataset(root: Path, tmp_path: Path) -> None:
    for path in root.glob("*.png"):
        path.unlink()
    assert "NLMCXR_png.tgz" in problem(lambda: SOURCE.read(root))
    assert "no reports; expected ecgen-radiology/<number>.xml" in problem(lambda: SOURCE.read(root / "ecgen-radiology"))


@pytest.fixture(scope="module")
def texts(published: Callable[[str], Path]) -> list[bytes]:
    """The real reports."""
    with tarfile.open(published("NLMCXR_reports.tgz")) as archive:
        files = [archive.extractfile(member) for member in archive if member.name.endswith(".xml")]
        return [file.read() for file in files if file is not None]


@pytest.fixture(scope="module")
def reports(texts: list[bytes]) -> list[Report]:
    return [parse_report(text, f"report {number}") for number, text in enumerate(texts)]


@pytest.fixture(scope="module")
def images(reports: list[Report]) -> set[str]:
    return {name for one in reports for name in one.images}


@pytest.fixture(scope="module")
def lists(published: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real lists of views, unpacked."""
    folder = tmp_path_factory.mktemp("open-i")
    for name in ("nlmcxr_dicom_metadata.csv", "nlmcxr_tsne_pa.csv"):
        (folder / name).write_bytes(gzip.decompress(published(f"{name}.gz").read_bytes()))
    return folder


def test_the_real_reports_count_as_published(reports: list[Report], images: set[str]) -> None:
    num_images = Counter(len(one.images) for one in reports)
    assert (len(reports), num_images) == (3_955, {0: 104, 1: 446, 2: 3_208, 3: 181, 4: 15, 5: 1})
    with_images = [one for one in reports if one.images]
    assert len(with_images) == len({one.report_id for one in with_images}) == SOURCE.info.num_patients == 3_851
    assert len(images) == SOURCE.info.num_images == 7_470
    labels = [labels_of(one.terms) for one in with_images]
    assert sum(found["normal"] == 1 for found in labels) == 1_379
    assert sum(found["normal"] is None for found in labels) == 92


def test_the_real_labels_are_what_a_plain_search_finds(texts: list[bytes], reports: list[Report]) -> None:
    expected: Counter[str] = Counter()
    for text in texts:
        if b"<parentImage" in text and b"<major>No Indexing" not in text:
            heads = {term.split(b"/")[0].split(b"<")[0].strip().decode() for term in text.split(b"<major>")[1:]}
            expected.update(heads & set(FINDINGS))
    found: Counter[str] = Counter()
    for one in reports:
        if one.images:
            found.update(name for name, value in labels_of(one.terms).items() if value)
    assert found == expected
    assert min(found[name] for name in FINDINGS) >= 15
    assert (found["Opacity"], found["Cardiomegaly"], found["Pleural Effusion"]) == (432, 345, 149)


def test_the_real_views_count_as_published(lists: Path, images: set[str]) -> None:
    tags = read_views(lists / "nlmcxr_dicom_metadata.csv", "View Position")
    assert Counter(tags.values()) == {"PA": 3_593, "LL": 717, "AP": 423, "L": 119 + 2, "RL": 29}
    assert 7_469 - len(tags) == 2_586
    seen = read_views(lists / "nlmcxr_tsne_pa.csv", "tsne-view")
    assert Counter(seen.values()) == {"PA": 3_267, "L": 584}
    assert seen.keys() <= images
    assert tags.keys() <= images, "the two names that the reports write otherwise are theirs"


def test_the_real_headers_count_as_published(lists: Path) -> None:
    """Why the decoder inverts once, and why no header is trusted to be free of persons."""
    names = ("Photometric Interpretation", "Presentation LUT Shape", "Bits Stored", "Burned In Annotation")
    sizes, personal = ("Rows", "Columns"), ("Patient's Name", "Patient's Birth Date", "Accession Number", "Study Date")
    path = lists / "nlmcxr_dicom_metadata.csv"
    rows = list(read_columns(path, (*names, "Private Creator", *sizes, *personal), "the real file"))
    assert Counter(row[:2] for row in rows) == {
        ("MONOCHROME1", "INVERSE"): 572,
        ("MONOCHROME1", ""): 3_012,
        ("MONOCHROME2", "IDENTITY"): 3_772,
        ("MONOCHROME2", ""): 3_885 - 3_772,
    }
    assert Counter(row[2] for row in rows) == {"12": 5_906, "15": 1_476, "14": 26, "10": 61}
    assert Counter(row[3] for row in rows) == {"NO": 4_073, "": 3_396}
    assert sum(row[4] != "" for row in rows) == 6_989
    assert max(float(size) for row in rows for size in row[5:7]) == 4_248
    assert all(all(row[7:]) for row in rows)


def test_the_real_dicom_names_are_the_reports(lists: Path, images: set[str]) -> None:
    paths = re.findall(r"\./[\w-]+\.dcm", (lists / "nlmcxr_dicom_metadata.csv").read_text(encoding="utf-8"))
    index = index_by_image(lists, paths)
    assert (len(paths), len(index)) == (7_469, 7_469)
    assert (len(images - index.keys()), len(index.keys() - images)) == (1, 0)


@pytest.mark.slow
def test_the_whole_collection_is_read_over_placeholders(
    published: Callable[[str], Path], images: set[str], tmp_path: Path
) -> None:
    with tarfile.open(published("NLMCXR_reports.tgz")) as archive:
        archive.extractall(tmp_path, filter="data")
    for name in images:
        (tmp_path / f"{name}.png").touch()
    check_source(SOURCE, tmp_path)
    listing = SOURCE.read(tmp_path)
    assert (len(listing.records), listing.warnings) == (7_470, ())
