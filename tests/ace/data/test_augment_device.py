"""The batched steps against OpenCV's, crop by crop, and what a batch must not change."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ace.data import augment as host
from ace.data import augment_device as device
from ace.data.augmentation import AS_IT_IS, Augmentation, Augmentations, BrightnessContrast, draw_augmentation
from ace.data.clahe import equalise
from ace.data.lab import lab_of, rgb_of
from ace.data.params import AugmentParams
from tests.ace.data.test_augment import ALWAYS
from tests.support.examples import examples

HALF = AugmentParams.from_params(
    {name: step | {"probability": 0.5} if name != "where" else step for name, step in ALWAYS.model_dump().items()},
    "augment",
)
SHARE_OFF_BY_ONE = 1e-3
"""Of the pixels of a step whose products OpenCV may leave unrounded (fused multiply-add), as the processor has it."""
TIE = 1e-3
"""How near to a half a level may lie for single precision, products rounded or not, to take it to either side."""

seeds = st.integers(0, 2**32)
contents = st.sampled_from(["noise", "smooth", "half black", "flat", "two levels"])
channels = st.sampled_from([1, 3])


def crops_of(content: str, shape: tuple[int, int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Crops [batch, size, size, channels]."""
    crops = rng.integers(0, 256, shape, dtype=np.uint8)
    if content == "smooth":
        crops = np.stack([cv2.GaussianBlur(crop, (0, 0), 3.0).reshape(shape[1:]) for crop in crops])
    elif content == "half black":
        crops[:, : shape[1] // 2] = 0
    elif content == "flat":
        crops[:] = crops[:, :1, :1]
    elif content == "two levels":
        crops = np.where(crops > 128, crops[:, :1, :1], crops[:, -1:, -1:])
    return crops


def as_batch(crops: np.ndarray) -> Tensor:
    return torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous()


def one_by_one(crops: np.ndarray, function, *values) -> np.ndarray:
    """A host's step on each crop with its values, [batch, channels, size, size]."""
    plain = [crop[..., 0] if crop.shape[-1] == 1 else crop for crop in crops]
    changed = [function(crop, *each) for crop, *each in zip(plain, *values, strict=True)]
    return np.stack([crop.reshape(crops.shape[1:]) for crop in changed]).transpose(0, 3, 1, 2)


def assert_off_by_one_at_most_rarely(found: Tensor, expected: np.ndarray) -> None:
    difference = np.abs(found.numpy().astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).sum() <= 1 + SHARE_OFF_BY_ONE * difference.size


@given(seeds, st.integers(1, 40), channels, contents)
def test_brightness_and_contrast_are_opencvs_to_the_level(seed: int, size: int, channels: int, content: str) -> None:
    rng = np.random.default_rng(seed)
    crops = crops_of(content, (3, size, size, channels), rng)
    contrast, shift = rng.uniform(0.5, 1.5, 3), rng.uniform(-80, 80, 3)
    found = device.change_brightness_contrast(as_batch(crops), torch.from_numpy(contrast), torch.from_numpy(shift))
    values = [BrightnessContrast(*both) for both in zip(contrast.tolist(), shift.tolist(), strict=True)]
    np.testing.assert_array_equal(found.numpy(), one_by_one(crops, host.change_brightness_contrast, values))


@given(seeds, st.integers(1, 40), channels, contents)
def test_blur_is_opencvs_to_the_level_also_where_the_kernel_is_wider_than_the_crop(
    seed: int, size: int, channels: int, content: str
) -> None:
    rng = np.random.default_rng(seed)
    crops, sigma = crops_of(content, (3, size, size, channels), rng), rng.uniform(0.05, 4.0, 3)
    found = device.blur(as_batch(crops), torch.from_numpy(sigma), max_sigma_px=4.0)
    np.testing.assert_array_equal(found.numpy(), one_by_one(crops, host.blur, sigma.tolist()))


@given(seeds, st.integers(1, 40), channels, contents, st.floats(0.1, 3.0))
def test_sharpening_is_opencvs_but_for_ties(seed: int, size: int, channels: int, content: str, sigma: float) -> None:
    rng = np.random.default_rng(seed)
    crops, amount = crops_of(content, (3, size, size, channels), rng), rng.uniform(0, 3, 3)
    found = device.sharpen(as_batch(crops), torch.from_numpy(amount), sigma_px=sigma)
    difference = np.abs(found.numpy().astype(int) - one_by_one(crops, host.sharpen, amount.tolist(), [sigma] * 3))
    factor, blurred = amount[:, None, None, None], one_by_one(crops, host.blur, [sigma] * 3)
    exact = crops.transpose(0, 3, 1, 2) * (1 + factor) - factor * blurred
    is_tie = np.abs(exact - np.floor(exact) - 0.5) < TIE
    assert (difference <= is_tie).all(), "off by one at ties alone, and nowhere by more"


@examples(2)
@given(seeds, st.integers(2, 48), st.integers(1, 9), channels, contents)
def test_clahe_is_opencvs_but_for_ties_also_where_tiles_do_not_divide_the_crop(
    seed: int, size: int, num_tiles: int, channels: int, content: str
) -> None:
    rng = np.random.default_rng(seed)
    crops, limit = crops_of(content, (3, size, size, channels), rng), rng.uniform(1, 6, 3)
    found = device.equalise(as_batch(crops), torch.from_numpy(limit), num_tiles=num_tiles)
    assert_off_by_one_at_most_rarely(found, one_by_one(crops, host.equalise, limit.tolist(), [num_tiles] * 3))


@given(seeds, st.integers(2, 40), st.integers(2, 40), st.integers(1, 6))
def test_clahe_of_images_that_are_not_square_is_opencvs_too(seed: int, height: int, width: int, num_tiles: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    found = equalise(torch.from_numpy(image)[None], torch.tensor([2.0], dtype=torch.float64), num_tiles)
    assert_off_by_one_at_most_rarely(found, host.equalise(image, 2.0, num_tiles)[None])


def test_colours_go_to_lab_and_back_as_opencvs_do() -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (1, 512, 512, 3), dtype=np.uint8)
    colours[:, :128] //= 16
    colours[:, 128:256] = colours[:, 128:256, :, :1]
    # Any three levels, as equalised lightness leaves them: many lie outside of sRGB.
    for ours, code in ((lab_of, cv2.COLOR_RGB2LAB), (rgb_of, cv2.COLOR_LAB2RGB)):
        assert_off_by_one_at_most_rarely(ours(as_batch(colours)), one_by_one(colours, cv2.cvtColor, [code]))


@given(st.lists(st.floats(0.05, 5.0), min_size=1, max_size=5))
def test_gaussian_weights_are_whole_symmetric_and_sum_to_256(sigma_px: list[float]) -> None:
    weights = device.gaussian_weights(torch.tensor(sigma_px, dtype=torch.float64), radius=15)
    assert torch.equal(weights, weights.round())
    assert torch.equal(weights, weights.flip(1))
    assert (weights >= 0).all()
    assert (weights.sum(1) == 256).all()


def drawn(num_samples: int, num_crops: int, seed: int = 0) -> list[list[Augmentation]]:
    rng = np.random.default_rng(seed)
    return [[draw_augmentation(HALF, rng, size_px=32) for _ in range(num_crops)] for _ in range(num_samples)]


@pytest.mark.parametrize("num_channels", [1, 3])
def test_a_batch_is_each_of_its_crops_augmented_alone(num_channels: int) -> None:
    records = drawn(8, 2)
    crops = as_batch(crops_of("smooth", (16, 32, 32, num_channels), np.random.default_rng(1)))
    whole = device.augment_batch(crops, Augmentations.of(records), HALF)
    flat = [record for sample in records for record in sample]
    for crop, record, changed in zip(crops.split(1), flat, whole, strict=True):
        alone = Augmentations.of([[record]])
        expected = crop if alone is None else device.augment_batch(crop, alone, HALF)
        assert torch.equal(changed, expected[0]), record
    assert len({len(set(vars(record).values()) - {None}) for record in flat}) > 2, "records of many kinds"


def test_augmentation_is_the_same_under_autocast_to_bf16() -> None:
    crops, augmentations = as_batch(crops_of("noise", (16, 32, 32, 3), np.random.default_rng(1))), drawn(8, 2)
    plain = device.augment_batch(crops, Augmentations.of(augmentations), HALF)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(device.augment_batch(crops, Augmentations.of(augmentations), HALF), plain)


@pytest.mark.parametrize("num_channels", [1, 3])
def test_nothing_is_read_back_from_the_device(num_channels: int) -> None:
    """Tensors on the meta device have no values: reading one, as counting rows would, raises."""
    augmentations = Augmentations.of(drawn(8, 2)).mapped(lambda tensor: tensor.to("meta"))
    crops = torch.empty(16, num_channels, 32, 32, dtype=torch.uint8, device="meta")
    changed = device.augment_batch(crops, augmentations, HALF)
    assert (changed.shape, changed.dtype) == (crops.shape, crops.dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("num_channels", [1, 3])
def test_a_gpu_gives_the_levels_of_the_cpu_and_never_waits(num_channels: int) -> None:
    crops = as_batch(crops_of("smooth", (64, 224, 224, num_channels), np.random.default_rng(1)))
    augmentations = Augmentations.of(drawn(32, 2))
    there = augmentations.mapped(Tensor.cuda)
    on_gpu = crops.cuda()
    device.augment_batch(on_gpu, there, HALF)  # copies the tables of colours, once
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = device.augment_batch(on_gpu, there, HALF)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), device.augment_batch(crops, augmentations, HALF))


def test_rows_are_those_of_the_records_in_order() -> None:
    records = [[AS_IT_IS, Augmentation(clip_limit=2.0)], [Augmentation(clip_limit=1.5, blur_sigma_px=1.0), AS_IT_IS]]
    augmentations = Augmentations.of(records)
    clahe, blurred = augmentations.rows(4), augmentations.rows(2)
    assert clahe.tolist() == [1, 2]
    assert blurred.tolist() == [2]
    assert augmentations.rows(0) is None
    assert augmentations.sliced(slice(1, 2)).rows(4).tolist() == [0]
    assert Augmentations.of([[AS_IT_IS, AS_IT_IS]]) is None
