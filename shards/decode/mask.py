"""Masks: pictures whose grey values mean something, so none is stretched, windowed or smoothed."""

import numpy as np
from jaxtyping import UInt8

from shards.decode.grey import WHITE
from shards.decode.raster import is_deep, load, values_of
from shards.decode.reasons import DEEP_MASK, DICOM_MASK, UnreadableImageError
from shards.decode.signature import kind_of


def decode_mask(data: bytes, *, max_pixels: float) -> UInt8[np.ndarray, "height width"]:
    """Decode the grey values of a mask as they are stored.

    One bit becomes 0 and 255. A palette is resolved, so a GIF's index 1 is the grey (luma) of its second colour, not 1.
    PNG of 2 and 4 bits are scaled to 0..255, as the format asks. Of colours the luma is taken, and it is above 0
    wherever a colour is visible; alpha is dropped. 16-bit files keep their values. JPEG's own blur stays: compare with
    a threshold.

    Raises:
        UnreadableImageError: with the reason for quarantine.
    """
    kind = kind_of(data)
    if kind == "DICOM":
        raise UnreadableImageError(DICOM_MASK)
    image = load(data, kind, max_pixels=max_pixels)
    if not is_deep(image):
        return np.array(image if image.mode == "L" else image.convert("L"))
    values = values_of(image)
    if values.min() < 0 or values.max() > WHITE:
        raise UnreadableImageError(DEEP_MASK)
    return values.astype(np.uint8)
