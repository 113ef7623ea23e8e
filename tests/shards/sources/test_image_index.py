from pathlib import Path

import pytest

from shards.decode.dicom import parse_age, parse_sex
from shards.sources.dicom_facts import DicomFacts, parse_view, read_facts
from shards.sources.image_index import find_files, index_images
from tests.shards.sources.trees import problem, write_dicom, write_png


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_files_are_found_at_any_depth_in_any_case_and_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b/c.PNG", "a.png", "b/a.dcm", "notes.txt", "b/sub.png/x.png")
    touch(tmp_path, "._a.png", ".cache/z.png", "__MACOSX/y.png")
    assert find_files(tmp_path, (".png",)) == ["a.png", "b/c.PNG", "b/sub.png/x.png"]


def test_a_name_keeps_its_dots_but_the_last(tmp_path: Path) -> None:
    touch(tmp_path, "s/1.2.276.0.7230010.3.1.4.8323329.1.1517875201.850819.dcm")
    assert list(index_images(tmp_path)) == ["1.2.276.0.7230010.3.1.4.8323329.1.1517875201.850819"]


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "train/one.dicom", "train_jpeg/one.jpeg")
    message = problem(lambda: index_images(tmp_path))
    assert "train/one.dicom" in message
    assert "train_jpeg/one.jpeg" in message


@pytest.mark.parametrize("is_folder", [False, True])
def test_links_that_lead_out_are_refused_and_inner_folders_are_not_entered_twice(
    is_folder: bool, tmp_path: Path
) -> None:
    touch(tmp_path, "root/a/one.png", "outside/two.png")
    (tmp_path / "root" / "again").symlink_to(tmp_path / "root" / "a")
    (tmp_path / "root" / "dangling.png").symlink_to(tmp_path / "root" / "none.png")
    assert find_files(tmp_path / "root", (".png",)) == ["a/one.png"]
    outside = tmp_path / "outside"
    (tmp_path / "root" / "two.png").symlink_to(outside if is_folder else outside / "two.png")
    assert "leads out of the folder" in problem(lambda: find_files(tmp_path / "root", (".png",)))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'none'}: no such folder" in problem(lambda: find_files(tmp_path / "none", (".png",)))


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
    write_png(tmp_path / "one.png")
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
