"""The list of datasets, on the command line and in docs/datasets.md.

`python -m tests.shards.sources.test_catalogue` writes the tables of that document anew.
"""

import argparse
import importlib
import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.cli import run_command
from shards.sources.base import SourceInfo, layout_in
from shards.sources.catalogue import WIDTH, add_sources_command, render_table
from shards.sources.registry import MODULES, open_source
from tests.support.dataset_tables import FAMILIES, family_of, render_markdown

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs/datasets.md"
INFOS = {kind: open_source(kind).info for kind in MODULES}
OWN = ("phantom", "folder", "dicom")
BLOCK = re.compile(r"(<!-- sources: (\w+) -->\n)(.*?)(\n<!-- end -->)", re.S)

words = st.text("abcdefghij/.-_,| ", min_size=1, max_size=150).filter(str.strip)
infos = st.builds(
    SourceInfo,
    name=st.text("abcdefghij-", min_size=1, max_size=15).filter(lambda text: text.strip("-") == text),
    title=words,
    modality=words,
    num_images=st.none() | st.integers(0, 999_999),
    num_patients=st.none() | st.integers(0, 999_999),
    tasks=st.lists(words, min_size=1, max_size=4).map(tuple),
    licence=words,
    is_redistributable=st.booleans(),
    citation=words,
    pages=st.just(("https://example.org/data",)),
    layout=st.lists(words, min_size=1, max_size=4).map("\n".join),
    shares_images_with=st.just(()),
)


def with_tables(document: str) -> str:
    """The document with the tables of the sources there are."""
    return BLOCK.sub(lambda match: f"{match[1]}{rendered(match[2])}{match[4]}", document)


def rendered(family: str) -> str:
    return render_markdown(info for info in INFOS.values() if family_of(info) == family)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    parser = argparse.ArgumentParser()
    add_sources_command(parser.add_subparsers(required=True))
    code = run_command(parser, ["sources", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_every_source_is_listed_with_its_layout_in_lines_that_fit(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys)
    assert code == 0
    lines = out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    starts = [line.split()[0] for line in lines if line[:1] not in ("", " ")]
    assert starts[1 : len(MODULES) + 1] == list(MODULES)
    squeezed = re.sub(r"\s", "", out)
    for info in INFOS.values():
        assert re.sub(r"\s", "", info.layout) in squeezed


@given(st.lists(infos, max_size=3))
def test_no_line_is_wider_than_the_terminal_and_nothing_is_cut(some: list[SourceInfo]) -> None:
    out = render_table(some)
    assert all(len(line) <= WIDTH for line in out.splitlines())
    squeezed = re.sub(r"\s", "", out)
    for info in some:
        assert re.sub(r"\s", "", info.layout) in squeezed
        # A cell that wraps is cut into columns: each of its letters is there, in the block of its dataset.
        assert all(squeezed.count(letter) >= info.licence.count(letter) for letter in "abcdefghij")


def test_a_page_has_the_whole_of_one_dataset_in_lines_that_fit(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, info in INFOS.items():
        code, out, _ = run(capsys, kind)
        assert code == 0
        assert all(len(line) <= WIDTH or line.strip() in info.pages for line in out.splitlines())
        flat = " ".join(out.split())
        for text in (info.title, info.citation, info.licence, *info.pages, *info.shares_images_with):
            assert " ".join(text.split()) in flat, text
        assert (f"--source {kind}" in out) is (kind != "phantom"), "whose stage makes it"
        assert ("must not be passed on" in flat) is (not info.is_redistributable)


def test_json_has_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "--json")
    assert json.loads(out) == [json.loads(json.dumps(asdict(info))) for info in INFOS.values()]
    _, out, _ = run(capsys, "drive", "--json")
    assert json.loads(out)["num_images"] == 40


def test_a_kind_that_there_is_not_is_one_message_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, error = run(capsys, "nih")
    assert (code, out) == (2, "")
    assert error.startswith("error: found no source 'nih'; expected one of folder, dicom, nih-chestxray14")


def test_every_registered_source_calls_itself_by_its_kind() -> None:
    assert {kind: info.name for kind, info in INFOS.items()} == {kind: kind for kind in MODULES}


@pytest.mark.parametrize("kind", [kind for kind in MODULES if kind not in OWN])
def test_a_datasets_module_opens_with_its_citation_pages_and_layout(kind: str) -> None:
    text, info = importlib.import_module(f"shards.sources.datasets.{MODULES[kind]}").__doc__ or "", INFOS[kind]
    assert set(re.findall(r"\w+", info.citation)) <= set(re.findall(r"\w+", text))
    assert all(page in text for page in info.pages)
    assert info.layout == layout_in(text) != ""
    assert re.search("licen[cs]e|research|CC BY|use", text, re.I), "terms of use"


def test_sources_share_images_with_sources_there_are() -> None:
    for kind, info in INFOS.items():
        # JSRT's images are there twice, under names that nothing maps.
        assert set(info.shares_images_with) <= set(MODULES) - ({kind} - {"jsrt"})


def test_a_markdown_row_has_seven_cells_whatever_is_in_them() -> None:
    info = SourceInfo(
        name="x",
        title="A | B",
        modality="m",
        num_images=None,
        num_patients=1_000,
        tasks=("t",),
        licence="l",
        is_redistributable=False,
        citation="c",
        pages=("docs/register.md",),
        layout="a|b\n`c`",
    )
    row = render_markdown([info]).splitlines()[2]
    assert row == "| `x` | A \\| B | - | 1,000 | t | l | `a\\|b`<br>`` `c` `` |"


def test_the_document_has_the_table_of_every_family_as_rendered() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert [match[2] for match in BLOCK.finditer(document)] == list(FAMILIES)
    assert with_tables(document) == document, "python -m tests.shards.sources.test_catalogue writes the tables anew"


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
