"""Photometric augmentation of one crop on the host: grey levels change, no pixel moves (method.md §1)."""

import cv2
import numpy as np

from ace.data.augmentation import Augmentation, BrightnessContrast
from ace.data.params import AugmentParams
from shards.core.canvas import Pixels

# One loader process is one thread: OpenCV's own pool would compete with its siblings, and does not survive a fork.
cv2.setNumThreads(0)


def augment(crop: Pixels, drawn: Augmentation, params: AugmentParams) -> Pixels:
    """Change brightness and contrast, blur, sharpen and equalise as drawn, in this order, rounded to 8 bits after each.

    The crop given is not written to. What is drawn to be erased is left for the batch (`ace.data.erase`).
    """
    if drawn.brightness_contrast is not None:
        crop = change_brightness_contrast(crop, drawn.brightness_contrast)
    if drawn.blur_sigma_px is not None:
        crop = blur(crop, drawn.blur_sigma_px)
    if drawn.sharpen_amount is not None:
        crop = sharpen(crop, drawn.sharpen_amount, params.sharpen.sigma_px)
    if drawn.clip_limit is not None:
        crop = equalise(crop, drawn.clip_limit, params.clahe.num_tiles)
    return crop


def change_brightness_contrast(crop: Pixels, drawn: BrightnessContrast) -> Pixels:
    """Scale about the crop's mean and shift, the same for all channels."""
    mean = crop.mean()
    levels = (np.arange(256) - mean) * drawn.contrast + mean + drawn.shift
    return np.asarray(cv2.LUT(crop, levels.round().clip(0, 255).astype(np.uint8)))


def blur(crop: Pixels, sigma_px: float) -> Pixels:
    """Gaussian blur."""
    return np.asarray(cv2.GaussianBlur(crop, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT_101))


def sharpen(crop: Pixels, amount: float, sigma_px: float) -> Pixels:
    """Unsharp mask: the difference from a blurred crop is added, `amount` times."""
    return np.asarray(cv2.addWeighted(crop, 1.0 + amount, blur(crop, sigma_px), -amount, 0.0))


def equalise(crop: Pixels, clip_limit: float, num_tiles: int) -> Pixels:
    """CLAHE; of the lightness alone where there is colour."""
    clahe = cv2.createCLAHE(clipLimit=clip_limit, tileGridSize=(num_tiles, num_tiles))
    if crop.ndim == 2:
        return np.asarray(clahe.apply(crop))
    lab = cv2.cvtColor(crop, cv2.COLOR_RGB2LAB)
    lab[:, :, 0] = clahe.apply(np.ascontiguousarray(lab[:, :, 0]))
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB))
