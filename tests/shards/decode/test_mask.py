"""Masks keep their values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from shards.decode import UnreadableImageError, decode_mask
from shards.decode.reasons import DEEP_MASK, DICOM_MASK, MULTI_FRAME, TOO_LARGE, WEB_PAGE
from tests.shards.decode.dicom_files import RAMP, data_of, dataset_of
from tests.shards.decode.files import encoded, png
from tests.support.strategies import grey_images


def mask_of(data: bytes) -> np.ndarray:
    return decode_mask(data, max_pixels=1e6)


def reason_for(data: bytes, max_pixels: float = 1e6) -> str:
    with pytest.raises(UnreadableImageError) as error:
        decode_mask(data, max_pixels=max_pixels)
    return str(error.value)


@given(grey_images(), st.sampled_from(["PNG", "BMP", "TIFF", "GIF"]))
def test_grey_values_are_unchanged(pixels: np.ndarray, file_format: str) -> None:
    assert np.array_equal(mask_of(encoded(pixels, file_format)), pixels)


@given(
    hnp.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))), st.sampled_from(["PNG", "TIFF", "BMP", "GIF"])
)
def test_one_bit_is_0_and_255(mask: np.ndarray, file_format: str) -> None:
    assert np.array_equal(mask_of(encoded(Image.fromarray(mask), file_format)), mask * 255)


@given(grey_images())
def test_grey_saved_as_colour_or_with_alpha_keeps_its_values(pixels: np.ndarray) -> None:
    colour = np.repeat(pixels[..., None], 3, axis=2)
    alpha = np.zeros((*pixels.shape, 1), np.uint8)
    for layers in (colour, np.concatenate([colour, alpha], axis=2)):
        assert np.array_equal(mask_of(encoded(layers)), pixels)


@pytest.mark.parametrize("grey", [[0, 1], [0, 255]])
def test_an_index_is_the_grey_of_its_colour(grey: list[int]) -> None:
    image = Image.fromarray(np.array([[0, 1, 1]], np.uint8), "P")
    image.putpalette([value for value in grey for _ in range(3)])
    assert np.array_equal(mask_of(encoded(image, "GIF")), [[grey[0], grey[1], grey[1]]])


def test_every_visible_colour_of_a_palette_is_above_0() -> None:
    image = Image.fromarray(np.array([[0, 1, 2, 3]], np.uint8), "P")
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 0, 0, 128])
    assert (mask_of(encoded(image)) > 0).tolist() == [[False, True, True, True]]


def test_values_that_mean_something_survive() -> None:
    cup_and_disc = np.array([[0, 128, 255]], np.uint8)
    assert np.array_equal(mask_of(encoded(cup_and_disc, "BMP")), cup_and_disc)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits_keep_small_values_and_refuse_large_ones(file_format: str) -> None:
    labels = np.array([[0, 1, 2, 255]], np.uint16)
    assert np.array_equal(mask_of(encoded(labels, file_format)), labels)
    assert reason_for(encoded(labels + np.uint16(1), file_format)) == DEEP_MASK


def test_two_and_four_bits_are_scaled_as_png_asks() -> None:
    assert mask_of(png(4, 1, b"\0" + bytes([0b00011011]), bits=2)).tolist() == [[0, 85, 170, 255]]
    assert mask_of(png(2, 1, b"\0" + bytes([0x1F]), bits=4)).tolist() == [[17, 255]]


def test_what_is_no_mask_is_refused() -> None:
    assert reason_for(data_of(dataset_of(RAMP))) == DICOM_MASK
    assert reason_for(b"<!DOCTYPE html>") == WEB_PAGE
    assert reason_for(encoded(np.zeros((101, 100), np.uint8)), max_pixels=100 * 100) == TOO_LARGE
    frames = [Image.new("L", (9, 9), grey) for grey in (0, 255)]
    assert reason_for(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == MULTI_FRAME
