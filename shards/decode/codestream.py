"""Read what a compressed frame says of itself, before anything decodes it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Codec = Literal["JPEG", "lossless JPEG", "JPEG-LS", "JPEG 2000"]
ColourSpace = Literal["RGB", "YBR_FULL"]

_START = b"\xff\xd8"
_END = b"\xff\xd9"
_JPEG_2000 = b"\xff\x4f\xff\x51"
_MARKER = re.compile(rb"\xff+[^\x00\xff]")
# Within coded data a byte FF is followed by 00, or it begins a marker; D0 to D7 restart the code.
_MARKER_BEHIND_CODE = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_SOS, _APP0, _APP14, _APP15, _COMMENT, _JPEG_LS = 0xDA, 0xE0, 0xEE, 0xEF, 0xFE, 0xF7
# Frame headers: of JPEG but for DHT, JPG and DAC, which lie among them, and of JPEG-LS.
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {_JPEG_LS}
_LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
_SEQUENTIAL = (0xC0, 0xC1, 0xC9)
_SIZE, _CODING, _TILE_PART = b"\xff\x51", b"\xff\x52", b"\xff\x90"  # of JPEG 2000
_PLAIN_JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
_WHOLE_BLOCK = b"\x00\x3f\x00"
_RGB_NAMES = (b"RGB", b"rgb")
_BYTES_OF_PADDING = 64


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The header of a JPEG, JPEG-LS or JPEG 2000 stream.

    Attributes:
        codec: Kind of the stream; `JPEG` is the lossy one.
        height: Rows.
        width: Columns.
        num_components: Samples of a pixel.
        precision: Bits of a sample.
        colour_space: Colour space of three components that the stream names; None if it names none.
    """

    codec: Codec
    height: int
    width: int
    num_components: int
    precision: int
    colour_space: ColourSpace | None


@dataclass(frozen=True)
class _Piece:
    """A marker of a JPEG's header and what belongs to it, from the marker on."""

    marker: int
    data: bytes

    @property
    def is_jfif(self) -> bool:
        return self.marker == _APP0 and self.data.startswith(b"JFIF\0", 4) and len(self.data) >= 18

    @property
    def is_adobe(self) -> bool:
        return self.marker == _APP14 and self.data.startswith(b"Adobe", 4) and len(self.data) >= 16


def read_frame(stream: bytes) -> Frame | None:
    """Read the header of a stream; None if it is none of the three kinds or ends within the header."""
    if stream.startswith(_START):
        return _read_jpeg(stream)
    # A bare codestream, or one in the boxes of a JP2 file, which DICOM does not allow but which occur.
    start = stream.find(_JPEG_2000)
    if start < 0 or len(stream) < start + 43:
        return None
    width, height, left, top = (_integer(stream, start + 8 + 4 * offset, 4) for offset in range(4))
    num_components = _integer(stream, start + 40, 2)
    precision = (stream[start + 42] & 0x7F) + 1
    # Decoders undo the transformation of components where the stream has one, so what they give is RGB.
    coding = _offset_in_main_header(stream, _CODING)
    is_transformed = stream.startswith(_CODING, coding) and stream[coding + 8 : coding + 9] == b"\1"
    colour_space: ColourSpace | None = "RGB" if is_transformed else None
    return Frame(
        codec="JPEG 2000",
        height=height - top,
        width=width - left,
        num_components=num_components,
        precision=precision,
        colour_space=colour_space,
    )


def is_ended(stream: bytes) -> bool:
    """Tell whether the end mark of all three kinds of streams is there, up to zeros and some other padding."""
    return _END in stream.rstrip(b"\0")[-_BYTES_OF_PADDING:]


def has_every_part(stream: bytes) -> bool:
    """Tell whether each component of a JPEG has a scan, and each tile of JPEG 2000 all its parts.

    Decoders fill up in silence what has none.

    Args:
        stream: One of which `read_frame` tells the header.
    """
    return _has_every_scan(stream) if stream.startswith(_START) else _has_every_tile(stream)


def without_oddities(stream: bytes) -> bytes:
    """Remove from a JPEG what sound pictures may have and decoders warn of; its pixels stay the same.

    libjpeg tells of its first doubt alone, so a version of JFIF that does not exist would hide all damage behind it.
    Left out or set right are: pieces that no decoder needs, bytes between pieces, versions of JFIF, transformations of
    Adobe's, and the parameters of scans that mean something in progressive JPEG alone.

    Args:
        stream: A JPEG; any other is returned as it is.
    """
    if not stream.startswith(_START):
        return stream
    pieces, code_at = _header(stream)
    frame_header = _frame_header(pieces)
    if not frame_header or pieces[-1].marker != _SOS or frame_header[1] == _JPEG_LS:
        return stream
    code = stream[code_at:]
    header = [_plain(piece, frame_header) for piece in pieces]
    return b"".join([_START, *header, _with_whole_blocks(code) if frame_header[1] in _SEQUENTIAL else code])


def _read_jpeg(stream: bytes) -> Frame | None:
    pieces, _ = _header(stream)
    data = _frame_header(pieces)
    if not data:
        return None
    marker, num_components = data[1], data[9]
    codec: Codec = "JPEG-LS" if marker == _JPEG_LS else "lossless JPEG" if marker in _LOSSLESS else "JPEG"
    height, width = _integer(data, 5, 2), _integer(data, 7, 2)
    return Frame(
        codec=codec,
        height=height,
        width=width,
        num_components=num_components,
        precision=data[4],
        colour_space=_colour_space(pieces, data),
    )


def _colour_space(pieces: list[_Piece], frame_header: bytes) -> ColourSpace | None:
    """Tell the colour space as libjpeg does: by JFIF, by Adobe's transformation, by the components' names.

    Components that differ in resolution can only be luma and chroma.
    """
    names, samplings = (frame_header[10 + part :: 3] for part in (0, 1))
    if len(names) != 3:
        return None
    if any(piece.is_jfif for piece in pieces):
        return "YBR_FULL"
    if adobe := [piece.data for piece in pieces if piece.is_adobe]:
        return "YBR_FULL" if adobe[-1][15] else "RGB"
    if names in _RGB_NAMES:
        return "RGB"
    return "YBR_FULL" if len(set(samplings)) > 1 else None


def _header(stream: bytes) -> tuple[list[_Piece], int]:
    """Return the pieces of a JPEG's header, the first scan's the last of them, and where the code begins."""
    pieces: list[_Piece] = []
    offset = len(_START)
    while found := _MARKER.search(stream, offset):
        start = found.end() - 2
        offset = start + 2 + _integer(stream, start + 2, 2)
        pieces.append(_Piece(stream[start + 1], stream[start:offset]))
        if pieces[-1].marker in (_SOS, _END[1]):
            break
    return pieces, offset


def _frame_header(pieces: list[_Piece]) -> bytes:
    """Find the piece of the header with size and components; nothing if it is missing or cut."""
    data = next((piece.data for piece in pieces if piece.marker in _FRAME_HEADERS), b"")
    end = 10 + 3 * data[9] if len(data) > 9 else 0
    return data[:end] if len(data) >= end else b""


def _plain(piece: _Piece, frame_header: bytes) -> bytes:
    data = piece.data
    if piece.marker == _SOS:
        return data[:-3] + _WHOLE_BLOCK if frame_header[1] in _SEQUENTIAL else data
    if piece.is_jfif:
        return _PLAIN_JFIF
    if piece.is_adobe:
        transform = 0 if data[15] == 0 else 2 if frame_header[9] == 4 else 1
        return data[:15] + bytes([transform]) + data[16:]
    return b"" if _APP0 <= piece.marker <= _APP15 or piece.marker == _COMMENT else data


def _later_scans(code: bytes) -> Iterator[slice]:
    """Yield the spans of the headers of further scans behind the first one's."""
    for found in _MARKER_BEHIND_CODE.finditer(code):
        if code[found.end() - 1] == _SOS:
            yield slice(found.end() - 2, found.end() + _integer(code, found.end(), 2))


def _with_whole_blocks(code: bytes) -> bytes:
    """Return the code of the first scan and all that follows, later scans' headers with the right parameters."""
    parts, start = [], 0
    for header in _later_scans(code):
        parts += [code[start : header.stop - 3], _WHOLE_BLOCK]
        start = header.stop
    return b"".join([*parts, code[start:]])


def _has_every_scan(stream: bytes) -> bool:
    pieces, code_at = _header(stream)
    if not pieces:
        return False
    missing = set(_frame_header(pieces)[10::3]) - _components_of(pieces[-1].data)
    if not missing:
        return True
    code = stream[code_at:]
    return not missing.difference(*(_components_of(code[header]) for header in _later_scans(code)))


def _components_of(scan_header: bytes) -> set[int]:
    return set(scan_header[5 : 5 + 2 * scan_header[4] : 2]) if len(scan_header) > 4 else set()


def _has_every_tile(stream: bytes) -> bool:
    size = _offset_in_main_header(stream, _SIZE)
    width, height, _, _, tile_width, tile_height, left, top = (
        _integer(stream, size + 6 + 4 * offset, 4) for offset in range(8)
    )
    if not tile_width * tile_height:
        return False
    num_tiles = -((left - width) // tile_width) * -((top - height) // tile_height)
    num_parts: dict[int, int] = {}
    expected: dict[int, int] = {}
    offset = _offset_in_main_header(stream, _TILE_PART)
    while stream.startswith(_TILE_PART, offset) and offset + 12 <= len(stream):
        tile, num_bytes = _integer(stream, offset + 4, 2), _integer(stream, offset + 6, 4)
        num_parts[tile] = num_parts.get(tile, 0) + 1
        # 0 leaves it open, and a later part may say it.
        expected[tile] = max(expected.get(tile, 0), stream[offset + 11])
        if not num_bytes:  # up to the end
            break
        offset += num_bytes
    return len(num_parts) == num_tiles and all(num_parts[tile] >= expected[tile] for tile in num_parts)


def _offset_in_main_header(stream: bytes, marker: bytes) -> int:
    """Return the offset of a marker of a JPEG 2000 stream, or of its first tile if that comes no later."""
    offset = stream.index(_JPEG_2000) + 2
    while offset + 4 <= len(stream) and stream[offset : offset + 2] not in (marker, _TILE_PART):
        offset += 2 + _integer(stream, offset + 2, 2)
    return offset


def _integer(stream: bytes, offset: int, length: int) -> int:
    return int.from_bytes(stream[offset : offset + length], "big")
