from pathlib import Path

import pytest
from pydicom import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from shards.decode.dicom import parse_age, parse_sex, read_header
from shards.sources.dicom_facts import VIEWS_OF_CODES, DicomFacts, parse_view, read_facts, view_of
from tests.shards.sources.trees import write_dicom, write_pixels


def test_a_header_says_view_sex_age_and_spacing_at_the_detector(tmp_path: Path) -> None:
    path = tmp_path / "one.dcm"
    tags = {"ViewPosition": "AP", "PatientSex": "F", "PatientAge": "043Y"}
    write_dicom(path, **tags, PixelSpacing=[0.2, 0.3], ImagerPixelSpacing=[0.1, 0.15])
    assert read_facts(path) == DicomFacts(view="AP", sex="F", age_years=43.0, spacing_mm=(0.1, 0.15))
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


NAMES_OF_VIEWS = {
    "AP": "AnteroPosterior",
    "PA": "PosteroAnterior",
    "LL": "LeftLateral",
    "RL": "RightLateral",
    "L": "LateralProjection",
    "CC": "CranioCaudal",
    "MLO": "MedioLateralObliqueProjection",
    "ML": "MedioLateralProjection",
    "LM": "LateroMedial",
    "LMO": "LateroMedialOblique",
    "XCCL": "CranioCaudalExaggeratedLaterally",
    "XCCM": "CranioCaudalExaggeratedMedially",
    "FB": "CaudoCranial",
    "SIO": "SuperolateralToInferomedialOblique",
    "ISO": "InferomedialToSuperolateralOblique",
}


def test_codes_of_views_are_those_of_the_standards_tables() -> None:
    for view, name in NAMES_OF_VIEWS.items():
        known = getattr(codes.SCT, name)
        found = [code for code, its in VIEWS_OF_CODES.items() if its == view]
        old, new = sorted(found, key=str.isdecimal)
        assert known == Code(new, "SCT", "")
        assert known == Code(old, "SRT", "")  # pydicom knows which numbers are the same code's
    assert set(VIEWS_OF_CODES.values()) == set(NAMES_OF_VIEWS)


@pytest.mark.parametrize(
    ("tags", "view"),
    [
        ({"Modality": "MG", "ViewPosition": "MLO", "ImageLaterality": "R", "BodyPartExamined": "BREAST"}, "R-MLO"),
        ({"Modality": "MG", "code": "399162004", "ImageLaterality": "l"}, "L-CC"),
        ({"Modality": "MG", "code": "R-1024A", "Laterality": "R"}, "R-XCCL"),
        ({"Modality": "MG", "ViewPosition": "CC"}, "CC"),
        ({"Modality": "MG", "ViewPosition": "CC", "ImageLaterality": "B"}, "CC"),
        ({"Modality": "MG", "ImageLaterality": "R", "BodyPartExamined": "BREAST"}, None),
        ({"Modality": "DX", "ViewPosition": "PA", "BodyPartExamined": "CHEST"}, "PA"),
        ({"Modality": "DX", "ViewPosition": "PA", "BodyPartExamined": "CHEST", "Laterality": "R"}, "PA"),
        ({"Modality": "DX", "ViewPosition": "PA", "Laterality": "R"}, "PA"),
        ({"Modality": "DX", "ViewPosition": "Jane", "code": "399348003"}, "AP"),
        ({"Modality": "CR", "ViewPosition": "PA", "BodyPartExamined": "hand", "Laterality": "L"}, "HAND-L-PA"),
        ({"Modality": "CR", "ViewPosition": "AP", "BodyPartExamined": "ABDOMEN", "Laterality": "L"}, "ABDOMEN-AP"),
        ({"Modality": "CR", "ViewPosition": "AP", "BodyPartExamined": "DOE JANE", "Laterality": "L"}, "AP"),
        ({"Modality": "OP", "ImageLaterality": "R"}, "R"),
        ({"Modality": "OP"}, None),
        ({}, None),
    ],
)
def test_a_view_is_told_by_its_code_and_by_side_and_part_where_these_tell_images_apart(
    tags: dict[str, str], view: str | None, tmp_path: Path
) -> None:
    given = {name: value for name, value in tags.items() if name != "code"}
    item = Dataset()
    item.CodeValue = tags.get("code", "")
    write_dicom(tmp_path / "one.dcm", **given, ViewCodeSequence=[item])
    assert view_of(read_header(tmp_path / "one.dcm")) == view
