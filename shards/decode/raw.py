"""Pixels without a header, as JSRT's .IMG files: what a file would say of itself is said beside it."""

from dataclasses import dataclass

import numpy as np

from shards.decode.grey import WHITE, Window, in_eight_bits
from shards.decode.reasons import RAW_SIZE, TOO_LARGE, UnreadableImageError
from shards.decode.result import AS_STORED, VALUES_ABOVE_MAXIMUM, Decoded, Facts
from shards.decode.signature import pretence


@dataclass(frozen=True)
class RawLayout:
    """How a headerless file holds its grey values, row by row.

    Attributes:
        height: Rows.
        width: Columns.
        dtype: Of a value, as numpy writes unsigned integers with their byte order: ">u2".
        max_value: What white is; values above it, which occur, are cut to it.
        is_inverted: Whether 0 is white.
    """

    height: int
    width: int
    dtype: str
    max_value: int
    is_inverted: bool

    @property
    def num_bytes(self) -> int:
        """Of the whole file."""
        return self.height * self.width * np.dtype(self.dtype).itemsize


def decode_raw(data: bytes, layout: RawLayout, *, max_pixels: float) -> Decoded:
    """The image of a headerless file: 0..max_value becomes 0..255, or 255..0.

    Raises:
        UnreadableImageError: with the reason for quarantine.
    """
    if layout.height * layout.width > max_pixels:
        raise UnreadableImageError(TOO_LARGE)
    if len(data) != layout.num_bytes:
        raise UnreadableImageError(pretence(data) or RAW_SIZE)
    values = np.frombuffer(data, layout.dtype).reshape(layout.height, layout.width)
    window = Window(0.0, float(layout.max_value), AS_STORED)
    table = in_eight_bits(window.shares(np.arange(np.iinfo(layout.dtype).max + 1)))
    flags = (VALUES_ABOVE_MAXIMUM,) if values.max() > layout.max_value else ()
    facts = Facts(layout.max_value.bit_length(), window=(window.low, window.high), flags=flags)
    return Decoded(np.take(WHITE - table if layout.is_inverted else table, values), facts)
