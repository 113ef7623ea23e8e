import os
from pathlib import Path

import pytest

from shards.sources.files import find_file, find_files, index_files, list_files, walk
from tests.shards.sources.trees import close_folder, problem, write_files

PNG = r"(?P<name>[^/]+)\.png"


def test_files_are_listed_in_order_at_any_depth_without_hidden_ones_and_the_leavings_of_systems(
    tmp_path: Path,
) -> None:
    write_files(tmp_path, ["b/2.png", "a.png", "b/10.png", "b/c d/1.PNG", "b/sub.png/x"])
    write_files(tmp_path, [".DS_Store", "b/._2.png", ".git/x.png", "__MACOSX/b/2.png"])
    write_files(tmp_path, ["@eaDir/a.png/THUMB.jpg", "b/@eaDir/2.png", "$RECYCLE.BIN/x.png", "$Recycle.Bin/y.png"])
    write_files(tmp_path, ["#recycle/x.png", "System Volume Information/x", "lost+found/x.png"])
    assert list_files(tmp_path) == ["a.png", "b/10.png", "b/2.png", "b/c d/1.PNG", "b/sub.png/x"]


def test_a_missing_folder_and_a_file_in_its_place_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path, ["file"])
    for name in ("missing", "file"):
        assert f"{tmp_path / name}: no such folder" in problem(list_files, tmp_path / name)


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_files(tmp_path, ["a.png", "b/closed/secret.png", "b/c.png"])
    close_folder(tmp_path / "b/closed", monkeypatch)
    return tmp_path


def test_a_folder_that_cannot_be_listed_is_refused_not_passed_over(closed: Path) -> None:
    assert "cannot be listed (Permission denied)" in problem(list_files, closed)


def test_a_walk_names_the_folder_that_cannot_be_listed_and_goes_on(closed: Path) -> None:
    errors: list[OSError] = []
    assert sorted(path for path, _ in walk(closed, errors.append)) == ["a.png", "b/c.png"]
    assert [error.filename for error in errors] == [str(closed / "b/closed")]


def test_a_walk_gives_files_and_links_and_enters_no_linked_folder(tmp_path: Path) -> None:
    write_files(tmp_path, ["real/a.png", "real/.hidden", "@eaDir/x", "outside.txt"])
    root = tmp_path / "real"
    for name, target in (
        ("folder", root),
        ("file", tmp_path / "outside.txt"),
        ("gone", root / "none"),
        ("itself", root / "itself"),
        (".hidden link", root),
    ):
        (root / name).symlink_to(target)
    os.mkfifo(root / "pipe")
    errors: list[OSError] = []
    found = {path: entry.is_symlink() for path, entry in walk(tmp_path, errors.append)}
    links = {f"real/{name}": True for name in ("folder", "file", "gone", "itself")}
    assert found == {"outside.txt": False, "real/a.png": False} | links
    assert errors == []


@pytest.mark.parametrize("target", ["../elsewhere", "../elsewhere/x.png"])
def test_a_link_that_leads_out_is_refused(target: str, tmp_path: Path) -> None:
    write_files(tmp_path, ["elsewhere/x.png", "root/a.png"])
    (tmp_path / "root" / "out.png").symlink_to(target)
    message = problem(list_files, tmp_path / "root")
    assert f"{tmp_path / 'root'} (`find -type l` lists links): a symbolic link leads out of the folder" in message
    assert "out.png" not in message


def test_links_in_a_circle_are_an_error_that_does_not_name_them(tmp_path: Path) -> None:
    write_files(tmp_path, ["a.png"])
    (tmp_path / "Jane.png").symlink_to("Jane.png")
    assert "Jane" not in problem(list_files, tmp_path)


def test_a_link_to_a_folder_inside_is_not_followed_and_one_to_a_file_inside_is_a_file(tmp_path: Path) -> None:
    write_files(tmp_path, ["images/a.png"])
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "b.png").symlink_to("images/a.png")
    (tmp_path / "gone.png").symlink_to("images/gone.png")
    assert list_files(tmp_path) == ["b.png", "images/a.png"]


def test_a_root_may_itself_be_a_link(tmp_path: Path) -> None:
    write_files(tmp_path, ["real/a.png"])
    (tmp_path / "link").symlink_to("real")
    assert list_files(tmp_path / "link") == ["a.png"]


def test_a_pattern_names_whole_path_parts_and_ignores_case(tmp_path: Path) -> None:
    paths = ["CXR_png/a1.png", "deep/down/cxr_PNG/b2.PNG", "myCXR_png/c3.png", "CXR_png/sub/d4.png"]
    pattern = r"CXR_png/(?P<name>[a-z]\d)\.png"
    assert [path for _, path in find_files(paths, pattern)] == paths[:2]
    assert index_files(tmp_path, paths, pattern) == {"a1": paths[0], "b2": paths[1]}


def test_a_name_keeps_its_dots_but_the_last(tmp_path: Path) -> None:
    name = "1.2.276.0.7230010.3.1.4.8323329.1.1517875201.850819"
    assert index_files(tmp_path, [f"s/{name}.png", "x.txt"], PNG) == {name: f"s/{name}.png"}


def test_one_name_in_two_places_is_refused_with_both(tmp_path: Path) -> None:
    for other in ("y/a.png", "x/A.png", "x/a.PNG"):
        message = problem(index_files, tmp_path, ["x/a.png", other], PNG)
        assert f"is there twice, as x/a.png and {other}; keep one" in message


def test_the_one_file_of_a_kind_is_found_by_its_whole_name(tmp_path: Path) -> None:
    name = r"train\.csv(\.gz)?"
    found = find_file(tmp_path, ["deep/train.csv", "my_train.csv", "train.csv.bak"], name)
    assert found == tmp_path / "deep/train.csv"
    assert find_file(tmp_path, ["x.csv"], name) is None
    message = problem(find_file, tmp_path, ["train.csv.gz", "train.csv"], name)
    assert "2 files of one kind, train.csv, train.csv.gz; keep one" in message
