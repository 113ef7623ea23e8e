"""A structure's mask as pixels, whatever form its dataset draws it in."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool

from shards.canvas import DAMAGED_MASK, UnreadableImageError, decode_image, with_channels
from shards.records import File, Mask, MaskFiles

_BOUND_OF_MASKS = 2**31


def draw_mask(mask: Mask, size: tuple[int, ...], read: Callable[[File], bytes]) -> Bool[np.ndarray, "height width"]:
    """Which pixels of an image of `size` (height, width) lie inside.

    Raises:
        UnreadableImageError: a file is damaged or not of the image's size.
    """
    drawn = np.zeros(size, dtype=bool)
    if isinstance(mask, MaskFiles):
        for file in mask.files:
            try:
                grey = with_channels(decode_image(read(file), _BOUND_OF_MASKS), 1)
            except UnreadableImageError:
                raise UnreadableImageError(DAMAGED_MASK) from None
            if grey.shape != size:
                raise UnreadableImageError(DAMAGED_MASK)
            drawn |= (mask.low <= grey) & (grey <= mask.high)
    return drawn
