"""The table of all encoders: its cells are the metrics', its signs are what the intervals show."""

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from ace.__main__ import build_parser
from ace.drawing.words import Words
from ace.report.comparison import compare_encoders, markdown_table
from ace.report.page import write_report
from ace.report.tables import ALIKE, BETTER, WORSE
from ace.report.two_encoders import read_apart
from shards.cli import run_command
from shards.core.errors import ConfigError
from tests.ace.evaluation.drawn_project import EVALUATE
from tests.ace.report.test_browser import probe
from tests.ace.report.test_page import PARAMS, shown

WORDS = Words(one="patient")


def figure(value: float, low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "chance": 0.1, "n": 7, **more}


def metrics() -> dict[str, Any]:
    """Three encoders; of the first one's gains one lies above 0, one below, one holds it."""
    return {
        "trained": {"decompositionality": figure(0.8, 0.7, 0.9, num_candidates=32, num_draws=60)},
        "untrained": {"decompositionality": figure(0.1, 0.0, 0.2, num_candidates=32)},
        "other": {"decompositionality": figure(0.9, 0.8, 1.0, num_candidates=32)},
        "like": {"decompositionality": figure(0.79, 0.7, 0.9, num_candidates=32)},
        "gain": {"decompositionality": figure(0.7, 0.6, 0.8)},
        "gain_over_other": {"decompositionality": figure(-0.1, -0.2, -0.05)},
        "gain_over_like": {"decompositionality": figure(0.01, -0.1, 0.1)},
        "measured": {"batch": "phantom-b000", "split": "test", "num_patients": 7},
    }


def test_cells_are_the_metrics_and_verdicts_what_their_intervals_show() -> None:
    found = compare_encoders(metrics(), ["trained", "untrained", "other", "like"], WORDS)
    (column,) = found.columns
    assert (column.key, column.protocol) == ("decompositionality", "7 patients, 32 candidates, 60 draws, chance 10.0%")
    cells = {name: cell for name, (cell,) in found.rows.items()}
    assert cells["trained"].text == ("80.0%", "[70.0%, 90.0%]")
    assert cells["trained"].gain is None
    assert cells["untrained"].gain == ("70.0%", "[60.0%, 80.0%]")
    assert {name: cell.verdict for name, cell in cells.items()} == {
        "trained": None,
        "untrained": BETTER,
        "other": WORSE,
        "like": ALIKE,
    }
    assert cells["other"].bar == 100
    assert cells["untrained"].bar == pytest.approx(100 * 0.1 / 0.9, abs=0.1)


def test_two_encoders_whose_figures_are_swapped_change_places_in_the_table() -> None:
    names = ["trained", "untrained", "other", "like"]
    own, swapped = metrics(), metrics()
    swapped["untrained"], swapped["other"] = swapped["other"], swapped["untrained"]
    before, after = (compare_encoders(values, names, WORDS).rows for values in (own, swapped))
    assert before["untrained"][0].text == after["other"][0].text != after["untrained"][0].text
    assert markdown_table(compare_encoders(own, names, WORDS)) != markdown_table(
        compare_encoders(swapped, names, WORDS)
    )


def test_an_encoder_that_could_not_be_measured_has_a_dash() -> None:
    values = metrics()
    for name in ("other", "gain_over_other"):
        values[name]["decompositionality"] = {"value": None, "low": None, "high": None, "n": 0, "reason": "no length"}
    (cell,) = compare_encoders(values, ["trained", "other"], WORDS).rows["other"]
    assert (cell.text, cell.gain, cell.bar) == (("–", ""), None, 0.0)


def table_of(page: str) -> str:
    return page[page.index('<table class="comparison">') : page.index("</table>")]


def test_the_page_begins_with_every_encoders_headline_figures_and_paired_gains(
    evaluated_project: Path, tmp_path: Path
) -> None:
    write_report(PARAMS.model_copy(update={"num_pictured": 2}), tmp_path / "report.html", evaluated_project)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    table = table_of(page)
    figures = json.loads((evaluated_project / "metrics/properties.json").read_text())
    for key, number in (("compositionality", "{:.3f}"), ("decompositionality", "{:.1%}"), ("symmetry", "{:.1%}")):
        for section in ("trained", "untrained", "imagenet", "gain", "gain_over_imagenet"):
            assert shown(figures[section][key], number) in table
    assert page.index('class="comparison"') < page.index('class="cards"')
    assert "teacher of " in table
    cards = page[page.index('class="cards"') : page.index("Brackets are")]
    assert "ImageNet" not in cards, "cards and pictures are of the first two"
    assert "ImageNet" in table


def compare(root: Path, *names: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(root)
    code = run_command(build_parser(), ["report", "--compare", *names, "--out", "reports/two.html"])
    assert code == 0
    return (root / "reports/two.html").read_text(encoding="utf-8")


@pytest.fixture
def project(evaluated_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy whose params.yaml says what was measured, at the same path as then."""
    root = tmp_path / "project"
    shutil.copytree(evaluated_project, root)
    own = {name: f"{evaluated_project}/models/{name}" for name in ("ace", "imagenet")}
    encoders = {
        "trained": {"model": own["ace"], "network": "teacher"},
        "untrained": {"model": own["ace"], "network": "untrained"},
        "imagenet": {"model": own["imagenet"], "network": "teacher"},
    }
    (root / "params.yaml").write_text(json.dumps({"encoders": encoders, "evaluate": EVALUATE}), encoding="utf-8")
    monkeypatch.setenv("ACE_SCRATCH", str(tmp_path / "scratch"))
    return root


def test_any_two_encoders_are_compared_over_the_same_patients(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = compare(project, "imagenet", "trained", monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    back = compare(project, "trained", "imagenet", monkeypatch=monkeypatch)
    figures = json.loads((project / "metrics/properties.json").read_text())
    for name in ("imagenet", "trained"):
        assert shown(figures[name]["compositionality"], "{:.3f}") in table_of(page)
    gain = figures["gain_over_imagenet"]["compositionality"]
    assert shown(gain, "{:.3f}") in table_of(back)
    opposite = {"value": -gain["value"], "low": -gain["high"], "high": -gain["low"]}
    assert shown(opposite, "{:.3f}") in table_of(page)
    assert compare(project, "imagenet", "untrained", monkeypatch=monkeypatch)
    assert "| imagenet |" in printed
    assert "patient by patient" in html.unescape(re.sub(r"<[^>]*>", "", page))


def test_encoders_of_two_files_are_set_side_by_side_without_a_paired_difference(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(project / "metrics", project / "studies/one")
    page = compare(project, "studies/one", "metrics/properties.json:imagenet", monkeypatch=monkeypatch)
    figures = json.loads((project / "metrics/properties.json").read_text())
    for name in ("trained", "imagenet"):
        assert shown(figures[name]["decompositionality"], "{:.1%}") in table_of(page)
    assert "there is no paired difference" in page
    assert 'class="gain' not in page


def test_shares_of_right_answers_among_other_numbers_of_candidates_are_not_set_side_by_side(tmp_path: Path) -> None:
    other = metrics()
    other["trained"]["decompositionality"]["num_candidates"] = 16
    other["trained"]["symmetry"] = figure(0.5, 0.4, 0.6)
    own = metrics()
    own["trained"]["symmetry"] = figure(0.4, 0.3, 0.5)
    paths = [tmp_path / f"{number}.json" for number in range(2)]
    for path, values in zip(paths, (own, other), strict=True):
        path.write_text(json.dumps(values), encoding="utf-8")
    figures, _ = read_apart(*map(str, paths))
    assert [list(found) for found in figures.values()] == [["symmetry"]] * 2
    figures, _ = read_apart(str(paths[0]), f"{paths[0]}:like")
    assert [list(found) for found in figures.values()] == [["decompositionality"]] * 2


def test_what_cannot_be_compared_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    with pytest.raises(ConfigError, match=r"neither an encoder of params.yaml nor a file of metrics"):
        read_apart("metrics/properties.json", "nowhere")
    with pytest.raises(ConfigError, match="has no encoder 'best'; it has trained, untrained, imagenet"):
        read_apart("metrics/properties.json", "metrics/properties.json:best")
    with pytest.raises(ConfigError, match="expected two different ones"):
        read_apart("a", "a")
    for names, message in {
        (
            "trained",
            "nope",
        ): "--compare nope: no encoder of params.yaml, which has trained, untrained, imagenet, and no",
        ("studies/a", "trained"): "--compare studies/a: no encoder of params.yaml",
        ("metrics", "trained"): "as metrics/properties.json:trained",
    }.items():
        assert run_command(build_parser(), ["report", "--compare", *names]) == 2
        assert message in capsys.readouterr().err
    assert run_command(build_parser(), ["report", "--compare", "untrained", "trained"]) == 2
    assert "'untrained', is untrained, and gains are the first one's; put another first" in capsys.readouterr().err


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_of_two_has_no_fault_in_a_browser(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    page = compare(project, "trained", "imagenet", monkeypatch=monkeypatch)
    assert probe(page, tmp_path, width)[1] == "[]"
