"""`ace.load(...).embed(...)`: the embedding of method.md §5, by every way an image can be given."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import ace
from ace.embed import preprocessing
from ace.embed.embedder import Embedder, unit
from ace.embed.encoder import load_encoder
from ace.inference.embedder import EmbeddingModel
from ace.inference.images import ImageInputError
from ace.inference.timm_folder import export_timm
from shards.core.errors import ConfigError
from tests.ace.inference.models import BACKBONES, CROP_PX, DIM, mix, write_model
from tests.shards.decode.dicom_files import data_of, dataset_of
from tests.support.datasets import smooth_image


def pictures(number: int, height: int = 40, width: int = 30) -> list[np.ndarray]:
    return [smooth_image(height, width, seed) for seed in range(number)]


def test_three_lines_give_an_embedding_and_a_token_map(model_dir: Path) -> None:
    model = ace.load(str(model_dir))
    out = model.embed(Image.fromarray(smooth_image(50, 40, 0)))
    assert out.embedding.shape == (DIM,)
    assert out.tokens.shape == (4, 4, DIM)
    assert out.embedding.norm().item() == pytest.approx(1, abs=1e-5)
    assert out.embedding.dtype == out.tokens.dtype == torch.float32


def test_token_maps_that_are_not_asked_for_are_not_kept(model: EmbeddingModel) -> None:
    images = pictures(3)
    expected = model.embed(images)
    for found, wanted in (
        (model.embed(images, with_tokens=False), expected.embedding),
        (model.embed(images[0], with_tokens=False), model.embed(images[0]).embedding),
        (model.embed([], with_tokens=False), torch.empty(0, DIM)),
    ):
        assert torch.equal(found.embedding, wanted)
        assert found.tokens is None
    canvases = [model.preprocessing.place(image) for image in images]
    assert torch.equal(model.embed_canvases(canvases, torch.float16).tokens, expected.tokens.half())


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_on_the_cpu_a_model_computes_in_fp32_whatever_it_was_trained_in(precision: str, tmp_path: Path) -> None:
    images = pictures(2)
    found = ace.load(write_model(tmp_path / "other", precision=precision), device="cpu").embed(images)
    expected = ace.load(write_model(tmp_path / "fp32"), device="cpu").embed(images)
    assert torch.equal(found.embedding, expected.embedding)
    assert torch.equal(found.tokens, expected.tokens)


def test_importing_ace_does_not_import_torch() -> None:
    code = "import sys, ace; ace.load; sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'numpy')))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("in_channels", [1, 3])
def test_the_embedding_is_what_evaluation_measures(kind: str, in_channels: int, tmp_path: Path) -> None:
    """On squares of crop size both see the same pixels; E is E0's direction there."""
    folder = write_model(tmp_path / "ace", kind, in_channels=in_channels)
    crops = pictures(5, CROP_PX, CROP_PX)
    embedder = Embedder(encoder=load_encoder(folder, device="cpu"), batch="a-b000", images_per_forward=2, name="test")
    out = ace.load(folder, device="cpu").embed(crops)
    expected = embedder.pooled(crops, total=5, task="test")
    assert np.abs(out.embedding.numpy() - unit(expected)).max() < 1e-5
    assert np.abs(out.tokens.mean((1, 2)).numpy() - expected).max() < 1e-5
    assert np.linalg.norm(expected, axis=1).min() > 0.1


def test_a_model_of_coloured_images_normalises_each_channel_and_says_how(tmp_path: Path) -> None:
    mean, std = [0.62, 0.31, 0.1], [0.14, 0.11, 0.08]
    folder = write_model(tmp_path / "ace", in_channels=3, batches={"a-b000": mix(1.0, mean, std)})
    model = ace.load(folder)
    about = model.describe()
    assert (about["mean"], about["std"]) == (mean, std)
    crops = [np.random.default_rng(0).integers(0, 256, (CROP_PX, CROP_PX, 3), dtype=np.uint8)]
    embedder = Embedder(encoder=load_encoder(folder, device="cpu"), batch="a-b000", images_per_forward=2, name="test")
    expected = embedder.pooled(crops, total=1, task="test")
    assert np.abs(model.embed(crops).tokens.mean((1, 2)).numpy() - expected).max() < 1e-5
    swapped = ace.load(folder, normalisation=([0.31, 0.62, 0.1], std))
    assert np.abs(swapped.embed(crops).tokens.mean((1, 2)).numpy() - expected).max() > 1e-3

    export_timm(model, tmp_path / "timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text(encoding="utf-8"))
    assert (config["pretrained_cfg"]["mean"], config["pretrained_cfg"]["std"]) == (mean, std)
    assert "mean 0.62, 0.31, 0.1, std 0.14, 0.11, 0.08 (a-b000)" in (tmp_path / "timm" / "README.md").read_text("utf-8")

    grey = write_model(tmp_path / "grey", batches={"a-b000": mix(1.0, mean, std)})
    with pytest.raises(ConfigError, match=r"mix.a-b000: found a list of 3 as mean, expected one number"):
        ace.load(grey)


@given(st.integers(0, 7), st.integers(1, 9))
def test_a_batch_is_its_images_one_by_one(number: int, batch_size: int) -> None:
    model = _CACHED.model
    images = pictures(number)
    out = model.embed(iter(images), batch_size=batch_size)
    assert out.embedding.shape == (number, DIM)
    assert out.tokens.shape == (number, 4, 4, DIM)
    for position, image in enumerate(images):
        alone = model.embed(image)
        assert torch.allclose(out.embedding[position], alone.embedding, atol=1e-5)
        assert torch.allclose(out.tokens[position], alone.tokens, atol=1e-4)


class _CACHED:
    """hypothesis runs a test many times in one call; fixtures of a function do not mix with it."""

    model: EmbeddingModel


@pytest.fixture(autouse=True, scope="module")
def _cache_model(model: EmbeddingModel) -> None:
    _CACHED.model = model


def test_every_form_of_one_image_has_one_embedding(model: EmbeddingModel, tmp_path: Path) -> None:
    pixels = smooth_image(40, 30, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "a.dcm").write_bytes(data_of(dataset_of(pixels)))
    expected = model.embed(pixels)
    colour = np.repeat(pixels[..., None], 3, axis=2)
    held: list[Any] = [Image.fromarray(pixels), torch.from_numpy(pixels), torch.from_numpy(pixels)[None] / 255, colour]
    held += [tmp_path / "a.png", str(tmp_path / "a.png"), tmp_path / "a.dcm"]
    for image in held:
        assert torch.equal(model.embed(image).tokens, expected.tokens)
    assert torch.allclose(model.embed(held).tokens, expected.tokens.expand(len(held), -1, -1, -1), atol=1e-5)
    stack = torch.from_numpy(np.stack([pixels, pixels]))[:, None]
    assert model.embed(stack).embedding.shape == (2, DIM)


def test_the_image_keeps_its_aspect_and_is_padded_with_black(model: EmbeddingModel) -> None:
    tall = smooth_image(CROP_PX, CROP_PX // 2, 1)
    square = np.zeros((CROP_PX, CROP_PX), np.uint8)
    square[:, CROP_PX // 4 : CROP_PX // 4 + CROP_PX // 2] = tall
    assert torch.equal(model.embed(tall).tokens, model.embed(square).tokens)


def test_tokens_lie_where_their_pixels_are(model: EmbeddingModel) -> None:
    """A spot in one corner moves the token of that corner most."""
    plain = np.full((CROP_PX, CROP_PX), 100, np.uint8)
    spotted = plain.copy()
    spotted[2:6, -6:-2] = 255  # first row, last column
    change = (model.embed(spotted).tokens - model.embed(plain).tokens).norm(dim=-1)
    assert divmod(int(change.argmax()), 4) == (0, 3)


def test_the_student_is_another_network(model: EmbeddingModel, model_dir: Path) -> None:
    student = ace.load(model_dir, which="student", device="cpu")
    image = smooth_image(40, 40, 0)
    assert not torch.allclose(student.embed(image).embedding, model.embed(image).embedding, atol=1e-3)
    assert student.fingerprint != model.fingerprint
    with pytest.raises(ConfigError, match="teacher and student"):
        ace.load(model_dir, which="head")  # type: ignore[arg-type]


def test_a_normalisation_may_be_numbers_arrays_or_tensors_and_is_refused_in_words(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "ace", in_channels=3, batches={"a": mix(1.0, [0.5, 0.4, 0.3], [0.2, 0.2, 0.2])})
    given = [0.5, 0.4, 0.3], [0.2, 0.2, 0.2]
    expected = ace.load(folder, device="cpu").preprocessing
    for choice in (given, tuple(map(np.array, given)), tuple(map(torch.tensor, given))):
        found = ace.load(folder, normalisation=choice, device="cpu").preprocessing
        assert found.mean == pytest.approx(expected.mean)
        assert found.std == pytest.approx(expected.std)
    for wrong in ((0.5,), 0.5, ("dark", "light")):
        with pytest.raises(ConfigError, match="expected the name of a training batch, or"):
            preprocessing._given(wrong)


def test_one_number_and_the_same_number_for_each_channel_are_the_same_normalisation(tmp_path: Path) -> None:
    batches = {"a": mix(1.0, 0.5, 0.2), "b": mix(1.0, [0.5, 0.5, 0.5], [0.2, 0.2, 0.2])}
    folder = write_model(tmp_path / "ace", in_channels=3, batches=batches)
    assert ace.load(folder, device="cpu").preprocessing.normalisation == "a+b"


def test_a_network_that_the_folder_lacks_is_named_with_those_it_has(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "ace")
    (folder / "student_backbone.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"student_backbone.safetensors: not found; the model has teacher"):
        ace.load(folder, which="student", device="cpu")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[1]", '{"format_version": 3}'])
def test_a_damaged_configuration_is_one_clear_error(text: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "ace")
    (folder / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config.json: (damaged|format_version None)"):
        ace.load(folder, device="cpu")


def test_a_model_of_another_release_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "ace")
    (folder / "config.json").write_text('{"format_version": 2}')
    with pytest.raises(ConfigError, match=r"format_version 2, .* reads 3 and 4; use the release that wrote the model"):
        ace.load(folder, device="cpu")


def test_devices_are_chosen_by_name(model_dir: Path) -> None:
    assert ace.load(model_dir, device="cpu").encoder.device == torch.device("cpu")
    assert ace.load(model_dir).encoder.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match="use auto, cpu or a device of this machine"):
        ace.load(model_dir, device="cuda:99")
    for name in ("gpu", "meta", "", "xla"):
        with pytest.raises(ConfigError, match=f"device '{name}': ") as error:
            ace.load(model_dir, device=name)
        assert len(str(error.value)) < 400, "torch lists every backend that it knows"


def test_normalisation_is_that_of_the_training_mix_or_has_to_be_chosen(tmp_path: Path) -> None:
    one, other, unused = mix(1.0, 0.4, 0.2), mix(2.0, 0.6, 0.3), mix(0.0, 0.1, 0.1)
    same = ace.load(write_model(tmp_path / "same", batches={"a": one, "b": mix(3.0, 0.4, 0.2), "c": unused}))
    assert (same.preprocessing.mean, same.preprocessing.std) == ((0.4,), (0.2,))
    assert same.preprocessing.normalisation == "a+b"
    assert ace.load(tmp_path / "same", normalisation="c").preprocessing.mean == (0.1,)

    differing = write_model(tmp_path / "differing", batches={"a": one, "b": other})
    with pytest.raises(ConfigError, match=r"a: 0.4 ± 0.2, b: 0.6 ± 0.3.*--normalisation NAME .*normalisation='NAME'"):
        ace.load(differing)
    with pytest.raises(ConfigError, match="normalisation 'x': the model knows a, b"):
        ace.load(differing, normalisation="x")
    for std in (0.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="a std above 0"):
            ace.load(differing, normalisation=(0.5, std))
    with pytest.raises(ConfigError, match="mean 128"):
        ace.load(differing, normalisation=(128.0, 60.0))
    image = smooth_image(CROP_PX, CROP_PX, 0)
    by_name = ace.load(differing, normalisation="b").embed(image).tokens
    assert torch.equal(by_name, ace.load(differing, normalisation=(0.6, 0.3)).embed(image).tokens)
    assert not torch.allclose(by_name, ace.load(differing, normalisation="a").embed(image).tokens, atol=1e-3)


def test_what_cannot_be_embedded_is_named_by_its_position(model: EmbeddingModel) -> None:
    with pytest.raises(ImageInputError, match=r"^image 2: floats from 7 to 7"):
        model.embed([*pictures(2), np.full((3, 3), 7.0)])
    with pytest.raises(ImageInputError, match="a int is neither"):
        model.embed(7)  # type: ignore[arg-type]
    for mistaken in (b"bytes of a file", {"name": pictures(1)[0]}):
        with pytest.raises(ImageInputError, match=f"a {type(mistaken).__name__} is neither"):
            model.embed(mistaken)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size 0"):
        model.embed(pictures(1), batch_size=0)


def test_a_folder_that_is_no_model_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="to be the folder of a model"):
        ace.load(tmp_path)
