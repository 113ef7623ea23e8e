import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlparse

import pytest

from ace.report.page import write_report
from ace.report.params import ReportParams
from shards.errors import ShardError

PARAMS = ReportParams(title="What a <small> encoder learned", seed=0, smoothing_steps=5)


class Elements(HTMLParser):
    """Every start tag with its attributes, and the ids defined."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    @property
    def links(self) -> list[str]:
        names = ("src", "href", "xlink:href")
        return [attributes[name] for _, attributes in self.found for name in names if name in attributes]


@pytest.fixture(scope="session")
def page_path(evaluated_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reports") / "report.html"
    write_report(PARAMS, out, evaluated_project)
    return out


@pytest.fixture(scope="session")
def page(page_path: Path) -> str:
    return page_path.read_text(encoding="utf-8")


def test_nothing_is_fetched_from_anywhere(page: str) -> None:
    elements = Elements(page)
    for link in elements.links:
        assert link.startswith(("data:", "#")), link[:80]
    assert not {tag for tag, _ in elements.found} & {"script", "iframe", "object", "embed"}
    assert "@import" not in page
    for place in re.findall(r"url\(([^)]*)\)", page):
        assert place.strip("'\"").startswith(("#", "data:"))


def test_every_link_inside_the_page_has_its_target(page: str) -> None:
    elements = Elements(page)
    ids = {attributes["id"] for _, attributes in elements.found if "id" in attributes}
    targets = {urlparse(link).fragment for link in elements.links if link.startswith("#")}
    assert targets
    assert targets <= ids


def test_ids_are_unique(page: str) -> None:
    ids = [attributes["id"] for _, attributes in Elements(page).found if "id" in attributes]
    assert sorted(ids) == sorted(set(ids))


def test_every_key_figure_stands_beside_its_chance_and_the_untrained_encoder(
    page: str, evaluated_project: Path
) -> None:
    figures = json.loads((evaluated_project / "metrics/properties.json").read_text())
    for key, number in (("compositionality", "{:.3f}"), ("decompositionality", "{:.1%}")):
        for encoder in ("trained", "untrained"):
            figure = figures[encoder][key]
            value, low, high = (number.format(figure[name]).replace("-", "−") for name in ("value", "low", "high"))
            assert f"{value} <small>[{low}, {high}]</small>" in page
        assert number.format(figures["trained"][key]["chance"]) in page
    assert f"{figures['baselines']['correspondence_px_at_1024']['same_pixel']['value']:.1f}" in page


def test_squares_erased_in_training_are_told_where_the_protocol_removes_squares(
    page: str, evaluated_project: Path, tmp_path: Path
) -> None:
    assert "In training 25 % of the crops had a black square" in page
    root = tmp_path / "project"
    shutil.copytree(evaluated_project, root)
    config = json.loads((root / "models/ace/config.json").read_text())
    config["params"]["pretrain"]["augment"]["erase"]["probability"] = 0.0
    (root / "models/ace/config.json").write_text(json.dumps(config))
    write_report(PARAMS, tmp_path / "report.html", root)
    assert "black square" not in (tmp_path / "report.html").read_text()


def test_texts_from_data_and_params_are_escaped(page: str) -> None:
    assert "What a &lt;small&gt; encoder learned" in page
    assert "&lt;script&gt;not markup" in page


def test_provenance_names_data_model_and_versions(page: str, evaluated_project: Path) -> None:
    assert "0123456789abcdef0123456789abcdef.dir" in page
    assert "12.3 MB" in page
    for name in ("torch", "timm", "python"):
        assert re.search(rf"{name} \d", page)
    assert "Nobody is in these pictures." in page
    assert "not a git checkout" in page


def test_the_commit_and_uncommitted_changes_are_named(evaluated_project: Path, tmp_path: Path) -> None:
    shutil.copytree(evaluated_project, tmp_path / "project")

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        command = ["git", "-C", str(tmp_path / "project"), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", "params.yaml")
    git("commit", "-q", "-m", "first")
    head = git("rev-parse", "HEAD")
    write_report(PARAMS, tmp_path / "clean.html", tmp_path / "project")
    assert f"<code>{head}</code>" in (tmp_path / "clean.html").read_text()
    (tmp_path / "project/params.yaml").write_text("grid: {n: 10}\n")
    write_report(PARAMS, tmp_path / "changed.html", tmp_path / "project")
    assert f"<code>{head} with uncommitted changes</code>" in (tmp_path / "changed.html").read_text()


def test_the_same_inputs_give_the_same_page(evaluated_project: Path, page: str, tmp_path: Path) -> None:
    write_report(PARAMS, tmp_path / "again.html", evaluated_project)
    assert (tmp_path / "again.html").read_text() == page


def test_a_shard_set_that_the_model_does_not_know_is_not_reported(
    evaluated_project: Path, page: str, tmp_path: Path
) -> None:
    root = tmp_path / "project"
    shutil.copytree(evaluated_project, root)
    (known,) = (root / "data/shards").iterdir()
    shutil.copytree(known, root / "data/shards/left-b000")
    write_report(PARAMS, tmp_path / "report.html", root)
    assert (tmp_path / "report.html").read_text() == page


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("metrics/properties.json", "dvc repro evaluate"),
        ("models/ace/config.json", "dvc repro pretrain"),
        ("data/evidence/composition.npz", "dvc repro evaluate"),
        ("data/shards", "dvc repro"),
    ],
)
def test_a_stage_that_has_not_run_is_named(evaluated_project: Path, tmp_path: Path, missing: str, command: str) -> None:
    root = tmp_path / "project"
    shutil.copytree(evaluated_project, root)
    path = root / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ShardError, match=command):
        write_report(PARAMS, tmp_path / "report.html", root)
    assert not (tmp_path / "report.html").exists()


def test_a_model_that_others_trained_has_no_training_to_report_on(evaluated_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(evaluated_project, root)
    path = root / "models/ace/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "origin": "imported"}))
    with pytest.raises(ShardError, match=r"models/ace: an imported model, .*metrics/properties.json"):
        write_report(PARAMS, tmp_path / "report.html", root)
    assert not (tmp_path / "report.html").exists()


def test_a_project_without_phantom_and_landmarks_has_a_report_too(evaluated_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(evaluated_project, root)
    shutil.rmtree(root / "data/phantom")
    figures = json.loads((root / "metrics/properties.json").read_text())
    for encoder in ("trained", "untrained", "gain"):
        figures[encoder]["correspondence_px_at_1024"] = {"value": None, "reason": "there are no landmarks"}
        figures[encoder].pop("correspondence_within_32px")
    figures.pop("baselines")
    (root / "metrics/properties.json").write_text(json.dumps(figures))
    write_report(PARAMS, tmp_path / "report.html", root)
    page = (tmp_path / "report.html").read_text()
    assert "Not measured: there are no landmarks." in page
    assert "The phantom is one person" not in page
