"""Rules of the house that no linter knows."""

from tests.support.checkout import ROOT

PACKAGES = ("ace", "shards")
ELSEWHERE = {"shards/sources/datasets": "tests/shards/sources"}
"""Folders whose tests lie in another one than the mirrored."""


def test_each_folder_of_modules_has_tests_in_the_folder_that_mirrors_it() -> None:
    modules = (path for package in PACKAGES for path in (ROOT / package).glob("*/**/*.py"))
    folders = sorted({path.parent.relative_to(ROOT).as_posix() for path in modules})
    assert "ace/commands" in folders
    mirrors = {folder: ROOT / ELSEWHERE.get(folder, f"tests/{folder}") for folder in folders}
    assert [folder for folder, mirror in mirrors.items() if not any(mirror.glob("test_*.py"))] == []
