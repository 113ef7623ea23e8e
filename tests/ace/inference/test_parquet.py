"""`python -m ace embed`: every readable image in one file, in order, whole or not at all."""

import csv
import hashlib
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ace.__main__ import build_parser
from ace.inference import parquet
from ace.inference.embedder import EmbeddingModel
from ace.inference.parquet import write_embeddings
from ace.inference.sources import open_folder
from shards.build.stage import build_shards
from shards.cli import run_command
from shards.core.identity import KEY_FILE_VARIABLE, create_key, read_id_key
from shards.decode import UnreadableImageError
from shards.reading.reader import ShardIndex, ShardReader
from shards.sources.datasets.folder import find_images
from shards.sources.images import OTHER_FILE, UNLISTED, UNREAD_FORMAT
from tests.ace.inference.models import DIM, mix, write_model
from tests.shards.decode.dicom_files import data_of, dataset_of
from tests.shards.sources.trees import close_folder
from tests.support.checkout import ROOT, copy_project
from tests.support.datasets import Here, grid_params, shard_params, smooth_image, write_phantom
from tests.support.forked import Forked

IMAGES = ["a/2.png", "a/10.jpg", "b.PNG", "b/deep/er/1.TIFF", "scan", "x.dcm"]
EMBED = """
import sys
from ace.__main__ import build_parser
from shards.cli import run_command
sys.exit(run_command(build_parser(), ["embed", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images, two files that only look like some, and others that do not."""
    root = tmp_path_factory.mktemp("images")
    for number, name in enumerate(IMAGES):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = smooth_image(40, 30 + number, number)
        if path.suffix in ("", ".dcm"):
            path.write_bytes(data_of(dataset_of(pixels)))
        else:
            Image.fromarray(pixels).save(path)
    (root / "a/broken.png").write_bytes((root / "a/2.png").read_bytes()[:100])
    (root / "notes.jpeg").write_text("no image")
    (root / "labels.csv").write_text("path\n")
    (root / ".hidden.png").write_bytes((root / "a/2.png").read_bytes())
    return root


def embed(*arguments: str | Path) -> int:
    return run_command(build_parser(), ["embed", *map(str, arguments), "--device", "cpu", "--num-threads", "2"])


def start_embed(*arguments: str | Path) -> Forked:
    """The command in a process of its own."""
    return Forked(EMBED, [*map(str, arguments)], env=os.environ, cwd=ROOT)


def test_a_folder_becomes_one_row_an_image(
    folder: Path, model_dir: Path, model: EmbeddingModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "embeddings.parquet"
    assert embed(folder, "--model", model_dir, "--out", out, "--tokens", "--batch-size", "3") == 0
    table = pq.read_table(out)
    assert table["key"].to_pylist() == sorted(IMAGES)
    expected = model.embed([folder / name for name in sorted(IMAGES)])
    found = np.stack(table["embedding"].to_numpy())
    assert found.dtype == np.float32
    assert np.abs(found - expected.embedding.numpy()).max() < 1e-5
    tokens = np.stack(table["tokens"].to_numpy())
    assert tokens.dtype == np.float16
    assert np.abs(tokens.reshape(-1, 4, 4, DIM) - expected.tokens.numpy()).max() < 0.01

    about = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    weights = (model_dir / "teacher_backbone.safetensors").read_bytes()
    assert about["ace.model_sha256"] == hashlib.sha256(weights).hexdigest()
    assert (about["ace.rows"], about["ace.cols"], about["ace.dim"]) == ("4", "4", str(DIM))
    assert (about["ace.mean"], about["ace.std"], about["ace.normalisation"]) == ("0.4", "0.2", "a-b000")
    assert about["ace.backbone"] == "vit_tiny_patch16_224"
    assert about["ace.keys"] == "relative path"

    errors = (tmp_path / "new" / "embeddings.errors.csv").read_text().splitlines()
    assert list(csv.DictReader(errors)) == [
        {"key": "a/broken.png", "reason": "truncated or damaged image data"},
        {"key": "notes.jpeg", "reason": "none of the kinds of image that are read (PNG, JPEG, TIFF, BMP, GIF, DICOM)"},
    ]
    printed = capsys.readouterr()
    assert "6 embeddings" in printed.out
    assert "2 images could not be read" in printed.out
    assert "8/8" in printed.err
    assert sorted(path.name for path in out.parent.iterdir()) == ["embeddings.errors.csv", "embeddings.parquet"]


def test_of_an_image_that_is_too_large_its_size_and_the_bound_are_said(folder: Path) -> None:
    images = open_folder(folder, is_hashed=False, max_pixels=1200)
    assert images.read(images.keys.index("a/2.png")).shape == (40, 30)
    for name in ("a/10.jpg", "b/deep/er/1.TIFF", "x.dcm"):
        with pytest.raises(UnreadableImageError) as error:
            images.read(images.keys.index(name))
        found = 40 * (30 + IMAGES.index(name))
        assert str(error.value) == (
            f"{found:,} pixels, and at most 1,200 are read: make it smaller, or raise --max-megapixels"
        )


def test_a_folder_has_the_images_that_register_finds_in_it_and_the_others_are_counted(
    folder: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    for name in ("a.jfif", "b", "b.5", "c.bak"):
        (root / name).write_bytes((folder / "a/2.png").read_bytes())
    for name in ("scan.ima", "DICOMDIR"):
        (root / name).write_bytes((folder / "x.dcm").read_bytes())
    Image.open(folder / "b.PNG").save(root / "d.webp")
    (root / "notes.txt").write_text("no image")
    for name in ("@eaDir", "$RECYCLE.BIN"):
        (root / name).mkdir()
        (root / name / "a.jpg").write_bytes((folder / "a/10.jpg").read_bytes())

    assert embed(root, "--model", model_dir, "--out", tmp_path / "e.parquet") == 0
    keys = pq.read_table(tmp_path / "e.parquet")["key"].to_pylist()
    assert keys == ["a.jfif", "b", "b.5", "c.bak", "scan.ima"]
    said = capsys.readouterr().err
    assert f"{root}: left out 2 {OTHER_FILE}" in said
    assert f"{root}: left out 1 {UNREAD_FORMAT}" in said
    assert sorted(find_images(root).kinds) == keys


def test_the_same_command_gives_the_same_bytes_whatever_the_threads(
    folder: Path, model: EmbeddingModel, tmp_path: Path
) -> None:
    for name, threads in (("one", 1), ("four", 4)):
        source = open_folder(folder, is_hashed=False, max_pixels=1e6)
        write_embeddings(model, source, tmp_path / name, batch_size=2, num_threads=threads, with_tokens=False)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "four").read_bytes()


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_row_groups_are_bounded_and_lose_no_row(
    folder: Path, model: EmbeddingModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    monkeypatch.setattr(parquet, "ROWS_PER_GROUP", 2)
    source = open_folder(folder, is_hashed=False, max_pixels=1e6)
    outcome = write_embeddings(
        model, source, tmp_path / "e.parquet", batch_size=batch_size, num_threads=1, with_tokens=False
    )
    file = pq.ParquetFile(tmp_path / "e.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)] == [2, 2, 2]
    assert file.read()["key"].to_pylist() == sorted(IMAGES)
    assert (outcome.num_embedded, outcome.num_unreadable) == (6, 2)


def test_hashed_keys_name_nobody_and_are_the_projects_pseudonyms(
    folder: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(KEY_FILE_VARIABLE, raising=False)
    out = tmp_path / "e.parquet"
    assert embed(folder, "--model", model_dir, "--out", out, "--hash-keys") == 2
    assert KEY_FILE_VARIABLE in capsys.readouterr().err
    create_key(tmp_path / "id.key")
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "id.key"))
    assert embed(folder, "--model", model_dir, "--out", out, "--hash-keys") == 0
    key = read_id_key()
    table = pq.read_table(out)
    hashed = sorted(key.pseudonym("source", name) for name in IMAGES)
    assert table["key"].to_pylist() == hashed, "their order tells nothing of that of the names"
    plain = tmp_path / "plain.parquet"
    assert embed(folder, "--model", model_dir, "--out", plain) == 0
    of_names = dict(zip(*(pq.read_table(plain)[column].to_pylist() for column in ("key", "embedding")), strict=True))
    for name in IMAGES:
        embedding = table["embedding"][hashed.index(key.pseudonym("source", name))].as_py()
        assert embedding == pytest.approx(of_names[name], abs=1e-5)
    written = out.read_bytes() + (tmp_path / "e.errors.csv").read_bytes()
    assert not any(name.encode() in written for name in [*IMAGES, "broken", "notes"])


def test_a_list_of_errors_goes_when_there_are_none(folder: Path, model: EmbeddingModel, tmp_path: Path) -> None:
    def run(root: Path) -> None:
        source = open_folder(root, is_hashed=False, max_pixels=1e6)
        write_embeddings(model, source, tmp_path / "e.parquet", batch_size=4, num_threads=1, with_tokens=False)

    run(folder)
    assert (tmp_path / "e.errors.csv").exists()
    run(folder / "b")
    assert not (tmp_path / "e.errors.csv").exists()


def test_no_readable_image_is_an_error_that_leaves_the_earlier_file(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "e.parquet"
    out.write_text("earlier")
    (tmp_path / "in").mkdir()
    assert embed(tmp_path / "in", "--model", model_dir, "--out", out) == 2
    assert "no images; looked at any depth" in capsys.readouterr().err
    assert embed(tmp_path / "gone", "--model", model_dir, "--out", out) == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "in/a.png").write_bytes(b"")
    assert embed(tmp_path / "in", "--model", model_dir, "--out", out) == 2
    assert "none of the 1 images can be read" in capsys.readouterr().err
    assert out.read_text() == "earlier"
    assert "a.png," in (tmp_path / "e.errors.csv").read_text()


@pytest.mark.skipif(os.name != "posix", reason="pipes and links")
def test_pipes_are_passed_over_links_to_files_followed_and_links_to_nothing_listed(
    folder: Path, model_dir: Path, tmp_path: Path
) -> None:
    root = tmp_path / "in"
    root.mkdir()
    (root / "outside.png").symlink_to(folder / "b.PNG")
    (root / "gone.png").symlink_to(root / "nowhere")
    for name in ("folder", "folder.png"):
        (root / name).symlink_to(folder)
    os.mkfifo(root / "pipe.png")
    os.mkfifo(root / "pipe")
    process = start_embed(root, "--model", model_dir, "--out", tmp_path / "e.parquet")
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert pq.read_table(tmp_path / "e.parquet")["key"].to_pylist() == ["outside.png"]
    assert (tmp_path / "e.errors.csv").read_text() == "key,reason\ngone.png,missing or not readable\n"


def test_folders_that_cannot_be_listed_are_counted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "a", tmp_path / "open")
    (tmp_path / "closed").mkdir()
    close_folder(tmp_path / "closed", monkeypatch)
    found = open_folder(tmp_path, is_hashed=False, max_pixels=1e6)
    assert found.left_out == (f"left out 1 {UNLISTED}",)
    assert set(found.paths) == {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "open").iterdir()}


def test_an_out_that_cannot_be_written_is_refused_before_the_work(
    folder: Path, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("dear")
    for out, said in (
        (tmp_path, "is a folder; name the Parquet file"),
        (tmp_path / "file/e.parquet", "cannot be made"),
    ):
        assert embed(folder, "--model", model_dir, "--out", out) == 2
        printed = capsys.readouterr().err
        assert said in printed
        assert "image/s" not in printed
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    source = write_phantom(root / "phantom", num_patients=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACE_SCRATCH", str(root / "scratch"))
        build_shards("a-b000", source, grid_params(), shard_params(), root / "a-b000", execution=Here())
    return root / "a-b000"


def test_a_shard_set_is_embedded_by_split_and_normalised_as_in_training(
    shard_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path / "ace", batches={"a-b000": mix(1.0, 0.4, 0.2), "b-b000": mix(1.0, 0.7, 0.2)})
    index = ShardIndex.open(shard_set)
    out = tmp_path / "e.parquet"
    for split in ("test", "all"):
        assert embed(shard_set, "--model", folder, "--out", out, "--split", split) == 0
        rows = range(len(index.rows)) if split == "all" else index.select("test")
        table = pq.read_table(out)
        assert table["key"].to_pylist() == index.keys(np.array(rows))
        assert table.schema.metadata[b"ace.normalisation"] == b"a-b000"
    assert not (tmp_path / "e.errors.csv").exists()
    assert embed(shard_set, "--model", folder, "--out", out, "--hash-keys") == 2
    capsys.readouterr()
    assert embed(shard_set.parent, "--model", folder, "--out", out) == 2
    assert "holds the shard sets a-b000; embed one of them" in capsys.readouterr().err
    image = ShardReader(index).read(0).image
    import ace

    expected = ace.load(folder, normalisation="a-b000", device="cpu").embed(image).embedding
    assert np.abs(np.array(table["embedding"][0].as_py()) - expected.numpy()).max() < 1e-5
    # A folder is of no batch, so the choice is open.
    write_image = tmp_path / "in"
    write_image.mkdir()
    Image.fromarray(image).save(write_image / "a.png")
    capsys.readouterr()
    assert embed(write_image, "--model", folder, "--out", out) == 2
    assert "--normalisation NAME or --normalisation MEAN,STD" in capsys.readouterr().err
    assert embed(write_image, "--model", folder, "--out", out, "--split", "test") == 2
    assert "has no splits" in capsys.readouterr().err
    assert embed(write_image, "--model", folder, "--out", out, "--normalisation", "0.4,0.2") == 0
    found = pq.read_table(out)["embedding"][0].as_py()
    assert np.abs(np.array(found) - expected.numpy()).max() < 1e-5


def test_a_set_that_the_model_was_not_trained_with_is_normalised_by_its_own_numbers(
    shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = write_model(tmp_path / "ace", batches={"other-b000": mix(1.0, 0.7, 0.2)}), tmp_path / "e.parquet"
    image, own = (
        ShardReader(ShardIndex.open(shard_set)).read(0).image,
        ShardIndex.open(shard_set).description.statistics,
    )
    assert own.mean is not None
    assert own.std is not None
    import ace

    def check_embedded_by(mean: float, std: float, name: str, *options: object) -> None:
        assert embed(shard_set, "--model", folder, "--out", out, *options) == 0
        table = pq.read_table(out)
        assert table.schema.metadata[b"ace.normalisation"] == name.encode()
        expected = ace.load(folder, normalisation=(mean, std), device="cpu").embed(image).embedding.numpy()
        assert np.abs(np.array(table["embedding"][0].as_py()) - expected).max() < 1e-5

    monkeypatch.chdir(tmp_path)
    check_embedded_by(own.mean, own.std, "own of a-b000")
    check_embedded_by(0.7, 0.2, "other-b000", "--normalisation", "other-b000")
    check_embedded_by(0.3, 0.1, "custom", "--normalisation", "0.3,0.1")
    # In the project that registered the set the numbers are those of `register`, which `evaluate` takes too.
    copy_project(tmp_path)
    text = (tmp_path / "batches/phantom-b000.yaml").read_text()
    (tmp_path / "batches/a-b000.yaml").write_text(text.replace("mean: 0.482", "mean: 0.45"))
    check_embedded_by(0.45, 0.269, "own of a-b000")


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_killed_run_leaves_no_file_and_the_next_one_no_leftovers(
    folder: Path, model_dir: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    data = (folder / "a/2.png").read_bytes()
    for number in range(1000):
        (source / f"{number:04d}.png").write_bytes(data)
    out = tmp_path / "out" / "e.parquet"
    process = start_embed(source, "--model", model_dir, "--out", out, "--batch-size", "1")
    while not (out.parent.is_dir() and list(out.parent.glob(".*.tmp"))):
        assert process.poll() is None, "the run ended before the kill"
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    for path in list(source.iterdir())[7:]:
        path.unlink()
    assert embed(source, "--model", model_dir, "--out", out) == 0
    assert [path.name for path in out.parent.iterdir()] == ["e.parquet"]
    assert pq.read_metadata(out).num_rows == 7
