import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.core.errors import SourceError
from shards.sources import workbook
from shards.sources.workbook import read_workbook
from tests.shards.sources.trees import MAIN, write_workbook

COLUMNS = ("ImgName", "Fovea_X")
words = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), max_size=12)


@given(rows=st.lists(st.tuples(words, words, words).filter(any), max_size=5), is_inline=st.booleans())
def test_what_is_written_comes_back(
    rows: list[tuple[str, str, str]], is_inline: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write_workbook(tmp_path_factory.mktemp("book") / "a.xlsx", [(*COLUMNS, "Other"), *rows], is_inline=is_inline)
    expected = [dict(zip((*COLUMNS, "Other"), row, strict=True)) for row in rows]
    assert read_workbook(path, COLUMNS, "labels") == expected


def test_titles_above_the_header_empty_rows_and_empty_columns_are_passed_over(tmp_path: Path) -> None:
    rows = [("A title",), ("", ""), ("ID", "ImgName", "", "Fovea_X"), ("1", "V0001.jpg", "", "12.5"), ("",), ("2",)]
    assert read_workbook(write_workbook(tmp_path / "a.xlsx", rows), COLUMNS, "labels") == [
        {"ID": "1", "ImgName": "V0001.jpg", "Fovea_X": "12.5"},
        {"ID": "2", "ImgName": "", "Fovea_X": ""},
    ]


def test_columns_that_no_sheet_has_are_named(tmp_path: Path) -> None:
    path = write_workbook(tmp_path / "a.xlsx", [("ImgName", "Label")])
    with pytest.raises(SourceError, match=r"labels needs a row with the columns ImgName, Fovea_X"):
        read_workbook(path, COLUMNS, "labels")


def test_what_is_no_workbook_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "page.xlsx").write_text("<html>log in</html>")
    with zipfile.ZipFile(tmp_path / "broken.xlsx", "w") as archive:
        archive.writestr("xl/worksheets/sheet1.xml", "<worksheet>")
    with zipfile.ZipFile(tmp_path / "string.xlsx", "w") as archive:
        cell = '<row r="1"><c r="A1" t="s"><v>7</v></c></row>'
        archive.writestr(
            "xl/worksheets/sheet1.xml", f'<worksheet xmlns="{MAIN}"><sheetData>{cell}</sheetData></worksheet>'
        )
    for name in ("page", "broken", "string"):
        with pytest.raises(SourceError, match=r"expected labels as an Excel workbook"):
            read_workbook(tmp_path / f"{name}.xlsx", COLUMNS, "labels")


def test_a_part_that_unpacks_to_more_than_a_table_holds_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_workbook(tmp_path / "a.xlsx", [COLUMNS, ("V0001.jpg", "1")])
    monkeypatch.setattr(workbook, "_MAX_BYTES", 50)
    with pytest.raises(SourceError, match="unpacks to more than 50 bytes"):
        read_workbook(path, COLUMNS, "labels")
