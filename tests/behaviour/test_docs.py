"""Links of all Markdown files lead somewhere, and the glossary has each word once."""

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from dvc.repo import Repo
from ruamel.yaml import YAML

from tests.support.checkout import ROOT, git

TRACKED = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "*.md").split()
DOCUMENTS = sorted(ROOT / name for name in TRACKED if (ROOT / name).exists())
FENCE = re.compile(r"^```.*?^```", re.M | re.S)
LINK = re.compile(r"\]\((?!\w+:)([^)\s]+)\)|<img [^>]*src=\"(?!\w+:)([^\"]+)\"")


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page: lower case, no punctuation, a dash for each space."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} (.+?)\s*$", FENCE.sub("", text), re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def broken_links(document: Path) -> list[str]:
    """Relative links of a page whose file or heading is not there."""
    text = document.read_text(encoding="utf-8")
    broken = []
    for link in ("".join(groups) for groups in LINK.findall(FENCE.sub("", text))):
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


def glossary_terms() -> list[str]:
    return re.findall(r"^\*\*(.+?)\*\*:", (ROOT / "docs/glossary.md").read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    assert broken_links(document) == []


def test_a_link_to_a_missing_file_or_heading_is_found(tmp_path: Path) -> None:
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text("# Title\n## Same: `word`\n## Same: `word`\n```\n# no heading\n```\n", encoding="utf-8")
    page.write_text(
        "# Here\n[a](other.md) [b](other.md#same-word-1) [c](#here) [d](https://example.org/x.md)\n"
        '[e](missing.md) [f](other.md#no-heading) [g](#there) <img src="gone.svg">\n',
        encoding="utf-8",
    )
    assert broken_links(page) == ["missing.md", "other.md#no-heading", "#there", "gone.svg"]


def test_every_page_of_docs_is_linked_from_the_readme_or_a_page_that_is() -> None:
    reached, open_pages = set(), [ROOT / "README.md"]
    while open_pages:
        page = open_pages.pop()
        if page in reached:
            continue
        reached.add(page)
        for groups in LINK.findall(page.read_text(encoding="utf-8")):
            target = (page.parent / "".join(groups).partition("#")[0]).resolve()
            if target.suffix == ".md" and target.exists():
                open_pages.append(target)
    assert {page for page in DOCUMENTS if page.is_relative_to(ROOT / "docs")} <= reached


def test_the_glossary_is_sorted_and_has_each_word_once() -> None:
    terms = glossary_terms()
    assert len(terms) > 30
    assert terms == sorted(set(terms), key=str.lower)


def test_the_citation_names_the_version_of_the_package() -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert (citation["version"], citation["license"]) == (package["version"], package["license"])


def test_a_page_beside_the_code_makes_no_stage_stale() -> None:
    with Repo(str(ROOT)) as repo:
        assert repo.dvcignore.is_ignored_file(str(ROOT / "ace/geometry/README.md"))
        assert not repo.dvcignore.is_ignored_file(str(ROOT / "ace/geometry/overlap.py"))
        assert not repo.dvcignore.is_ignored_file(str(ROOT / "models/ace/README.md"))
