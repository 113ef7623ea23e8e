from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ace.embed.embedder import Embedder, embedding_of, pool, unit
from ace.embed.encoder import Encoder
from shards.core.errors import ConfigError
from shards.core.normalisation import Normalisation
from tests.ace.properties.constructed import SPEC, ConstructedEncoder, FromCellMeans, colour, embedder

SIZE_PX = SPEC.crop_px


PER_CHANNEL = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Normalising(ConstructedEncoder):
    def normalisation(self, batch: str) -> Normalisation:
        return Normalisation.of(*{"first": (0.5, 0.25), "second": (0.0, 1.0), "channels": PER_CHANNEL}[batch])


def noise(num_crops: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_crops, SIZE_PX, SIZE_PX, *shape), dtype=np.uint8)


def test_pixels_are_normalised_by_the_batch_they_come_from() -> None:
    crops = noise(3, 3)
    encoder = Normalising(FromCellMeans(SPEC, colour))
    first = Embedder(encoder=encoder, batch="first", images_per_forward=2, name="e").pooled(crops, total=3, task="t")
    second = Embedder(encoder=encoder, batch="second", images_per_forward=2, name="e").pooled(crops, total=3, task="t")
    np.testing.assert_allclose(second, crops.mean(axis=(1, 2)) / 255, rtol=1e-5)
    np.testing.assert_allclose(first, (second - 0.5) / 0.25, rtol=1e-4)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_level_for_each_channel_is_taken_from_that_channel(shape: tuple[int, ...]) -> None:
    crops = noise(3, *shape)
    found = Embedder(
        encoder=Normalising(FromCellMeans(SPEC, colour)), batch="channels", images_per_forward=2, name="e"
    ).pooled(crops, total=3, task="t")
    mean, std = map(np.array, PER_CHANNEL)
    expected = (crops.reshape(3, -1, *(shape or (1,))).mean(axis=1) / 255 - mean) / std
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("images_per_forward", [1, 4, 100])
def test_crops_come_out_in_order_whatever_the_size_of_a_forward(images_per_forward: int) -> None:
    crops = noise(5, 3)
    found = embedder(colour, images_per_forward=images_per_forward).pooled(iter(crops), total=5, task="t")
    np.testing.assert_allclose(found, crops.mean(axis=(1, 2)) / 255, rtol=1e-5)


def test_grey_crops_are_repeated_for_a_colour_encoder() -> None:
    crops = noise(2)
    found = embedder(colour).pooled(crops, total=2, task="t")
    np.testing.assert_allclose(found, np.repeat(crops.mean(axis=(1, 2))[:, None] / 255, 3, axis=1), rtol=1e-5)


def test_colour_crops_become_luma_for_a_grey_encoder() -> None:
    encoder = ConstructedEncoder(FromCellMeans(SPEC, colour), in_channels=1)
    crops = noise(2, 3)
    found = Embedder(encoder=encoder, batch="constructed", images_per_forward=8, name="e").pooled(
        crops, total=2, task="t"
    )
    expected = crops.mean(axis=(1, 2)) @ np.array([0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(found[:, 0], expected, atol=1 / 255)  # whole grey levels, as in training


def test_embedding_records_nothing_for_a_gradient() -> None:
    seen: list[bool] = []

    def code(means: Tensor) -> Tensor:
        seen.append(torch.is_grad_enabled())
        return means

    embedder(code).pooled(noise(1, 3), total=1, task="t")
    assert seen == [False]


def test_the_backbone_alone_is_in_the_encoders_precision_and_what_is_made_of_its_tokens_in_fp32() -> None:
    layer, seen = torch.nn.Linear(3, 5), []

    def code(means: Tensor) -> Tensor:
        seen.append(layer(means).dtype)
        return layer(means)

    crops, fp32 = noise(3, 3), ConstructedEncoder(FromCellMeans(SPEC, code))
    embedders = [
        Embedder(encoder=encoder, batch="constructed", images_per_forward=2, name="e")
        for encoder in (fp32, replace(fp32, precision="bf16"))
    ]
    full, half = (list(each.tokens(crops)) for each in embedders)
    assert seen == [torch.float32, torch.float32, torch.bfloat16, torch.bfloat16]
    assert {tokens.dtype for tokens in full + half} == {torch.float32}
    torch.testing.assert_close(torch.cat(half), torch.cat(full), rtol=0.02, atol=0.02)
    assert not torch.equal(torch.cat(half), torch.cat(full))
    pooled = embedders[1].pooled(crops, total=3, task="t")
    np.testing.assert_allclose(pooled, torch.cat(half).double().mean((1, 2)).numpy(), rtol=1e-5)
    for _ in embedders[1].tokens(crops):  # whoever takes the tokens computes as before
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
        assert not torch.is_inference_mode_enabled()


def test_a_vector_of_length_zero_stays_zero() -> None:
    found = unit(np.array([[3.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, np.array([[0.6, 0.8], [0.0, 0.0]]))


def test_the_two_forms_of_an_embedding_are_one() -> None:
    """E(x) of tensors, which an exported network computes, and of arrays, which the figures are made of."""
    tokens = torch.randn(4, 3, 3, 7, generator=torch.Generator().manual_seed(0))
    tokens[1] = 0
    np.testing.assert_allclose(embedding_of(tokens).numpy(), unit(pool(tokens)), atol=1e-6)
    assert not embedding_of(tokens)[1].any()


def test_a_trained_encoder_takes_crops_of_its_own_grid_alone() -> None:
    encoder = Encoder(backbone=torch.nn.Identity(), spec=SPEC, in_channels=3, precision="fp32")
    assert encoder.on_grid(SPEC, "a-b000") is encoder
    other = replace(SPEC, cell_px=SPEC.cell_px * 2)
    with pytest.raises(ConfigError, match=r"\(n, cell_px, t\) = \(6, 8, 4\), but a-b000 has \(6, 16, 4\)"):
        encoder.on_grid(other, "a-b000")
