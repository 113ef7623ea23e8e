from pathlib import Path

import pytest

from shards.errors import SourceError
from shards.sources.file_tree import index_files, list_files, match_files, read_rows
from tests.shards.sources.layouts import write_files


def test_files_are_listed_in_order_without_hidden_ones_and_the_leavings_of_archives(tmp_path: Path) -> None:
    write_files(tmp_path, ["b/2.png", "a.png", "b/10.png", ".DS_Store", "b/._2.png", ".git/x.png", "__MACOSX/b/2.png"])
    assert list_files(tmp_path) == ["a.png", "b/10.png", "b/2.png"]


def test_a_missing_folder_and_a_file_in_its_place_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path, ["file"])
    for name in ("missing", "file"):
        with pytest.raises(SourceError, match="no such folder"):
            list_files(tmp_path / name)


def test_a_link_that_leads_out_is_refused_and_one_that_stays_inside_is_a_file(tmp_path: Path) -> None:
    write_files(tmp_path, ["secret.png", "data/a.png"])
    (tmp_path / "data" / "b.png").symlink_to(tmp_path / "data" / "a.png")
    assert list_files(tmp_path / "data") == ["a.png", "b.png"]
    (tmp_path / "data" / "c.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(SourceError, match=r"c\.png: a symbolic link leads out"):
        list_files(tmp_path / "data")


def test_a_linked_folder_is_not_entered_so_that_a_circle_ends(tmp_path: Path) -> None:
    write_files(tmp_path, ["a/1.png"])
    (tmp_path / "a" / "again").symlink_to(tmp_path, target_is_directory=True)
    assert list_files(tmp_path) == ["a/1.png"]


def test_a_pattern_names_whole_path_parts_and_ignores_case() -> None:
    paths = ["CXR_png/a1.png", "deep/down/cxr_PNG/b2.PNG", "myCXR_png/c3.png", "CXR_png/sub/d4.png"]
    found = match_files(paths, r"CXR_png/(?P<name>[a-z]\d)\.png")
    assert list(found.values()) == paths[:2]
    assert index_files(paths, r"CXR_png/(?P<name>[a-z]\d)\.png") == {"a1": paths[0], "b2": paths[1]}


def test_a_list_in_another_form_is_a_warning_and_no_row() -> None:
    def refuse() -> list[int]:
        raise SourceError("a.csv: no columns")

    warnings: list[str] = []
    assert read_rows(lambda: [1, 2], warnings) == [1, 2]
    assert warnings == []
    assert read_rows(refuse, warnings) == []
    assert warnings == ["a.csv: no columns; what the file says stays unknown"]


def test_two_files_of_one_name_are_refused_by_both_paths() -> None:
    with pytest.raises(SourceError, match=r"x/CXR_png/a\.png and y/CXR_png/a\.png"):
        index_files(["x/CXR_png/a.png", "y/CXR_png/a.png"], r"CXR_png/(?P<name>a)\.png")
