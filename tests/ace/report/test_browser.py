"""The page in a real browser: no broken image, no script error, nothing asked of a network."""

import re
import subprocess
from pathlib import Path

import pytest

from ace.report.page import write_report
from tests.ace.report.test_page import PARAMS
from tests.support.chromium import FLAGS, find_chromium

# Runs before anything else in the copy of the page under test and leaves its verdict in an attribute.
PROBE = """<script>
const problems = [];
const source = element => (element.src || element.href.baseVal).slice(0, 60);
addEventListener("error", e => problems.push(e.message || "broken: " + source(e.target)), true);
addEventListener("securitypolicyviolation", e => problems.push("fetched: " + e.blockedURI));
addEventListener("load", () => {
  const pictures = [...document.images], drawn = [...document.querySelectorAll("svg image")];
  for (const image of pictures)
    if (!image.complete || !image.naturalWidth) problems.push("broken: " + source(image));
  const excess = document.documentElement.scrollWidth - innerWidth;
  if (excess > 0) problems.push(`wider than the window by ${excess} px`);
  document.documentElement.dataset.pictures = pictures.length + drawn.length;
  document.documentElement.dataset.problems = JSON.stringify(problems);
});
</script>"""
POLICY = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
 style-src 'unsafe-inline'; script-src 'unsafe-inline'">"""


def probe(page: str, folder: Path, width: int = 1280) -> tuple[int, str]:
    """(pictures looked at, problems as JSON) after the page has loaded."""
    path = folder / "page.html"
    path.write_text(page.replace("<head>", f"<head>{POLICY}{PROBE}", 1), encoding="utf-8")
    profile = f"--user-data-dir={folder / 'profile'}"
    command = [find_chromium(), *FLAGS, profile, f"--window-size={width},900", "--dump-dom", path.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    root = re.search(r'<html[^>]*data-pictures="(\d+)"[^>]*data-problems="([^"]*)"', dom)
    assert root, f"the page never finished loading: {dom[:300]}"
    return int(root[1]), root[2]


@pytest.fixture(scope="module")
def page(evaluated_project: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("reports") / "report.html"
    write_report(PARAMS, out, evaluated_project)
    return out.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_has_no_broken_picture_and_no_error(page: str, tmp_path: Path, width: int) -> None:
    num_pictures, problems = probe(page, tmp_path, width)
    assert problems == "[]"
    assert num_pictures == page.count("<img ") + page.count("<image ") > 30


@pytest.mark.browser
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ('<img src="data:image/png;base64,AAAA">', "broken"),
        ('<svg><image href="data:image/png;base64,AAAA" width="9" height="9"/></svg>', "broken"),
        ('<div style="width: 3000px">wide</div>', "wider than the window"),
        ('<img src="https://example.org/x.png">', "fetched"),
        ("<script>undefined_name()</script>", "undefined_name"),
    ],
)
def test_the_probe_sees_faults(tmp_path: Path, fault: str, message: str) -> None:
    _, problems = probe(f"<!DOCTYPE html><html><head></head><body>{fault}</body></html>", tmp_path)
    assert message in problems
