"""Image files, some of them written byte by byte to say what no encoder would."""

import io
import struct
import zlib
from collections.abc import Sequence

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


def jpeg(samplings: Sequence[tuple[int, int]], *, are_scans_apart: bool = False) -> bytes:
    """A baseline JPEG of 3 × 4 units, its blocks flat and of random greys, of any (horizontal, vertical) samplings."""
    rows, cols = 3, 4
    widest, highest = (max(sides) for sides in zip(*samplings, strict=True))
    rng = np.random.default_rng(0)
    levels = [rng.integers(-100, 100, (rows * down, cols * across)) for across, down in samplings]
    names = range(1, len(samplings) + 1)
    parts = b"".join(
        bytes([name, across << 4 | down, 0]) for name, (across, down) in zip(names, samplings, strict=True)
    )
    frame = struct.pack(">BHHB", 8, 8 * highest * rows, 8 * widest * cols, len(samplings)) + parts
    blocks_of_units = [
        [
            (part, row * down + inner_row, col * across + inner_col)
            for part, (across, down) in enumerate(samplings)
            for inner_row in range(down)
            for inner_col in range(across)
        ]
        for row in range(rows)
        for col in range(cols)
    ]
    scans = [(list(names), [block for blocks in blocks_of_units for block in blocks])]
    if are_scans_apart:
        scans = [
            ([part + 1], [(part, row, col) for row, col in np.ndindex(levels[part].shape)])
            for part in range(len(levels))
        ]
    tables = _piece(0xDB, b"\0" + bytes([8] * 64))
    # Twelve codes of four bits for the differences of greys, one of one bit for the end of a block.
    tables += _piece(0xC4, b"\0" + bytes([0, 0, 0, 12, *[0] * 12]) + bytes(range(12)))
    tables += _piece(0xC4, b"\x10" + bytes([1, *[0] * 15]) + b"\0")
    coded = b"".join(
        _piece(0xDA, bytes([len(parts), *(byte for name in parts for byte in (name, 0)), 0, 63, 0]))
        + _code(levels, blocks)
        for parts, blocks in scans
    )
    return b"\xff\xd8" + tables + _piece(0xC0, frame) + coded + b"\xff\xd9"


def _piece(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content


def _code(levels: list[np.ndarray], blocks: list[tuple[int, int, int]]) -> bytes:
    bits, before = "", dict.fromkeys(range(len(levels)), 0)
    for part, row, col in blocks:
        level = int(levels[part][row, col])
        difference, before[part] = level - before[part], level
        length = abs(difference).bit_length()
        number = difference if difference > 0 else difference + (1 << length) - 1
        bits += f"{length:04b}" + (f"{number:0{length}b}" if length else "") + "0"
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
