"""`python -m ace embed --companions`: tars that webdataset reads in step with those of the shard set."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from ace.__main__ import build_parser
from ace.inference import companions
from ace.inference.companions import write_companions
from ace.inference.embedder import EmbeddingModel, load_model
from shards.build.stage import build_shards
from shards.cli import run_command
from shards.core.errors import ConfigError
from shards.reading.reader import ShardIndex, ShardReader
from tests.ace.inference.models import DIM
from tests.support.datasets import Here, grid_params, shard_params, write_phantom


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    source = write_phantom(root / "phantom", num_patients=9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(root / "scratch"))
        build_shards("a-b000", source, grid_params(), shard_params(), root / "a-b000", execution=Here())
    return root / "a-b000"


def embed(*arguments: str | Path) -> int:
    return run_command(build_parser(), ["embed", *map(str, arguments), "--device", "cpu", "--num-threads", "2"])


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.tar"))}


def samples(folder: Path, index: ShardIndex) -> list[dict]:
    urls = [str(folder / tar.name) for tar in index.shards if (folder / tar.name).exists()]
    return list(wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode())


# webdataset leaves its tars to the garbage collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_both_in_step(shard_set: Path, model_dir: Path, tmp_path: Path) -> None:
    assert embed(shard_set, "--model", model_dir, "--companions", tmp_path / "e", "--tokens", "--batch-size", "3") == 0
    assert tars(tmp_path / "e").keys() == tars(shard_set).keys()
    assert len(tars(shard_set)) > 2
    index = ShardIndex.open(shard_set)
    pairs = list(zip(samples(shard_set, index), samples(tmp_path / "e", index), strict=True))
    reader, model = ShardReader(index), load_model(model_dir, which="teacher", device="cpu", normalisation=None)
    assert len(pairs) == len(index.rows) > 8
    for row, (image, own) in enumerate(pairs):
        assert image["__key__"] == own["__key__"]
        assert set(own) - {name for name in own if name.startswith("__")} == {"embedding.npy", "tokens.npy"}
        expected = model.embed(reader.read(row).image)
        assert own["embedding.npy"].dtype == np.float32
        np.testing.assert_allclose(own["embedding.npy"], expected.embedding.numpy(), atol=1e-5)
        assert (own["tokens.npy"].dtype, own["tokens.npy"].shape) == (np.float16, (4, 4, DIM))
        np.testing.assert_allclose(own["tokens.npy"], expected.tokens.numpy(), atol=0.01)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_description_says_which_set_and_model(shard_set: Path, model: EmbeddingModel, tmp_path: Path) -> None:
    index = ShardIndex.open(shard_set)
    number = write_companions(model, index, "test", tmp_path / "e", batch_size=4, num_threads=1, with_tokens=False)
    told = json.loads((tmp_path / "e/companions.json").read_text())
    assert (told["set"], told["split"], told["members"]) == ("a-b000", "test", ["embedding.npy"])
    assert told["fingerprint"] == index.fingerprint
    assert told["model"]["model_sha256"] == model.fingerprint
    assert number == len(index.select("test")) == len(samples(tmp_path / "e", index))
    assert {name.split("-")[0] for name in tars(tmp_path / "e")} == {"test"}


def test_a_run_that_was_killed_goes_on_and_gives_the_same_bytes(
    shard_set: Path, model: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = ShardIndex.open(shard_set)

    def write(name: str) -> dict[str, bytes]:
        write_companions(model, index, "all", tmp_path / name, batch_size=3, num_threads=2, with_tokens=False)
        return tars(tmp_path / name)

    whole, written = write("whole"), []
    original = companions._write_tar

    def die_in_the_second(*arguments: object, **options: object) -> None:
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(original(*arguments, **options))

    with monkeypatch.context() as patch:
        patch.setattr(companions, "_write_tar", die_in_the_second)
        with pytest.raises(KeyboardInterrupt):
            write("killed")
    first = tmp_path / "killed" / index.shards[0].name
    assert list(tars(tmp_path / "killed")) == [first.name]
    before = first.stat().st_mtime_ns
    assert write("killed") == whole
    assert first.stat().st_mtime_ns == before, "a finished tar is not written again"


def test_nothing_is_pickled_and_members_are_those_of_every_build(
    shard_set: Path, model: EmbeddingModel, tmp_path: Path
) -> None:
    index = ShardIndex.open(shard_set)
    write_companions(model, index, "test", tmp_path, batch_size=4, num_threads=1, with_tokens=False)
    for path in tmp_path.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.mode) == (0, 0, 0o644)
                data = io.BytesIO(tar.extractfile(member).read())
                assert np.load(data, allow_pickle=False).dtype == np.float32


def test_a_folder_of_another_set_or_model_or_of_no_companions_is_refused(
    shard_set: Path, model: EmbeddingModel, tmp_path: Path
) -> None:
    index = ShardIndex.open(shard_set)

    def write(folder: str, **options: object) -> None:
        write_companions(
            model,
            index,
            "test",
            tmp_path / folder,
            **{"batch_size": 4, "num_threads": 1, "with_tokens": False} | options,
        )

    write("e")
    write("e")
    for options in ({"with_tokens": True}, {"batch_size": 5}):
        with pytest.raises(ConfigError, match=r"companions\.json: of another .*name a new folder"):
            write("e", **options)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.doc").write_text("precious")
    with pytest.raises(ConfigError, match=r"has no companions\.json"):
        write("other")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed/.companions.json.1.tmp").write_text("{")
    write("killed")
    assert (tmp_path / "killed/companions.json").is_file()


def test_excluded_images_would_put_the_tars_out_of_step(shard_set: Path, model: EmbeddingModel, tmp_path: Path) -> None:
    index = ShardIndex.open(shard_set)
    row = index.select("test")[0]
    without = index.without_patients({index.rows["patient"][row].decode()})
    with pytest.raises(ConfigError, match="of its images are excluded"):
        write_companions(model, without, "test", tmp_path / "e", batch_size=4, num_threads=1, with_tokens=False)
    assert not (tmp_path / "e").exists()


def test_a_folder_of_images_has_no_companions(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    assert embed(tmp_path / "images", "--model", model_dir, "--companions", tmp_path / "e") == 2
    assert "--companions is for shard sets" in capsys.readouterr().err
