"""PNG, JPEG, TIFF, BMP and GIF, decoded to the end by Pillow under our own bounds.

Pillow passes over what its decoders only warn of, so the checksums of PNG are compared here, and JPEG goes through a
decoder that tells: a download that ended early may have been filled up with zeros or closed with an end mark. OpenCV
decodes grey PNG some 15 % faster, but prints its complaints.
"""

import io
import logging
import re
import warnings
import zlib

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from shards.canvas import Pixels
from shards.decode.grey import Values, spread
from shards.decode.reasons import (
    DAMAGED,
    DEEP_COLOUR,
    MULTI_FRAME,
    TOO_LARGE,
    UNREAD_VARIANT,
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
_PNG_BITS, _PNG_COLOUR_TYPE = 24, 25
_PNG_INDEXED = 3
_JPEG_COLOURS = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
_SURPLUS = re.compile(r"\b[1-4] extraneous bytes before marker 0xd9")  # the mark that ends the file
_GREY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_SIGNED = 2
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
"""How an image is set upright, by its EXIF orientation."""


def decode_raster(data: bytes, kind: RasterKind, *, max_pixels: float) -> Decoded:
    """The image, by the rules of `decode`.

    Raises:
        UnreadableImageError: with the reason for quarantine.
    """
    image = load(data, kind, max_pixels=max_pixels)
    bits = _bits(image, data)
    if not is_deep(image):
        return Decoded(eight_bit_pixels(image), Facts(bits, window=(0.0, 1.0 if image.mode == "1" else 255.0)))
    pixels, window = spread(values_of(image))
    return Decoded(pixels, Facts(bits, window=(window.low, window.high), window_rule=window.rule))


def load(data: bytes, kind: RasterKind, *, max_pixels: float) -> Image.Image:
    """A file as a decoded, upright Pillow image; `is_deep` says what may be done with it.

    Raises:
        UnreadableImageError: with the reason for quarantine.
    """
    try:
        with warnings.catch_warnings():
            # Pillow's own pixel bound and its remarks on odd metadata; ours is checked below, before decoding.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(_essential(data) if kind == "PNG" else data), formats=(kind,))
            _check(image, data, max_pixels)
            image.info.pop("xmp", None)  # whose orientation Pillow would take where EXIF has none
            # Pillow turns TIFF itself while loading, and then says that it is upright.
            loaded = _load_jpeg(image, data) if kind == "JPEG" else _load(image)
            return _upright(loaded, image.getexif().get(ExifTags.Base.Orientation, 1))
    except Image.DecompressionBombError:
        raise UnreadableImageError(TOO_LARGE) from None
    except UnidentifiedImageError:
        raise UnreadableImageError(UNREAD_VARIANT if kind in ("TIFF", "BMP") else DAMAGED) from None
    except UnreadableImageError:
        raise
    # Pillow's parsers let nearly any error through on damaged files; one file must not end the batch.
    except Exception:
        raise UnreadableImageError(DAMAGED) from None


def is_deep(image: Image.Image) -> bool:
    """Whether a loaded image has more than 8 bits; its values are then those of `values_of`."""
    return image.mode in _DEEP


def values_of(image: Image.Image) -> Values:
    """The integers of a deep image; 0 is black."""
    values = np.asarray(image)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    # Pillow resolves white-is-zero for 8 bits alone.
    is_white_zero = _tag(image, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    return np.iinfo(np.uint16).max - values if is_white_zero else values


def eight_bit_pixels(image: Image.Image) -> Pixels:
    """A Pillow image of at most 8 bits as grey or RGB: alpha dropped, palettes and CMYK resolved."""
    mode = "L" if image.mode in _GREY else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode))


def decode_sound_jpeg(data: bytes, colour: str) -> UInt8[np.ndarray, "height width channels"]:
    """The pixels of a JPEG of 8 bits, of which the decoder found every one.

    Args:
        data: The file.
        colour: As simplejpeg calls it.

    Raises:
        ValueError: the data end before the picture, or are damaged.
    """
    pixels: UInt8[np.ndarray, "height width channels"]
    try:
        pixels = simplejpeg.decode_jpeg(data, colour)
    except ValueError as error:
        # Left over when the whole picture was there, as some cameras do it. Many would say that it lost its way.
        if not _SURPLUS.search(str(error)):
            raise
        pixels = simplejpeg.decode_jpeg(data, colour, strict=False)
    return pixels


def _essential(data: bytes) -> bytes:
    """A PNG file without what is not needed for its pixels.

    Raises:
        UnreadableImageError: it is an animation, or a chunk is not what its checksum says.
    """
    if not data.startswith(_PNG_SIGNATURE):
        raise UnreadableImageError(DAMAGED)
    view, start = memoryview(data), len(_PNG_SIGNATURE)
    parts = [view[:start]]
    while start + 12 <= len(data):
        name = data[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if name == b"acTL" and int.from_bytes(data[start + 8 : start + 12], "big") > 1:
            raise UnreadableImageError(MULTI_FRAME)
        if name in _PNG_CHUNKS:
            if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
                raise UnreadableImageError(DAMAGED)
            parts.append(view[start:end])
        if name == b"IEND":
            break
        start = end
    # A file of several hundred kilobytes is not copied for nothing.
    return data if sum(map(len, parts)) == len(data) else b"".join(parts)


def _check(image: Image.Image, data: bytes, max_pixels: float) -> None:
    if image.width * image.height > max_pixels:
        raise UnreadableImageError(TOO_LARGE)
    if image.format == "PNG" and data[_PNG_BITS] == 16 and data[_PNG_COLOUR_TYPE] != 0:
        raise UnreadableImageError(DEEP_COLOUR)
    if image.format in ("TIFF", "GIF") and getattr(image, "n_frames", 1) > 1:
        raise UnreadableImageError(MULTI_FRAME)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _check_tiff(image, max_pixels)


def _check_tiff(image: TiffImagePlugin.TiffImageFile, max_pixels: float) -> None:
    # A tile is decoded whole, whatever part of it the image needs.
    if (_tag(image, TiffImagePlugin.TILEWIDTH) or 0) * (_tag(image, TiffImagePlugin.TILELENGTH) or 0) > max(
        max_pixels, 2**20
    ):
        raise UnreadableImageError(TOO_LARGE)
    bits = _tag(image, TiffImagePlugin.BITSPERSAMPLE) or 1
    if bits > 8 and image.mode not in _DEEP:
        raise UnreadableImageError(DEEP_COLOUR if bits == 16 else UNREAD_VARIANT)
    # Pillow takes signed bytes for unsigned ones.
    is_signed_byte = bits == 8 and _tag(image, TiffImagePlugin.SAMPLEFORMAT) == _SIGNED
    if bits > 16 or is_signed_byte or image.mode not in (*_GREY, *_COLOUR, *_DEEP):
        raise UnreadableImageError(UNREAD_VARIANT)


def _load(image: Image.Image) -> Image.Image:
    image.load()
    return image


def _load_jpeg(image: Image.Image, data: bytes) -> Image.Image:
    """The pixels that Pillow would give, or for CMYK gives, if the decoder has no doubts."""
    pixels = decode_sound_jpeg(data, _JPEG_COLOURS[image.mode])
    if image.mode == "CMYK":  # inverted or not, which Pillow knows
        return _load(image)
    return Image.fromarray(pixels[..., 0] if image.mode == "L" else pixels)


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNED.get(orientation)
    return image if turn is None else image.transpose(turn)


def _bits(image: Image.Image, data: bytes) -> int:
    if data.startswith(_PNG_SIGNATURE):
        return 8 if data[_PNG_COLOUR_TYPE] == _PNG_INDEXED else data[_PNG_BITS]
    if image.mode == "1":
        return 1
    return _tag(image, TiffImagePlugin.BITSPERSAMPLE) or 8


def _tag(image: Image.Image, tag: int) -> int | None:
    """The first number of a TIFF tag; None of other files."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    value = image.tag_v2.get(tag)
    return int(value[0] if isinstance(value, tuple) else value) if value is not None else None
