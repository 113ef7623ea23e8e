"""What augmentation does to a crop, the same of both ways to carry it out."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ace.data.augment import augment
from ace.data.augment_device import augment_batch
from ace.data.augmentation import AS_IT_IS, Augmentation, Augmentations, BrightnessContrast, draw_augmentation
from ace.data.erase import FILLS, Erasure, Rectangle, with_erased
from ace.data.params import AugmentParams
from tests.support.examples import examples

ALWAYS = AugmentParams.from_params(
    {
        "where": "device",
        "brightness_contrast": {"probability": 1.0, "max_brightness": 0.2, "max_contrast": 0.3},
        "blur": {"probability": 1.0, "min_sigma_px": 0.3, "max_sigma_px": 1.5},
        "sharpen": {"probability": 1.0, "max_amount": 1.0, "sigma_px": 1.0},
        "clahe": {"probability": 1.0, "max_clip_limit": 3.0, "num_tiles": 4},
        "erase": {
            "probability": 1.0,
            "min_side": 0.2,
            "max_side": 0.7,
            "max_rectangles": 2,
            "max_aspect": 2.0,
            "fills": {**dict.fromkeys(FILLS, 1.0), "tissue": 0.0},
        },
    },
    "augment",
)
PHOTOMETRIC = ("brightness_contrast", "blur", "sharpen", "clahe")
STEPS = (*PHOTOMETRIC, "erase")
FIELDS = dict(
    zip(STEPS, ("brightness_contrast", "blur_sigma_px", "sharpen_amount", "clip_limit", "erased"), strict=True)
)

CarryOut = Callable[[np.ndarray, Augmentation], np.ndarray]


def with_probability(value: float, *steps: str) -> AugmentParams:
    """Some steps at this probability, the others never."""
    values = ALWAYS.model_dump()
    for name in STEPS:
        values[name]["probability"] = value if name in steps else 0.0
    return AugmentParams.from_params(values, "augment")


def drawn(seed: int, *steps: str, size_px: int = 64) -> Augmentation:
    """A record of these steps."""
    return draw_augmentation(with_probability(1.0, *steps), np.random.default_rng(seed), size_px=size_px)


def textured(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(60, 200, shape, dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2.0)


def as_batch(crop: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(crop.reshape(*crop.shape[:2], -1)).permute(2, 0, 1)[None]


def erased(crop: np.ndarray, record: Augmentation) -> np.ndarray:
    """What the batch does after either way."""
    return with_erased(as_batch(crop), [record.erased])[0].permute(1, 2, 0).numpy().reshape(crop.shape)


def on_host(crop: np.ndarray, record: Augmentation) -> np.ndarray:
    return erased(augment(crop, record, ALWAYS), record)


def on_device(crop: np.ndarray, record: Augmentation) -> np.ndarray:
    """As a batch of one."""
    augmentations = Augmentations.of([[record]])
    if augmentations is None:
        return crop
    changed = augment_batch(as_batch(crop), augmentations, ALWAYS)[0].permute(1, 2, 0).numpy().reshape(crop.shape)
    return erased(changed, record)


@pytest.fixture(params=[on_host, on_device], ids=["host", "device"])
def carry_out(request: pytest.FixtureRequest) -> CarryOut:
    return request.param


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 3)])
def test_a_crop_keeps_its_shape_and_type_and_its_input_is_not_written_to(
    carry_out: CarryOut, shape: tuple[int, ...]
) -> None:
    crop = textured(shape)
    original = crop.copy()
    for seed in range(10):
        changed = carry_out(crop, drawn(seed, *STEPS))
        assert changed.shape == shape
        assert changed.dtype == np.uint8
        assert not np.array_equal(changed, original)
    np.testing.assert_array_equal(crop, original)


def test_the_record_of_nothing_leaves_the_crop_as_it_is(carry_out: CarryOut) -> None:
    np.testing.assert_array_equal(carry_out(textured((32, 32)), AS_IT_IS), textured((32, 32)))


@pytest.mark.parametrize("carry_out", [on_host, on_device])
@pytest.mark.parametrize("step", PHOTOMETRIC)
@examples(0.25)
@given(st.integers(4, 59), st.integers(4, 59), st.integers(0, 2**31))
def test_no_step_moves_a_pixel(carry_out: CarryOut, step: str, row: int, col: int, seed: int) -> None:
    crop = np.full((64, 64), 100, dtype=np.uint8)
    crop[row, col] = 180
    changed = carry_out(crop, drawn(seed, step)).astype(int)
    around = changed[row - 4 : row + 5, col - 4 : col + 5]
    assert around.argmax() == 40, "the bright pixel is still the brightest, in the middle of its surroundings"


@pytest.mark.parametrize("step", ["brightness_contrast", "blur", "sharpen"])
def test_steps_commute_with_mirroring(carry_out: CarryOut, step: str) -> None:
    crop, record = textured((64, 64)), drawn(3, step)
    mirrored = carry_out(np.ascontiguousarray(crop[:, ::-1]), record)
    np.testing.assert_array_equal(carry_out(crop, record), mirrored[:, ::-1])


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_is_drawn_changes_the_crop(carry_out: CarryOut, step: str) -> None:
    rng = np.random.default_rng(0)
    crop = rng.integers(60, 200, (32, 32), dtype=np.uint8)  # rough, so that the weakest blur shows
    for seed in range(30):
        assert not np.array_equal(carry_out(crop, drawn(seed, step, size_px=32)), crop)


def test_brightness_and_contrast_stay_within_their_strengths(carry_out: CarryOut) -> None:
    crop = textured((64, 64))
    for seed in range(50):
        changed = carry_out(crop, drawn(seed, "brightness_contrast")).astype(float)
        assert abs(changed.mean() - crop.mean()) <= 0.2 * 255 + 1
        assert 0.68 <= changed.std() / crop.std() <= 1.32


def test_brightness_and_contrast_of_a_small_crop_are_those_of_a_calculation_by_hand(carry_out: CarryOut) -> None:
    crop = np.array([[0, 100], [100, 200]], dtype=np.uint8)
    # The mean is 100: 0 becomes 100 - 150 + 10 and is cut, 200 becomes 100 + 150 + 10 and is cut.
    changed = carry_out(crop, Augmentation(brightness_contrast=BrightnessContrast(1.5, 10.0)))
    np.testing.assert_array_equal(changed, [[0, 110], [110, 255]])


def test_blur_lowers_and_sharpening_raises_the_differences_between_neighbours(carry_out: CarryOut) -> None:
    crop = textured((64, 64))

    def roughness(image: np.ndarray) -> float:
        return float(np.abs(np.diff(image.astype(int), axis=0)).mean())

    blurred = carry_out(crop, Augmentation(blur_sigma_px=1.0))
    sharpened = carry_out(crop, Augmentation(sharpen_amount=0.5))
    assert roughness(blurred) < roughness(crop) < roughness(sharpened)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 30))
def test_the_erased_square_is_black_and_nothing_else_changes(row: int, col: int, side: int) -> None:
    side = min(side, 32 - row, 32 - col)
    crop, square = np.full((32, 32, 3), 100, dtype=np.uint8), Erasure((Rectangle(row, col, side, side),))
    expected = crop.copy()
    expected[row : row + side, col : col + side] = 0
    for carry_out in (on_host, on_device):
        np.testing.assert_array_equal(carry_out(crop, Augmentation(erased=square)), expected)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_each_step_is_drawn_as_often_as_its_probability_says(step: str, probability: float) -> None:
    rng, params = np.random.default_rng(0), with_probability(probability, step)
    records = [draw_augmentation(params, rng, size_px=64) for _ in range(400)]
    taken = {
        name: np.mean([getattr(record, field) is not None for record in records]) for name, field in FIELDS.items()
    }
    assert taken.pop(step) == pytest.approx(probability, abs=0.08)
    assert set(taken.values()) == {0.0}


@given(st.integers(0, 2**32))
def test_what_is_drawn_lies_within_the_parameters(seed: int) -> None:
    record = drawn(seed, *STEPS)
    contrast, shift = record.brightness_contrast
    assert 0.7 <= contrast <= 1.3
    assert abs(shift) <= 0.2 * 255
    assert 0.3 <= record.blur_sigma_px <= 1.5
    assert 0 <= record.sharpen_amount <= 1
    assert 1 <= record.clip_limit <= 3
    assert record == drawn(seed, *STEPS)
    assert record != drawn(seed + 1, *STEPS)
