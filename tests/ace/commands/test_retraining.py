"""`python -m ace retrain`: what it says, and its exit codes."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from ace.operations.retraining import Due, Retraining
from ace.operations.retraining_state import REJECTED, running
from tests.ace.commands.given import main
from tests.ace.operations.service import ANNA, Service
from tests.support.checkout import git


def test_a_retraining_that_meets_another_call_ends_with_75_to_be_tried_again(
    accepted: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(accepted.root):
        assert main(["retrain", "run", "--automatic"]) == 75
    assert capsys.readouterr().err == "a retraining is at work\n"
    (accepted.root / "params.yaml").write_text("mix: {}\n")
    assert main(["ops", "stop", "--why", "holidays"]) == 0
    git(accepted.root, "add", "params.yaml")
    git(accepted.root, "commit", "--quiet", "-m", "params")
    assert main(["retrain", "run", "--automatic"]) == 0


def test_one_decision_is_no_decisions(
    accepted: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = SimpleNamespace(batch="frozen-b000", fingerprint="abc")
    monkeypatch.setattr(Retraining, "settings", lambda _: SimpleNamespace(gate=SimpleNamespace(frozen=frozen)))
    monkeypatch.setattr(Retraining, "due", lambda _: Due(False, "held", ""))
    facts = {"frozen": "abc", "sentence": "worse"}
    accepted.registry.log.append(REJECTED, facts, actor=ANNA, now=datetime.now(UTC))
    assert main(["retrain", "due"]) == 0
    assert "frozen-b000 was used for 1 decision\n" in capsys.readouterr().out
