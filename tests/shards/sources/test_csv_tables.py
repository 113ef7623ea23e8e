import gzip
from pathlib import Path

import pytest

from shards.core.errors import SourceError
from shards.sources.csv_tables import read_columns, read_rows, with_lines
from tests.shards.sources.trees import write_lines


def rows(path: Path, *required: str, optional: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return list(read_columns(path, required, "the test's table", optional))


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_columns_come_in_the_order_asked_for_whatever_the_packing(name: str, end: str, tmp_path: Path) -> None:
    table = write_lines(tmp_path / name, "a,b ,c", '1,"x, y",3', "", " 4 ,,6 ", end=end, start="\ufeff")
    assert rows(table, "c", "b", "a") == [("3", "x, y", "1"), ("6", "", "4")]


def test_optional_columns_are_empty_where_the_file_has_none(tmp_path: Path) -> None:
    table = write_lines(tmp_path / "t.csv", "a,b", "1,2")
    assert rows(table, "a", optional=("x", "b")) == [("1", "", "2")]


def test_unnamed_columns_at_the_end_may_have_fields_or_not(tmp_path: Path) -> None:
    table = write_lines(tmp_path / "t.csv", ",a,b,,", "0,1,2", "0,1,2,,", "0,1,2,x")
    assert rows(table, "b", "a") == [("2", "1")] * 3


@pytest.mark.parametrize("row", ["1", "1,2,3,4"])
def test_a_row_of_another_length_is_named_by_number_not_content(row: str, tmp_path: Path) -> None:
    table = write_lines(tmp_path / "t.csv", "a,b,", "8,9", row)
    with pytest.raises(SourceError, match=rf"line 3: {row.count(',') + 1} fields; the header has 3"):
        rows(table, "a")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("a,b", "needs the columns a, c"),
        ("a,b", r"found none named c among \['a', 'b'\]"),
        ("a,c,a", "found 'a' as the name of the columns 1 and 3"),
        ("Doe,1930", "found a first line with none of them"),
        ("A,b,C", "found 'A' in place of 'a', 'C' in place of 'c'"),
        ("a;c", "found columns separated by semicolons, expected commas"),
        ("a\tDoe\tc", "found columns separated by tabs, expected commas"),
        ("sep=;", "found columns separated by semicolons"),
        ("", "found an empty file"),
    ],
)
def test_a_missing_or_repeated_column_is_an_error(header: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=words) as error:
        rows(write_lines(tmp_path / "t.csv", header), "a", "c")
    assert "Doe" not in str(error.value)


def test_a_repeated_column_that_nobody_asked_for_does_no_harm(tmp_path: Path) -> None:
    assert rows(write_lines(tmp_path / "t.csv", "x,a,x", "1,2,3"), "a") == [("2",)]


def test_a_missing_file_is_named_with_its_columns(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"t\.csv: not found; expected the test's table with the columns a, a CSV file"
    ):
        rows(tmp_path / "t.csv", "a")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv.gz", gzip.compress(b"a\n" + bytes(range(48, 90)) * 400)[:-30]),
        ("t.csv.gz", b"<html>not found</html>"),
        ("t.csv", b'a\n"open\n'),
    ],
)
def test_a_damaged_file_is_one_error(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match="damaged; expected the test's table"):
        rows(tmp_path / name, "a")


@pytest.mark.parametrize(
    "data", [b"a\nM\xfcller\n", "a\nb\n".encode("utf-16"), b"PK\x03\x04\x14\0\x06\0\x08\0\0\0!\0\xb5U0#"]
)
def test_a_table_of_another_encoding_and_a_workbook_are_told_from_a_damaged_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    with pytest.raises(SourceError, match=r"not in UTF-8; expected the test's table .* \(Excel saves a workbook as"):
        rows(tmp_path / "t.csv", "a")


def test_a_folder_in_a_tables_place_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot be read \(Is a directory\); expected the test's table"):
        rows(tmp_path, "a")


def test_a_list_kept_by_hand_is_read_if_asked_for(tmp_path: Path) -> None:
    table = write_lines(
        tmp_path / "t.csv", "Image  No,X- Coordinate , grade,,", "a,1", ",,,,", "b,2,3,,,x", "c, ,", ","
    )
    names = ("grade", "X - Coordinate", "Image No")
    ragged = list(read_columns(table, names, "the test's table", is_ragged=True))
    assert ragged == [("", "1", "a"), ("3", "2", "b"), ("", "", "c")]
    with pytest.raises(SourceError, match="needs the columns"):
        list(read_columns(table, names, "the test's table"))


def test_all_columns_come_by_name_and_every_one_needs_a_name(tmp_path: Path) -> None:
    table = write_lines(tmp_path / "t.csv.gz", "b, a", "1,2", "3,")
    assert read_rows(table, ("a",), "the test's table") == [{"b": "1", "a": "2"}, {"b": "3", "a": ""}]
    for header in ("a,b,", "a,b,b", "a,,b", "b,c", ""):
        with pytest.raises(SourceError, match="needs the columns a, each once and every one named"):
            read_rows(write_lines(tmp_path / "t.csv", header, "1,2,3"), ("a",), "the test's table")
    with pytest.raises(SourceError, match=r"found column 2 without a name \(if pandas wrote it, it is an index"):
        read_rows(write_lines(tmp_path / "t.csv", "a,,b", "1,2,3"), ("a",), "the test's table")
    with pytest.raises(SourceError, match=r"no rows below the header; expected the test's table"):
        read_rows(write_lines(tmp_path / "t.csv", "a,b", ""), ("a",), "the test's table")
    with pytest.raises(SourceError, match="line 3: 1 fields; the header has 2"):
        read_rows(write_lines(tmp_path / "t.csv", "a,b", "1,2", "3"), ("a",), "the test's table")


def test_a_row_is_named_by_its_line_as_an_editor_counts(tmp_path: Path) -> None:
    """Empty lines and values of several lines are lines too; the header is line 1."""
    table = write_lines(tmp_path / "t.csv", "a,b", "1,2", "", '"3', '4",5', "6,7")
    assert list(with_lines(read_columns(table, ("b",), "the test's table"))) == [(2, ("2",)), (5, ("5",)), (6, ("7",))]
    assert [row.line for row in read_rows(table, ("a",), "the test's table")] == [2, 5, 6]
    table = write_lines(tmp_path / "t.csv", "a,b", "1,2", "", "3")
    with pytest.raises(SourceError, match=r"t\.csv line 4: 1 fields; the header has 2"):
        read_rows(table, ("a",), "the test's table")
