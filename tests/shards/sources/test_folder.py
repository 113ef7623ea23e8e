import errno
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shards.core.errors import ConfigError, SourceError
from shards.sources.check import check_source
from shards.sources.datasets.folder import NO_ROW, FolderSource, find_images
from shards.sources.images import CLOSED, OTHER_FILE, TIFF_BASED, UNREAD_FORMAT
from shards.sources.patients import parse_patient_rule
from tests.shards.sources.trees import write_dicom
from tests.support.datasets import smooth_image, write_csv, write_folder

NAMES = ["doe_john/1.2.840.png", "doe_john/1.3.jpg", "roe_jane/x.PNG", "roe_jane/deep/er.jpeg"]
COLUMNS = ("path", "patient", "study", "view", "Effusion", "No Finding")
DESCRIBED = [("train", "F", "63"), ("test", "M", "0.5"), ("", "", ""), ("val", "O", "101")]
ROWS = [
    (NAMES[0], "doe", "s1", "PA", 1, 0),
    (NAMES[1], "doe", "s1", "LAT", -1, ""),
    (NAMES[2], "roe", "", "", "1.0", "-1.0"),
    (NAMES[3], "roe", "s2", "AP", "", 1),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_folder(tmp_path / "own", NAMES)
    return tmp_path / "own"


def labelled(root: Path, rows: list[tuple], columns: tuple[str, ...] = COLUMNS) -> FolderSource:
    labels = root.parent / "labels.csv"
    write_csv(labels, columns, rows)
    return FolderSource(labels)


def problem(source: FolderSource, root: Path) -> str:
    with pytest.raises(SourceError) as error:
        source.read(root)
    text = str(error.value)
    assert not any(secret in text for secret in ("doe", "roe", "1.2.840")), "messages must not name patients"
    return text


def test_a_folder_passes_the_battery_with_and_without_a_csv(root: Path) -> None:
    check_source(FolderSource(), root)
    check_source(labelled(root, ROWS), root)


def test_the_csv_gives_patients_studies_views_and_four_states_of_labels(root: Path) -> None:
    records = {record.source_id: record for record in labelled(root, ROWS).read(root).records}
    first, second, third, fourth = (records[name] for name in NAMES)
    assert (first.patient, first.study, first.view) == ("doe", "s1", "PA")
    assert (third.study, third.view) == (None, None)
    assert [record.labels["Effusion"] for record in (first, second, third, fourth)] == [1, -1, 1, None]
    assert [record.labels["No Finding"] for record in (first, second, third, fourth)] == [0, None, -1, 1]


def test_the_csv_may_give_splits_sex_and_age(root: Path) -> None:
    rows = [(name, f"p{number}", *row) for number, (name, row) in enumerate(zip(NAMES, DESCRIBED, strict=True))]
    records = labelled(root, rows, ("path", "patient", "split", "sex", "age_years")).read(root).records
    found = {record.source_id: (record.split, record.sex, record.age_years) for record in records}
    assert found == {
        NAMES[0]: ("train", "F", 63.0),
        NAMES[1]: ("test", "M", 0.5),
        NAMES[2]: (None, None, None),
        NAMES[3]: ("val", "O", 101.0),
    }
    assert records[0].labels == {}


def test_windows_line_ends_marks_and_spaces_do_not_matter(root: Path) -> None:
    labels = root.parent / "spaced.csv"
    lines = [", ".join(map(str, row)) + " " for row in [COLUMNS, *ROWS]]
    labels.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    assert FolderSource(labels).read(root).records == labelled(root, ROWS).read(root).records


@pytest.mark.parametrize(
    "names",
    [["SMITH_1.png", "SMITH_2.png"], ["images/a.png", "images/b.png"], ["doe/a.png", "doe/b.png", "roe/c.png"]],
)
def test_names_of_files_and_folders_are_no_patients_unless_the_user_says_so(names: list[str], tmp_path: Path) -> None:
    write_folder(tmp_path, names)
    listing = FolderSource().read(tmp_path)
    assert listing.patient_grouping == "image"
    assert len({record.patient for record in listing.records}) == len(names)
    check_source(FolderSource(), tmp_path)


@pytest.mark.parametrize(
    ("rule", "patients"),
    [
        ("^[^/]+", ["doe_john", "doe_john", "roe_jane", "roe_jane"]),
        ("^([a-z]+)_", ["doe", "doe", "roe", "roe"]),
        (r"(1\.\d+)|/([a-z]+)", ["1.2", "1.3", "deep", "x"]),
    ],
)
def test_a_rule_of_the_user_finds_the_patients_in_the_paths(rule: str, patients: list[str], root: Path) -> None:
    source = FolderSource(patient_from=parse_patient_rule(rule))
    check_source(source, root)
    listing = source.read(root)
    assert listing.patient_grouping == "patient"
    assert [record.patient for record in listing.records] == patients


def test_a_rule_holds_beside_a_csv_without_patients_and_not_beside_one_with_them(root: Path) -> None:
    rule = parse_patient_rule("^[^/]+")
    labels = root.parent / "labels.csv"
    write_csv(labels, ("path", "Effusion"), [(name, 1) for name in NAMES[:3]])
    records = FolderSource(labels, rule).read(root).records
    assert [(record.patient, record.labels["Effusion"]) for record in records] == [
        ("doe_john", 1),
        ("doe_john", 1),
        ("roe_jane", 1),
    ]
    write_csv(labels, ("path", "patient"), [(name, "p") for name in NAMES])
    assert "has a column patient, and --patient-from is given" in problem(FolderSource(labels, rule), root)


def test_a_rule_that_misses_images_or_is_none_is_refused(root: Path) -> None:
    source = FolderSource(patient_from=parse_patient_rule("^(doe_[a-z]+)/"))
    assert "finds no patient in the paths of 2 of 4 images" in problem(source, root)
    with pytest.raises(ConfigError, match=r"--patient-from \(: expected a regular expression"):
        parse_patient_rule("(")


def test_few_patients_among_many_images_may_be_classes(root: Path) -> None:
    (warning,) = FolderSource(patient_from=parse_patient_rule("^[^/]+")).read(root).warnings
    assert "finds only 2 patients in the paths of 4 images: are these classes" in warning
    assert FolderSource(patient_from=parse_patient_rule(".+")).read(root).warnings == ()


def test_only_images_are_found_and_hidden_ones_passed_over(root: Path) -> None:
    write_folder(root, [".hidden.png", ".cache/a.png"])
    (root / "notes.txt").write_text("x")
    found = find_images(root)
    assert sorted(found.kinds) == sorted(NAMES)
    assert found.left_out == {"notes.txt": OTHER_FILE}


def test_thumbnails_and_deleted_files_that_systems_keep_are_no_patients(root: Path) -> None:
    leavings = ["@eaDir/x.png/SYNOPHOTO_THUMB_M.jpg", "$RECYCLE.BIN/$R1.png", "#recycle/a.png", "roe_jane/@eaDir/x.jpg"]
    write_folder(root, leavings)
    assert [record.source_id for record in FolderSource().read(root).records] == sorted(NAMES)


@pytest.mark.parametrize(
    "name",
    [
        "shot 9.41\u202fAM.png",
        "a\u00a0b.png",
        "\u5c71\u7530\u3000\u592a\u90ce.png",
        "\u0645\u06cc\u200c\u062e.png",
        "\u200ea.png",
        "soft\u00adhyphen/\ue000.png",
    ],
)
def test_a_name_with_any_space_or_mark_that_a_csv_line_holds_is_read_with_and_without_a_csv(
    name: str, root: Path
) -> None:
    write_folder(root, [name])
    assert name in {record.source_id for record in FolderSource().read(root).records}
    (record,) = labelled(root, [(name, "p")], ("path", "patient")).read(root).records
    assert record.source_id == name


@pytest.mark.parametrize(
    "name", ["a\nb.png", " a.png", "\u3000a.png", "folder /\x7f.png", "a\u2028.png", os.fsdecode(b"M\xfcller.png")]
)
def test_a_name_that_no_csv_line_can_hold_is_refused_and_none_where_a_csv_lists_others(name: str, root: Path) -> None:
    write_folder(root, [name])
    with pytest.raises(SourceError, match=r"1 images have control characters .*`LC_ALL=C ls -Rb` shows"):
        FolderSource().read(root)
    assert len(labelled(root, ROWS).read(root).records) == len(ROWS)


def test_images_are_told_by_content_where_the_name_does_not_say_and_the_others_are_counted(root: Path) -> None:
    pixels = Image.fromarray(smooth_image(16, 12, 9))
    read = {"a.jfif": "JPEG", "b.jpe": "JPEG", "c.dib": "BMP", "d": "PNG", "e.png_large": "PNG", "f.1": "TIFF"}
    unread = {"g.webp": "WEBP", "h.jp2": "JPEG2000", "i": "WEBP"}
    for name, kind in (read | unread).items():
        pixels.save(root / name, kind)
    pixels.save(root / "camera.nef", "TIFF")
    write_dicom(root / "scan.ima", PatientID="SECRET")
    write_dicom(root / "DICOMDIR")
    (root / "damaged.jfif").write_text("no image")
    (root / "notes").write_text("no image")

    listing = FolderSource().read(root)
    expected = {*NAMES, *read, "scan.ima", "damaged.jfif"}
    assert {record.source_id for record in listing.records} == expected
    assert [warning for warning in listing.warnings if "left out" in warning] == [
        f"left out 3 {UNREAD_FORMAT}",
        f"left out 2 {OTHER_FILE}",
        f"left out 1 {TIFF_BASED}",
    ]
    left_out = dict.fromkeys(unread, UNREAD_FORMAT) | dict.fromkeys(("DICOMDIR", "notes"), OTHER_FILE)
    assert listing.left_out == left_out | {"camera.nef": TIFF_BASED}
    assert any("headers of 1 DICOM files" in warning for warning in listing.warnings)
    check_source(FolderSource(), root)

    # What a CSV names is not left out, and what it does not name is counted as an image or as none.
    few = labelled(root, [("g.webp", "p"), ("d", "q")], ("path", "patient")).read(root)
    assert [record.source_id for record in few.records] == ["d", "g.webp"]
    assert f"left out {len(expected) - 1} {NO_ROW}" in few.warnings
    assert f"left out 2 {UNREAD_FORMAT}" in few.warnings


def test_letters_composed_or_not_are_one_patient_and_one_path(root: Path) -> None:
    composed, decomposed = "J\u00f6rg", "Jo\u0308rg"
    write_folder(root, [f"{composed}/a.png", f"{decomposed}/b.png"])
    source = FolderSource(patient_from=parse_patient_rule("^[^/]+"))
    found = {record.source_id: record.patient for record in source.read(root).records}
    assert (found[f"{composed}/a.png"], found[f"{decomposed}/b.png"]) == (composed, composed)

    rows = [(f"{composed}/b.png", decomposed, decomposed), (NAMES[0], composed, composed)]
    listed = labelled(root, rows, ("path", "patient", "study")).read(root).records
    assert {record.source_id for record in listed} == {f"{decomposed}/b.png", NAMES[0]}
    assert {(record.patient, record.study) for record in listed} == {(composed, composed)}

    twice = labelled(root, [(f"{text}/b.png", "p") for text in (composed, decomposed)], ("path", "patient"))
    assert "1 rows of the CSV name the file of an earlier row" in problem(twice, root)


def test_a_folder_of_unread_formats_says_so(tmp_path: Path) -> None:
    Image.fromarray(smooth_image(16, 12, 9)).save(tmp_path / "a.webp")
    (tmp_path / "readme.txt").write_text("x")
    with pytest.raises(SourceError, match=rf"(?s)no images; .*left out 1 {OTHER_FILE}\nleft out 1 {UNREAD_FORMAT}"):
        FolderSource().read(tmp_path)


def test_a_closed_file_that_may_be_no_image_is_counted_and_a_closed_image_is_listed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(root, ["closed.png"])
    (root / "Doe").write_text("x")
    opened = Path.open

    def open_as_another_user(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name in ("closed.png", "Doe"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_as_another_user)  # root, as whom the tests may run, opens every file
    listing = FolderSource().read(root)
    assert f"left out 1 {CLOSED}" in listing.warnings
    assert "closed.png" in {record.source_id for record in listing.records}


def test_dicom_files_are_images_with_or_without_an_extension_and_their_headers_are_left(root: Path) -> None:
    names = ["doe_john/scan.dcm", "doe_john/x.DICOM", "roe_jane/IM0001", "roe_jane/1.2.840.113"]
    for name in names:
        write_dicom(root / name, PatientID="SECRET", ViewPosition="PA")
    (root / "roe_jane/README").write_text("no image")
    check_source(FolderSource(), root)
    listing = FolderSource().read(root)
    assert {record.source_id: record.view for record in listing.records} == dict.fromkeys(sorted([*NAMES, *names]))
    assert "SECRET" not in repr(listing)
    assert any("headers of 4 DICOM files are not read: --source dicom" in warning for warning in listing.warnings)


def test_without_a_column_of_patients_every_image_stands_alone(root: Path) -> None:
    source = labelled(root, [(name, 1) for name in NAMES], ("path", "Effusion"))
    check_source(source, root)
    listing = source.read(root)
    assert listing.patient_grouping == "image"
    assert [record.patient for record in listing.records] == sorted(NAMES)


def test_one_image_in_two_formats_is_refused_unless_a_csv_says_which(root: Path) -> None:
    write_folder(root, ["roe_jane/x.tif", "doe_john/x.png"])
    assert "1 images lie beside one of the same name" in problem(FolderSource(), root)
    assert len(labelled(root, ROWS).read(root).records) == len(ROWS)


def test_a_folder_without_images_names_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        find_images(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes").write_bytes(b"DICM")
    with pytest.raises(SourceError, match=r"looked for files ending in \.png, \.jpg, \.jpeg"):
        find_images(tmp_path / "empty")


@pytest.mark.parametrize("path", ["../secret.png", "/etc/secret.png", "a/../../b.png", "..\\secret.png"])
def test_a_path_that_leaves_the_folder_is_refused(path: str, root: Path) -> None:
    assert "line 2: the path leaves the folder" in problem(labelled(root, [(path, "doe", "", "", "", "")]), root)


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        (ROWS, ("file", *COLUMNS[1:]), ["needs the columns path", "a first line with none of them"]),
        (ROWS[1:], ROWS[0], ["needs the columns path", "a first line with none of them"]),
        (ROWS, (*COLUMNS[:5], "Effusion"), ["each once"]),
        ([*ROWS[:3], (NAMES[3], "", "", "", "", "")], COLUMNS, ["line 5", "no patient"]),
        ([*ROWS, ROWS[0]], COLUMNS, ["line 6", "same path"]),
        ([(NAMES[0], "doe", "", "", "positive", ""), *ROWS[1:]], COLUMNS, ["line 2", "'Effusion'", "1 (present)"]),
        ([(NAMES[0], "doe", "", "taken by Dr. Doe, room 3", "", ""), *ROWS[1:]], COLUMNS, ["line 2", "short code"]),
        ([ROWS[0][:4], *ROWS[1:]], COLUMNS, ["line 2", "4 fields", "6"]),
        ([(NAMES[0], "doe", "doe jane")], ("path", "patient", "split"), ["line 2", "split must be train, val, test"]),
        ([(NAMES[0], "doe", "doe jane")], ("path", "patient", "sex"), ["line 2", "sex must be F, M, O"]),
        ([(NAMES[0], "doe", "born 1950")], ("path", "patient", "age_years"), ["line 2", "from 0 to 120"]),
        ([(NAMES[0], "doe", "nan")], ("path", "patient", "age_years"), ["line 2", "from 0 to 120"]),
        ([(NAMES[0], "doe", "411")], ("path", "patient", "age_years"), ["line 2", "from 0 to 120"]),
        ([*ROWS, ("", "", "", "", "", "")], COLUMNS, ["line 6: no path", "take the row out if it is empty"]),
        ([], COLUMNS, ["no rows below the header"]),
        ([(0, NAMES[0])], ("Unnamed: 0", "path"), ["column 1, 'Unnamed: 0', is an index that pandas wrote"]),
        ([(0, NAMES[0])], ("", "path"), ["column 1 without a name", "if pandas wrote it, it is an index"]),
        ([(NAMES[0], 1)], ("path", "doe@home"), ["column 2 has no name that a label may have", "patient, study, view"]),
        ([(NAMES[0], "p")], ("Path", "patient"), ["found 'Path' in place of 'path'"]),
        ([(f"{NAMES[0]};p",)], ("path;patient",), ["separated by semicolons, expected commas"]),
        ([("gone.png", "doe", "", "", "", "")], COLUMNS, ["1 rows name no file, first: line 2"]),
    ],
)
def test_a_wrong_csv_is_one_message_that_names_rows_and_no_patient(
    rows: list[tuple], columns: tuple[str, ...], words: list[str], root: Path
) -> None:
    text = problem(labelled(root, rows, columns), root)
    assert all(word in text for word in words), text


def test_a_csv_that_is_not_utf8_is_refused(root: Path) -> None:
    labels = root.parent / "labels.csv"
    labels.write_bytes(b"path,patient\nx.png,M\xfcller\n")
    assert "UTF-8" in problem(FolderSource(labels), root)
