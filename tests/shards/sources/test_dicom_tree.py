import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.fileset import FileSet
from pydicom.pixels import compress
from pydicom.uid import (
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    GrayscaleSoftcopyPresentationStateStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from shards.__main__ import build_parser
from shards.cli import run_command
from shards.core.errors import SourceError
from shards.core.records import Record
from shards.sources.check import check_source
from shards.sources.datasets import dicom_tree
from shards.sources.datasets.dicom_tree import SOURCE, DicomTreeSource
from shards.sources.patients import parse_patient_rule
from tests.shards.decode.dicom_files import data_of, dataset_of
from tests.shards.sources.trees import close_folder
from tests.support.datasets import write_csv

PIXELS = np.arange(48 * 40, dtype=np.uint16).reshape(48, 40)
SECRETS = ("Doe", "DOE", "Jane", "MRN", "1.2.3.")


def radiograph(patient: str = "MRN1", study: str = "1.2.3.1", **tags: Any) -> Dataset:
    uid = tags.pop("SOPInstanceUID", None) or generate_uid("1.2.3.9.")
    given = {"PatientID": patient, "StudyInstanceUID": study, "Modality": "CR", "SOPInstanceUID": uid, **tags}
    kept = {name: value for name, value in given.items() if value is not None}
    dataset = dataset_of(PIXELS, **kept)
    dataset.file_meta.MediaStorageSOPInstanceUID = uid
    return dataset


def write(path: Path, dataset: Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data_of(dataset))
    return path


def report() -> Dataset:
    dataset = radiograph(Modality="SR")
    for name in ("PixelData", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"):
        del dataset[name]
    return dataset


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two patients: one with two studies, as a PACS exports them, and one whose files have no extension."""
    tree = tmp_path / "export"
    write(
        tree / "DICOM" / "00000001" / "00000001" / "IM000001",
        radiograph(SOPInstanceUID="1.2.3.9.1", ViewPosition="PA", PatientSex="F", PatientAge="064Y"),
    )
    write(
        tree / "DICOM" / "00000001" / "00000001" / "IM000002",
        radiograph(SOPInstanceUID="1.2.3.9.2", ViewPosition="LL", ImagerPixelSpacing=[0.2, 0.1]),
    )
    write(tree / "Doe^Jane" / "a.dcm", radiograph(study="1.2.3.2", SOPInstanceUID="1.2.3.9.3", Modality="DX"))
    write(tree / "x", radiograph("MRN2", "1.2.3.3", SOPInstanceUID="1.2.3.9.4", ViewPosition="DR DOE"))
    return tree


def read(root: Path) -> tuple[dict[str, Record], list[str]]:
    """Records by path, and what was left out or doubted, without the warnings that every tree of these tests gets."""
    listing = SOURCE.read(root)
    warnings = [text.removeprefix("dicom: ") for text in listing.warnings]
    assert not any(secret in text for text in warnings for secret in SECRETS)
    usual = ("images do not say whether text", "images without a view", "Patient ID for all images")
    return (
        {record.image.path: record for record in listing.records},
        [text for text in warnings if not any(word in text for word in usual)],
    )


def left_out(root: Path, *datasets: Dataset) -> list[str]:
    """What is said when these files join the tree; its own four images are there whatever joins."""
    for number, dataset in enumerate(datasets):
        write(root / f"joined {number}", dataset)
    records, warnings = read(root)
    assert {"1.2.3.9.1", "1.2.3.9.2", "1.2.3.9.3", "1.2.3.9.4"} <= {record.source_id for record in records.values()}
    return warnings


def test_a_tree_passes_the_battery(root: Path) -> None:
    check_source(SOURCE, root)


def test_headers_give_patient_study_view_sex_age_and_spacing(root: Path) -> None:
    records, warnings = read(root)
    assert warnings == []
    first, second, third, fourth = (records[path] for path in sorted(records))
    assert [record.source_id for record in (first, second, third, fourth)] == [f"1.2.3.9.{n}" for n in range(1, 5)]
    assert [record.patient for record in (first, second, third, fourth)] == ["MRN1", "MRN1", "MRN1", "MRN2"]
    assert [record.study for record in (first, second, third, fourth)] == [f"1.2.3.{n}" for n in (1, 1, 2, 3)]
    assert [record.view for record in (first, second, third, fourth)] == ["PA", "LL", None, None]
    assert (first.sex, first.age_years, first.spacing_mm) == ("F", 64.0, None)
    assert (second.sex, second.age_years, second.spacing_mm) == (None, None, (0.2, 0.1))
    assert first.labels == {}


@pytest.mark.parametrize(
    ("written", "charset"),
    [
        ("J\u00f6rg".encode(), "ISO_IR 192"),
        ("J\u00f6rg".encode(), None),
        ("J\u00f6rg".encode(), "ISO_IR 100"),
        ("Jo\u0308rg".encode(), "ISO_IR 192"),
        ("Jo\u0308rg".encode(), None),
        ("J\u00f6rg".encode("latin-1"), "ISO_IR 100"),
        ("J\u00f6rg".encode("latin-1"), None),
    ],
)
def test_one_patient_id_is_one_text_however_it_is_encoded(written: bytes, charset: str | None, root: Path) -> None:
    placeholder = "X" * len(written)
    data = data_of(radiograph(placeholder, SpecificCharacterSet=charset, IssuerOfPatientID=placeholder))
    assert data.count(placeholder.encode()) == 2
    (root / "a").write_bytes(data.replace(placeholder.encode(), written))
    records, warnings = read(root)
    assert records["a"].patient == "J\u00f6rg"
    is_silent = charset != "ISO_IR 192" and len(written) > len("Jörg")
    assert any("in UTF-8 and do not say so" in text for text in warnings) == is_silent
    assert any(text.startswith("1 Patient IDs have letters beyond ASCII") for text in warnings)

    # A copy in another encoding is a copy and no contradiction.
    said = radiograph(
        "J\u00f6rg",
        SpecificCharacterSet="ISO_IR 192",
        IssuerOfPatientID="J\u00f6rg",
        SOPInstanceUID=records["a"].source_id,
    )
    write(root / "b", said)
    assert f"left out 1 {dicom_tree.COPY}" in read(root)[1]


def test_many_processes_find_what_one_does(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "notes.txt").write_text("x")
    one = SOURCE.read(root)
    monkeypatch.setattr(dicom_tree, "FEW_FILES", 1)
    assert SOURCE.read(root) == one


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        (report(), dicom_tree.NO_IMAGE),
        (radiograph(Modality="PR", SOPClassUID=GrayscaleSoftcopyPresentationStateStorage), dicom_tree.OTHER_MODALITY),
        (radiograph(Modality="CT"), dicom_tree.OTHER_MODALITY),
        (radiograph(Modality=None), dicom_tree.OTHER_MODALITY),
        (radiograph(SOPClassUID=SecondaryCaptureImageStorage), dicom_tree.CAPTURE),
        (radiograph(SOPClassUID=SecondaryCaptureImageStorage, ConversionType="WSD"), dicom_tree.CAPTURE),
        (radiograph(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]), dicom_tree.CAPTURE),
        (radiograph(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), dicom_tree.CAPTURE),
        (radiograph(NumberOfFrames=2), dicom_tree.FRAMES),
        (radiograph(BurnedInAnnotation="YES"), dicom_tree.BURNED_IN),
        (radiograph(patient=" "), dicom_tree.NO_PATIENT),
        (radiograph(PatientID=None), dicom_tree.NO_PATIENT),
    ],
)
def test_what_is_no_radiograph_of_a_known_patient_is_left_out_and_counted(
    dataset: Dataset, reason: str, root: Path
) -> None:
    assert left_out(root, dataset) == [f"left out 1 {reason}"]


@pytest.mark.parametrize(
    "tags",
    [{"Modality": modality} for modality in ("CR", "DX", "DR", "RG", "PX", "IO", "MG", "OP")]
    + [
        {"SOPClassUID": SecondaryCaptureImageStorage, "ConversionType": "DF"},
        {"ConversionType": "WSD"},
        {"ConversionType": "WSD", "ImageType": ["ORIGINAL", "PRIMARY"]},
        {
            "ConversionType": "WSD",
            "Modality": "MG",
            "ImageType": ["ORIGINAL", "PRIMARY", ""],
            "SOPClassUID": DigitalMammographyXRayImageStorageForPresentation,
        },
        {"ImageType": ["DERIVED", "PRIMARY", "POST_PROCESSED"]},
        {"BurnedInAnnotation": "NO"},
        {"NumberOfFrames": 1},
    ],
)
def test_radiographs_and_fundus_photographs_are_kept(tags: dict[str, Any], root: Path) -> None:
    assert left_out(root, radiograph(**tags)) == []
    assert len(read(root)[0]) == 5


def test_a_file_without_an_instance_uid_is_left_out(root: Path) -> None:
    dataset = radiograph()
    path = write(root / "joined", dataset)
    path.write_bytes(path.read_bytes().replace(b"\x08\x00\x18\x00UI", b"\x08\x00\x19\x00UI"))
    assert read(root)[1] == [f"left out 1 {dicom_tree.NO_UID}"]


def test_files_that_are_no_dicom_or_damaged_are_counted(root: Path) -> None:
    (root / "readme.txt").write_text("Doe")
    (root / "empty.dcm").touch()
    whole = write(root / "damaged", radiograph()).read_bytes()
    (root / "cut off").write_bytes(whole[:340])
    (root / "damaged").write_bytes(whole.replace(b"\x28\x00\x10\x00US\x02", b"\x28\x00\x10\x00US\x03"))
    (root / ".hidden").write_bytes(whole)
    for name in ("__MACOSX", "$RECYCLE.BIN", "@eaDir"):
        (root / name).mkdir()
        (root / name / "a").write_bytes(whole)
    (root / "link out").symlink_to(write(root.parent / "outside", radiograph()))
    (root / "link within").symlink_to(root / "DICOM")
    records, warnings = read(root)
    assert len(records) == 4
    numbers = {dicom_tree.OTHER_FILE: 2, dicom_tree.LINKED: 2, dicom_tree.NO_IMAGE: 1, dicom_tree.DAMAGED: 1}
    assert sorted(warnings) == sorted(f"left out {number} {reason}" for reason, number in numbers.items())


def test_a_folder_that_cannot_be_listed_is_counted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "in" / "closed").mkdir(parents=True)
    close_folder(root / "in" / "closed", monkeypatch)
    listing = SOURCE.read(root)
    assert f"dicom: left out 1 {dicom_tree.UNLISTED}" in listing.warnings
    assert listing.left_out == {"in/closed": dicom_tree.UNLISTED}


def test_a_pipe_is_not_waited_for(root: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "link").symlink_to("pipe")
    assert read(root)[1] == [f"left out 1 {dicom_tree.LINKED}"]


def test_links_that_lead_out_or_in_a_circle_are_left_out_and_counted(root: Path) -> None:
    (root / "Doe.dcm").symlink_to("Doe.dcm")
    (root / "out.dcm").symlink_to(write(root.parent / "elsewhere.dcm", radiograph()))
    listing = SOURCE.read(root)
    assert len(listing.records) == 4
    assert f"dicom: left out 2 {dicom_tree.LINKED}" in listing.warnings


def test_a_name_that_is_not_utf8_is_left_out_and_counted(root: Path) -> None:
    latin = Path(os.fsdecode(os.fsencode(root) + b"/M\xfcller"))
    latin.write_bytes(data_of(radiograph()))
    assert read(root)[1] == [f"left out 1 {dicom_tree.BAD_NAME}"]


def test_the_directory_of_a_cd_is_passed_over(root: Path) -> None:
    files = FileSet()
    for path in root.rglob("*"):
        if path.is_file():
            dataset = dcmread(path)
            dataset.StudyDate, dataset.StudyTime, dataset.SeriesInstanceUID = "20200101", "120000", generate_uid()
            dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber, dataset.AccessionNumber = "1", 1, 1, "1"
            files.add(dataset)
    files.write(root.parent / "cd")
    files._stage["t"].cleanup()
    (root.parent / "cd" / "copy of the directory").write_bytes((root.parent / "cd" / "DICOMDIR").read_bytes())
    records, warnings = read(root.parent / "cd")
    assert sorted(record.source_id for record in records.values()) == [f"1.2.3.9.{n}" for n in range(1, 5)]
    assert warnings == [f"left out 1 {dicom_tree.NO_IMAGE}"]


def test_every_file_that_is_left_out_is_listed_with_its_reason(root: Path) -> None:
    (root / "readme.txt").write_text("Doe")
    write(root / "shot", radiograph(SOPClassUID=SecondaryCaptureImageStorage))
    write(root / "nobody", radiograph(PatientID=None))
    (root / "A copy").write_bytes((root / "x").read_bytes())
    (root / "link").symlink_to(root / "DICOM")
    Path(os.fsdecode(os.fsencode(root) + b"/M\xfcller")).write_bytes(b"")
    for number in range(2):
        write(root / f"y{number}", radiograph(f"MRN{number}", SOPInstanceUID="1.2.3.9.9"))
    for number, purpose in enumerate(("PROCESSING", "PRESENTATION")):
        write(root / f"z{number}", radiograph("MRN7", "1.2.3.7", PresentationIntentType=f"FOR {purpose}"))
    assert SOURCE.read(root).left_out == {
        "readme.txt": dicom_tree.OTHER_FILE,
        "shot": dicom_tree.CAPTURE,
        "nobody": dicom_tree.NO_PATIENT,
        "x": dicom_tree.COPY,
        "link": dicom_tree.LINKED,
        os.fsdecode(b"M\xfcller"): dicom_tree.BAD_NAME,
        "y0": dicom_tree.CONFLICT,
        "y1": dicom_tree.CONFLICT,
        "z0": dicom_tree.RAW,
    }


def test_images_of_nobody_are_no_one_patient(root: Path) -> None:
    """Without Patient ID they are left out; with a rule for the paths they are kept, with its patients."""
    for number in range(3):
        write(
            root / f"nobody {number}" / "a",
            radiograph(patient="", PatientName="", StudyInstanceUID=f"1.2.3.8.{number}"),
        )
    assert len(read(root)[0]) == 4
    source = DicomTreeSource(patient_from=parse_patient_rule("^(DICOM/[0-9]+|[^/]+)"))
    check_source(source, root)
    found = {record.image.path: record.patient for record in source.read(root).records}
    assert {path: patient for path, patient in found.items() if path.startswith("nobody")} == {
        f"nobody {number}/a": f"nobody {number}" for number in range(3)
    }
    assert found["DICOM/00000001/00000001/IM000001"] == "DICOM/00000001"
    with pytest.raises(SourceError, match="finds no patient in the paths of 4 of 7 images"):
        DicomTreeSource(patient_from=parse_patient_rule("^nobody .")).read(root)


def test_of_copies_the_first_is_kept(root: Path) -> None:
    (root / "A copy").write_bytes((root / "x").read_bytes())
    records, warnings = read(root)
    assert warnings == [f"left out 1 {dicom_tree.COPY}"]
    assert "A copy" in records
    assert "x" not in records


def test_of_an_image_that_was_compressed_or_cut_off_the_largest_file_is_kept(root: Path) -> None:
    whole = root / "x"
    packed = dcmread(whole)
    compress(packed, RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
    write(root / "A packed", packed)
    (root / "A short").write_bytes(whole.read_bytes()[:-1000])
    records, warnings = read(root)
    assert warnings == [f"left out 2 {dicom_tree.COPY}"]
    assert "x" in records
    assert len(records) == 4


def test_files_of_one_uid_that_contradict_each_other_are_all_left_out(root: Path) -> None:
    write(root / "y", radiograph("MRN3", "1.2.3.3", SOPInstanceUID="1.2.3.9.4", ViewPosition="DR DOE"))
    records, warnings = read(root)
    assert warnings == [f"left out 2 {dicom_tree.CONFLICT}"]
    assert len(records) == 3


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ({"PresentationIntentType": "FOR PROCESSING"}, {"PresentationIntentType": "FOR PRESENTATION"}),
        (
            {"SOPClassUID": DigitalXRayImageStorageForProcessing},
            {"SOPClassUID": DigitalXRayImageStorageForPresentation},
        ),
    ],
)
def test_raw_images_give_way_to_those_for_presentation_of_their_study_only(
    raw: dict[str, str], shown: dict[str, str], root: Path
) -> None:
    alone, other = radiograph("MRN5", "1.2.3.5", **raw), radiograph("MRN6", "1.2.3.6", **shown)
    warnings = left_out(root, alone, other)
    assert len(warnings) == 1
    assert warnings[0].startswith("1 images FOR PROCESSING are kept")
    pair = [radiograph("MRN7", "1.2.3.7", **tags) for tags in (raw, raw, shown)]
    warnings = left_out(root, alone, other, *pair)
    assert warnings[0] == f"left out 2 {dicom_tree.RAW}"
    assert len(read(root)[0]) == 4 + 2 + 1


def test_a_study_is_of_one_patient_and_none_is_no_study(root: Path) -> None:
    raw, shown = ({"PresentationIntentType": f"FOR {purpose}"} for purpose in ("PROCESSING", "PRESENTATION"))
    left_out(root, radiograph("MRN5", "1.2.3.5", **raw), radiograph("MRN6", "1.2.3.5", **shown))
    assert len(read(root)[0]) == 6
    left_out(root, radiograph(StudyInstanceUID=None, **raw), radiograph(StudyInstanceUID=None, **shown))
    records, warnings = read(root)
    assert len(records) == 6
    assert "2 images without Study Instance UID" in warnings
    assert records["joined 0"].study is None


def test_a_patient_is_one_whatever_issuer_a_system_writes(root: Path) -> None:
    warnings = left_out(root, radiograph("MRN1", "1.2.3.5", IssuerOfPatientID="Doe clinic"))
    assert read(root)[0]["joined 0"].patient == "MRN1"
    assert warnings == ["1 Patient IDs have several issuers, or one and none: each is taken for one patient"]


def test_what_every_tree_is_told_is_counted(root: Path) -> None:
    assert SOURCE.read(root).warnings == (
        "dicom: 4 images do not say whether text is burned into them, and nothing here removes it: look at some",
        "dicom: 2 images without a view of the standard's; their view is unknown",
    )
    write(root / "x", radiograph("MRN1", SOPInstanceUID="1.2.3.9.4", BurnedInAnnotation="NO", ViewPosition="AP"))
    warnings = SOURCE.read(root).warnings
    assert warnings[0].startswith("dicom: 3 images do not say")
    assert warnings[-1].startswith("dicom: 1 Patient ID for all images")


def test_a_tree_without_one_usable_image_says_what_was_left_out(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        SOURCE.read(tmp_path / "none")
    write(tmp_path / "export" / "Doe", report())
    write(tmp_path / "export" / "Jane", radiograph(patient=""))
    (tmp_path / "export" / "Jane.txt").touch()
    with pytest.raises(SourceError) as error:
        SOURCE.read(tmp_path / "export")
    text = str(error.value)
    assert "no image that can be used among 3 files" in text
    for reason in (dicom_tree.NO_IMAGE, dicom_tree.NO_PATIENT, dicom_tree.OTHER_FILE):
        assert f"left out: 1 {reason}" in text
    assert not any(secret in text for secret in SECRETS)


def labelled(root: Path, columns: tuple[str, ...], *rows: tuple[Any, ...]) -> DicomTreeSource:
    write_csv(root.parent / "labels.csv", columns, list(rows))
    return DicomTreeSource(root.parent / "labels.csv")


def test_a_csv_labels_images_by_their_uid(root: Path) -> None:
    columns = ("sop_uid", "Effusion", "No Finding")
    source = labelled(root, columns, ("1.2.3.9.1", 1, 0), ("1.2.3.9.2", -1, ""), ("1.2.3.9.77", 1, 1))
    check_source(source, root)
    listing = source.read(root)
    labels = {record.source_id: record.labels for record in listing.records}
    unknown = {"Effusion": None, "No Finding": None}
    assert labels["1.2.3.9.1"] == {"Effusion": 1, "No Finding": 0}
    assert labels["1.2.3.9.2"] == {"Effusion": -1, "No Finding": None}
    assert labels["1.2.3.9.3"] == labels["1.2.3.9.4"] == unknown
    assert listing.warnings[-2:] == (
        "dicom: 1 rows of the CSV name no image that is kept",
        "dicom: 2 images have no row of the CSV; their labels are unknown",
    )


@pytest.mark.parametrize(
    ("columns", "rows", "words"),
    [
        (("uid", "Effusion"), [("1.2.3.9.1", 1)], ["sop_uid", "none of them"]),
        (("sop_uid", "Effusion"), [("1.2.3.9.1", 1), ("1.2.3.9.1", 0)], ["line 3", "earlier row"]),
        (("sop_uid", "Effusion"), [("", 1)], ["line 2: no sop_uid"]),
        (("sop_uid", "Effusion"), [("1.2.3.9.1", "Doe")], ["line 2", "'Effusion'"]),
        (("sop_uid", "Doe^Jane"), [("1.2.3.9.1", 1)], ["column 2 has no name that a label may have"]),
        (("sop_uid", "Effusion"), [], ["no rows below the header"]),
        (("sop_uid", "Effusion"), [("1.2.3.9.77", 1)], ["none of the 1 rows"]),
    ],
)
def test_a_wrong_csv_is_one_message_without_a_value(
    columns: tuple[str, ...], rows: list[tuple[Any, ...]], words: list[str], root: Path
) -> None:
    with pytest.raises(SourceError) as error:
        labelled(root, columns, *rows).read(root)
    assert all(word in str(error.value) for word in words), error.value
    assert not any(secret in str(error.value) for secret in SECRETS)


@pytest.mark.parametrize("option", ["--labels", "--patient-from", "--site"])
def test_only_sources_of_ones_own_take_a_csv_patients_and_a_site(
    option: str, root: Path, capsys: pytest.CaptureFixture[str], id_key: str
) -> None:
    arguments = ["register", "x-b000", str(root), "--source", "jsrt", option, "x"]
    assert run_command(build_parser(), arguments) == 2
    assert f"{option} belongs to --source folder or dicom" in capsys.readouterr().err
