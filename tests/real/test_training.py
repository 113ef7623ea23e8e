"""A short training on a thousand real radiographs, from the folder to the report, as `make real` does it.

About five minutes of two idle cores, two of them for the training itself.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.graph import load_graph
from pipelines.metadata import read_checks
from tests.real.data import DATA, needs
from tests.support.checkout import MAKE, clone_checkout, run

pytestmark = [*needs("nih-512"), pytest.mark.slow, pytest.mark.timeout(3600)]
NIH = DATA / "nih-512"
# A quarter of the epochs that the configuration is meant for.
SHORT = "base: cxr_small\npretrain: {epochs: 18, warmup_epochs: 2}\n"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which `make real` has run, with the split of patients that is the same for everybody."""
    folder = tmp_path_factory.mktemp("real")
    clone = clone_checkout(folder / "clone")
    (clone / "configs" / "short.yaml").write_text(SHORT, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_SITE_CACHE_DIR", str(folder / "site-cache"))
        patch.setenv("ACE_SCRATCH", str(folder / "scratch"))
        patch.setenv("ACE_ID_KEY_FILE", str(clone / "configs" / "key_for_public_images"))
        run(clone, *MAKE, "real", f"DATA={NIH / 'images'}", f"LABELS={NIH / 'labels.csv'}", "CONFIG=short", "SITE=")
    return clone


@pytest.fixture(scope="module")
def figures(finished: Path) -> dict[str, Any]:
    return json.loads((finished / "metrics" / "properties.json").read_text(encoding="utf-8"))


def test_test_patients_are_measured_and_none_was_trained_on(figures: dict[str, Any]) -> None:
    measured = figures["measured"]
    assert (measured["split"], measured["num_patients"], measured["num_shared_patients"]) == ("test", 196, 0)


@pytest.mark.parametrize("fill", ["", "_mean", "_white", "_noise", "_same_position"])
def test_two_minutes_of_training_find_removed_regions_that_no_training_does_not(
    figures: dict[str, Any], fill: str
) -> None:
    gain = figures["gain"][f"decompositionality{fill}"]
    assert gain["low"] > 0, "the interval of the paired difference over patients"


def test_own_parts_are_told_from_another_regions(figures: dict[str, Any]) -> None:
    assert figures["gain"]["compositionality_auc"]["low"] > 0
    assert figures["trained"]["compositionality_auc"]["low"] > 0.97


def test_every_asset_check_is_evaluated_and_passes(finished: Path) -> None:
    evaluations = [check.evaluation(finished) for check in read_checks(finished, load_graph(finished))]
    assert {evaluation.check_name for evaluation in evaluations} >= {
        "gain_compositionality_low",
        "gain_decompositionality_low",
    }
    for evaluation in evaluations:
        assert evaluation.passed, evaluation.description
        assert "value" in evaluation.metadata, evaluation.description


def test_the_report_is_of_these_radiographs(finished: Path, figures: dict[str, Any]) -> None:
    report = (finished / "reports" / "report.html").read_text(encoding="utf-8")
    assert "ACE on real chest radiographs" in report
    assert "real-b000" in report
    value = 100 * figures["trained"]["decompositionality"]["value"]
    assert f"{value:.1f}" in report


def test_nothing_is_left_to_run(finished: Path) -> None:
    assert "up to date" in run(finished, "dvc", "status")
