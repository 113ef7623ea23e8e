"""PNG, JPEG, TIFF, BMP and GIF, decoded to the end by Pillow under our own bounds.

Pillow passes over what its decoders only warn of, so the checksums of PNG are compared here, and JPEG goes through a
decoder that tells: a download that ended early may have been filled up with zeros or closed with an end mark. OpenCV
decodes grey PNG some 15 % faster, but prints its complaints.
"""

import io
import logging
import math
import warnings
import zlib
from collections.abc import Iterator

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from shards.core.canvas import Pixels
from shards.core.errors import UserError
from shards.decode.codestream import has_every_part, read_frame, without_oddities
from shards.decode.grey import Values, spread
from shards.decode.isolated import SURPLUS, check_jpeg_isolated
from shards.decode.reasons import (
    DAMAGED,
    DEEP_COLOUR,
    MULTI_FRAME,
    UNREAD_JPEG,
    UNREAD_TIFF,
    UNREAD_VARIANT,
    TooLargeError,
    UnreadableImageError,
)
from shards.decode.result import Decoded, Facts
from shards.decode.signature import RasterKind

# Pillow's log lines quote what stands in the tags of TIFF and EXIF; they must not reach the root logger's handlers.
logging.getLogger("PIL").propagate = False
logging.getLogger("PIL").addHandler(logging.NullHandler())

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# The other chunks are text, profiles and times: nothing here needs them, and they can inflate without end.
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"eXIf")
_PNG_BITS, _PNG_COLOUR_TYPE, _PNG_IS_INTERLACED = 24, 25, 28
_PNG_INDEXED = 3
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_WHOLE = ((0, 1, 0, 1),)
_PNG_PASSES = (
    *((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4)),
    *((2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1)),
)
"""First row, rows from one to the next, first column and columns likewise, of each pass of an interlaced PNG."""
_BLOCK_BYTES = 2**18
_MIN_TILE_PIXELS = 2**20
"""Tiles of so many pixels are decoded whatever the bound."""
_JPEG_COLOURS = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_UNNAMED_SAMPLING = "Could not determine subsampling"
_GREY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_SIGNED, _BY_PLANE = 2, 2
_BIG_ENDIAN_BIG_TIFF = b"MM\0+"
_DEEP = ("I;16", "I;16B", "I;16L", "I")
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → operation that sets an image upright."""
_XMP = ("xmp", "XML:com.adobe.xmp")


def decode_raster(data: bytes, kind: RasterKind, *, max_pixels: float) -> Decoded:
    """Decode an image, by the rules of `decode`.

    Raises:
        UnreadableImageError: with the reason for quarantine.
    """
    image = load(data, kind, max_pixels=max_pixels)
    bits = _bits(image, data)
    if not is_deep(image):
        return Decoded(
            eight_bit_pixels(image), Facts(bits_stored=bits, window=(0.0, 1.0 if image.mode == "1" else 255.0))
        )
    pixels, window = spread(values_of(image))
    return Decoded(pixels, Facts(bits_stored=bits, window=(window.low, window.high), window_rule=window.rule))


def load(data: bytes, kind: RasterKind, *, max_pixels: float) -> Image.Image:
    """Load a file as a decoded, upright Pillow image; `is_deep` says what may be done with it.

    Raises:
        UnreadableImageError: with the reason for quarantine.
    """
    try:
        with warnings.catch_warnings():
            # Pillow's own pixel bound and its remarks on odd metadata; ours is checked below, before decoding.
            warnings.simplefilter("ignore")
            if kind == "JPEG":
                _check_jpeg(data)
            if data.startswith(_BIG_ENDIAN_BIG_TIFF):  # which Pillow takes for no TIFF
                raise UnreadableImageError(UNREAD_TIFF)
            image = Image.open(io.BytesIO(_essential(data) if kind == "PNG" else data), formats=(kind,))
            _check(image, data, max_pixels)
            for key in _XMP:
                image.info.pop(key, None)
            # Pillow turns TIFF itself while loading, and then says that it is upright.
            loaded = _load_jpeg(image, data) if kind == "JPEG" else _load(image)
            if kind == "PNG":
                _check_rows(loaded, data)
            return upright(loaded, image)
    except Image.DecompressionBombError:
        raise TooLargeError(max_pixels=min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or math.inf))) from None
    except UnidentifiedImageError:
        raise UnreadableImageError(UNREAD_VARIANT if kind in ("TIFF", "BMP") else DAMAGED) from None
    except (UnreadableImageError, UserError):
        raise
    # Pillow's parsers let nearly any error through on damaged files; one file must not end the batch.
    except Exception:
        raise UnreadableImageError(DAMAGED) from None


def upright(loaded: Image.Image, opened: Image.Image) -> Image.Image:
    """Turn a decoded image as the EXIF orientation of the opened one says."""
    xmp = {key: opened.info.pop(key) for key in _XMP if key in opened.info}  # where Pillow would look too
    turn = _TURNED.get(opened.getexif().get(ExifTags.Base.Orientation, 1))
    opened.info.update(xmp)
    return loaded if turn is None else loaded.transpose(turn)


def check_kind(image: Image.Image, data: bytes) -> None:
    """Refuse an opened PNG or TIFF of which Pillow makes other values than the file has.

    Args:
        image: The image as Pillow opened it.
        data: The file, or its first few dozen bytes.

    Raises:
        UnreadableImageError: it is 16-bit colour, or a TIFF of a kind that is not read.
    """
    if data.startswith(_PNG_SIGNATURE) and data[_PNG_BITS] == 16 and data[_PNG_COLOUR_TYPE] != 0:
        raise UnreadableImageError(DEEP_COLOUR)
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    bits = _tag(image, TiffImagePlugin.BITSPERSAMPLE) or 1
    if bits > 8 and image.mode not in _DEEP:
        raise UnreadableImageError(DEEP_COLOUR if bits == 16 else UNREAD_TIFF)
    # Pillow takes signed bytes for unsigned ones.
    is_signed_byte = bits == 8 and _tag(image, TiffImagePlugin.SAMPLEFORMAT) == _SIGNED
    if bits > 16 or is_signed_byte or image.mode not in (*_GREY, *_COLOUR, *_DEEP):
        raise UnreadableImageError(UNREAD_TIFF)
    if image.info.get("compression") == "webp":  # which not every libtiff decodes
        raise UnreadableImageError(UNREAD_TIFF)


def is_deep(image: Image.Image) -> bool:
    """Tell whether a loaded image has more than 8 bits; its values are then those of `values_of`."""
    return image.mode in _DEEP


def values_of(image: Image.Image) -> Values:
    """Return the integers of a deep image; 0 is black."""
    values = np.asarray(image)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    # Pillow resolves white-is-zero for 8 bits alone.
    is_white_zero = _tag(image, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    return np.iinfo(np.uint16).max - values if is_white_zero else values


def eight_bit_pixels(image: Image.Image) -> Pixels:
    """Convert a Pillow image of at most 8 bits to grey or RGB: alpha dropped, palettes and CMYK resolved."""
    mode = "L" if image.mode in _GREY else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode))


def decode_sound_jpeg(data: bytes, colour: str) -> UInt8[np.ndarray, "height width channels"] | None:
    """Decode a JPEG of 8 bits, of which the decoder found every pixel.

    Args:
        data: The file.
        colour: Colour space to decode to, as simplejpeg calls it.

    Returns:
        None if the file is sound, but of a sampling that simplejpeg does not decode.

    Raises:
        UnreadableImageError: the data end before the picture, or are damaged.
        DecoderError: the process that such a sampling needs cannot be started.
    """
    if not has_every_part(data):
        raise UnreadableImageError(DAMAGED)
    try:
        return _simplejpeg(data, colour)
    except ValueError as error:
        plain = without_oddities(data)
        if _UNNAMED_SAMPLING in str(error):
            check_jpeg_isolated(plain)
            return None
    try:
        return _simplejpeg(plain, colour)
    except ValueError:
        raise UnreadableImageError(DAMAGED) from None


def _simplejpeg(data: bytes, colour: str) -> UInt8[np.ndarray, "height width channels"]:
    pixels: UInt8[np.ndarray, "height width channels"]
    try:
        pixels = simplejpeg.decode_jpeg(data, colour)
    except ValueError as error:
        # Left over when the whole picture was there, as some cameras do it. Many would say that it lost its way.
        if not SURPLUS.search(str(error)):
            raise
        pixels = simplejpeg.decode_jpeg(data, colour, strict=False)
    return pixels


def _essential(data: bytes) -> bytes:
    """Remove from a PNG file what is not needed for its pixels.

    Raises:
        UnreadableImageError: it is an animation, or a chunk is not what its checksum says.
    """
    if not data.startswith(_PNG_SIGNATURE):
        raise UnreadableImageError(DAMAGED)
    parts = [memoryview(_PNG_SIGNATURE)]
    for name, chunk in _png_chunks(data):
        if name == b"acTL" and int.from_bytes(chunk[8:12], "big") > 1:
            raise UnreadableImageError(MULTI_FRAME)
        if name in _PNG_CHUNKS:
            if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
                raise UnreadableImageError(DAMAGED)
            parts.append(chunk)
        if name == b"IEND":
            break
    # A file of several hundred kilobytes is not copied for nothing.
    return data if sum(map(len, parts)) == len(data) else b"".join(parts)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield names and whole chunks of a PNG, up to the last; one whose end is missing is left out."""
    view, start = memoryview(data), len(_PNG_SIGNATURE)
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(view[start : start + 4], "big")
        yield bytes(view[start + 4 : start + 8]), view[start:end]
        start = end


def _check_rows(image: Image.Image, data: bytes) -> None:
    """Refuse a PNG of fewer rows than it says: Pillow leaves the others black."""
    # Inflating once more takes a third of the time, and where a picture's last row is not black it was there.
    if not data[_PNG_IS_INTERLACED] and np.asarray(image)[-1].any():
        return
    bits_of_pixel = data[_PNG_BITS] * _PNG_CHANNELS[data[_PNG_COLOUR_TYPE]]
    num_missing = 0
    for row, rows, col, cols in _PNG_PASSES if data[_PNG_IS_INTERLACED] else _PNG_WHOLE:
        height, width = len(range(row, image.height, rows)), len(range(col, image.width, cols))
        num_missing += height * (1 + -(-width * bits_of_pixel // 8)) if width else 0
    stream = zlib.decompressobj()
    for name, chunk in _png_chunks(data):
        coded = bytes(chunk[8:-4]) if name == b"IDAT" else b""
        while coded and num_missing > 0:
            num_missing -= len(stream.decompress(coded, _BLOCK_BYTES))
            coded = stream.unconsumed_tail
    if num_missing > len(stream.flush()):
        raise UnreadableImageError(DAMAGED)


def _check_jpeg(data: bytes) -> None:
    frame = read_frame(data)
    if frame is not None and (frame.codec != "JPEG" or frame.precision != 8):
        raise UnreadableImageError(UNREAD_JPEG)


def _check(image: Image.Image, data: bytes, max_pixels: float) -> None:
    if image.width * image.height > max_pixels:
        raise TooLargeError(image.width * image.height, max_pixels)
    if image.format in ("TIFF", "GIF") and getattr(image, "n_frames", 1) > 1:
        raise UnreadableImageError(MULTI_FRAME)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # A tile is decoded whole, whatever part of it the image needs.
        tile = (_tag(image, TiffImagePlugin.TILEWIDTH) or 0) * (_tag(image, TiffImagePlugin.TILELENGTH) or 0)
        if tile > max(max_pixels, _MIN_TILE_PIXELS):
            raise TooLargeError(tile, max(max_pixels, _MIN_TILE_PIXELS))
        check_kind(image, data)
        _check_strips(image, data, max_pixels)
    else:
        check_kind(image, data)


def _check_strips(image: TiffImagePlugin.TiffImageFile, data: bytes, max_pixels: float) -> None:
    """Refuse a TIFF of which strips or tiles are missing, or those of JPEG damaged: Pillow shows what there is."""
    if image.info.get("compression") == "jpeg":
        _check_jpegs_of_strips(image, data, max_pixels)
    elif image.tile[0][0] != "libtiff":  # which sees to it itself
        num_planes = _tag(image, TiffImagePlugin.SAMPLESPERPIXEL) or 1 if _is_by_plane(image) else 1
        boxes = [tile.extents for tile in image.tile if tile.extents is not None]
        num_pixels = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes)
        if num_pixels < image.width * image.height * num_planes:
            raise UnreadableImageError(DAMAGED)


def _check_jpegs_of_strips(image: TiffImagePlugin.TiffImageFile, data: bytes, max_pixels: float) -> None:
    tags = image.tag_v2
    tables = tags.get(TiffImagePlugin.JPEGTABLES, b"")
    is_tiled = TiffImagePlugin.TILEOFFSETS in tags
    offsets = tags[TiffImagePlugin.TILEOFFSETS if is_tiled else TiffImagePlugin.STRIPOFFSETS]
    lengths = tags[TiffImagePlugin.TILEBYTECOUNTS if is_tiled else TiffImagePlugin.STRIPBYTECOUNTS]
    num_rows = _tag(image, TiffImagePlugin.TILELENGTH if is_tiled else TiffImagePlugin.ROWSPERSTRIP) or image.height
    num_strips = -(-image.height // num_rows)
    for number, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        # The tables are a JPEG of their own, without a picture.
        stream = (tables[:-2] or data[offset : offset + 2]) + data[offset + 2 : offset + length]
        frame = read_frame(stream)
        rows_left = num_rows if is_tiled else min(num_rows, image.height - number % num_strips * num_rows)
        if frame is None or frame.height < rows_left:
            raise UnreadableImageError(DAMAGED)
        if frame.height * frame.width > max(max_pixels, _MIN_TILE_PIXELS):
            raise TooLargeError(frame.height * frame.width, max(max_pixels, _MIN_TILE_PIXELS))
        decode_sound_jpeg(stream, "GRAY")


def _is_by_plane(image: TiffImagePlugin.TiffImageFile) -> bool:
    return _tag(image, TiffImagePlugin.PLANAR_CONFIGURATION) == _BY_PLANE


def _load(image: Image.Image) -> Image.Image:
    image.load()
    return image


def _load_jpeg(image: Image.Image, data: bytes) -> Image.Image:
    """Decode a JPEG to the pixels that Pillow would give, or for CMYK gives, if the decoder has no doubts."""
    pixels = decode_sound_jpeg(data, _JPEG_COLOURS[image.mode])
    if pixels is None or image.mode == "CMYK":  # inverted or not, which Pillow knows
        return _load(image)
    return Image.fromarray(pixels[..., 0] if image.mode == "L" else pixels)


def _bits(image: Image.Image, data: bytes) -> int:
    if data.startswith(_PNG_SIGNATURE):
        return 8 if data[_PNG_COLOUR_TYPE] == _PNG_INDEXED else data[_PNG_BITS]
    if image.mode == "1":
        return 1
    return _tag(image, TiffImagePlugin.BITSPERSAMPLE) or 8


def _tag(image: Image.Image, tag: int) -> int | None:
    """Return the first number of a TIFF tag; None for other files."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    value = image.tag_v2.get(tag)
    return int(value[0] if isinstance(value, tuple) else value) if value is not None else None
