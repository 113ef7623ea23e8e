"""What a run depends on, and whose folder it is."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ace.engine import run as run_module
from ace.engine.run import RunIdentity, open_run
from ace.pretrain import identity as identity_module
from ace.pretrain.identity import identity_of
from shards.core.errors import ConfigError
from shards.reading.order import TarWindow
from tests.ace.pretrain.conftest import ROOT, tiny_grid, tiny_mix, tiny_params
from tests.ace.pretrain.runs import finish
from tests.support.forked import Forked


def identity(**changes: object) -> RunIdentity:
    return identity_of(tiny_params(**changes), tiny_grid(), tiny_mix(), {})


def test_work_begun_with_other_code_is_other_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("ace", "shards"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "asset"))
    monkeypatch.setattr(run_module, "_ROOT", tmp_path)
    before = identity().fingerprint
    (tmp_path / "ace/report/page.py").write_text("")
    assert identity().fingerprint == before, "the report trains nothing"
    with (tmp_path / "ace/losses/matching.py").open("a") as file:
        file.write("\n")
    assert identity().fingerprint != before


def test_how_a_run_is_watched_and_saved_is_no_part_of_what_it_is() -> None:
    watched = identity(num_workers=3, log_every_steps=7, checkpoint_every_s=9, keep_checkpoints=4, on_nonfinite="skip")
    assert watched.fingerprint == identity().fingerprint
    assert identity(seed=1).fingerprint != identity().fingerprint


NEARLY = {
    "num_micro_batches": 2,
    "checkpoint_activations": True,
    "compile": True,
    "augment": tiny_params().augment.model_copy(update={"where": "host"}).model_dump(mode="json"),
    "probe": tiny_params().probe.model_copy(update={"every_epochs": 3}).model_dump(mode="json"),
}


def test_a_run_goes_on_with_what_changes_it_by_rounding_alone_and_keeps_a_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny_params().augment.where == "device"
    assert {key.split(".")[1] for key in identity_module.NEARLY_DECISIVE} == set(NEARLY)
    assert identity(**NEARLY).fingerprint == identity().fingerprint, "checkpoints of the one are the other's"
    with open_run(identity(), tmp_path, accepts_changed_code=False):
        pass
    assert not capsys.readouterr().err
    with open_run(identity(**NEARLY), tmp_path, accepts_changed_code=False) as run:
        assert run.fingerprints >= {identity().fingerprint}
    assert "pretrain.num_micro_batches: found 1, expected 2" in capsys.readouterr().err
    runs = json.loads((tmp_path / "run.json").read_text())["runs"]
    assert [entry["pretrain"]["num_micro_batches"] for entry in runs] == [1, 2]


def test_a_run_of_an_earlier_version_goes_on_where_later_parameters_change_nothing(tmp_path: Path) -> None:
    """Its record has no parameters that it did not know."""
    known = json.loads(json.dumps(identity(whitening=None).values))
    del known["pretrain"]["whitening"]
    del known["grid"]["trim_level"]
    with open_run(replace(identity(), values=known), tmp_path, accepts_changed_code=False):
        pass
    with open_run(identity(whitening=None), tmp_path, accepts_changed_code=False):
        pass
    shutil.rmtree(tmp_path)
    with open_run(replace(identity(), values=known), tmp_path, accepts_changed_code=False):
        pass
    with (
        pytest.raises(ConfigError, match=r"pretrain\.whitening\.num_pairs: found \(none\), expected"),
        open_run(identity(), tmp_path, accepts_changed_code=False),
    ):
        pass


def test_checkpoints_of_an_earlier_version_are_the_runs_own(tmp_path: Path) -> None:
    values = identity().values
    former = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
    with open_run(identity(), tmp_path, accepts_changed_code=False) as run:
        assert former in run.fingerprints


def test_every_field_of_the_three_lists_exists() -> None:
    flat = run_module._flat({"pretrain": tiny_params().model_dump(mode="json"), "grid": tiny_grid().model_dump()})
    not_decisive = [f"pretrain.{name}" for name in identity_module.NOT_DECISIVE]
    for key in (*not_decisive, *identity_module.NEARLY_DECISIVE, *identity_module.NEUTRAL):
        assert key in flat or any(other.startswith(f"{key}.") for other in flat), key


def test_differences_are_named_by_their_dotted_keys() -> None:
    assert identity(seed=1).differences(identity().values) == ["pretrain.seed: found 0, expected 1"]
    assert identity().differences(identity().values) == []


def test_another_size_of_the_cache_is_another_run_where_it_decides_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = identity()
    monkeypatch.setattr(identity_module, "cache_window", lambda indexes, rows, weights: TarWindow((), 7))
    assert identity().differences(whole.values) == ["window_tars: found None, expected 7"]


def test_changed_code_is_refused_unless_accepted_and_then_recorded(tmp_path: Path) -> None:
    with open_run(identity(), tmp_path, accepts_changed_code=False) as run:
        assert run.fingerprints >= {identity().fingerprint}
    changed = replace(identity(), values={**identity().values, "code": "another"})
    with (
        pytest.raises(ConfigError, match=r"code: found .* expected another"),
        open_run(changed, tmp_path, accepts_changed_code=False),
    ):
        pass
    with open_run(changed, tmp_path, accepts_changed_code=True) as run:
        assert run.fingerprints >= {identity().fingerprint, changed.fingerprint}
    runs = json.loads((tmp_path / "run.json").read_text())["runs"]
    assert [entry["code"] for entry in runs] == [identity().values["code"], "another"]


def test_a_run_directory_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with (
            pytest.raises(ConfigError, match=f"--run {path}: not a folder"),
            open_run(identity(), path, accepts_changed_code=False),
        ):
            pass


def test_a_run_directory_is_held_by_one_training_at_a_time(tmp_path: Path) -> None:
    attempt = f"""
from pathlib import Path
from ace.engine.run import open_run
from tests.ace.pretrain.test_run import identity
with open_run(identity(), Path({str(tmp_path)!r}), accepts_changed_code=False):
    pass
"""
    with open_run(identity(), tmp_path, accepts_changed_code=False):
        (said,) = finish([Forked(attempt, [], env=os.environ, cwd=ROOT)], 1)
    assert "another training is at work here" in said
    finish([Forked(attempt, [], env=os.environ, cwd=ROOT)])


def test_accepting_changed_code_does_not_accept_other_parameters(tmp_path: Path) -> None:
    with open_run(identity(), tmp_path, accepts_changed_code=True):
        pass
    with (
        pytest.raises(ConfigError, match=r"pretrain\.seed"),
        open_run(identity(seed=1), tmp_path, accepts_changed_code=True),
    ):
        pass
