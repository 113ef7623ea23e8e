import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ace.data.augment import augment, blur, change_brightness_contrast, equalise, sharpen
from ace.data.params import AugmentParams

ALWAYS = AugmentParams.from_params(
    {
        "brightness_contrast": {"probability": 1.0, "max_brightness": 0.2, "max_contrast": 0.3},
        "blur": {"probability": 1.0, "min_sigma_px": 0.3, "max_sigma_px": 1.5},
        "sharpen": {"probability": 1.0, "max_amount": 1.0, "sigma_px": 1.0},
        "clahe": {"probability": 1.0, "max_clip_limit": 3.0, "num_tiles": 4},
        "erase": {"probability": 0.0, "min_side": 0.2, "max_side": 0.7},
    },
    "augment",
)
STEPS = {
    "brightness_contrast": change_brightness_contrast,
    "blur": blur,
    "sharpen": sharpen,
    "clahe": equalise,
}


def with_probability(value: float, step: str | None = None) -> AugmentParams:
    """All steps, or one, at this probability; the others never."""
    values = ALWAYS.model_dump()
    for name in STEPS:
        values[name]["probability"] = value if step in (None, name) else 0.0
    return AugmentParams.from_params(values, "augment")


def textured(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(60, 200, shape, dtype=np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 2.0)


@pytest.mark.parametrize("shape", [(64, 64), (64, 64, 3)])
def test_a_crop_keeps_its_shape_and_type_and_its_input_is_not_written_to(shape: tuple[int, ...]) -> None:
    crop = textured(shape)
    original = crop.copy()
    for seed in range(10):
        changed = augment(crop, ALWAYS, np.random.default_rng(seed))
        assert changed.shape == shape
        assert changed.dtype == np.uint8
    np.testing.assert_array_equal(crop, original)
    assert not np.array_equal(changed, original)


def test_the_same_generator_state_gives_the_same_crop_and_another_gives_another() -> None:
    crop = textured((64, 64))
    first, same, other = (augment(crop, ALWAYS, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("step", STEPS)
@settings(deadline=None, max_examples=25)
@given(st.integers(4, 59), st.integers(4, 59), st.integers(0, 2**31))
def test_no_step_moves_a_pixel(step: str, row: int, col: int, seed: int) -> None:
    crop = np.full((64, 64), 100, dtype=np.uint8)
    crop[row, col] = 180
    changed = STEPS[step](crop, getattr(ALWAYS, step), np.random.default_rng(seed)).astype(int)
    around = changed[row - 4 : row + 5, col - 4 : col + 5]
    assert around.argmax() == 40, "the bright pixel is still the brightest, in the middle of its surroundings"


@pytest.mark.parametrize("step", ["brightness_contrast", "blur", "sharpen"])
def test_steps_commute_with_mirroring(step: str) -> None:
    crop = textured((64, 64))
    params = with_probability(1.0, step)
    changed = augment(crop, params, np.random.default_rng(3))
    mirrored = augment(np.ascontiguousarray(crop[:, ::-1]), params, np.random.default_rng(3))
    np.testing.assert_array_equal(changed, mirrored[:, ::-1])


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_each_step_is_applied_as_often_as_its_probability_says(step: str, probability: float) -> None:
    rng, params = np.random.default_rng(0), with_probability(probability, step)
    crop = rng.integers(60, 200, (32, 32), dtype=np.uint8)  # rough, so that the weakest blur shows
    share = np.mean([not np.array_equal(augment(crop, params, rng), crop) for _ in range(400)])
    assert share == pytest.approx(probability, abs=0.08)


def test_brightness_and_contrast_stay_within_their_strengths() -> None:
    crop = textured((64, 64))
    for seed in range(50):
        changed = change_brightness_contrast(crop, ALWAYS.brightness_contrast, np.random.default_rng(seed)).astype(
            float
        )
        assert abs(changed.mean() - crop.mean()) <= 0.2 * 255 + 1
        assert 0.68 <= changed.std() / crop.std() <= 1.32


def test_blur_lowers_and_sharpening_raises_the_differences_between_neighbours() -> None:
    crop, rng = textured((64, 64)), np.random.default_rng(0)

    def roughness(image: np.ndarray) -> float:
        return float(np.abs(np.diff(image.astype(int), axis=0)).mean())

    assert roughness(blur(crop, ALWAYS.blur, rng)) < roughness(crop) < roughness(sharpen(crop, ALWAYS.sharpen, rng))
