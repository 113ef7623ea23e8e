"""A version's card in the form of the Coalition for Health AI, held to its schema."""

import hashlib
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import xmlschema

from ace.__main__ import build_parser
from ace.models.folder import CONFIG, WEIGHTS
from ace.operations.chai_card import NAMESPACE, NOT_STATED
from shards.cli import run_command
from tests.ace.operations.service import Service, make_service, write_lock
from tests.support.checkout import ROOT, git

SCHEMA = ROOT / "tests/support/chai/applied_model_card_v0.2.xsd"
WEIGHTS_BYTES = "the weights"
FIGURES = {
    "trained": {
        "retrieval": {"value": 0.61, "low": 0.5, "high": 0.72, "chance": 0.1, "n": 40},
        "labels": {"value": None, "low": None, "high": None, "n": 0},
    },
    "measured": {
        "model_sha256": hashlib.sha256(WEIGHTS_BYTES.encode()).hexdigest(),
        "batch": "frozen-b000",
        "split": "test",
        "num_patients": 40,
        "num_shared_patients": 0,
    },
}
GATE = {
    "rules": [
        {"rule": "not_leaked", "figure": "patients in both", "value": 0, "must_be": "<=", "bound": 0},
        {"rule": "not_worse", "figure": "retrieval", "value": 0.1, "must_be": ">=", "bound": 0},
        {
            "rule": "not_worse_in_subgroup",
            "figure": "retrieval",
            "subgroup": "sex F",
            "patients": 21,
            "value": 0.02,
            "must_be": ">=",
            "bound": -0.05,
        },
    ]
}


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Service:
    made = make_service(tmp_path)
    files = {CONFIG: (ROOT / "ace/zoo/cxr-small" / CONFIG).read_text(), "README.md": "# a card\n"}
    files[WEIGHTS["teacher"]] = WEIGHTS_BYTES
    entries = [{"md5": made.cache(text), "relpath": name} for name, text in files.items()]
    model = {"path": "models/ace", "md5": made.cache(json.dumps(entries), suffix=".dir")}
    write_lock(made.root, {"pretrain": {"outs": [model]}})
    (made.root / "metrics").mkdir()
    (made.root / "metrics/properties.json").write_text(json.dumps(FIGURES))
    (made.root / "metrics/gate.json").write_text(json.dumps(GATE))
    (made.root / "params.yaml").write_text(
        "evaluate: {bootstrap: {num_resamples: 10, level: 0.9}}\n"
        "operations: {card: {developer: 'A & B <hospital>', intended_use: research}}\n"
    )
    git(made.root, "add", "--all")
    git(made.root, "commit", "--quiet", "-m", "a model")
    monkeypatch.chdir(made.root)
    monkeypatch.setenv("ACE_MODELS", str(made.models))
    assert run_command(build_parser(), ["models", "promote"]) == 0
    capsys.readouterr()
    return made


def card(capsys: pytest.CaptureFixture[str]) -> ElementTree.Element:
    """The card of version 1, which is valid by the schema."""
    capsys.readouterr()
    assert run_command(build_parser(), ["models", "card", "v1", "--form", "chai"]) == 0
    text = capsys.readouterr().out
    xmlschema.XMLSchema(SCHEMA, allow="local").validate(text)
    return ElementTree.fromstring(text)


def text_of(element: ElementTree.Element, *names: str) -> str | None:
    return element.findtext("/".join(f"{{{NAMESPACE}}}{name}" for name in names))


def results(element: ElementTree.Element, name: str) -> dict[str, Any]:
    path = "/".join(f"{{{NAMESPACE}}}{part}" for part in ("KeyMetrics", name, "Results", "MetricResult"))
    return {
        text_of(item, "Label") or "": json.loads(text_of(item, "ValueJson") or "") for item in element.findall(path)
    }


@pytest.mark.usefixtures("service")
def test_the_card_is_valid_and_says_what_is_known_and_what_is_not_stated(capsys: pytest.CaptureFixture[str]) -> None:
    found = card(capsys)
    assert text_of(found, "BasicInfo", "ModelDeveloper") == "A & B <hospital>"
    assert text_of(found, "UsesAndDirections", "IntendedUseAndWorkflow") == "research"
    assert text_of(found, "Warnings", "ClinicalRiskLevel") == NOT_STATED
    assert results(found, "UsefulnessUsabilityEfficacy") == {
        "retrieval of 40 patients; chance 0.1": {
            "kind": "estimate_ci",
            "estimate": 0.61,
            "lower": 0.5,
            "upper": 0.72,
            "level": 90,
            "unit": "",
        }
    }
    assert results(found, "FairnessEquity") == {"retrieval, sex F (21 patients)": {"kind": "single", "value": 0.02}}
    assert results(found, "SafetyReliability") == {"patients in both, must be <= 0": {"kind": "single", "value": 0}}
    tested = text_of(found, "KeyMetrics", "FairnessEquity", "TestingDataDescription")
    assert tested == "40 patients of the split test of frozen-b000, 0 of whom the model was trained with"


def test_figures_of_another_model_are_not_told_as_this_ones(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {CONFIG: (ROOT / "ace/zoo/cxr-small" / CONFIG).read_text(), WEIGHTS["teacher"]: "other weights"}
    entries = [{"md5": service.cache(text), "relpath": name} for name, text in files.items()]
    model = {"path": "models/ace", "md5": service.cache(json.dumps(entries), suffix=".dir")}
    write_lock(service.root, {"pretrain": {"outs": [model]}})
    git(service.root, "add", "--all")
    git(service.root, "commit", "--quiet", "-m", "another model")
    assert run_command(build_parser(), ["models", "promote"]) == 0
    capsys.readouterr()
    assert run_command(build_parser(), ["models", "card", "v2", "--form", "chai"]) == 0
    found = ElementTree.fromstring(capsys.readouterr().out)
    assert results(found, "UsefulnessUsabilityEfficacy") == {"Not measured": None}
    assert results(found, "SafetyReliability") == {"Not measured": None}
