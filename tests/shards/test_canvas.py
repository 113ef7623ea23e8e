import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, PngImagePlugin

from shards.canvas import (
    DAMAGED,
    DEEP_COLOUR,
    NOT_AN_IMAGE,
    TOO_LARGE,
    Placement,
    UnreadableImageError,
    cell_statistics,
    decode_image,
    is_coloured,
    with_channels,
)
from shards.grid import GridSpec, Scale
from shards.params import ForegroundParams
from tests.shards.datasets import smooth_image
from tests.shards.strategies import colour_images, grey_images

SPEC = GridSpec(6, 8, 2, (Scale(2, 2, 1.0),), 0.5, 0.85)
FOREGROUND = ForegroundParams(min_mean=8.0, min_std=4.0)


def encoded(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def reason_for(data: bytes, max_pixels: float = 1e6) -> str:
    with pytest.raises(UnreadableImageError) as error:
        decode_image(data, max_pixels)
    return str(error.value)


@given(grey_images() | colour_images())
def test_a_png_decodes_to_its_pixels(pixels: np.ndarray) -> None:
    assert np.array_equal(decode_image(encoded(Image.fromarray(pixels)), 1e6), pixels)


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4))))
def test_alpha_is_dropped_and_never_blended(pixels: np.ndarray) -> None:
    assert np.array_equal(decode_image(encoded(Image.fromarray(pixels)), 1e6), pixels[..., :3])


def test_grey_with_alpha_is_grey() -> None:
    pixels = np.stack([smooth_image(9, 7, 0), np.zeros((9, 7), np.uint8)], axis=2)
    assert np.array_equal(decode_image(encoded(Image.fromarray(pixels, "LA")), 1e6), pixels[..., 0])


def test_palettes_are_resolved_to_their_colours() -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    expected = [[[10, 20, 30], [200, 100, 50]], [[200, 100, 50], [10, 20, 30]]]
    assert np.array_equal(decode_image(encoded(image), 1e6), expected)


def test_one_bit_images_are_black_and_white() -> None:
    image = Image.fromarray(np.array([[True, False]]))
    assert np.array_equal(decode_image(encoded(image), 1e6), [[255, 0]])


@pytest.mark.parametrize(("low", "high"), [(0, 65535), (1000, 5095), (256, 300), (40000, 65535)])
def test_sixteen_bit_grey_keeps_its_range_and_is_never_saturated(low: int, high: int) -> None:
    values = np.linspace(low, high, 6 * 50).round().astype(np.uint16).reshape(6, 50)
    image = decode_image(encoded(Image.fromarray(values)), 1e6)
    expected = (values.astype(float) - low) / (high - low) * 255
    assert image.dtype == np.uint8
    assert np.abs(image - expected).max() <= 0.5


def test_a_flat_sixteen_bit_image_is_black() -> None:
    assert not decode_image(encoded(Image.fromarray(np.full((3, 3), 4095, np.uint16))), 1e6).any()


def png_of_header(side: int, bit_depth: int, colour_type: int) -> bytes:
    file = io.BytesIO()
    file.write(b"\x89PNG\r\n\x1a\n")
    size = side.to_bytes(4, "big")
    PngImagePlugin.putchunk(file, b"IHDR", size, size, bytes([bit_depth, colour_type, 0, 0, 0]))
    PngImagePlugin.putchunk(file, b"IDAT", b"x\x9cc`")
    PngImagePlugin.putchunk(file, b"IEND", b"")
    return file.getvalue()


def test_sixteen_bit_colour_is_refused_rather_than_cut_to_eight() -> None:
    assert reason_for(png_of_header(1, bit_depth=16, colour_type=2)) == DEEP_COLOUR


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_exif_orientation_is_applied(orientation: int, file_format: str) -> None:
    upright = np.zeros((24, 16), np.uint8)
    upright[:8, :8] = 255  # the top left corner is marked
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), file_format, exif=exif)
    assert np.abs(decode_image(data, 1e6).astype(int) - upright).max() < 30


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_truncated_image_is_damaged(file_format: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), file_format)
    assert reason_for(data[: int(kept * len(data))]) == DAMAGED


def test_a_damaged_header_is_damage() -> None:
    data = bytearray(encoded(Image.new("L", (8, 8))))
    data[20] ^= 255
    assert reason_for(bytes(data)) == DAMAGED


@pytest.mark.parametrize("data", [b"", b"a,b\n", b"GIF89a" + bytes(40), encoded(Image.new("L", (4, 4)), "BMP")])
def test_other_files_are_no_images(data: bytes) -> None:
    assert reason_for(data) == NOT_AN_IMAGE


def test_too_many_pixels_are_refused_before_decoding() -> None:
    assert reason_for(encoded(Image.new("L", (101, 100))), max_pixels=100 * 100) == TOO_LARGE
    assert decode_image(encoded(Image.new("L", (100, 100))), 100 * 100).shape == (100, 100)


def test_a_decompression_bomb_is_too_large() -> None:
    assert reason_for(png_of_header(60000, bit_depth=8, colour_type=0)) == TOO_LARGE


@given(st.binary(max_size=60), st.integers(0, 400))
def test_any_damage_gives_pixels_or_a_reason(junk: bytes, place: int) -> None:
    data = encoded(Image.fromarray(smooth_image(20, 20, 0)))
    damaged = data[:place] + junk + data[place + len(junk) :]
    try:
        outcome = decode_image(damaged, 1e6).dtype.name
    except UnreadableImageError as error:
        outcome = str(error)
    assert outcome in ("uint8", NOT_AN_IMAGE, DAMAGED, TOO_LARGE, DEEP_COLOUR)


@given(grey_images())
def test_grey_saved_as_colour_becomes_the_same_grey(pixels: np.ndarray) -> None:
    colour = np.repeat(pixels[..., None], 3, axis=2)
    assert not is_coloured(colour)
    assert np.array_equal(with_channels(colour, 1), pixels)
    assert np.array_equal(with_channels(pixels, 3), colour)


def test_a_hue_is_colour_and_jpeg_noise_is_none() -> None:
    grey = np.repeat(smooth_image(40, 40, 1)[..., None], 3, axis=2)
    assert not is_coloured(decode_image(encoded(Image.fromarray(grey), "JPEG", quality=85), 1e6))
    grey[3, 3] = (200, 40, 40)
    assert is_coloured(grey)


@given(grey_images(), st.integers(4, 60))
def test_the_image_is_centred_with_its_aspect_kept_and_the_rest_is_background(pixels: np.ndarray, side: int) -> None:
    placement = Placement(side, *pixels.shape)
    canvas = placement.place_image(np.full_like(pixels, 200))
    (height, width), (row, col) = placement.size, placement.offset
    assert canvas.shape == (side, side)
    assert max(height, width) == side
    assert (canvas[row : row + height, col : col + width] == 200).all()
    assert np.count_nonzero(canvas) == height * width
    assert abs(height * pixels.shape[1] - width * pixels.shape[0]) <= max(pixels.shape) or 1 in (height, width)


@given(hnp.arrays(np.uint8, (48, 48)))
def test_an_image_of_the_canvas_size_is_not_touched(pixels: np.ndarray) -> None:
    assert np.array_equal(Placement(48, 48, 48).place_image(pixels), pixels)


@pytest.mark.parametrize(("height", "width"), [(96, 60), (30, 48), (17, 90), (48, 48), (100, 99)])
def test_affine_points_and_masks_agree_on_where_a_spot_lies(height: int, width: int) -> None:
    placement = Placement(96, height, width)
    mask = np.zeros((height, width), np.uint8)
    mask[height // 3 : height // 3 + 6, width // 2 : width // 2 + 6] = 1
    rows, cols = np.nonzero(placement.place_mask(mask))
    centroid = rows.mean() + 0.5, cols.mean() + 0.5
    expected = placement.place_point((height // 3 + 3, width // 2 + 3))
    assert np.abs(np.subtract(centroid, expected)).max() < 0.75
    (row_scale, _, row), (_, col_scale, col) = placement.affine
    assert expected == pytest.approx(((height // 3 + 3) * row_scale + row, (width // 2 + 3) * col_scale + col))


def test_the_corners_of_the_image_map_onto_the_corners_of_its_place() -> None:
    placement = Placement(96, 50, 30)
    (height, width), (row, col) = placement.size, placement.offset
    assert placement.place_point((0, 0)) == (row, col)
    assert placement.place_point((50, 30)) == pytest.approx((row + height, col + width))


@given(hnp.arrays(np.uint8, (48, 48)) | hnp.arrays(np.uint8, (48, 48, 3)))
def test_cell_statistics_are_those_of_each_cells_pixels(canvas: np.ndarray) -> None:
    cells = cell_statistics(canvas, SPEC, FOREGROUND)
    values = []
    for row in range(6):
        for col in range(6):
            cell = canvas[8 * row : 8 * row + 8, 8 * col : 8 * col + 8].astype(float)
            assert cells.mean[row, col] == pytest.approx(cell.mean(), abs=0.006)
            assert cells.std[row, col] == pytest.approx(cell.std(), abs=0.006)
            assert cells.foreground[row, col] == (cells.mean[row, col] > 8 or cells.std[row, col] > 4)
            if cells.foreground[row, col]:
                values.append(canvas[8 * row : 8 * row + 8, 8 * col : 8 * col + 8].astype(np.int64))
    assert cells.total == sum(int(cell.sum()) for cell in values)
    assert cells.total_squares == sum(int((cell**2).sum()) for cell in values)
    assert cells.num_values == sum(cell.size for cell in values)


def test_padding_and_flat_dark_cells_are_background_but_a_dark_edge_is_not() -> None:
    canvas = np.zeros((48, 48), np.uint8)
    canvas[:8, :8] = 5  # air: dark and flat
    canvas[8:16, 8:16] = 9  # tissue, however flat
    canvas[16:24, 16:18] = 20  # an edge through a dark cell
    foreground = cell_statistics(canvas, SPEC, FOREGROUND).foreground
    assert sorted(zip(*np.nonzero(foreground), strict=True)) == [(1, 1), (2, 2)]


def test_the_grid_decides_the_size_of_the_canvas() -> None:
    assert Placement(replace(SPEC, n=7).canvas_px, 20, 10).place_image(smooth_image(20, 10, 0)).shape == (56, 56)
