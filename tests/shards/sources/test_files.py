import re
from pathlib import Path

import pytest

from shards.errors import SourceError
from shards.sources.files import find_table, index_files, list_files

PNG = re.compile(r"(?:^|/)([^/]+\.png)$")


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_files_are_listed_at_any_depth_without_hidden_ones(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b/c d/e.png", "b/.hidden.png", ".cache/f.png")
    assert sorted(list_files(tmp_path, 2)) == ["a.png", "b/c d/e.png"]


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        list_files(tmp_path / "nowhere", 2)


@pytest.mark.parametrize("target", ["../elsewhere", "../elsewhere/x.png"])
def test_a_link_that_leads_out_is_refused(target: str, tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/x.png", "root/a.png")
    (tmp_path / "root" / "out.png").symlink_to(target)
    with pytest.raises(SourceError, match=r"out\.png: a symbolic link leads out"):
        list_files(tmp_path / "root", 2)


def test_a_link_to_a_folder_inside_is_not_followed_and_one_to_a_file_inside_is_a_file(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "b.png").symlink_to("images/a.png")
    (tmp_path / "gone.png").symlink_to("images/gone.png")
    assert sorted(list_files(tmp_path, 2)) == ["b.png", "images/a.png"]


def test_a_root_may_itself_be_a_link(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.png")
    (tmp_path / "link").symlink_to("real")
    assert list_files(tmp_path / "link", 2) == ["a.png"]


def test_an_index_has_the_first_group_and_leaves_out_what_does_not_match(tmp_path: Path) -> None:
    assert index_files(tmp_path, ["x/a.png", "b.png", "c.txt"], PNG) == {"a.png": "x/a.png", "b.png": "b.png"}


def test_one_name_in_two_places_is_refused_with_both(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a\.png is there twice, as x/a\.png and y/a\.png"):
        index_files(tmp_path, ["x/a.png", "y/a.png"], PNG)


def test_a_table_is_found_by_its_whole_name(tmp_path: Path) -> None:
    name = re.compile(r"train\.csv(\.gz)?")
    assert (
        find_table(tmp_path, ["deep/train.csv", "my_train.csv", "train.csv.bak"], name) == tmp_path / "deep/train.csv"
    )
    assert find_table(tmp_path, ["x.csv"], name) is None
    with pytest.raises(SourceError, match=r"2 files of one kind, train\.csv, train\.csv\.gz; keep one"):
        find_table(tmp_path, ["train.csv.gz", "train.csv"], name)
