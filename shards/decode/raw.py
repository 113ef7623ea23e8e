"""Pixels without a header, as JSRT's .IMG files: what a file would say of itself is said beside it."""

import numpy as np

from shards.core.records import RawLayout
from shards.decode.grey import WHITE, GreyWindow, in_eight_bits
from shards.decode.reasons import RAW_SIZE, TooLargeError, UnreadableImageError
from shards.decode.result import AS_STORED, VALUES_ABOVE_MAXIMUM, Decoded, Facts
from shards.decode.signature import pretence


def decode_raw(data: bytes, layout: RawLayout, *, max_pixels: float) -> Decoded:
    """Decode a headerless file: 0..max_value becomes 0..255, or 255..0.

    Raises:
        UnreadableImageError: with the reason for quarantine.
    """
    if layout.height * layout.width > max_pixels:
        raise TooLargeError(layout.height * layout.width, max_pixels)
    if len(data) != layout.num_bytes:
        raise UnreadableImageError(pretence(data) or RAW_SIZE)
    values = np.frombuffer(data, layout.dtype).reshape(layout.height, layout.width)
    window = GreyWindow(0.0, float(layout.max_value), AS_STORED)
    table = in_eight_bits(window.shares(np.arange(np.iinfo(layout.dtype).max + 1)))
    flags = (VALUES_ABOVE_MAXIMUM,) if values.max() > layout.max_value else ()
    facts = Facts(bits_stored=layout.max_value.bit_length(), window=(window.low, window.high), flags=flags)
    return Decoded(np.take(WHITE - table if layout.is_inverted else table, values), facts)
