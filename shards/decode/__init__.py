"""Decode a file's bytes to 8-bit pixels: every kind of image that the datasets of the field come in."""

from shards.core.records import RawLayout
from shards.decode.image import decode
from shards.decode.mask import decode_mask
from shards.decode.reasons import UnreadableImageError
from shards.decode.result import Decoded, Facts

__all__ = ["Decoded", "Facts", "RawLayout", "UnreadableImageError", "decode", "decode_mask"]
