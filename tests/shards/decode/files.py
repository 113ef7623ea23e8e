"""Image files, some of them written byte by byte to say what no encoder would."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from shards.decode import Decoded, UnreadableImageError, decode


def encoded(image: Image.Image | np.ndarray, file_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.save(file, file_format, **options)
    return file.getvalue()


def decoded(data: bytes) -> Decoded:
    return decode(data, max_pixels=1e6)


def reason_for(data: bytes, max_pixels: float = 1e6) -> str:
    with pytest.raises(UnreadableImageError) as error:
        decode(data, max_pixels=max_pixels)
    return str(error.value)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, scanlines: bytes, *, bits: int = 8, colour: int = 0, extra: bytes = b"") -> bytes:
    """A PNG of raw scanlines (each with its filter byte), with other chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(scanlines, 1))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + pixels + chunk(b"IEND", b"")


def tiff(tags: dict[int, tuple[str, int]], pixels: bytes) -> bytes:
    """A little-endian TIFF of one page: tag → (H or I, value); the pixels begin at byte 8."""
    start = 8 + len(pixels)
    entries = b"".join(
        struct.pack("<HHI", tag, {"H": 3, "I": 4}[kind], 1) + struct.pack(f"<{kind}", value).ljust(4, b"\0")
        for tag, (kind, value) in sorted(tags.items())
    )
    return struct.pack("<2sHI", b"II", 42, start) + pixels + struct.pack("<H", len(tags)) + entries + bytes(4)


def strip_tags(width: int, height: int, bits: int, photometric: int, num_bytes: int) -> dict[int, tuple[str, int]]:
    """The tags of a grey TIFF of one uncompressed strip."""
    return {
        256: ("I", width),
        257: ("I", height),
        258: ("H", bits),
        259: ("H", 1),
        262: ("H", photometric),
        273: ("I", 8),
        277: ("H", 1),
        278: ("I", height),
        279: ("I", num_bytes),
    }
