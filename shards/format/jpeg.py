"""Canvases as JPEGs of which any rectangle can be decoded by itself.

Every few blocks of a row a restart marker begins the prediction of brightness anew, so the bytes between two markers
(a segment) mean the same wherever they stand (ISO/IEC 10918-1, E.1.4 and F.1.1.5.1). A rectangle of segments behind
the image's own header, with another height and width in it and the markers numbered again, is therefore a JPEG, and
decodes to the pixels that the whole image has there. It saves what most of the time goes to: undoing the entropy code
is four fifths of decoding, which no smaller DCT spares (docs/format.md).

Where the segments lie is written behind the file's first marker, in a piece of the header that other programs skip:
APP15, the text `ACE segments`, a zero byte, and two bytes for the length of each, marker included, row by row.
"""

import io
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import simplejpeg
from jaxtyping import Int64, UInt8
from PIL import Image

from shards.core.canvas import Pixels, halved
from shards.core.errors import DamagedImageError
from shards.core.grid import Rectangle

BLOCK_PX = 8
MIN_BLOCKS_IN_SEGMENT = 8
"""Shorter segments waste fewer pixels beside a crop and more bytes on markers: 1.8 % at 8, 3.5 % at 4."""

Encoded = bytes | bytearray | memoryview

_SOF0, _SOS, _DRI, _EOI = 0xC0, 0xDA, 0xDD, 0xD9
_RESTART, _NUM_RESTARTS = 0xD0, 8
_TABLE_MARKER = bytes([0xFF, 0xEF])
_TABLE_NAME = b"ACE segments\0"
_TABLE_DTYPE = np.dtype(">u2")
_MAX_SEGMENTS = (0xFFFF - 2 - len(_TABLE_NAME)) // _TABLE_DTYPE.itemsize


class DecodedRegion(NamedTuple):
    """Holds pixels cut from an image, and the (row, col) in the image at which they begin."""

    pixels: Pixels
    row: int
    col: int


def encode_canvas(pixels: Pixels, quality: int) -> bytes:
    """Encode a baseline JPEG, colour not subsampled, every row of blocks in segments of equal length, with their table.

    Args:
        pixels: 8-bit grey or colour.
        quality: 1 to 100.
    """
    rows, blocks = (-(-side // BLOCK_PX) for side in pixels.shape[:2])
    lengths = (
        length
        for length in range(MIN_BLOCKS_IN_SEGMENT, blocks)
        if blocks % length == 0 and rows * blocks // length <= _MAX_SEGMENTS
    )
    return _with_table(_encoded(pixels, quality, restart_marker_blocks=next(lengths, blocks)))


def encode_half(pixels: Pixels, quality: int) -> bytes:
    """Encode the canvas at half its size; its sides are even.

    A coarse crop takes most of it, so it is decoded whole: markers, and looking for them, would cost more than the
    rest.
    """
    return _encoded(halved(pixels), quality)


def _encoded(pixels: Pixels, quality: int, **options: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=0, **options)
    return file.getvalue()


def _with_table(data: bytes) -> bytes:
    at = table_at = 2 + _num_bytes(data, 2)
    while data[at + 1] != _SOS:
        at += _num_bytes(data, at)
    coded = np.frombuffer(data, np.uint8, offset=at + _num_bytes(data, at))
    # A byte FF of the code itself is followed by 00.
    markers = np.flatnonzero(coded[:-1] == 0xFF)
    markers = markers[coded[markers + 1] != 0]
    lengths = np.diff(markers + 2, prepend=0)
    if lengths.max() > np.iinfo(_TABLE_DTYPE).max:
        return data
    table = _TABLE_NAME + lengths.astype(_TABLE_DTYPE).tobytes()
    rest = memoryview(data)[table_at:]
    return b"".join([data[:table_at], _TABLE_MARKER, (2 + len(table)).to_bytes(2), table, rest])


def _num_bytes(data: Encoded, at: int) -> int:
    """Read the number of bytes of a piece of the header, from its marker on."""
    return 2 + int.from_bytes(data[at + 2 : at + 4])


def decode(data: Encoded) -> Pixels:
    """Decode all pixels of a grey or colour JPEG.

    Raises:
        DamagedImageError: the decoder finds fault with it.
    """
    try:
        _, _, colour_space, _ = simplejpeg.decode_jpeg_header(data)
        pixels: Pixels = simplejpeg.decode_jpeg(data, "GRAY" if colour_space == "Gray" else "RGB")
    except ValueError as error:
        raise _damaged(error) from None
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def decode_region(data: Encoded, rectangle: Rectangle) -> DecodedRegion:
    """Decode the segments that a rectangle touches; the whole image where it has no segments that can be cut.

    The pixels equal those of `decode` to the bit. A JPEG by other hands has no table, and is decoded whole.

    Args:
        data: A grey or colour JPEG.
        rectangle: (row0, col0, row1, col1) in pixels, not empty; what lies outside the image is ignored.

    Raises:
        DamagedImageError: bytes or segments are missing, or the decoder finds fault with those it was given.
    """
    header = _Header.parse(data)
    if header is None:
        return DecodedRegion(decode(data), 0, 0)
    row0, col0, row1, col1 = rectangle
    rows = max(row0, 0) // BLOCK_PX, -(-min(row1, header.height) // BLOCK_PX)
    cols = max(col0, 0) // header.segment_px, -(-min(col1, header.width) // header.segment_px)
    return DecodedRegion(decode(header.cut(data, rows, cols)), rows[0] * BLOCK_PX, cols[0] * header.segment_px)


@dataclass(frozen=True, kw_only=True)
class _Header:
    """The content of the bytes before a JPEG's segments.

    Attributes:
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
        segment_px: Width of a segment, which is one block high.
        lengths: Bytes of each segment and the marker behind it.
        stops: Offset behind each of these.
        table: Bytes of the table.
        size_at: Offset of height and width, two bytes each.
        num_bytes: Bytes of the header, behind which the segments begin.
    """

    height: int
    width: int
    segment_px: int
    lengths: Int64[np.ndarray, "rows cols"]
    stops: Int64[np.ndarray, "rows cols"]
    table: slice
    size_at: int
    num_bytes: int

    @classmethod
    def parse(cls, data: Encoded) -> Self | None:
        """Parse the header of an image with a table of its segments; None for every other image.

        Images without a table are left to the decoder to judge.

        Raises:
            DamagedImageError: the table is not that of an image of this size and number of bytes.
        """
        table_at = 2 + _num_bytes(data, 2)
        lengths_at = table_at + 4 + len(_TABLE_NAME)
        if data[table_at : table_at + 2] != _TABLE_MARKER or data[table_at + 4 : lengths_at] != _TABLE_NAME:
            return None
        at = table_stop = table_at + _num_bytes(data, table_at)
        height = width = interval = size_at = 0
        while at + 4 <= len(data) and data[at] == 0xFF:
            marker, start = data[at + 1], at + 4
            if marker == _SOF0:
                size_at = start + 1
                height, width = (int.from_bytes(data[offset : offset + 2]) for offset in (size_at, size_at + 2))
            elif marker == _DRI:
                interval = int.from_bytes(data[start : start + 2])
            at += _num_bytes(data, at)
            if marker == _SOS:
                break
        segment_px = max(interval, 1) * BLOCK_PX
        rows, cols = -(-height // BLOCK_PX), -(-width // segment_px)
        if table_stop - lengths_at != rows * cols * _TABLE_DTYPE.itemsize or not rows * cols:
            raise _damaged(f"a table of {table_stop - lengths_at} bytes for {rows} x {cols} segments")
        lengths = np.frombuffer(data[lengths_at:table_stop], _TABLE_DTYPE).astype(np.int64)
        stops = at + np.cumsum(lengths)
        if stops[-1] != len(data):
            raise _damaged(f"it should have {stops[-1]} bytes and has {len(data)}")
        table = slice(table_at, table_stop)
        return cls(
            height=height,
            width=width,
            segment_px=segment_px,
            lengths=lengths.reshape(rows, cols),
            stops=stops.reshape(rows, cols),
            table=table,
            size_at=size_at,
            num_bytes=at,
        )

    def cut(self, data: Encoded, rows: tuple[int, int], cols: tuple[int, int]) -> bytearray:
        """Cut a rectangle of segments out as a JPEG.

        Args:
            data: The whole image.
            rows: First row of segments, and one past the last.
            cols: First segment of a row, and one past the last.

        Raises:
            DamagedImageError: their markers are not where the table says.
        """
        box = slice(*rows), slice(*cols)
        starts, stops, kinds = self.stops[box] - self.lengths[box], self.stops[box], self._kinds()[box]
        # One run of bytes a row, with the marker behind it; behind the image's last segment that is the end of image.
        first, last = starts[:, 0], stops[:, -1]
        runs = [data[start:stop] for start, stop in zip(first.tolist(), last.tolist(), strict=True)]
        image = bytearray(b"".join([data[: self.table.start], data[self.table.stop : self.num_bytes], *runs]))
        num_bytes_of_table = self.table.stop - self.table.start
        moved = self.num_bytes - num_bytes_of_table + np.cumsum(last - first) - last
        coded, marker_at = np.frombuffer(image, np.uint8), (stops + moved[:, None]).ravel() - 1
        if (coded[marker_at - 1] != 0xFF).any() or (coded[marker_at] != kinds.ravel()).any():
            raise _damaged("its segments are not where its table says")
        coded[marker_at] = _RESTART + np.arange(len(marker_at)) % _NUM_RESTARTS
        image[-1] = _EOI
        height, width = (rows[1] - rows[0]) * BLOCK_PX, (cols[1] - cols[0]) * self.segment_px
        size = min(height, self.height - rows[0] * BLOCK_PX), min(width, self.width - cols[0] * self.segment_px)
        size_at = self.size_at - num_bytes_of_table
        image[size_at : size_at + 4] = b"".join(side.to_bytes(2) for side in size)
        return image

    def _kinds(self) -> UInt8[np.ndarray, "rows cols"]:
        """Return the kinds of the markers behind the segments."""
        kinds = (_RESTART + np.arange(self.stops.size) % _NUM_RESTARTS).astype(np.uint8)
        kinds[-1] = _EOI
        return kinds.reshape(self.stops.shape)


def _damaged(what: object) -> DamagedImageError:
    return DamagedImageError(f"truncated or damaged JPEG ({what})")
