import pytest

from ace.training.pipes import open_reporter


def test_outside_dagster_reports_go_nowhere(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("DAGSTER_PIPES_CONTEXT", raising=False)
    with open_reporter() as report:
        assert report({"loss": 1.0}) is None
    assert capfd.readouterr() == ("", "")
