"""Files without a header."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from shards.decode import RawLayout, UnreadableImageError, decode
from shards.decode.reasons import EMPTY, LFS_POINTER, RAW_SIZE, TOO_LARGE

JSRT = RawLayout(height=2048, width=2048, dtype=">u2", max_value=4095, is_inverted=True)
SMALL = RawLayout(height=6, width=8, dtype=">u2", max_value=4095, is_inverted=True)


@given(hnp.arrays(np.uint16, (6, 8)))
def test_values_are_big_endian_cut_to_twelve_bits_and_inverted(values: np.ndarray) -> None:
    result = decode(values.astype(">u2").tobytes(), max_pixels=48, raw=SMALL)
    expected = np.array([[(4095 - min(int(value), 4095)) / 4095 * 255 for value in row] for row in values])
    assert np.abs(result.pixels - expected).max() <= 0.5
    assert result.facts.flags == (("values above the maximum",) if values.max() > 4095 else ())
    assert (result.facts.bits_stored, result.facts.window) == (12, (0, 4095))


def test_a_layout_in_bytes_that_is_not_inverted_is_the_file() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    layout = RawLayout(height=6, width=8, dtype="u1", max_value=255, is_inverted=False)
    assert np.array_equal(decode(pixels.tobytes(), max_pixels=48, raw=layout).pixels, pixels)


def test_jsrt_is_read_at_its_exact_size_alone() -> None:
    data = np.full(2048 * 2048, 1000, ">u2").tobytes()
    assert len(data) == 8_388_608
    assert decode(data, max_pixels=1e8, raw=JSRT).pixels.shape == (2048, 2048)
    for wrong in (data[:-1], data + b"\0"):
        assert refusal(wrong, JSRT) == RAW_SIZE


def refusal(data: bytes, layout: RawLayout, max_pixels: float = 1e8) -> str:
    with pytest.raises(UnreadableImageError) as error:
        decode(data, max_pixels=max_pixels, raw=layout)
    return str(error.value)


def test_what_stands_in_a_raw_files_place_is_named() -> None:
    assert refusal(b"", SMALL) == EMPTY
    assert refusal(b"version https://git-lfs.github.com/spec/v1\n", SMALL) == LFS_POINTER
    assert refusal(bytes(96), SMALL, max_pixels=47) == TOO_LARGE
