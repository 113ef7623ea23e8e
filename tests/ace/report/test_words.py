"""What the page says: every sentence follows from the data, the training and the figures that it stands over."""

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from ace.drawing.words import Words
from ace.properties.composition import Composition
from ace.properties.correspondence import Correspondence
from ace.report.page import write_report
from ace.report.tables import headline_card
from tests.ace.report.conftest import CLINIC, CLINIC_PARAMS
from tests.ace.report.test_page import OF_LABELS, PARAMS, UNTITLED, text_of
from tests.support.datasets import forget_patients

Change = Callable[[dict[str, Any]], None]
WORDS = Words(one="patient")


def words_of(project: Path) -> str:
    out = project.with_name(f"{project.name}.html")
    write_report(PARAMS, out, project)
    return text_of(out.read_text(encoding="utf-8"))


@pytest.fixture
def project(clinic_project: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(clinic_project, tmp_path / "project"))


@pytest.fixture(scope="session")
def clinic_page(clinic_project: Path) -> str:
    out = clinic_project / "page.html"
    write_report(PARAMS, out, clinic_project)
    return out.read_text(encoding="utf-8")


def change(path: Path, how: Change) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    how(values)
    path.write_text(json.dumps(values), encoding="utf-8")


def change_figures(project: Path, how: Change) -> None:
    change(project / "metrics/properties.json", how)


def change_model(project: Path, how: Change) -> None:
    change(project / "models/ace/config.json", how)


def test_images_of_a_folder_are_not_told_as_the_phantoms(clinic_page: str) -> None:
    words = text_of(clinic_page).lower()
    for word in ("phantom", "virtual", "warp", "masks"):
        assert word not in words


def test_a_page_without_a_title_of_its_own_names_what_was_measured(clinic_project: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    write_report(UNTITLED, out, clinic_project)
    assert f"<h1>ACE on {CLINIC}: what a small encoder learned about anatomy</h1>" in out.read_text(encoding="utf-8")


def test_provenance_lists_the_stages_that_the_model_comes_from_and_no_others(clinic_page: str) -> None:
    table = clinic_page[clinic_page.index("out in dvc.lock") :]
    stages = re.findall(r"<tr><td>([^<]*)</td>", table[: table.index("</table>")])
    assert stages == ["pretrain", "pretrain", "evaluate", "evaluate", "manifest", f"shard@{CLINIC}"]


def test_params_are_shown_with_their_values_and_without_other_data(clinic_page: str) -> None:
    (shown,) = re.findall(r"<summary>params.yaml[^<]*</summary><pre>(.*?)</pre>", clinic_page, flags=re.DOTALL)
    yaml = YAML(typ="safe", pure=True)
    expected = yaml.load(CLINIC_PARAMS)
    del expected["phantom"]
    assert yaml.load(html.unescape(shown)) == expected


def test_labels_are_not_spoken_of_where_there_are_none(clinic_page: str) -> None:
    assert OF_LABELS not in text_of(clinic_page)


def test_a_set_without_labels_says_that_nothing_can_be_read_off(clinic_page: str) -> None:
    words = text_of(clinic_page)
    assert "Not measured: the images have no labels." in words
    assert "logistic regression" not in words


def test_images_kept_out_are_counted_with_their_reasons(clinic_page: str) -> None:
    assert "1 image quarantined (the same file as another image: 1)" in text_of(clinic_page)


def test_counts_of_what_was_trained_on_stand_beside_the_figures(clinic_page: str, clinic_project: Path) -> None:
    counts = json.loads((clinic_project / "data/shards" / CLINIC / "index.json").read_text())["counts"]
    images, patients = counts["images"]["train"], counts["patients"]["train"]
    words = text_of(clinic_page)
    assert f"The training drew from {images} images of {patients} patients of {CLINIC} ." in words
    assert "The encoder was trained on the training split. The test split was measured." in words
    assert f"trained on other images of the measured set ( {CLINIC} )" in words


def test_why_something_was_not_measured_is_the_reason_of_the_evaluation(clinic_page: str) -> None:
    assert text_of(clinic_page).count("Not measured: fewer than two test patients of this batch have landmarks.") == 2
    assert "An error of correspondence has a floor" not in text_of(clinic_page)


@pytest.mark.parametrize("batches", [{}, {CLINIC: {"mix": {"weight": 0.0, "mean": 0.5, "std": 0.25}}}])
def test_a_measured_set_that_was_not_trained_on_is_told_as_that(project: Path, batches: dict[str, Any]) -> None:
    change_model(project, lambda config: config["params"].update(batches=batches))
    words = words_of(project)
    assert "The encoder was not trained on any of it. The test split was measured." in words
    assert "The training drew from" not in words
    assert "of the measured set" not in words


def test_patients_of_whom_nothing_is_known_are_not_told_as_never_seen(project: Path) -> None:
    change_figures(project, lambda figures: figures["measured"].update(num_shared_patients=None))
    words = words_of(project)
    assert "never saw" not in words
    assert "What was measured may have been trained on." not in words


@pytest.mark.parametrize("shared", [{"num_shared_patients": 2}, {"batches_that_may_share_images": ["nih-b000"]}])
def test_patients_that_were_trained_on_are_not_told_as_never_seen(project: Path, shared: dict[str, Any]) -> None:
    assert "it never saw" in words_of(project)
    change_figures(project, lambda figures: figures["measured"].update(shared))
    words = words_of(project)
    assert "it never saw" not in words
    assert "What was measured may have been trained on." in words


def test_measured_images_without_patients_are_not_told_as_patients(project: Path) -> None:
    forget_patients(project / "data/shards" / CLINIC)
    change_figures(project, lambda figures: figures["measured"].update(batches_without_patients=[CLINIC]))
    words = words_of(project)
    assert "intervals over images; differences are taken over the same resampled images." in words
    assert f"All figures are of test images of {CLINIC} ;" in words
    assert "another image's tissue" in words
    for absent in ("test patients of clinic", "32 patients", "another patient", "one patient:", "one image each"):
        assert absent not in words


def figure(value: float, half: float, **facts: Any) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": 9, **facts}


def card_of(trained: dict[str, Any], gain: float, half: float = 0.01, other_gain: float = 0.1) -> dict[str, Any]:
    """The card of compositionality, whose AUC has the other gain."""
    both = ("compositionality", "compositionality_auc")
    properties: dict[str, Any] = {name: dict.fromkeys(both, trained) for name in ("trained", "untrained")}
    properties["gain"] = {both[0]: figure(gain, half), both[1]: figure(other_gain, half)}
    return headline_card(Composition(), properties, ["trained", "untrained"], WORDS)


@pytest.mark.parametrize(
    ("gain", "half", "expected"),
    [
        (0.02, 0.01, "better than"),
        (0.02, 0.02, "not distinguishable from"),
        (0.0, 0.0, "not distinguishable from"),
        (-0.02, 0.02, "not distinguishable from"),
        (-0.02, 0.01, "worse than"),
    ],
)
def test_a_gain_is_told_as_one_only_where_its_interval_excludes_zero(gain: float, half: float, expected: str) -> None:
    card = card_of(figure(0.5, 0.1, chance=0.0), gain, half)
    assert card["gains"][0]["verdict"] == expected
    assert card["over_chance"] == "better than"


@pytest.mark.parametrize(
    ("value", "expected"), [(0.06, "better than"), (0.04, "not distinguishable from"), (-0.06, "worse than")]
)
def test_a_figure_is_told_as_better_than_chance_only_where_its_interval_excludes_it(
    value: float, expected: str
) -> None:
    assert card_of(figure(value, 0.05, chance=0.0), 0.1)["over_chance"] == expected


def test_an_error_below_chance_is_better_than_chance() -> None:
    error = {"trained": {str(Correspondence.headline): figure(30, 5, chance=400)}}
    assert headline_card(Correspondence(), error, ["trained"], WORDS)["over_chance"] == "better than"


@pytest.mark.parametrize(("other_gain", "expected"), [(-0.1, "worse than"), (0.0, "not distinguishable from")])
def test_a_better_figure_whose_own_auc_is_not_better_says_so(project: Path, other_gain: float, expected: str) -> None:
    gains = {"compositionality": figure(0.3, 0.1), "compositionality_auc": figure(0.1, 0.05)}
    change_figures(project, lambda figures: figures["gain"].update(gains))
    doubt = "By the figure “AUC, true against mismatched”: {} untrained."
    words = words_of(project)
    assert "Better than untrained: gain 0.300 [0.200, 0.400]" in words
    assert doubt.format(expected) not in words
    gains["compositionality_auc"] = figure(other_gain, 0.05)
    change_figures(project, lambda figures: figures["gain"].update(gains))
    assert words_of(project).count(doubt.format(expected)) == 2


def test_several_figures_that_are_not_better_are_named_in_one_sentence(project: Path) -> None:
    alike, better = figure(0.0, 0.05), figure(0.3, 0.1)
    gains = {"decompositionality": better, "decompositionality_white": alike, "decompositionality_noise": alike}
    change_figures(project, lambda figures: figures["gain"].update(gains))
    words = words_of(project)
    said = re.findall(r"By the figures? (“[^:]*): not distinguishable from untrained\.", words)
    assert [
        names
        for names in said
        if {"“top-1, filled with white”", "“top-1, filled with noise”"} <= set(re.findall(r"“[^”]*”", names))
    ]
    assert "“top-1, filled with white”" not in said


def test_headings_ask_and_the_intervals_answer(project: Path) -> None:
    at_chance = figure(0.034, 0.01, chance=0.031, batch=32, num_draws=60)
    change_figures(project, lambda figures: figures["trained"].update(decompositionality=at_chance))
    out = project.with_name("page.html")
    write_report(PARAMS, out, project)
    page = out.read_text(encoding="utf-8")
    headings = [re.sub(r"<[^>]*>", "", heading) for heading in re.findall(r"<h2>(.*?)</h2>", page)]
    assert [heading for heading in headings if ":" in heading and not heading.endswith("?")] == []
    assert "Decomposition: does removing a part remove its embedding?" in headings
    assert "The trained encoder: 3.4% [2.4%, 4.4%] , not distinguishable from chance (3.1%)" in text_of(page)
    assert "Not distinguishable from chance." in text_of(page)


def test_first_weights_of_another_training_are_told(project: Path) -> None:
    words = words_of(project)
    assert "the gain over untrained is that training's" not in words
    assert "on patients it never saw" in words
    change_model(project, lambda config: config["params"]["pretrain"].update(start_from="models/first"))
    words = words_of(project)
    assert "a part of the gain over untrained is that training's" in words
    assert "on patients that this training never saw" in words


def test_the_baseline_is_not_told_as_trained_for_parts(project: Path) -> None:
    change_model(project, lambda config: config["params"]["pretrain"].update(objective="dino"))
    words = words_of(project)
    assert "nothing asks for composition or decomposition" in words
    for absent in ("so that the embedding of a whole is made of", "The student learns to compose"):
        assert absent not in words


def test_floors_of_losses_are_explained_only_where_a_curve_has_one(project: Path) -> None:
    log = project / "models/ace/metrics.jsonl"
    assert "a floor above zero" not in words_of(project)
    rows = [json.loads(line) | {"loss_composition_excess": 0.1} for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "a floor above zero" in words_of(project)


def test_a_reference_of_unknown_weights_is_not_told_as_one_of_photographs(project: Path) -> None:
    other = {"file": "timm's tf_efficientnet_lite0.xrays"}
    change(
        project / "data/evidence/protocol.json", lambda values: values["encoders"]["imagenet"]["imported"].update(other)
    )
    words = words_of(project)
    assert "what they trained it on, this project does not know" in words
    for absent in ("photographs", "without any training on medical images"):
        assert absent not in words
