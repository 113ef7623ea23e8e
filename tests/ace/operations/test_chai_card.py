"""A version's card in the form of the Coalition for Health AI, held to its schema."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import xmlschema

from ace.__main__ import build_parser
from ace.models.folder import CONFIG, WEIGHTS
from ace.operations.chai_card import NAMESPACE, NOT_STATED
from ace.operations.retraining_state import ACCEPTED, BEGAN
from ace.operations.withdrawal_state import RECEIVED, SETTLED
from shards.cli import run_command
from tests.ace.operations.service import ANNA, Service, make_service, write_lock
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
        "batches_that_may_share_images": [],
    },
}
GATE = {
    "accepted": False,
    "sentence": "retrieval of age 60 may be worse",
    "gate_sha256": "abc",
    "rules": [
        {"rule": "not_leaked", "figure": "patients in both", "value": 0, "must_be": "<=", "bound": 0, "passed": True},
        {"rule": "not_worse", "figure": "retrieval", "value": 0.1, "must_be": ">=", "bound": 0, "passed": True},
        {
            "rule": "not_worse_in_subgroup",
            "figure": "retrieval",
            "subgroup": "age 60",
            "patients": 20,
            "value": None,
            "must_be": ">=",
            "bound": -0.05,
            "passed": False,
        },
        {
            "rule": "not_worse_in_subgroup",
            "figure": "retrieval",
            "subgroup": "sex F",
            "patients": 21,
            "value": 0.02,
            "must_be": ">=",
            "bound": -0.05,
            "passed": True,
        },
    ],
}
PARAMS = """\
evaluate: {bootstrap: {num_resamples: 10, level: 0.9}}
operations: {card: {developer: 'A & B <hospital>', intended_use: research}}
"""


def md5_of(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


def train(
    service: Service,
    weights: str,
    *,
    figures: Any = FIGURES,
    gate: Any = GATE,
    judged: str | None = None,
    config: Any = None,
) -> None:
    """Commit a model, its figures and the gate's decision, as `dvc repro` records them, and register the version.

    Args:
        service: The service.
        weights: Bytes of the weights.
        figures: Content of metrics/properties.json.
        gate: Content of metrics/gate.json.
        judged: The md5 of the model that the gate was about; None for this one.
        config: What config.json has beside that of a shipped model.
    """
    own = {**json.loads((ROOT / "ace/zoo/cxr-small" / CONFIG).read_text()), **(config or {})}
    files = {CONFIG: json.dumps(own), "README.md": "# a card\n", WEIGHTS["teacher"]: weights}
    entries = [{"md5": service.cache(text), "relpath": name} for name, text in files.items()]
    model = {"path": "models/ace", "md5": service.cache(json.dumps(entries), suffix=".dir")}
    answers = {"path": "data/answers/trained", "md5": "a.dir"}
    gate_out = {"path": "metrics/gate.json", "md5": md5_of(json.dumps(gate))}
    write_lock(
        service.root,
        {
            "pretrain": {"outs": [model]},
            "measure@trained": {"deps": [{**model, "md5": judged or model["md5"]}], "outs": [answers]},
            "decide@trained": {"deps": [answers, {"path": "ace/gate", "md5": "g.dir"}], "outs": [gate_out]},
        },
    )
    (service.root / "metrics").mkdir(exist_ok=True)
    (service.root / "metrics/properties.json").write_text(json.dumps(figures))
    (service.root / "metrics/gate.json").write_text(json.dumps(gate))
    (service.root / "params.yaml").write_text(PARAMS)
    git(service.root, "add", "--all")
    git(service.root, "commit", "--quiet", "-m", weights)
    assert run_command(build_parser(), ["models", "promote"]) == 0


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service without a model, whose clone is the working directory."""
    made = make_service(tmp_path)
    monkeypatch.chdir(made.root)
    monkeypatch.setenv("ACE_MODELS", str(made.models))
    return made


@pytest.fixture
def service(empty: Service) -> Service:
    train(empty, WEIGHTS_BYTES)
    return empty


def card(capsys: pytest.CaptureFixture[str], version: str = "v1") -> ElementTree.Element:
    """The card of a version, which is valid by the schema."""
    capsys.readouterr()
    assert run_command(build_parser(), ["models", "card", version, "--form", "chai"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("<?xml version='1.0' encoding='UTF-8'?>\n")
    xmlschema.XMLSchema(SCHEMA, allow="local").validate(text.encode())
    return ElementTree.fromstring(text.encode())


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
    assert results(found, "FairnessEquity") == {
        "retrieval, sex F (21 patients), must be >= -0.05, and is": {"kind": "single", "value": 0.02},
        "retrieval, age 60 (20 patients), must be >= -0.05, and is not": None,
    }
    assert results(found, "SafetyReliability") == {
        "not_leaked: patients in both, must be <= 0, and is": {"kind": "single", "value": 0}
    }
    assert text_of(found, "KeyMetrics", "FairnessEquity", "Interpretation") == (
        "The gate did not accept the model: retrieval of age 60 may be worse."
    )
    tested = text_of(found, "KeyMetrics", "FairnessEquity", "TestingDataDescription")
    assert tested == (
        "40 patients of the split test of frozen-b000. The model was trained with 0 patients of this split."
    )


def test_what_is_not_known_of_the_measured_patients_is_not_told_as_known(
    empty: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = {
        **FIGURES["measured"],
        "num_shared_patients": None,
        "batches_that_may_share_images": ["own-b001"],
        "batches_without_patients": ["frozen-b000"],
    }
    train(empty, WEIGHTS_BYTES, figures={**FIGURES, "measured": measured})
    tested = text_of(card(capsys), "KeyMetrics", "UsefulnessUsabilityEfficacy", "TestingDataDescription")
    assert tested == (
        "40 patients of the split test of frozen-b000. Nothing tells whether the model was trained with patients of "
        "this split. The patients of frozen-b000 are unknown: there an image counts as a patient. Training images of "
        "own-b001 may be among those measured."
    )


def test_what_the_model_started_from_its_hardware_and_unknown_patients_are_told(
    empty: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((ROOT / "ace/zoo/cxr-small" / CONFIG).read_text())
    config["params"]["pretrain"]["start_from"] = "registry/incumbent"
    config["start_from"] = {WEIGHTS["teacher"]: "f" * 64}
    config["shards"][0] |= {"batch": "own-b000", "num_images": 7, "patient_grouping": "image"}
    config["hardware"] = {"processor": "a fast one", "cores": 8, "memory_gb": 33.6, "accelerators": ["H200"]}
    train(empty, WEIGHTS_BYTES, config=config)
    facts = card(capsys).find(f"{{{NAMESPACE}}}TrustIngredients/{{{NAMESPACE}}}AISystemFacts")
    assert facts is not None
    assert (text_of(facts, "ModelType") or "").endswith(
        ", trained without labels\n\nTraining was finished on: 1 × H200; a fast one, 8 cores, 33.6 GB of memory"
    )
    assert "registry/incumbent" in (text_of(facts, "FoundationModels") or "")
    assert "f" * 64 in (text_of(facts, "FoundationModels") or "")
    assert text_of(facts, "DevelopmentDataCharacterization") == (
        "own-b000: 7 training images of unknown patients\nBesides, the images of the model that it started from."
    )


def justification(card: ElementTree.Element) -> str:
    return text_of(card, "KeyMetrics", "FairnessEquity", "ValidationProcessAndJustification") or ""


def test_bounds_are_told_as_written_before_the_training_only_where_the_log_has_them(
    empty: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    log, clock = empty.registry.log, empty.clock
    for weights, gate in (("by hand", None), ("by these bounds", "abc"), ("by others", "other")):
        if gate is not None:
            log.append(BEGAN, {"gate_sha256": gate}, actor=ANNA, now=clock())
        train(empty, weights)
        if gate is not None:
            log.append(ACCEPTED, {"version": 3 if gate == "other" else 2}, actor=ANNA, now=clock())
    for version, when in (("v1", "may have been chosen after"), ("v2", "were written down before")):
        assert f"The bounds of the gate {when} the training." in justification(card(capsys, version))
    assert "may have been chosen after" in justification(card(capsys, "v3"))


def test_a_decision_of_the_gate_about_another_model_is_not_told_as_of_this_one(
    empty: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    train(empty, WEIGHTS_BYTES, judged="another.dir")
    found = card(capsys)
    assert results(found, "FairnessEquity") == results(found, "SafetyReliability") == {"Not measured": None}
    assert set(results(found, "UsefulnessUsabilityEfficacy")) == {"retrieval of 40 patients; chance 0.1"}


def test_a_decision_that_dvc_did_not_record_is_not_told(empty: Service, capsys: pytest.CaptureFixture[str]) -> None:
    train(empty, WEIGHTS_BYTES)
    (empty.root / "metrics/gate.json").write_text(json.dumps({**GATE, "accepted": True}))
    git(empty.root, "commit", "--quiet", "--all", "-m", "edited by hand")
    train_again = {"version": 2, "commit": git(empty.root, "rev-parse", "HEAD").strip()}
    facts = {**empty.registry.events()[0].facts, **train_again}
    files = empty.registry.events()[0].files
    empty.registry.log.append("registered", facts, actor=ANNA, now=empty.clock(), files=files)
    assert results(card(capsys, "v2"), "FairnessEquity") == {"Not measured": None}


def test_figures_of_another_model_are_not_told_as_this_ones(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    train(service, "other weights", gate={**GATE, "accepted": True})
    found = card(capsys, "v2")
    assert results(found, "UsefulnessUsabilityEfficacy") == {"Not measured": None}


def test_a_commit_without_figures_needs_no_params_of_the_evaluation(
    empty: Service, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.ace.operations.test_chai_card.PARAMS", "operations: {}\n")
    train(empty, WEIGHTS_BYTES, figures={})
    assert results(card(capsys), "UsefulnessUsabilityEfficacy") == {"Not measured": None}


def stage(capsys: pytest.CaptureFixture[str], version: str) -> tuple[str, str]:
    """What a card says of the version's release: its date, and its stage without what the owner states."""
    found = card(capsys, version)
    date = text_of(found, "ReleaseInfo", "ReleaseDate") or ""
    return date, (text_of(found, "ReleaseInfo", "ReleaseStage") or "").removeprefix(f"{NOT_STATED}\n\n")


def test_a_card_says_whether_its_version_is_accepted_was_rolled_back_or_is_retired(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    log, clock = service.registry.log, service.clock
    released = f"{service.registry.events()[1].time:%Y-%m-%d}"
    assert stage(capsys, "v1") == (released, "This is the accepted version.")
    train(service, "other weights")
    assert run_command(build_parser(), ["models", "rollback", "v1", "--why", "worse"]) == 0
    assert stage(capsys, "v1") == (released, "This is the accepted version.")
    was = "Accepted earlier, and replaced since: the accepted version is v1."
    assert stage(capsys, "v2")[1] == was
    received = {"patient": "mark", "batches": {"own": 1}, "versions": [2], "outs": []}
    number = log.append(RECEIVED, received, actor=ANNA, now=clock()).sequence
    withdrawn = f"{was} A patient whom it was trained with has withdrawn; what becomes of it: "
    assert stage(capsys, "v2")[1] == f"{withdrawn}not decided yet."
    settled = {"withdrawal": number, "versions": [2], "why": "Anna Example asked"}
    log.append(SETTLED, {**settled, "action": "keep"}, actor=ANNA, now=clock())
    assert stage(capsys, "v2")[1] == f"{withdrawn}keep."
    log.append(SETTLED, {**settled, "action": "retire"}, actor=ANNA, now=clock())
    retired = "Retired: a patient whom it was trained with has withdrawn, and it may not be accepted again."
    assert stage(capsys, "v2")[1] == f"{was} {retired}"
    assert stage(capsys, "v1")[1] == "This is the accepted version."
    assert "Anna" not in "".join(card(capsys, "v2").itertext())
    assert run_command(build_parser(), ["models", "card", "v2"]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ("# a card\n", "v2 is retired: a patient whom it was trained with has withdrawn\n")


def test_a_version_that_was_never_accepted_has_no_date_of_release(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {**service.registry.events()[0].facts, "version": 2}
    files = service.registry.events()[0].files
    service.registry.log.append("registered", facts, actor=ANNA, now=service.clock(), files=files)
    assert stage(capsys, "v2") == ("Not released", "Registered, and never accepted.")


def test_whatever_the_owner_states_the_card_is_xml(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    (service.root / "params.yaml").write_text(
        'operations: {card: {developer: "]]> & \\x0b \\uFFFE <x/> Müller 東京", contact: ""}}\n'
    )
    found = card(capsys)
    assert text_of(found, "BasicInfo", "ModelDeveloper") == "]]> & \ufffd \ufffd <x/> Müller 東京"
    assert text_of(found, "BasicInfo", "DeveloperContact") == NOT_STATED


@pytest.mark.slow
def test_a_card_is_utf_8_in_a_locale_that_has_no_umlauts(service: Service) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "ace", "models", "card", "v1", "--form", "chai"]
    done = subprocess.run(command, cwd=service.root, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    xmlschema.XMLSchema(SCHEMA, allow="local").validate(done.stdout)
