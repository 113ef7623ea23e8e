"""Headers of DICOM files, read without their pixels."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.pixels import compress
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from shards.decode import UnreadableImageError, decode
from shards.decode.dicom import DicomHeader, read_header
from shards.decode.reasons import DAMAGED, NOT_DICOM
from tests.shards.decode.dicom_files import RAMP, data_of, dataset_of

TAGS = {
    "SpecificCharacterSet": "ISO_IR 192",
    "PatientID": " 00Ä42 ",
    "IssuerOfPatientID": "CLINIC",
    "StudyInstanceUID": "1.2.3",
    "SeriesInstanceUID": "1.2.3.4",
    "SOPInstanceUID": "1.2.3.4.5",
    "Modality": "DX",
    "BodyPartExamined": "CHEST",
    "Laterality": "L",
    "ImageLaterality": "U",
    "ViewPosition": "PA",
    "PatientSex": "F",
    "PatientAge": "064Y",
    "PresentationIntentType": "FOR PRESENTATION",
    "ImageType": ["DERIVED", "PRIMARY"],
    "ConversionType": "WSD",
    "BurnedInAnnotation": "NO",
    "ImagerPixelSpacing": [0.2, 0.1],
}


def header_of(path: Path, data: bytes) -> DicomHeader:
    path.write_bytes(data)
    return read_header(path)


@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
def test_the_header_is_read_in_every_transfer_syntax(syntax: str, tmp_path: Path) -> None:
    pixels = RAMP.byteswap() if syntax == ExplicitVRBigEndian else RAMP
    dataset = dataset_of(pixels, syntax=syntax, **TAGS)
    dataset.ViewCodeSequence = [Dataset()]
    dataset.ViewCodeSequence[0].CodeValue = "399348003"
    assert header_of(tmp_path / "a", data_of(dataset)) == DicomHeader(
        patient_id="00Ä42",
        issuer="CLINIC",
        study_uid="1.2.3",
        sop_uid="1.2.3.4.5",
        sop_class=dataset.SOPClassUID,
        modality="DX",
        body_part="CHEST",
        laterality="U",
        view_position="PA",
        view_code="399348003",
        sex="F",
        age_years=64,
        presentation_intent="FOR PRESENTATION",
        image_type=("DERIVED", "PRIMARY"),
        conversion_type="WSD",
        burned_in=False,
        num_frames=1,
        rows=64,
        cols=64,
        has_pixels=True,
        spacing=(0.2, 0.1),
    )


def test_file_meta_of_every_length_is_walked_to_find_a_deflated_file(tmp_path: Path) -> None:
    dataset = dataset_of(RAMP, syntax=DeflatedExplicitVRLittleEndian, **TAGS)
    dataset.file_meta.SendingApplicationEntityTitle = "SENDER"
    dataset.file_meta.SourcePresentationAddress = "http://pacs.example/"
    dataset.file_meta.PrivateInformationCreatorUID = "1.2.3"
    dataset.file_meta.PrivateInformation = b"1234"
    assert header_of(tmp_path / "a", data_of(dataset)).rows == 64
    assert decode(data_of(dataset), max_pixels=1e6).pixels.shape == (64, 64)


def test_a_report_has_no_pixels_and_what_is_not_said_is_none(tmp_path: Path) -> None:
    dataset = dataset_of(RAMP)
    del dataset.PixelData, dataset.Rows, dataset.Columns
    header = header_of(tmp_path / "a", data_of(dataset))
    assert not header.has_pixels
    assert (header.rows, header.cols, header.patient_id, header.sex, header.age_years) == (None,) * 5
    assert (header.image_type, header.burned_in, header.spacing, header.num_frames) == ((), None, None, 1)


def test_compressed_pixels_are_pixels(tmp_path: Path) -> None:
    dataset = dataset_of(RAMP)
    compress(dataset, RLELossless, encoding_plugin="pydicom")
    assert header_of(tmp_path / "a", data_of(dataset)).has_pixels


def test_a_file_cut_within_its_pixels_has_its_header_still(tmp_path: Path) -> None:
    data = data_of(dataset_of(RAMP, **TAGS))
    assert header_of(tmp_path / "a", data[: len(data) - RAMP.nbytes + 10]) == header_of(tmp_path / "b", data)


@pytest.mark.parametrize(
    ("tags", "age"),
    [
        ({"PatientAge": "064Y"}, 64),
        ({"PatientAge": "64"}, 64),
        ({"PatientAge": "018M"}, 1),
        ({"PatientAge": "100W"}, 1),
        ({"PatientAge": "006D"}, 0),
        ({"PatientAge": "411Y"}, None),
        ({"PatientAge": "x"}, None),
        ({"PatientBirthDate": "19600315", "StudyDate": "20200314"}, 59),
        ({"PatientBirthDate": "19600315", "StudyDate": "2020.03.15"}, 60),
        ({"PatientAge": "411Y", "PatientBirthDate": "19600315", "StudyDate": "20200315"}, 60),
        ({"PatientBirthDate": "20200316", "StudyDate": "20200315"}, None),
        ({"PatientBirthDate": "19609915", "StudyDate": "20200315"}, None),
        ({"PatientBirthDate": "19600315"}, None),
    ],
)
def test_the_age_is_stated_or_follows_from_the_dates(tags: dict[str, str], age: int | None, tmp_path: Path) -> None:
    dataset = dataset_of(RAMP)
    for name, value in tags.items():
        # Of a type without rules: the tests' own file may break them.
        dataset.add_new(name, "LT", value)
    assert header_of(tmp_path / "a", data_of(dataset)).age_years == age


def test_several_frames_are_counted_and_odd_values_are_none(tmp_path: Path) -> None:
    dataset = dataset_of(RAMP, NumberOfFrames=7, PatientSex="X")
    dataset.add_new("BurnedInAnnotation", "LT", "MAYBE")
    header = header_of(tmp_path / "a", data_of(dataset))
    assert (header.num_frames, header.sex, header.burned_in) == (7, None, None)


def test_other_files_are_no_dicom_and_a_missing_one_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match=NOT_DICOM):
        header_of(tmp_path / "Doe^Jane.dcm", b"\x89PNG" + bytes(400))
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "absent")


@given(junk=st.binary(min_size=1, max_size=30), place=st.integers(132, 700))
def test_any_damage_gives_a_header_or_a_fixed_reason(
    junk: bytes, place: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = data_of(dataset_of(RAMP, **TAGS))
    path = tmp_path_factory.getbasetemp() / "damaged"
    try:
        outcome: Any = type(header_of(path, data[:place] + junk + data[place + len(junk) :]))
    except UnreadableImageError as error:
        outcome = str(error)
    assert outcome in (DicomHeader, DAMAGED, NOT_DICOM)


def test_only_the_header_of_a_large_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large"
    path.write_bytes(data_of(dataset_of(np.zeros((3000, 3000), np.uint16), **TAGS)))
    opened: list[Any] = []
    original = Path.open

    class Counting(io.FileIO):
        num_bytes = 0

        def read(self, size: int = -1) -> bytes:
            data = super().read(size)
            self.num_bytes += len(data)
            return data

    def counting_open(self: Path, mode: str = "r", **options: Any) -> Any:
        if self != path:
            return original(self, mode, **options)
        opened.append(Counting(path, mode))
        return opened[-1]

    monkeypatch.setattr(Path, "open", counting_open)
    assert read_header(path).rows == 3000
    assert opened[0].num_bytes < 40_000
