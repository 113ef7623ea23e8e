"""Old runs of Dagster: what goes, what stays, and that nothing of a run that went is left on the disk."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dagster import AssetKey, DagsterInstance, asset, job, materialize

from ace.operations.dagster_runs import runs_before
from ace.operations.errors import OperationsError
from pipelines.old_runs import main, old_runs, remove
from tests.support.checkout import ROOT


@asset
def model() -> None:
    print("the output of a step")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    return tmp_path


def run(instance: DagsterInstance) -> str:
    return materialize([model], instance=instance).run_id


def written_for(home: Path, run: str) -> list[Path]:
    return [path for path in home.rglob("*") if path.is_file() and run in str(path)]


def test_runs_that_ended_before_go_but_for_the_one_that_made_an_asset_last(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with DagsterInstance.get() as instance:
        first, second = run(instance), run(instance)
    past, future = (datetime.now(UTC) + timedelta(days=days) for days in (-1, 1))
    assert written_for(home, first)
    capsys.readouterr()
    main([past.isoformat(), "--remove"])
    assert json.loads(capsys.readouterr().out) == {}
    main([future.isoformat()])
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [first]
    assert found[first] == sum(path.stat().st_size for path in written_for(home, first)) > 0
    main([future.isoformat(), "--remove"])
    assert not written_for(home, first)
    assert written_for(home, second)
    with DagsterInstance.get() as instance:
        assert [item.run_id for item in instance.get_runs()] == [second]
        latest = instance.get_latest_materialization_event(AssetKey("model"))
        assert latest is not None
        assert latest.run_id == second


@job
def waiting() -> None:
    pass


def test_a_run_that_has_not_ended_stays_whatever_its_age(home: Path) -> None:
    with DagsterInstance.get() as instance:
        instance.create_run_for_job(waiting)
        assert not old_runs(instance, datetime.now(UTC) + timedelta(days=1))


@pytest.mark.slow
def test_a_removal_that_was_killed_leaves_a_run_that_is_found_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DagsterInstance.get() as instance:
        first, _ = run(instance), run(instance)
        later = datetime.now(UTC) + timedelta(days=1)
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", killed)
            with pytest.raises(KeyboardInterrupt):
                remove(instance, first)
        assert old_runs(instance, later) == [first]
        remove(instance, first)
        assert old_runs(instance, later) == []
        assert not written_for(home, first)


def killed(path: Path, missing_ok: bool = False) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_clean_up_asks_for_them_and_lets_them_go(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with DagsterInstance.get() as instance:
        first, second = run(instance), run(instance)
    later = datetime.now(UTC) + timedelta(days=1)
    assert list(runs_before(later)) == list(runs_before(later, "--remove")) == [first]
    with DagsterInstance.get() as instance:
        assert [item.run_id for item in instance.get_runs()] == [second]
    (home / "dagster.yaml").write_text("no: {such: key}\n")
    with pytest.raises(OperationsError, match=r"^Dagster's runs in \$DAGSTER_HOME cannot be looked at"):
        runs_before(later)
