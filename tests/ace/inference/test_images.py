"""One picture held in many ways is one picture."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from ace.inference.images import ImageInputError, to_pixels
from tests.shards.datasets import smooth_image
from tests.shards.decode.dicom_files import data_of, dataset_of
from tests.shards.strategies import colour_images, grey_images


@given(grey_images() | colour_images())
def test_pillow_numpy_and_torch_give_the_same_pixels(pixels: np.ndarray) -> None:
    channels_first = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
    tensor = torch.from_numpy(channels_first.copy())
    held: list[Any] = [Image.fromarray(pixels), pixels, tensor, tensor.float() / 255, pixels / 255.0]
    held += [pixels.astype(np.float32) / 255]
    held += [pixels[..., None], torch.from_numpy(pixels)] if pixels.ndim == 2 else []
    for image in held:
        assert np.array_equal(to_pixels(image), pixels)


@given(hnp.arrays(np.uint16, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_sixteen_bits_are_scaled_as_files_of_sixteen_bits_are(values: np.ndarray) -> None:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    expected = to_pixels(Image.open(file))
    assert np.array_equal(to_pixels(values), expected)
    assert np.array_equal(to_pixels(values.astype(np.int32)), expected)
    assert np.array_equal(to_pixels(torch.from_numpy(values.astype(np.int32))), expected)
    assert expected.min() == 0
    assert expected.max() == (255 if np.ptp(values) else 0)


@given(colour_images(), st.integers(0, 255))
def test_alpha_is_dropped(pixels: np.ndarray, alpha: int) -> None:
    with_alpha = np.concatenate([pixels, np.full((*pixels.shape[:2], 1), alpha, np.uint8)], axis=2)
    assert np.array_equal(to_pixels(with_alpha), pixels)
    assert np.array_equal(to_pixels(Image.fromarray(with_alpha)), pixels)


def test_booleans_are_black_and_white() -> None:
    assert to_pixels(np.array([[True, False]])).tolist() == [[255, 0]]
    assert to_pixels(torch.tensor([[True, False]])).tolist() == [[255, 0]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_that_arithmetic_left_just_outside_are_black_and_white(dtype: type) -> None:
    zero, one = dtype(0), dtype(1)
    values = np.array([[np.nextafter(zero, -one), zero, one, np.nextafter(one, dtype(2))]])
    assert to_pixels(values).tolist() == [[0, 0, 255, 255]]
    assert to_pixels(torch.from_numpy(values)).tolist() == [[0, 0, 255, 255]]
    assert to_pixels(np.array([[-1e-6, 1 + 1e-6]], dtype)).tolist() == [[0, 255]]


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)


def png_text(xmp: bytes) -> PngInfo:
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    return info


@pytest.mark.parametrize(
    ("kind", "with_xmp"),
    [("JPEG", {"xmp": XMP}), ("PNG", {"pnginfo": png_text(XMP)}), ("TIFF", {"tiffinfo": {700: XMP}})],
)
def test_the_orientation_of_exif_is_applied_and_that_of_xmp_is_not(
    kind: str, with_xmp: dict[str, Any], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for turns, saved in ((0, with_xmp), (1, {"exif": exif})):
        path = tmp_path / f"{turns}"
        Image.fromarray(smooth_image(16, 64, 0)).save(path, kind, **saved)
        stored = np.asarray(Image.open(path)) if kind == "JPEG" else smooth_image(16, 64, 0)
        assert np.array_equal(to_pixels(path), np.rot90(stored, -turns))
        if kind != "TIFF":  # Pillow itself turns it as it decodes it
            with Image.open(path) as opened:
                assert np.array_equal(to_pixels(opened), np.rot90(stored, -turns))
                assert turns or opened.info.keys() & {"xmp", "XML:com.adobe.xmp"}


def test_half_precision_tensors_are_floats() -> None:
    assert to_pixels(torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16)).tolist() == [[0, 255]]


@pytest.mark.parametrize("is_text", [True, False])
def test_paths_are_read_by_content_not_by_name(tmp_path: Path, is_text: bool) -> None:
    pixels = smooth_image(20, 30, 0)
    path = tmp_path / "image.any"
    Image.fromarray(pixels).save(path, "PNG")
    assert np.array_equal(to_pixels(str(path) if is_text else path), pixels)
    path.write_bytes(data_of(dataset_of(pixels)))
    assert np.array_equal(to_pixels(str(path) if is_text else path), pixels)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.full((4, 4), 1.5), "floats from 1.5 to 1.5: expected values in [0, 1]"),
        (np.full((4, 4), -0.1), "expected values in [0, 1]"),
        (np.array([[0.5, 1.002]]), "floats from 0.5 to 1.002: expected values in [0, 1]"),
        (np.array([[-0.002, 0.5]]), "floats from -0.002 to 0.5: expected values in [0, 1]"),
        (np.full((4, 4), np.nan), "some floats are NaN"),
        (np.array([[0.5, np.nan]]), "some floats are NaN"),
        (np.full((4, 4), np.inf), "floats from inf to inf"),
        ("a\0b.png", "the path is none that a file can have"),
        (Image.new("L", (0, 5)), "a PIL image of 0 x 5 pixels: expected one that is not empty"),
        (Image.new("L", (9, 9)).crop((4, 4, 4, 4)), "a PIL image of 0 x 0 pixels"),
        (Image.new("RGB", (5, 0)), "a PIL image of 5 x 0 pixels"),
        (Image.new("La", (4, 4)), "Pillow cannot decode the La image"),
        (torch.full((1, 4, 4), 255.0), "divide by what white is"),
        (Image.fromarray(np.full((4, 4), 9.0, np.float32)), "expected values in [0, 1]"),
        (np.zeros((4, 4, 3), np.uint16), "colour of uint16"),
        (np.zeros((3, 4, 8), np.uint8), "[H, W, channels]"),
        (torch.zeros((5, 8, 3)), "[channels, H, W]"),
        (np.zeros((0, 4), np.uint8), "not empty"),
        (np.zeros(4, np.uint8), "[H, W]"),
        (np.zeros((4, 4), complex), "complex128"),
        (np.array([["a"]]), "expected integers, booleans, or floats"),
        (7, "a int is no image"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_image_is_refused_with_what_was_expected(image: Any, said: str) -> None:
    with pytest.raises(ImageInputError) as error:
        to_pixels(image)
    assert said in str(error.value)


def test_an_opened_file_that_pillow_cannot_decode_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(smooth_image(20, 30, 0)).save(path)
    path.write_bytes(path.read_bytes()[:100])
    with (
        Image.open(path) as opened,
        pytest.raises(ImageInputError, match=r"Pillow cannot decode the L image \(OSError\)"),
    ):
        to_pixels(opened)
    with pytest.raises(ImageInputError, match="damaged or closed"):
        to_pixels(opened)


def test_a_file_that_cannot_be_read_is_refused_without_its_name(tmp_path: Path) -> None:
    path = tmp_path / "Doe^Jane.png"
    with pytest.raises(ImageInputError, match="cannot be opened: No such file"):
        to_pixels(path)
    path.write_bytes(b"a,b\n")
    with pytest.raises(ImageInputError) as error:
        to_pixels(path)
    assert (
        str(error.value)
        == "the file cannot be read: none of the kinds of image that are read (PNG, JPEG, TIFF, BMP, GIF, DICOM)"
    )
