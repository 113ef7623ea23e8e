"""What earlier versions wrote can still be read: models, shard sets and files of batches, as they were written then.

A folder here is never written again. A new format gets a folder beside the others.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest

import ace
from ace.models.folder import READ_VERSIONS
from shards.checking.verify import verify_set
from shards.delivery.batches import read_batch
from shards.reading.reader import ShardIndex, ShardReader

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
