import pytest
from dagster import PipesMessageHandler, build_op_context

from ace.journal.pipes import open_reporter
from pipelines.process import _MessageReader


def test_outside_dagster_reports_go_nowhere(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("DAGSTER_PIPES_CONTEXT", raising=False)
    with open_reporter() as report:
        assert report({"loss": 1.0}) is None
    assert capfd.readouterr() == ("", "")


def test_of_the_reported_metrics_only_the_newest_are_kept() -> None:
    """A training reports every second, for days."""
    reader = _MessageReader()
    handler = PipesMessageHandler(build_op_context(), reader)
    with reader.read_messages(handler):
        for step in range(1000):
            params = {"payload": {"metrics": {"step": step}}}
            handler.handle_message(
                {"__dagster_pipes_version": "0.1", "method": "report_custom_message", "params": params}
            )
        assert reader.take_metrics() == {"step": 999}
        assert reader.take_metrics() is None
    assert handler.get_custom_messages() == ()
