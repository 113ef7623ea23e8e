"""Rules of the house that no linter knows."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.support.checkout import ROOT

PACKAGES = ("ace", "shards", "pipelines")
CODE = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
ELSEWHERE = {"shards/sources/datasets": "tests/shards/sources"}
"""Folders whose tests lie in another one than the mirrored."""
MANY_FIELDS = 4


def test_each_folder_of_modules_has_tests_in_the_folder_that_mirrors_it() -> None:
    folders = sorted({path.parent.relative_to(ROOT).as_posix() for path in CODE} - {*PACKAGES})
    assert "ace/commands" in folders
    mirrors = {folder: ROOT / ELSEWHERE.get(folder, f"tests/{folder}") for folder in folders}
    assert [folder for folder, mirror in mirrors.items() if not any(mirror.glob("test_*.py"))] == []


def dataclasses_of(path: Path) -> Iterator[tuple[ast.ClassDef, set[str | None]]]:
    """Yield the dataclasses of a module, and which arguments their decorator has."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else ():
            called = decorator.func if isinstance(decorator, ast.Call) else decorator
            if ast.unparse(called).split(".")[-1] == "dataclass":
                keywords = decorator.keywords if isinstance(decorator, ast.Call) else ()
                yield node, {keyword.arg for keyword in keywords}


def num_fields(node: ast.ClassDef) -> int:
    annotated = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    return sum("ClassVar" not in ast.unparse(item.annotation) for item in annotated)


def test_records_of_many_fields_take_them_by_keyword() -> None:
    found = [(path, node, keywords) for path in CODE for node, keywords in dataclasses_of(path)]
    assert sum("kw_only" in keywords for _, _, keywords in found) > 100
    assert [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path, node, keywords in found
        if num_fields(node) >= MANY_FIELDS and "kw_only" not in keywords
    ] == []


def test_every_parameter_of_a_section_has_a_text() -> None:
    fields = [
        (path, node, item, after)
        for path in CODE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).endswith(("Section", "Params")) for base in node.bases)
        for item, after in zip(node.body, [*node.body[1:], None], strict=True)
        if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.unparse(item.annotation)
    ]
    assert len(fields) > 300
    assert [
        f"{path.relative_to(ROOT)}: {node.name}.{ast.unparse(item.target)}"
        for path, node, item, after in fields
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
        and f"{ast.unparse(item.target)}:" not in (ast.get_docstring(node) or "")
    ] == []
