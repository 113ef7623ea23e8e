import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.core.canvas import halved
from shards.core.errors import DamagedImageError
from shards.core.grid import Rectangle
from shards.format.jpeg import (
    BLOCK_PX,
    MIN_BLOCKS_IN_SEGMENT,
    _with_table,
    decode,
    decode_region,
    encode_canvas,
    encode_half,
)
from tests.support.examples import examples


def noise(height: int, width: int, channels: int, seed: int) -> np.ndarray:
    """Noise between flat areas: segments of many lengths, among them ones with bytes FF in their code."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    levels[rng.random((height, width)) < 0.3] = 0
    levels[: height // 3, width // 2 :] = 200
    return levels[:, :, 0] if channels == 1 else levels


def encoded(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **{"quality": 95, "subsampling": 0} | options)
    return file.getvalue()


@st.composite
def images(draw: st.DrawFn, max_side: int = 90) -> np.ndarray:
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    return noise(height, width, draw(st.sampled_from([1, 3])), draw(st.integers(0, 2**31)))


@st.composite
def rectangles(draw: st.DrawFn, height: int, width: int) -> Rectangle:
    """Not empty inside the image; some reach beyond it."""
    row0, col0 = draw(st.integers(-3, height - 1)), draw(st.integers(-3, width - 1))
    return row0, col0, draw(st.integers(max(row0, 0) + 1, height + 3)), draw(st.integers(max(col0, 0) + 1, width + 3))


def assert_is_cut_from(whole: np.ndarray, data: bytes, rectangle: Rectangle) -> tuple[int, int]:
    """The region holds the rectangle and equals the image there; its size."""
    pixels, row, col = decode_region(data, rectangle)
    height, width = pixels.shape[:2]
    assert 0 <= row <= max(rectangle[0], 0)
    assert 0 <= col <= max(rectangle[1], 0)
    assert row + height >= min(rectangle[2], len(whole))
    assert col + width >= min(rectangle[3], whole.shape[1])
    np.testing.assert_array_equal(pixels, whole[row : row + height, col : col + width])
    return height, width


@examples(2)
@given(st.data(), images(), st.integers(1, 12), st.integers(20, 100))
def test_a_region_equals_the_whole_image_there(
    data: st.DataObject, pixels: np.ndarray, interval: int, quality: int
) -> None:
    plain = encoded(pixels, restart_marker_blocks=interval, quality=quality)
    file = _with_table(plain) if -(-pixels.shape[1] // BLOCK_PX) % interval == 0 else plain
    whole = np.asarray(Image.open(io.BytesIO(file)))
    np.testing.assert_array_equal(decode(file), whole)
    assert_is_cut_from(whole, file, data.draw(rectangles(*pixels.shape[:2])))


@given(st.data(), images(max_side=200))
def test_of_a_canvas_no_more_is_decoded_than_the_segments_of_the_rectangle(
    data: st.DataObject, pixels: np.ndarray
) -> None:
    rectangle = data.draw(rectangles(*pixels.shape[:2]))
    file = encode_canvas(pixels, 90)
    height, width = assert_is_cut_from(np.asarray(Image.open(io.BytesIO(file))), file, rectangle)
    assert height <= rectangle[2] - max(rectangle[0], 0) + 2 * (BLOCK_PX - 1)
    blocks = -(-pixels.shape[1] // BLOCK_PX)
    lengths = [n for n in range(MIN_BLOCKS_IN_SEGMENT, blocks + 1) if blocks % n == 0]
    segment_px = min(lengths, default=blocks) * BLOCK_PX
    assert width <= rectangle[3] - max(rectangle[1], 0) + 2 * (segment_px - 1)


def test_a_canvas_of_1024_px_is_cut_in_segments_of_64_px() -> None:
    pixels, row, col = decode_region(encode_canvas(noise(1024, 1024, 1, 0), 50), (400, 320, 401, 321))
    assert (pixels.shape, row, col) == ((8, 64), 400, 320)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_half_is_made_of_means_and_has_no_markers(channels: int) -> None:
    canvas = noise(256, 512, channels, 0)
    file = encode_half(canvas, 90)
    half = np.asarray(Image.open(io.BytesIO(file)))
    assert half.shape[:2] == (128, 256)
    assert np.abs(half.astype(int) - halved(canvas)).mean() < 12  # noise at quality 90
    assert b"\xff\xdd" not in file  # which says that there are markers


def test_markers_and_their_table_cost_four_percent_of_a_canvas_like_a_radiographs() -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).resize((512, 512), 3)
    pixels = (np.asarray(smooth) + rng.normal(0, 3, (512, 512))).clip(0, 255).astype(np.uint8)
    assert len(encode_canvas(pixels, 95)) < 1.04 * len(encoded(pixels))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True, "restart_marker_blocks": 5},
        {"subsampling": 2, "restart_marker_rows": 1},
        {"restart_marker_blocks": 5},
    ],
    ids=["no markers", "progressive", "subsampled", "segments without a table"],
)
def test_a_jpeg_by_other_hands_is_decoded_whole(options: dict) -> None:
    file = encoded(noise(50, 80, 3, 0), **options)
    pixels, row, col = decode_region(file, (10, 10, 20, 20))
    assert (row, col) == (0, 0)
    np.testing.assert_array_equal(pixels, decode(file))
    assert pixels.shape == (50, 80, 3)


@given(st.integers(0, 10**9), st.booleans())
def test_a_truncated_canvas_is_an_error_wherever_it_ends(place: int, is_coloured: bool) -> None:
    file = encode_canvas(noise(40, 128, 3 if is_coloured else 1, 1), 90)
    shortened = file[: place % len(file)]
    for read in (decode, lambda data: decode_region(data, (0, 0, 8, 8))):
        with pytest.raises(DamagedImageError, match="truncated or damaged JPEG"):
            read(shortened)


def marker_places(file: bytes) -> list[int]:
    return [at for at in range(len(file) - 1) if file[at] == 0xFF and 0xD0 <= file[at + 1] <= 0xD7]


def test_missing_bytes_are_an_error_whichever_part_is_asked_for() -> None:
    file = encode_canvas(noise(64, 128, 1, 2), 90)
    places = marker_places(file)
    assert len(places) == 8 * 2 - 1
    for damaged in (file[: places[4]] + file[places[5] :], file[: places[3] + 20] + file[places[3] + 40 :]):
        for rectangle in ((0, 0, 8, 8), (56, 120, 64, 128)):
            with pytest.raises(DamagedImageError, match=rf"should have {len(file)} bytes and has {len(damaged)}"):
                decode_region(damaged, rectangle)


def test_a_segment_that_is_not_where_the_table_says_is_an_error_where_it_is_asked_for() -> None:
    file = encode_canvas(noise(64, 128, 1, 3), 90)
    places = marker_places(file)
    swapped = bytearray(file)
    swapped[places[4] + 1], swapped[places[5] + 1] = swapped[places[5] + 1], swapped[places[4] + 1]
    moved = file[: places[3] + 20] + file[places[3] + 40 : places[6]] + bytes(20) + file[places[6] :]
    for damaged in (bytes(swapped), moved):
        with pytest.raises(DamagedImageError, match="not where its table says"):
            decode_region(damaged, (16, 0, 24, 128))
        other = decode_region(damaged, (48, 0, 56, 8))
        np.testing.assert_array_equal(other.pixels, decode(file)[48:56, :64])


def test_a_table_of_another_size_is_an_error() -> None:
    file = encode_canvas(noise(64, 128, 1, 3), 90)
    size_at = file.index(b"\xff\xc0") + 5
    damaged = file[:size_at] + (72).to_bytes(2) + file[size_at + 2 :]
    with pytest.raises(DamagedImageError, match="a table of 32 bytes for 9 x 2 segments"):
        decode_region(damaged, (0, 0, 8, 8))


def test_without_room_for_a_segments_length_there_is_no_table_and_the_canvas_is_decoded_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shards.format.jpeg._TABLE_DTYPE", np.dtype("u1"))
    file = encode_canvas(noise(64, 128, 1, 3), 90)
    assert b"ACE segments" not in file
    assert decode_region(file, (16, 0, 24, 8)).pixels.shape == (64, 128)


def test_a_canvas_too_large_for_a_table_of_short_segments_has_longer_ones() -> None:
    pixels = np.zeros((4400, 4096), np.uint8)
    assert decode_region(encode_canvas(pixels, 50), (400, 320, 401, 321)).pixels.shape == (8, 128)


@examples(3)
@given(st.integers(0, 10**9), st.integers(1, 255), st.data())
def test_a_changed_byte_gives_an_error_or_pixels_of_the_right_place_and_nothing_else(
    place: int, change: int, data: st.DataObject
) -> None:
    file = bytearray(encode_canvas(noise(40, 128, 1, 4), 90))
    file[place % len(file)] ^= change
    rectangle = data.draw(rectangles(40, 128))
    try:
        pixels, row, col = decode_region(bytes(file), rectangle)
    except DamagedImageError:
        return
    assert (row, col) <= (max(rectangle[0], 0), max(rectangle[1], 0))
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xd8", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_what_is_no_jpeg_is_an_error(data: bytes) -> None:
    for read in (decode, lambda data: decode_region(data, (0, 0, 8, 8))):
        with pytest.raises(DamagedImageError):
            read(data)
