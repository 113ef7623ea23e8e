"""Turn whatever a user holds an image as into 8-bit pixels: PIL, numpy, torch, or an image file."""

import math
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile
from torch import Tensor

from shards.core.canvas import Pixels
from shards.core.errors import UserError
from shards.decode import UnreadableImageError, decode
from shards.decode.grey import spread
from shards.decode.raster import check_kind, eight_bit_pixels, is_deep, upright, values_of
from shards.decode.reasons import TooLargeError

ImageInput = Image.Image | np.ndarray | Tensor | str | os.PathLike[str]

MAX_SOURCE_PIXELS = 100e6
_READ_AS_FILES = ("PNG", "JPEG", "MPO", "TIFF", "BMP", "GIF")
_PNG_HEADER_BYTES = 33


class ImageInputError(UserError, ValueError):
    """An input cannot be taken as an image; the message names neither file nor content."""


def decode_file(data: bytes, max_pixels: float, *, option: str = "") -> Pixels:
    """Decode the pixels of an image file of any kind that shards are made of, told apart by content.

    Args:
        data: Content of the file.
        max_pixels: Larger images are not decoded.
        option: Whatever raises that bound, for the message; empty where nothing does.

    Raises:
        UnreadableImageError: with a fixed reason, or the size of an image that is too large.
    """
    try:
        return decode(data, max_pixels=max_pixels).pixels
    except TooLargeError as error:
        raise UnreadableImageError(error.explain(max_pixels, option)) from None


def to_pixels(image: ImageInput) -> Pixels:
    """Convert an image to grey [H, W] or colour [H, W, 3] in 8 bits.

    A PIL image that was opened and not yet decoded is read as its file would be; any other is taken as Pillow holds it,
    upright, and of several frames the current one.

    A numpy array is [H, W] or [H, W, channels], a tensor [H, W] or [channels, H, W], with 1, 3 or 4 channels; of 4 the
    last is alpha and dropped. Values: 8-bit integers as they are; other integers (grey alone) from their own
    percentiles to 0..255, as 16-bit files; floats must lie in [0, 1], or outside by less than half a grey level; false
    is black and true is white.

    Raises:
        ImageInputError: it is nothing of these, or a file that cannot be read.
    """
    match image:
        case Image.Image():
            return _from_pillow(image)
        case Tensor():
            return _from_tensor(image)
        case np.ndarray():
            return _from_array(image)
        case str() | os.PathLike():
            return _from_file(Path(image))
    raise ImageInputError(
        f"a {type(image).__name__} is no image; expected a PIL image, a numpy array, a torch tensor, or the path of an "
        "image file (PNG, JPEG, TIFF, BMP, GIF, DICOM)"
    )


def _from_pillow(image: Image.Image) -> Pixels:
    if 0 in image.size:
        raise ImageInputError(f"a PIL image of {image.width} x {image.height} pixels: expected one that is not empty")
    if isinstance(image, ImageFile.ImageFile):
        if _is_untouched(image):
            return _from_data(_data_of(image))
        _check_kind(image)
    try:
        image.load()
        turned = upright(image, image)
        if turned.mode != "F":
            return spread(values_of(turned))[0] if is_deep(turned) else eight_bit_pixels(turned)
        values = np.asarray(turned)
    # Pillow decodes an opened file only here, and lets nearly any error through; nor can it convert every mode.
    except Exception as error:
        raise ImageInputError(
            f"Pillow cannot decode the {image.mode} image ({type(error).__name__}): it is damaged or closed, or "
            "of a mode that becomes neither L nor RGB"
        ) from None
    return _from_array(values)


def _is_untouched(image: ImageFile.ImageFile) -> bool:
    """Tell whether an opened file is as it was opened: its pixels neither decoded nor asked for in another way."""
    is_open = image.fp is not None and not image.fp.closed and image.fp.seekable()
    return (
        is_open
        and image.format in _READ_AS_FILES
        and bool(image.tile)
        and image.tell() == 0
        and not image.decoderconfig
    )


def _data_of(image: ImageFile.ImageFile) -> bytes:
    assert image.fp is not None
    place = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(place)
    return data


def _check_kind(image: ImageFile.ImageFile) -> None:
    """Refuse a decoded file that would be refused as one, as far as it can be told."""
    head = b""
    if image.format == "PNG" and image.filename:
        try:
            with Path(os.fsdecode(image.filename)).open("rb") as file:
                head = file.read(_PNG_HEADER_BYTES)
        except OSError:  # moved since
            head = b""
    try:
        check_kind(image, head)
    except UnreadableImageError as error:
        raise ImageInputError(f"the file cannot be read: {error}") from None


def _from_tensor(image: Tensor) -> Pixels:
    values = image.detach().cpu()
    array = (values.float() if values.is_floating_point() else values).numpy()
    if array.ndim == 3 and array.shape[0] not in (1, 3, 4):
        raise ImageInputError(
            f"tensor {tuple(array.shape)}: expected [H, W] or [channels, H, W] with 1, 3 or 4 channels"
        )
    return _from_array(np.moveaxis(array, 0, -1) if array.ndim == 3 else array)


def _from_array(array: np.ndarray) -> Pixels:
    if array.ndim not in (2, 3) or not array.size or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageInputError(
            f"array {array.shape}: expected [H, W] or [H, W, channels] with 1, 3 or 4 channels, not empty"
        )
    if array.ndim == 3:
        array = array[..., 0] if array.shape[2] == 1 else array[..., :3]
    return np.ascontiguousarray(_in_eight_bits(array))


def _in_eight_bits(array: np.ndarray) -> Pixels:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(array.dtype, np.integer):
        if array.ndim == 3:
            raise ImageInputError(f"colour of {array.dtype}: expected uint8, or floats in [0, 1]; grey may be of any")
        return spread(array)[0]
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if math.isnan(low):
            raise ImageInputError("some floats are NaN: expected values in [0, 1]; fill them, as with 0")
        # What arithmetic leaves just outside is the grey level that it is rounded to.
        scaled = np.round(array.astype(np.float64) * 255)
        if not (scaled.min() >= 0 and scaled.max() <= 255):
            raise ImageInputError(
                f"floats from {low:g} to {high:g}: expected values in [0, 1]; divide by what white is in your images"
            )
        return scaled.astype(np.uint8)
    raise ImageInputError(f"values of {array.dtype}: expected integers, booleans, or floats in [0, 1]")


def _from_file(path: Path) -> Pixels:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageInputError(f"the file cannot be opened: {error.strerror}") from None
    except ValueError:  # a NUL in the path
        raise ImageInputError("the path contains a character that no file name can have") from None
    return _from_data(data)


def _from_data(data: bytes) -> Pixels:
    try:
        return decode_file(data, MAX_SOURCE_PIXELS)
    except UnreadableImageError as error:
        raise ImageInputError(f"the file cannot be read: {error}") from None
