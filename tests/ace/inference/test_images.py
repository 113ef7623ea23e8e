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

from ace.inference.images import ImageInputError, decode_file, to_pixels
from shards.decode import UnreadableImageError
from tests.shards.decode.dicom_files import data_of, dataset_of
from tests.shards.decode.files import png, strip_tags, tiff
from tests.support.datasets import smooth_image
from tests.support.strategies import colour_images, grey_images


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
        ("a\0b.png", "the path contains a character that no file name can have"),
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


def test_a_damaged_opened_file_is_refused_as_its_path_is(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(smooth_image(20, 30, 0)).save(path)
    path.write_bytes(path.read_bytes()[:100])
    with Image.open(path) as opened:
        for image in (path, opened):
            with pytest.raises(ImageInputError, match="the file cannot be read: truncated or damaged image data"):
                to_pixels(image)
    with pytest.raises(ImageInputError, match=r"Pillow cannot decode the L image \(.*\): it is damaged or closed"):
        to_pixels(opened)


def test_a_file_of_too_many_pixels_is_refused_with_their_number_and_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (10001, 10000)).save(path)
    with pytest.raises(ImageInputError) as error:
        to_pixels(path)
    assert str(error.value) == (
        "the file cannot be read: 100,010,000 pixels, and at most 100,000,000 are read: make it smaller"
    )


def test_a_file_beyond_the_bound_of_pillow_is_refused_with_that_bound() -> None:
    file = io.BytesIO()
    Image.new("1", (20000, 10000)).save(file, "PNG")
    with pytest.raises(UnreadableImageError) as error:
        decode_file(file.getvalue(), 300e6, option="--max-megapixels")
    assert str(error.value) == "more than 178,956,970 pixels, and at most 178,956,970 are read: make it smaller"


def black_on_white(tmp_path: Path) -> Path:
    """A 16-bit TIFF in which 0 is white."""
    values = np.tile(np.arange(64) * 60, (64, 1)).astype("<u2")
    path = tmp_path / "white.tif"
    path.write_bytes(tiff(strip_tags(64, 64, 16, 0, values.nbytes), values.tobytes()))
    return path


def deep_colour(tmp_path: Path, colour: int) -> Path:
    num_samples = {2: 3, 4: 2, 6: 4}[colour]
    rows = b"".join(b"\0" + np.full(64 * num_samples, 3780, ">u2").tobytes() for _ in range(64))
    path = tmp_path / f"deep{colour}.png"
    path.write_bytes(png(64, 64, rows, bits=16, colour=colour))
    return path


@pytest.mark.parametrize("is_loaded", [False, True])
@pytest.mark.parametrize("is_named", [False, True])
def test_an_opened_tiff_in_which_0_is_white_is_the_picture_of_its_path(
    tmp_path: Path, is_named: bool, is_loaded: bool
) -> None:
    path = black_on_white(tmp_path)
    with Image.open(path if is_named else io.BytesIO(path.read_bytes())) as opened:
        if is_loaded:
            opened.load()
        assert np.array_equal(to_pixels(opened), to_pixels(path))
    assert to_pixels(path)[0, [0, -1]].tolist() == [255, 0]


@pytest.mark.parametrize("colour", [2, 4, 6])
def test_opened_colour_of_sixteen_bits_is_refused_as_its_path_is(tmp_path: Path, colour: int) -> None:
    path = deep_colour(tmp_path, colour)
    with Image.open(path) as named, Image.open(io.BytesIO(path.read_bytes())) as unnamed:
        for image in (path, named, unnamed):
            with pytest.raises(ImageInputError, match="16-bit colour"):
                to_pixels(image)
        named.load()
        with pytest.raises(ImageInputError, match="16-bit colour"):
            to_pixels(named)


@pytest.mark.parametrize("is_loaded", [False, True])
def test_opened_tiffs_of_kinds_that_are_not_read_are_refused_as_their_paths_are(
    tmp_path: Path, is_loaded: bool
) -> None:
    path = tmp_path / "a.tif"
    signed = tiff(strip_tags(10, 10, 8, 1, 100) | {339: ("H", 2)}, bytes(range(100, 200)))
    file = io.BytesIO()
    Image.new("I", (4, 4), 7).save(file, "TIFF")
    for data in (signed, file.getvalue()):
        path.write_bytes(data)
        with Image.open(path) as opened:
            if is_loaded:
                opened.load()
            for image in (path, opened):
                with pytest.raises(ImageInputError, match="a TIFF of a kind that is not read"):
                    to_pixels(image)


def test_an_opened_jpeg_that_was_closed_before_its_picture_ends_is_refused_as_its_path_is(tmp_path: Path) -> None:
    """Pillow shows it, grey from where it ends."""
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3] + b"\xff\xd9")
    with Image.open(path) as opened:
        for image in (path, opened):
            with pytest.raises(ImageInputError, match="truncated or damaged"):
                to_pixels(image)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "BMP", "GIF"])
def test_an_opened_image_is_its_file_and_stays_open(tmp_path: Path, file_format: str) -> None:
    path = tmp_path / "a.any"
    Image.fromarray(smooth_image(20, 30, 0)).save(path, file_format)
    with Image.open(path) as opened:
        assert np.array_equal(to_pixels(opened), to_pixels(path))
        assert np.array_equal(to_pixels(opened), to_pixels(path))
        opened.load()
        assert np.array_equal(to_pixels(opened), to_pixels(path))


def test_what_was_done_to_an_opened_image_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    pixels = np.stack([smooth_image(64, 64, seed) for seed in range(3)], axis=2)
    Image.fromarray(pixels).save(path)
    with Image.open(path) as painted, Image.open(path) as drafted:
        painted.paste((9, 8, 7), (0, 0, 64, 64))
        assert (to_pixels(painted) == (9, 8, 7)).all()
        drafted.draft("L", (32, 32))
        assert to_pixels(drafted).shape == (32, 32)
    frames = tmp_path / "a.tif"
    images = [Image.fromarray(smooth_image(12, 15, seed)) for seed in range(3)]
    images[0].save(frames, save_all=True, append_images=images[1:])
    with Image.open(frames) as stack:
        stack.seek(2)
        assert np.array_equal(to_pixels(stack), smooth_image(12, 15, 2))


def test_kinds_of_files_that_only_pillow_reads_are_taken_as_it_holds_them(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    Image.fromarray(smooth_image(20, 30, 0)).save(path, lossless=True)
    with Image.open(path) as opened:
        assert np.array_equal(to_pixels(opened)[..., 0], smooth_image(20, 30, 0))


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
