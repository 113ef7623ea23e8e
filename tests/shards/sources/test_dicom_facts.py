from pathlib import Path

import pytest

from shards.decode.dicom import parse_age, parse_sex
from shards.sources.dicom_facts import DicomFacts, parse_view, read_facts
from tests.shards.sources.trees import write_dicom, write_pixels


def test_a_header_says_view_sex_age_and_spacing_at_the_detector(tmp_path: Path) -> None:
    path = tmp_path / "one.dcm"
    tags = {"ViewPosition": "AP", "PatientSex": "F", "PatientAge": "043Y"}
    write_dicom(path, **tags, PixelSpacing=[0.2, 0.3], ImagerPixelSpacing=[0.1, 0.15])
    assert read_facts(path) == DicomFacts("AP", "F", 43.0, (0.1, 0.15))
    write_dicom(path, **tags, PixelSpacing=[0.2, 0.3])
    assert read_facts(path).spacing_mm == (0.2, 0.3)
    write_dicom(path, ViewPosition="", PatientAge="")
    assert read_facts(path) == DicomFacts()


def test_a_value_that_breaks_the_standard_is_read_and_never_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "one.dcm"
    write_dicom(path, PatientAge="51", PatientSex="female", PixelSpacing=[0.125, 0.125])
    path.write_bytes(path.read_bytes().replace(b"0.125", b"wide!"))
    assert read_facts(path) == DicomFacts(age_years=51)
    assert caplog.text == ""


def test_a_file_that_is_no_dicom_says_nothing(tmp_path: Path) -> None:
    write_pixels(tmp_path / "one.png")
    write_dicom(tmp_path / "whole.dcm", ViewPosition="PA")
    (tmp_path / "text.dcm").write_text("<html>")
    (tmp_path / "half.dcm").write_bytes((tmp_path / "whole.dcm").read_bytes()[:300])
    for name in ("one.png", "text.dcm", "half.dcm", "none.dcm"):
        assert read_facts(tmp_path / name) == DicomFacts(), name


def test_values_that_cannot_be_are_unknown() -> None:
    assert [parse_age(age) for age in ("043Y", "43", "006M", "120", "121", "155Y", "", "old", "-1")] == [
        *(43, 43, 0, 120),
        *[None] * 5,
    ]
    assert [parse_view(view) for view in ("pa", "AP", "LATERAL", "LARGE LATERAL", "LL", "RL", "", "Mr X")] == [
        *("PA", "AP", "L", "L", "LL", "RL"),
        *[None] * 2,
    ]
    assert [parse_sex(sex) for sex in ("F", "m", "O", "", "unknown")] == ["F", "M", "O", None, None]
