"""Crops resampled straight from the stored canvas: the jitter is where their windows fall (method.md §1)."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from shards.canvas import Pixels
from shards.grid import Window

Crop = UInt8[np.ndarray, "size_px size_px"] | UInt8[np.ndarray, "size_px size_px 3"]


def resample(image: Pixels, window: Window, size_px: int) -> Crop:
    """The window as a square of `size_px`, bilinear, antialiased where it shrinks.

    Equals resampling the jitter square to canvas size and cropping that, but touches only the crop's pixels.

    Args:
        image: Canvas, 8-bit grey [H, W] or colour [H, W, 3].
        window: (row0, col0, row1, col1) in continuous canvas pixels, inside the canvas.
        size_px: Side of the result.
    """
    row0, col0, row1, col1 = window
    height, width = image.shape[:2]
    # Pillow refuses a box that rounding put 1e-14 px outside.
    box = (max(col0, 0.0), max(row0, 0.0), min(col1, float(width)), min(row1, float(height)))
    return np.asarray(Image.fromarray(image).resize((size_px, size_px), Image.Resampling.BILINEAR, box=box))
