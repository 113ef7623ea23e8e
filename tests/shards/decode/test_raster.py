"""PNG, JPEG, TIFF, BMP and GIF."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from shards.decode import UnreadableImageError, decode, reasons
from shards.decode.reasons import (
    DAMAGED,
    DEEP_COLOUR,
    MULTI_FRAME,
    NOT_AN_IMAGE,
    TOO_LARGE,
    UNREAD_JPEG,
    UNREAD_TIFF,
    UNREAD_VARIANT,
)
from tests.shards.decode.files import chunk, decoded, encoded, jpeg, png, reason_for, strip_tags, tiff
from tests.support.datasets import smooth_image
from tests.support.strategies import colour_images, grey_images

REASONS = {value for name, value in vars(reasons).items() if name.isupper()}
LOSSLESS = ("PNG", "TIFF", "BMP")


@given(grey_images() | colour_images(), st.sampled_from(LOSSLESS))
def test_a_lossless_file_decodes_to_its_pixels(pixels: np.ndarray, file_format: str) -> None:
    result = decoded(encoded(pixels, file_format))
    assert np.array_equal(result.pixels, pixels)
    assert (result.facts.bits_stored, result.facts.window_rule) == (8, "as stored")


@given(
    hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4))), st.sampled_from(["PNG", "TIFF"])
)
def test_alpha_is_dropped_and_never_blended(pixels: np.ndarray, file_format: str) -> None:
    assert np.array_equal(decoded(encoded(pixels, file_format)).pixels, pixels[..., :3])


def test_grey_with_alpha_is_grey() -> None:
    pixels = np.stack([smooth_image(9, 7, 0), np.zeros((9, 7), np.uint8)], axis=2)
    assert np.array_equal(decoded(encoded(Image.fromarray(pixels, "LA"))).pixels, pixels[..., 0])


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "TIFF", "BMP"])
def test_palettes_are_resolved_to_their_colours(file_format: str) -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    expected = [[[10, 20, 30], [200, 100, 50]], [[200, 100, 50], [10, 20, 30]]]
    assert np.array_equal(decoded(encoded(image, file_format)).pixels, expected)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "BMP"])
def test_one_bit_images_are_black_and_white(file_format: str) -> None:
    result = decoded(encoded(Image.fromarray(np.array([[True, False]])), file_format))
    assert np.array_equal(result.pixels, [[255, 0]])
    assert result.facts.bits_stored == 1


def radiograph(low: int, high: int) -> np.ndarray:
    """Values spread evenly over a range, every one of them once."""
    return np.linspace(low, high, 100 * 120).round().astype(np.uint16).reshape(100, 120)


@pytest.mark.parametrize(("low", "high"), [(0, 65535), (1000, 5095), (0, 1023), (40000, 65535)])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_grey_fills_the_range_and_is_never_saturated(low: int, high: int, file_format: str) -> None:
    values = radiograph(low, high)
    result = decoded(encoded(values, file_format))
    share = (values.astype(float) - low) / (high - low)
    # An even spread from the 0.5th to the 99.5th percentile.
    expected = np.clip((share - 0.005) / 0.99, 0, 1) * 255
    assert np.abs(result.pixels - expected).max() <= 0.75
    assert (result.facts.bits_stored, result.facts.window_rule) == (16, "percentiles")
    assert result.facts.window == pytest.approx((low + 0.005 * (high - low), high - 0.005 * (high - low)), abs=1)


def test_a_hot_marker_and_black_collimation_leave_the_anatomy_as_it_is() -> None:
    plain = decoded(encoded(radiograph(500, 3500))).pixels
    marked = np.pad(radiograph(500, 3500), 50)
    marked[10:40, 10:100] = 65535
    shown = decoded(encoded(marked)).pixels
    assert np.abs(shown[50:-50, 50:-50].astype(int) - plain).max() <= 4
    assert (shown[10:40, 10:100] == 255).all()
    assert not shown[:10].any()


@pytest.mark.parametrize("value", [0, 4095, 65535])
def test_a_flat_sixteen_bit_image_is_black(value: int) -> None:
    result = decoded(encoded(np.full((3, 3), value, np.uint16)))
    assert not result.pixels.any()
    assert result.facts.window == (value, value)
    assert result.facts.window_rule == "minimum to maximum"


def test_a_sixteen_bit_tiff_in_either_byte_order_and_white_at_zero_is_one_picture() -> None:
    values = radiograph(100, 4000)
    height, width = values.shape
    little = tiff(strip_tags(width, height, 16, 1, values.nbytes), values.tobytes())
    inverted = tiff(strip_tags(width, height, 16, 0, values.nbytes), (65535 - values).tobytes())
    expected = decoded(encoded(values)).pixels
    big = encoded(Image.frombytes("I;16B", (width, height), values.astype(">u2").tobytes()), "TIFF")
    for data in (little, inverted, big):
        assert np.array_equal(decoded(data).pixels, expected)


def test_an_eight_bit_tiff_of_white_at_zero_is_inverted() -> None:
    pixels = smooth_image(12, 15, 3)
    data = tiff(strip_tags(15, 12, 8, 0, pixels.size), (255 - pixels).tobytes())
    assert np.array_equal(decoded(data).pixels, pixels)


def test_sixteen_bit_colour_is_refused_rather_than_cut_to_eight() -> None:
    for colour, channels in ((2, 3), (4, 2), (6, 4)):
        assert reason_for(png(1, 1, bytes(1 + 2 * channels), bits=16, colour=colour)) == DEEP_COLOUR
    tags = strip_tags(2, 2, 16, 2, 24) | {277: ("H", 3)}
    assert reason_for(tiff(tags, bytes(24))) in (DEEP_COLOUR, UNREAD_TIFF, UNREAD_VARIANT)


def test_deep_colour_of_a_real_encoder_is_refused() -> None:
    for extension in (".png", ".tiff"):
        is_written, data = cv2.imencode(extension, np.full((4, 5, 3), 30000, np.uint16))
        assert is_written
        assert reason_for(data.tobytes()) == DEEP_COLOUR


@pytest.mark.parametrize("mode", ["F", "I"])
def test_floats_and_long_integers_in_tiff_are_refused(mode: str) -> None:
    assert reason_for(encoded(Image.new(mode, (4, 4), 7), "TIFF")) == UNREAD_TIFF


def test_signed_bytes_in_tiff_are_refused_rather_than_taken_for_unsigned_ones() -> None:
    pixels = np.arange(-50, 50, dtype=np.int8).reshape(10, 10)
    tags = strip_tags(10, 10, 8, 1, 100)
    assert reason_for(tiff(tags | {339: ("H", 2)}, pixels.tobytes())) == UNREAD_TIFF
    assert decoded(tiff(tags | {339: ("H", 1)}, pixels.tobytes())).pixels.shape == (10, 10)


STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.T,
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].T,
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("file_format", "dtype"), [("PNG", "u1"), ("PNG", "u2"), ("JPEG", "u1"), ("TIFF", "u1")])
def test_exif_orientation_is_applied(orientation: int, file_format: str, dtype: str) -> None:
    upright = np.zeros((24, 16), dtype)
    upright[:8, :8] = 255  # the top left corner is marked
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(np.ascontiguousarray(STORED[orientation](upright)), file_format, exif=exif)
    assert np.abs(decoded(data).pixels.astype(int) - upright).max() < 30


def test_cmyk_of_print_is_shown_in_its_colours() -> None:
    colours = np.zeros((16, 16, 4), np.uint8)
    colours[:, 8:, 1:3] = 255  # magenta and yellow ink on white paper
    shown = decoded(encoded(Image.fromarray(colours, "CMYK"), "JPEG", quality=95, subsampling=0)).pixels
    assert np.abs(shown[:, :6].astype(int) - 255).max() < 12
    assert np.abs(shown[:, 10:].astype(int) - (255, 0, 0)).max() < 12


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.97])
def test_a_truncated_image_is_damaged(file_format: str, options: dict, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    data = encoded(noise, file_format, **options)
    assert reason_for(data[: int(kept * len(data))]) in (DAMAGED, UNREAD_VARIANT)


def test_every_truncation_of_a_jpeg_is_found() -> None:
    data = encoded(smooth_image(40, 40, 0), "JPEG")
    for kept in range(4, len(data)):
        assert reason_for(data[:kept]) == DAMAGED, kept


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_that_was_closed_before_its_picture_ends_is_damaged(mode: str, options: dict) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 40, 4), dtype=np.uint8)
    data = encoded(Image.fromarray(noise, "CMYK").convert(mode), "JPEG", **options)
    for kept in range(64, len(data) - 64, 64):
        assert reason_for(data[:kept] + b"\xff\xd9") == DAMAGED, kept


def test_a_progressive_jpeg_that_was_closed_within_a_scan_is_damaged() -> None:
    """Closed between two scans it is a coarser picture, and nothing says that there was more."""
    data = encoded(np.random.default_rng(0).integers(0, 256, (48, 40), dtype=np.uint8), "JPEG", progressive=True)
    scans = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xda"]
    assert len(scans) > 3
    for place in scans:
        assert reason_for(data[: place + 40] + b"\xff\xd9") == DAMAGED


@pytest.mark.parametrize("colours", [False, True])
@pytest.mark.parametrize("size", [(64, 48), (37, 51), (1, 1)])
@pytest.mark.parametrize("options", [{"subsampling": 2}, {"subsampling": 0}, {"progressive": True}, {"keep_rgb": True}])
def test_a_jpeg_has_the_pixels_that_pillow_gives_it(colours: bool, size: tuple[int, int], options: dict) -> None:
    planes = [smooth_image(*size, seed) for seed in range(3)]
    data = encoded(np.stack(planes, axis=2) if colours else planes[0], "JPEG", quality=80, **options)
    assert np.array_equal(decoded(data).pixels, np.asarray(Image.open(io.BytesIO(data))))


def without_scan_parameters(data: bytes) -> bytes:
    end = data.index(b"\xff\xda") + 2
    end += int.from_bytes(data[end : end + 2], "big")
    return data[: end - 3] + bytes(3) + data[end:]


def with_version(data: bytes, version: bytes) -> bytes:
    place = data.index(b"JFIF\0") + 5
    return data[:place] + version + data[place + 2 :]


def with_bytes_before(data: bytes, marker: bytes, content: bytes) -> bytes:
    place = data.index(marker)
    return data[:place] + content + data[place:]


ODDITIES = {
    "scan without parameters": without_scan_parameters,
    "version 0.00": lambda data: with_version(data, b"\0\0"),
    "version 2.00": lambda data: with_version(data, b"\2\0"),
    "two bytes before the tables": lambda data: with_bytes_before(data, b"\xff\xdb", b"\0\0"),
    "many bytes before the frame": lambda data: with_bytes_before(data, b"\xff\xc0", bytes(99)),
    "unknown transformation of Adobe's": lambda data: with_bytes_before(
        data, b"\xff\xdb", b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x09"
    ),
    "several": lambda data: without_scan_parameters(with_version(data, b"\0\0")),
}


@pytest.mark.parametrize("oddity", ODDITIES)
@pytest.mark.parametrize("colours", [False, True])
def test_a_sound_jpeg_with_an_odd_header_has_the_pixels_of_the_plain_one(oddity: str, colours: bool) -> None:
    planes = [smooth_image(40, 50, seed) for seed in range(3)]
    data = encoded(np.stack(planes, axis=2) if colours else planes[0], "JPEG")
    odd = ODDITIES[oddity](data)
    assert odd != data
    assert np.array_equal(decoded(odd).pixels, decoded(data).pixels)


@pytest.mark.parametrize("oddity", ODDITIES)
def test_an_odd_header_hides_no_damage(oddity: str) -> None:
    data = encoded(np.random.default_rng(0).integers(0, 256, (48, 40), dtype=np.uint8), "JPEG")
    odd = ODDITIES[oddity](data)
    for kept in range(odd.index(b"\xff\xda") + 20, len(odd) - 64, 64):
        assert reason_for(odd[:kept] + b"\xff\xd9") == DAMAGED, kept
        assert reason_for(odd[:kept]) == DAMAGED, kept


def test_scans_of_single_components_may_lack_their_parameters_too() -> None:
    data = jpeg([(1, 1)] * 3, are_scans_apart=True)
    assert data.count(b"\0\x3f\0") == 3
    assert np.array_equal(decoded(data.replace(b"\0\x3f\0", bytes(3))).pixels, decoded(data).pixels)


SAMPLINGS = {
    "3 x 1": [(3, 1), (1, 1), (1, 1)],
    "1 x 3": [(1, 3), (1, 1), (1, 1)],
    "2 x 4": [(2, 4), (1, 1), (1, 1)],
    "mixed": [(2, 2), (2, 1), (1, 2)],
    "print": [(2, 2), (1, 1), (1, 1), (2, 2)],
}


@pytest.mark.parametrize("are_scans_apart", [False, True])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_components_may_differ_in_resolution_in_any_way(sampling: str, are_scans_apart: bool) -> None:
    data = jpeg(SAMPLINGS[sampling], are_scans_apart=are_scans_apart)
    pixels = decoded(data).pixels
    assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert pixels.std() > 20
    assert np.array_equal(decoded(with_bytes_before(data, b"\xff\xc0", b"\0\0")).pixels, pixels)
    half = len(data) - 60
    assert reason_for(data[:half] + b"\xff\xd9") == DAMAGED
    assert reason_for(data[:half]) == DAMAGED


@pytest.mark.parametrize("start", [b"\xff\xc1\0\x0b\x0c", b"\xff\xc3\0\x0b\x08", b"\xff\xf7\0\x0b\x08"])
def test_jpegs_of_twelve_bits_and_lossless_ones_are_of_a_kind_that_is_not_read(start: bytes) -> None:
    data = encoded(Image.new("L", (64, 64), 99), "JPEG")
    frame = data.index(b"\xff\xc0")
    assert reason_for(data[:frame] + start + data[frame + 5 :]) == UNREAD_JPEG


def test_a_few_bytes_too_many_at_the_end_of_a_jpeg_do_no_harm() -> None:
    data = encoded(smooth_image(40, 40, 0), "JPEG")
    assert np.array_equal(decoded(data[:-2] + b"abc\xff\xd9").pixels, decoded(data).pixels)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_png_whose_end_was_filled_up_with_zeros_is_damaged(bits: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, (40, 50)).astype(f"u{bits // 8}")
    data = encoded(values)
    for kept in range(64, len(data) - 12, 64):
        assert reason_for(data[:kept] + bytes(len(data) - kept)) == DAMAGED, kept


def scanlines(pixels: np.ndarray) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in pixels)


@pytest.mark.parametrize("num_rows", [0, 1, 50, 63])
@pytest.mark.parametrize(("bits", "colour"), [(8, 0), (16, 0), (8, 2), (8, 6), (1, 0)])
def test_a_png_that_ends_before_its_rows_is_damaged(num_rows: int, bits: int, colour: int) -> None:
    """Its stream is whole, and so are all checksums."""
    bytes_of_row = 40 * bits * {0: 1, 2: 3, 6: 4}[colour] // 8
    pixels = np.random.default_rng(0).integers(1, 255, (64, bytes_of_row)).astype(np.uint8)
    assert decoded(png(40, 64, scanlines(pixels), bits=bits, colour=colour)).pixels.shape[:2] == (64, 40)
    assert reason_for(png(40, 64, scanlines(pixels[:num_rows]), bits=bits, colour=colour)) == DAMAGED


@pytest.mark.parametrize("kind", ["black", "black last row", "white"])
def test_a_png_of_black_rows_is_whole(kind: str) -> None:
    pixels = np.full((64, 40), 255 if kind == "white" else 0, np.uint8)
    if kind == "black last row":
        pixels[:-1] = 255
    assert np.array_equal(decoded(encoded(pixels)).pixels, pixels)
    assert np.array_equal(decoded(png(40, 64, scanlines(pixels))).pixels, pixels)


def interlaced(pixels: np.ndarray, num_passes: int = 7) -> bytes:
    """An Adam7 PNG, or its first passes."""
    passes = (
        *((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4)),
        *((2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)),
    )
    height, width = pixels.shape
    coded = b"".join(
        scanlines(pixels[row::rows, col::cols]) for row, rows, col, cols in passes[:num_passes] if width > col
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(name, content) for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(coded)), (b"IEND", b""))
    )


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (9, 5), (64, 40), (33, 47)])
def test_an_interlaced_png_that_lacks_a_pass_is_damaged(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, size).astype(np.uint8)
    whole = interlaced(pixels)
    assert np.array_equal(decoded(whole).pixels, pixels)
    for num_passes in range(7):
        lacking = interlaced(pixels, num_passes)
        assert lacking == whole or reason_for(lacking) == DAMAGED


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "jpeg"}])
@pytest.mark.parametrize("rows_of_strip", [8, 64])
def test_a_tiff_that_lacks_strips_is_damaged(options: dict, rows_of_strip: int) -> None:
    pixels = smooth_image(64, 48, 0)
    data = encoded(pixels[:32], "TIFF", tiffinfo={278: rows_of_strip}, **options)
    assert np.abs(decoded(data).pixels.astype(int) - pixels[:32]).max() < 30
    assert reason_for(with_tag(data, 257, 64)) == DAMAGED


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF in which the value of a tag, of one number, is another."""
    changed = bytearray(data)
    place = int.from_bytes(data[4:8], "little")
    for entry in range(place + 2, place + 2 + 12 * int.from_bytes(data[place : place + 2], "little"), 12):
        if int.from_bytes(data[entry : entry + 2], "little") == tag:
            changed[entry + 8 : entry + 12] = value.to_bytes(4, "little")
    assert changed != data
    return bytes(changed)


@pytest.mark.parametrize("colours", [False, True])
@pytest.mark.parametrize("rows_of_strip", [16, 64])
def test_damage_to_a_jpeg_within_a_tiff_is_found(rows_of_strip: int, colours: bool) -> None:
    planes = [smooth_image(64, 48, seed) for seed in range(3)]
    pixels = np.stack(planes, axis=2) if colours else planes[0]
    data = encoded(pixels, "TIFF", compression="jpeg", quality=95, tiffinfo={278: rows_of_strip})
    assert np.abs(decoded(data).pixels.astype(int) - pixels).max() < 40
    tags = Image.open(io.BytesIO(data)).tag_v2
    start = tags[273][0] + tags[279][0] // 2
    assert reason_for(data[:start] + bytes(150) + data[start + 150 :]) == DAMAGED


def test_tiffs_of_kinds_that_are_not_read_are_not_called_damaged() -> None:
    pixels = smooth_image(12, 15, 3)
    assert reason_for(tiff(strip_tags(15, 12, 8, 1, 180) | {259: ("H", 50001)}, pixels.tobytes())) == UNREAD_TIFF
    assert reason_for(b"MM\0+\0\x08\0\0" + (16).to_bytes(8, "big") + bytes(200)) == UNREAD_TIFF


def test_a_damaged_header_is_damage() -> None:
    data = bytearray(encoded(Image.new("L", (8, 8))))
    data[20] ^= 255
    assert reason_for(bytes(data)) == DAMAGED


def test_a_png_that_was_transferred_as_text_is_damage() -> None:
    assert reason_for(encoded(smooth_image(20, 20, 0)).replace(b"\r\n", b"\n")) == DAMAGED


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "TIFF"])
def test_several_frames_or_pages_are_refused(file_format: str) -> None:
    frames = [Image.fromarray(smooth_image(12, 12, seed)) for seed in range(3)]
    assert reason_for(encoded(frames[0], file_format, save_all=True, append_images=frames[1:])) == MULTI_FRAME


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "TIFF", "BMP", "JPEG"])
def test_too_many_pixels_are_refused_before_decoding(file_format: str) -> None:
    assert reason_for(encoded(Image.new("L", (101, 100)), file_format), max_pixels=100 * 100) == TOO_LARGE
    data = encoded(Image.new("L", (100, 100)), file_format)
    assert decode(data, max_pixels=100 * 100).pixels.shape[:2] == (100, 100)


def test_nothing_but_the_pixels_of_a_png_is_looked_at() -> None:
    pixels = smooth_image(10, 12, 0)
    scanlines = b"".join(b"\0" + row.tobytes() for row in pixels)
    broken_text = b"\0\0\0\4zTXtabcd\0\0\0\0"
    assert np.array_equal(decoded(png(12, 10, scanlines, extra=broken_text)).pixels, pixels)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "BMP", "GIF"])
@given(junk=st.binary(max_size=60), place=st.integers(0, 1200))
def test_any_damage_gives_pixels_or_a_reason(file_format: str, junk: bytes, place: int) -> None:
    data = encoded(smooth_image(30, 30, 0), file_format)
    damaged = data[:place] + junk + data[place + len(junk) :]
    try:
        outcome = decode(damaged, max_pixels=1e6).pixels.dtype.name
    except UnreadableImageError as error:
        outcome = str(error)
    assert outcome in ("uint8", *REASONS)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "BMP", "GIF"])
def test_damage_is_not_complained_of_on_standard_error(file_format: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = encoded(smooth_image(30, 30, 0), file_format)
    for kept in range(30, len(data) - 2, 41):
        reason_for(data[:kept])
    assert capfd.readouterr().err == ""


def test_a_tiff_whose_strip_is_damaged_is_damage() -> None:
    data = bytearray(encoded(smooth_image(30, 30, 0), "TIFF", compression="tiff_lzw"))
    data[20:60] = bytes(40)
    assert reason_for(bytes(data)) in (DAMAGED, NOT_AN_IMAGE)
