"""Canvases as JPEGs of which any rectangle can be decoded by itself.

Every few blocks of a row a restart marker begins the prediction of brightness anew, so the bytes between two markers
(a segment) mean the same wherever they stand (ISO/IEC 10918-1, E.1.4 and F.1.1.5.1). A rectangle of segments behind
the image's own header, with another height and width in it and the markers numbered again, is therefore a JPEG, and
decodes to the pixels that the whole image has there. It saves what most of the time goes to: undoing the entropy code
is four fifths of decoding, which no smaller DCT spares (docs/data.md).
"""

import io
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import simplejpeg
from jaxtyping import Int64, UInt8
from PIL import Image

from shards.canvas import Pixels, halved
from shards.errors import DamagedImageError
from shards.grid import Rectangle

BLOCK_PX = 8
MIN_BLOCKS_IN_SEGMENT = 8
"""Shorter segments waste fewer pixels beside a crop and more bytes on markers: 1.8 % at 8, 3.5 % at 4."""

_SOF0, _SOS, _DRI, _EOI = 0xC0, 0xDA, 0xDD, 0xD9
_RESTART, _NUM_RESTARTS = 0xD0, 8
_UNSUBSAMPLED = 0x11
_WHOLE_SPECTRUM = b"\x00\x3f\x00"


class Region(NamedTuple):
    """Pixels cut from an image, and the (row, col) in the image at which they begin."""

    pixels: Pixels
    row: int
    col: int


def encode_canvas(pixels: Pixels, quality: int) -> bytes:
    """A baseline JPEG, colour not subsampled, every row of blocks in segments of equal length.

    Args:
        pixels: 8-bit grey or colour.
        quality: 1 to 100.
    """
    return _encoded(pixels, quality, MIN_BLOCKS_IN_SEGMENT)


def encode_half(pixels: Pixels, quality: int) -> bytes:
    """The canvas at half its size; of even sides. What a coarse crop takes of it is nearly as wide as the canvas, and a
    marker costs a decoder as much as some pixels: every row of blocks is one segment.
    """
    return _encoded(halved(pixels), quality, min_blocks=pixels.shape[1])


def _encoded(pixels: Pixels, quality: int, min_blocks: int) -> bytes:
    blocks = -(-pixels.shape[1] // BLOCK_PX)
    lengths = (length for length in range(min_blocks, blocks) if blocks % length == 0)
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    image.save(file, "JPEG", quality=quality, subsampling=0, restart_marker_blocks=next(lengths, blocks))
    return file.getvalue()


def decode(data: bytes | bytearray) -> Pixels:
    """All pixels of a grey or colour JPEG.

    Raises:
        DamagedImageError: the decoder finds fault with it.
    """
    try:
        _, _, colour_space, _ = simplejpeg.decode_jpeg_header(data)
        pixels: Pixels = simplejpeg.decode_jpeg(data, "GRAY" if colour_space == "Gray" else "RGB")
    except ValueError as error:
        raise DamagedImageError(f"truncated or damaged JPEG ({error})") from None
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def decode_region(data: bytes, rectangle: Rectangle) -> Region:
    """The segments that a rectangle touches; the whole image where it has no segments that can be cut.

    The pixels equal those of `decode` to the bit. A JPEG by other hands is decoded whole: progressive, subsampled, or
    with segments that do not divide a row of blocks.

    Args:
        data: A grey or colour JPEG.
        rectangle: (row0, col0, row1, col1) in pixels, not empty; what lies outside the image is ignored.

    Raises:
        DamagedImageError: segments are missing or out of order, or the decoder finds fault with those it was given.
    """
    header = _Header.parse(data)
    if header is None:
        return Region(decode(data), 0, 0)
    row0, col0, row1, col1 = rectangle
    rows = max(row0, 0) // BLOCK_PX, -(-min(row1, header.height) // BLOCK_PX)
    cols = max(col0, 0) // header.segment_px, -(-min(col1, header.width) // header.segment_px)
    return Region(decode(header.cut(data, rows, cols)), rows[0] * BLOCK_PX, cols[0] * header.segment_px)


@dataclass(frozen=True)
class _Header:
    """What the bytes before a JPEG's segments say.

    Attributes:
        height: In pixels.
        width: In pixels.
        segment_px: Width of a segment, which is one block high.
        size_at: Where height and width stand, two bytes each.
        num_bytes: Where the segments begin.
    """

    height: int
    width: int
    segment_px: int
    size_at: int
    num_bytes: int

    @classmethod
    def parse(cls, data: bytes) -> Self | None:
        """The header of an image that can be cut; None for every other, sound or not: the decoder judges those."""
        height = width = interval = size_at = num_components = 0
        at = 2
        while at + 4 <= len(data) and data[at] == 0xFF:
            marker, body = data[at + 1], data[at + 4 : at + 2 + int.from_bytes(data[at + 2 : at + 4])]
            if marker == _SOF0 and len(body) >= 6:
                size_at, num_components = at + 5, body[5]
                height, width = int.from_bytes(body[1:3]), int.from_bytes(body[3:5])
                if any(sampling != _UNSUBSAMPLED for sampling in body[7::3]):
                    return None
            elif marker == _DRI:
                interval = int.from_bytes(body)
            elif marker == _SOS:
                blocks = -(-width // BLOCK_PX)
                is_one_scan = body[:1] == bytes([num_components]) and body[-3:] == _WHOLE_SPECTRUM
                if not (is_one_scan and height and interval) or blocks % interval:
                    return None
                return cls(height, width, interval * BLOCK_PX, size_at, at + 4 + len(body))
            at += 4 + len(body)
        return None

    def cut(self, data: bytes, rows: tuple[int, int], cols: tuple[int, int]) -> bytearray:
        """The JPEG of a rectangle of segments.

        Args:
            data: The whole image.
            rows: First row of segments, and one past the last.
            cols: First segment of a row, and one past the last.

        Raises:
            DamagedImageError: see `_segments`.
        """
        starts, stops = self._segments(data)
        starts, stops = starts[rows[0] : rows[1], cols[0] : cols[1]], stops[rows[0] : rows[1], cols[0] : cols[1]]
        # One run of bytes a row, with the marker behind it; behind the image's last segment that is the end of image.
        first, last = starts[:, 0], stops[:, -1] + 2
        image = bytearray(data[: self.num_bytes])
        height, width = (rows[1] - rows[0]) * BLOCK_PX, (cols[1] - cols[0]) * self.segment_px
        size = min(height, self.height - rows[0] * BLOCK_PX), min(width, self.width - cols[0] * self.segment_px)
        image[self.size_at : self.size_at + 4] = b"".join(side.to_bytes(2) for side in size)
        image += b"".join([data[start:stop] for start, stop in zip(first.tolist(), last.tolist(), strict=True)])
        moved = self.num_bytes + np.cumsum(last - first) - last
        marker_at = (stops + moved[:, None]).ravel() + 1
        np.frombuffer(image, np.uint8)[marker_at] = _RESTART + np.arange(len(marker_at)) % _NUM_RESTARTS
        image[-1] = _EOI
        return image

    def _segments(self, data: bytes) -> tuple[Int64[np.ndarray, "rows cols"], Int64[np.ndarray, "rows cols"]]:
        """Where each segment begins, and where the marker behind it does.

        Raises:
            DamagedImageError: the markers are not those of a whole image of this size.
        """
        coded: UInt8[np.ndarray, " num_bytes"] = np.frombuffer(data, np.uint8, offset=self.num_bytes)
        # A byte FF of the code itself is followed by 00.
        at = np.flatnonzero(coded[:-1] == 0xFF)
        kinds = coded[at + 1]
        at, kinds = at[kinds != 0], kinds[kinds != 0]
        rows, cols = -(-self.height // BLOCK_PX), -(-self.width // self.segment_px)
        expected = _RESTART + np.arange(rows * cols) % _NUM_RESTARTS
        expected[-1] = _EOI
        if not np.array_equal(kinds, expected):
            raise DamagedImageError(
                f"truncated or damaged JPEG ({len(kinds)} markers between its segments, not all in order; expected "
                f"{rows * cols})"
            )
        stops = at + self.num_bytes
        starts = np.concatenate([[self.num_bytes], stops[:-1] + 2])
        return starts.reshape(rows, cols), stops.reshape(rows, cols)
