"""What a compressed frame says of itself, before anything decodes it."""

from dataclasses import dataclass

_START = b"\xff\xd8"
_END = b"\xff\xd9"
_JPEG_2000 = b"\xff\x4f\xff\x51"
# Frame headers: of JPEG but for DHT, JPG and DAC, which lie among them, and of JPEG-LS.
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_BYTES_OF_PADDING = 64


@dataclass(frozen=True)
class Frame:
    """The header of a JPEG, JPEG-LS or JPEG 2000 stream.

    Attributes:
        height: Rows.
        width: Columns.
        num_components: Samples of a pixel.
        precision: Bits of a sample.
        is_subsampled: Whether the components of a JPEG differ in resolution, as only luma and chroma do.
    """

    height: int
    width: int
    num_components: int
    precision: int
    is_subsampled: bool


def read_frame(stream: bytes) -> Frame | None:
    """The header of a stream; None if it is none of the three or ends within the header."""
    if stream.startswith(_START):
        return _read_jpeg(stream)
    # A bare codestream, or one in the boxes of a JP2 file, which DICOM does not allow but which occur.
    start = stream.find(_JPEG_2000)
    if start < 0 or len(stream) < start + 43:
        return None
    width, height, left, top = (_integer(stream, start + 8 + 4 * place, 4) for place in range(4))
    num_components = _integer(stream, start + 40, 2)
    return Frame(height - top, width - left, num_components, (stream[start + 42] & 0x7F) + 1, is_subsampled=False)


def is_ended(stream: bytes) -> bool:
    """Whether the mark that ends all three kinds of streams is there, up to some padding."""
    return _END in stream[-_BYTES_OF_PADDING:]


def _read_jpeg(stream: bytes) -> Frame | None:
    place = 2
    while place + 10 <= len(stream) and stream[place] == 0xFF:
        marker = stream[place + 1]
        if marker == 0xFF:  # fill
            place += 1
        elif marker in _FRAME_HEADERS:
            num_components = stream[place + 9]
            samplings = set(stream[place + 11 : place + 10 + 3 * num_components : 3])
            height, width = _integer(stream, place + 5, 2), _integer(stream, place + 7, 2)
            return Frame(height, width, num_components, stream[place + 4], is_subsampled=len(samplings) > 1)
        else:
            place += 2 + _integer(stream, place + 2, 2)
    return None


def _integer(stream: bytes, place: int, length: int) -> int:
    return int.from_bytes(stream[place : place + length], "big")
