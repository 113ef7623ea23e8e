"""What earlier versions wrote can still be read: models, runs, shard sets and files of batches, as they were then.

A folder here is never written again. A new format gets a folder beside the others.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ace
from ace.engine.run import RunOptions
from ace.engine.stop import StopRequest
from ace.models.folder import READ_VERSIONS, WEIGHTS
from ace.pretrain.identity import NOT_DECISIVE
from ace.pretrain.params import PretrainParams
from ace.pretrain.pretrain import pretrain
from shards.checking.verify import verify_set
from shards.core.errors import ConfigError
from shards.core.params import GridParams, MixParams
from shards.delivery.batches import read_batch
from shards.reading.reader import ShardIndex, ShardReader
from tests.ace.pretrain.conftest import tiny_params
from tests.support.datasets import folder_bytes

FORMATS = Path(__file__).parent / "formats"


@pytest.mark.parametrize("version", READ_VERSIONS)
def test_a_model_of_an_earlier_format_embeds_as_it_did(version: int) -> None:
    """Format 3 knows no whitening; the model of format 4 has one."""
    image = (np.add.outer(np.arange(40), np.arange(40)) * 3 % 251).astype(np.uint8)
    out = ace.load(FORMATS / f"model-{version}").embed(image)
    found = np.concatenate([out.embedding.numpy().ravel(), out.tokens.numpy().ravel()])
    np.testing.assert_allclose(found, np.load(FORMATS / f"model-{version}.npy"), atol=1e-4)


def test_a_shard_set_of_an_earlier_format_is_whole_and_read() -> None:
    assert verify_set(FORMATS / "shards-2") == []
    reader = ShardReader(ShardIndex.open(FORMATS / "shards-2"))
    samples = [reader.read(row) for row in range(len(reader.index.rows))]
    assert len(samples) == 6
    assert {sample.image.shape for sample in samples} == {(48, 48)}
    assert all("heart" in sample.masks() for sample in samples)


def test_the_file_of_a_batch_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    (tmp_path / "batches").mkdir()
    shutil.copy(FORMATS / "batch-1.yaml", tmp_path / "batches/phantom-b000.yaml")
    batch = read_batch("phantom-b000", tmp_path)
    assert (batch.source.kind, batch.grid.n, batch.shard.quality.blank.min_std) == ("phantom", 18, 5.0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was stopped after two of its six steps, which other code made on the shard set of this folder."""
    shutil.copytree(FORMATS / "run-1", tmp_path / "run")
    shutil.copytree(FORMATS / "shards-2", tmp_path / "shards/a-b000")
    return tmp_path / "run"


def recorded_runs(run: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads((run / "run.json").read_text())["runs"]
    return runs


def go_on(run: Path, *, accepts_changed_code: bool) -> None:
    """Give the same command as then: the parameters that decide are those of its record."""
    recorded = recorded_runs(run)[0]
    values = {**recorded["pretrain"], **tiny_params(device="cpu").model_dump(mode="json", include=NOT_DECISIVE)}
    values["loss_weights"]["global"] = values["loss_weights"].pop("global_")
    pretrain(
        PretrainParams.from_params(values, "pretrain"),
        GridParams.from_params(recorded["grid"], "grid"),
        {name: MixParams.from_params(item, "mix") for name, item in recorded["mix"].items()},
        shards_root=run.parent / "shards",
        out=run.parent / "model",
        metrics_dir=run.parent / "metrics",
        request=StopRequest(None),
        options=RunOptions(run_dir=run, accepts_changed_code=accepts_changed_code),
        project=run.parent,
    )


def test_a_run_of_earlier_code_is_refused_and_left_as_it_was(run: Path) -> None:
    before = folder_bytes(run)
    with pytest.raises(
        ConfigError, match=r"(?s)begun with other inputs:\n  code: found 9b966a.*pass --accept-changed-code"
    ):
        go_on(run, accepts_changed_code=False)
    (run / "run.lock").unlink()
    assert folder_bytes(run) == before
    assert not (run.parent / "model").exists()


def test_a_run_of_earlier_code_goes_on_at_its_checkpoint_where_changed_code_is_accepted(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "metrics.jsonl").read_text()
    go_on(run, accepts_changed_code=True)
    assert "resuming after step 2 from " in capsys.readouterr().err
    rows = (run / "metrics.jsonl").read_text()
    assert rows.startswith(before)
    assert [json.loads(row)["step"] for row in rows.splitlines()] == list(range(6))
    assert (run.parent / "model" / WEIGHTS["teacher"]).is_file()
    assert len(recorded_runs(run)) == 2
