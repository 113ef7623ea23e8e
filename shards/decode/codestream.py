"""What a compressed frame says of its own size, before anything decodes it."""

_START = b"\xff\xd8"
_END = b"\xff\xd9"
_JPEG_2000 = b"\xff\x4f\xff\x51"
# Frame headers: of JPEG but for DHT, JPG and DAC, which lie among them, and of JPEG-LS.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_BYTES_OF_PADDING = 64


def size_of(stream: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG, JPEG-LS or JPEG 2000 stream; None if it is none of them or ends before it says so."""
    if stream.startswith(_START):
        return _size_of_jpeg(stream)
    # A bare codestream, or one in the boxes of a JP2 file, which DICOM does not allow but which occur.
    start = stream.find(_JPEG_2000)
    if start < 0 or len(stream) < start + 24:
        return None
    width, height, left, top = (_integer(stream, start + 8 + 4 * place, 4) for place in range(4))
    return height - top, width - left


def is_ended(stream: bytes) -> bool:
    """Whether the mark that ends all three kinds of streams is there, up to some padding."""
    return _END in stream[-_BYTES_OF_PADDING:]


def _size_of_jpeg(stream: bytes) -> tuple[int, int] | None:
    place = 2
    while place + 9 <= len(stream) and stream[place] == 0xFF:
        marker = stream[place + 1]
        if marker == 0xFF:  # fill
            place += 1
        elif marker in _FRAMES:
            return _integer(stream, place + 5, 2), _integer(stream, place + 7, 2)
        else:
            place += 2 + _integer(stream, place + 2, 2)
    return None


def _integer(stream: bytes, place: int, length: int) -> int:
    return int.from_bytes(stream[place : place + length], "big")
