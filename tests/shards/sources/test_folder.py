from pathlib import Path

import pytest

from shards.errors import SourceError
from shards.params import FolderSourceParams
from shards.sources.folder import FolderSource, patient_of_path
from shards.sources.manifest import find_images
from shards.sources.registry import open_source
from tests.shards.datasets import folder_params, write_csv, write_folder
from tests.shards.sources.battery import check_source

NAMES = ["doe_john/1.2.840.png", "doe_john/1.3.jpg", "roe_jane/x.PNG", "roe_jane/deep/er.jpeg"]
COLUMNS = ("path", "patient", "study", "view", "Effusion", "No Finding")
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


def labelled(root: Path, rows: list[tuple], columns: tuple[str, ...] = COLUMNS) -> FolderSourceParams:
    labels = root.parent / "labels.csv"
    write_csv(labels, columns, rows)
    return folder_params(root, root.parent / "manifest.csv", labels)


def problem(params: FolderSourceParams) -> str:
    with pytest.raises(SourceError) as error:
        FolderSource(params).records()
    text = str(error.value)
    assert not any(secret in text for secret in ("doe", "roe", "1.2.840")), "messages must not name patients"
    return text


def test_a_folder_passes_the_battery_with_and_without_a_csv(root: Path) -> None:
    check_source(open_source(folder_params(root, root.parent / "manifest.csv")))
    check_source(open_source(labelled(root, ROWS)))


def test_the_csv_gives_patients_studies_views_and_four_states_of_labels(root: Path) -> None:
    records = {record.source_id: record for record in FolderSource(labelled(root, ROWS)).records()}
    first, second, third, fourth = (records[name] for name in NAMES)
    assert (first.patient, first.study, first.view) == ("doe", "s1", "PA")
    assert (third.study, third.view) == (None, None)
    assert [record.labels["Effusion"] for record in (first, second, third, fourth)] == [1, -1, 1, None]
    assert [record.labels["No Finding"] for record in (first, second, third, fourth)] == [0, None, -1, 1]


def test_windows_line_ends_marks_and_spaces_do_not_matter(root: Path) -> None:
    labels = root.parent / "labels.csv"
    lines = [", ".join(map(str, row)) + " " for row in [COLUMNS, *ROWS]]
    labels.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    spaced = FolderSource(folder_params(root, root.parent / "manifest.csv", labels)).records()
    assert spaced == FolderSource(labelled(root, ROWS)).records()


@pytest.mark.parametrize(
    ("path", "patient"), [("a/b/c.png", "a"), ("a/c.png", "a"), ("c.png", "c"), ("1.2.840.png", "1.2.840")]
)
def test_without_a_csv_the_patient_is_the_top_folder_or_the_file(path: str, patient: str) -> None:
    assert patient_of_path(path) == patient


def test_only_images_are_found_and_hidden_ones_passed_over(root: Path) -> None:
    write_folder(root, [".hidden.png", ".cache/a.png"])
    (root / "notes.txt").write_text("x")
    assert find_images(root) == sorted(NAMES)


@pytest.mark.parametrize("name", ["a\nb.png", " a.png", "folder /\x7f.png"])
def test_a_name_that_no_csv_line_can_hold_is_refused(name: str, root: Path) -> None:
    write_folder(root, [name])
    with pytest.raises(SourceError, match="printable characters"):
        find_images(root)


def test_a_folder_without_images_names_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no such folder; expected one with \.png, \.jpg, \.jpeg"):
        find_images(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "scan.dcm").write_bytes(b"DICM")
    with pytest.raises(SourceError, match=r"looked for files ending in \.png, \.jpg, \.jpeg"):
        find_images(tmp_path / "empty")


@pytest.mark.parametrize("path", ["../secret.png", "/etc/secret.png", "a/../../b.png", "..\\secret.png", ""])
def test_a_path_that_leaves_the_folder_is_refused(path: str, root: Path) -> None:
    assert "row 1: the path leaves the folder" in problem(labelled(root, [(path, "doe", "", "", "", "")]))
    manifest = root.parent / "manifest.csv"
    params = folder_params(root, manifest)
    write_csv(manifest, ("path", "bytes", "sha256"), [(path, 3, "0" * 64)])
    assert "row 1: the path leaves the folder" in problem(params)


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        (ROWS, ("file", *COLUMNS[1:]), ["path, patient", "'file'"]),
        (ROWS[1:], ROWS[0], ["path, patient", "a first line with none of them"]),
        (ROWS, (*COLUMNS[:5], "Effusion"), ["each once"]),
        ([*ROWS[:3], (NAMES[3], "", "", "", "", "")], COLUMNS, ["row 4", "no patient"]),
        ([*ROWS, ROWS[0]], COLUMNS, ["row 5", "same path"]),
        ([(NAMES[0], "doe", "", "", "positive", ""), *ROWS[1:]], COLUMNS, ["row 1", "'Effusion'", "1 (present)"]),
        ([(NAMES[0], "doe", "", "taken by Dr. Doe, room 3", "", ""), *ROWS[1:]], COLUMNS, ["row 1", "short code"]),
        ([ROWS[0][:4], *ROWS[1:]], COLUMNS, ["row 1", "4 fields", "6"]),
        (ROWS[:3], COLUMNS, ["no row for the images in", "rows 3"]),
    ],
)
def test_a_wrong_csv_is_one_message_that_names_rows_and_no_patient(
    rows: list[tuple], columns: tuple[str, ...], words: list[str], root: Path
) -> None:
    text = problem(labelled(root, rows, columns))
    assert all(word in text for word in words), text


def test_a_csv_that_is_not_utf8_is_refused(root: Path) -> None:
    labels = root.parent / "labels.csv"
    labels.write_bytes(b"path,patient\nx.png,M\xfcller\n")
    assert "UTF-8" in problem(folder_params(root, root.parent / "manifest.csv", labels))


def test_a_csv_changed_since_registration_is_noticed(root: Path) -> None:
    params = labelled(root, ROWS)
    labels = Path(str(params.labels))
    labels.write_text(labels.read_text().replace("PA", "AP"))
    assert "changed since the batch was registered" in problem(params)


def test_files_that_are_gone_or_of_another_size_are_named_by_their_rows(root: Path) -> None:
    params = folder_params(root, root.parent / "manifest.csv")
    (root / NAMES[0]).unlink()
    (root / NAMES[2]).write_bytes(b"other")
    text = problem(params)
    assert "2 of 4 files" in text
    assert "rows 1, 4" in text


def test_a_missing_or_empty_manifest_is_named(root: Path) -> None:
    params = folder_params(root, root.parent / "manifest.csv")
    (root.parent / "manifest.csv").write_text("path,bytes,sha256\n")
    assert "no files listed" in problem(params)
    (root.parent / "manifest.csv").unlink()
    assert "python -m shards register" in problem(params)


def test_a_manifest_that_repeats_a_path_is_refused(root: Path) -> None:
    manifest = root.parent / "manifest.csv"
    params = folder_params(root, manifest)
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([*lines, lines[1]]) + "\n")
    assert "row 5" in problem(params)
