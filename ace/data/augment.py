"""Photometric augmentation of one crop: grey levels change, no pixel moves (method.md §1)."""

import cv2
import numpy as np

from ace.data.params import AugmentParams, BlurParams, BrightnessContrastParams, ClaheParams, SharpenParams
from shards.canvas import Pixels

# One loader process is one thread: OpenCV's own pool would compete with its siblings, and does not survive a fork.
cv2.setNumThreads(0)


def augment(crop: Pixels, params: AugmentParams, rng: np.random.Generator) -> Pixels:
    """Brightness and contrast, blur, sharpening and CLAHE, each with its own probability, in this order."""
    if rng.random() < params.brightness_contrast.probability:
        crop = change_brightness_contrast(crop, params.brightness_contrast, rng)
    if rng.random() < params.blur.probability:
        crop = blur(crop, params.blur, rng)
    if rng.random() < params.sharpen.probability:
        crop = sharpen(crop, params.sharpen, rng)
    if rng.random() < params.clahe.probability:
        crop = equalise(crop, params.clahe, rng)
    return crop


def change_brightness_contrast(crop: Pixels, params: BrightnessContrastParams, rng: np.random.Generator) -> Pixels:
    """Scale about the crop's mean and shift, the same for all channels."""
    contrast = 1.0 + rng.uniform(-params.max_contrast, params.max_contrast)
    shift = 255.0 * rng.uniform(-params.max_brightness, params.max_brightness)
    mean = crop.mean()
    levels = (np.arange(256) - mean) * contrast + mean + shift
    return np.asarray(cv2.LUT(crop, levels.round().clip(0, 255).astype(np.uint8)))


def blur(crop: Pixels, params: BlurParams, rng: np.random.Generator) -> Pixels:
    """Gaussian blur of a random width."""
    return _gaussian(crop, rng.uniform(params.min_sigma_px, params.max_sigma_px))


def sharpen(crop: Pixels, params: SharpenParams, rng: np.random.Generator) -> Pixels:
    """Unsharp mask of a random strength."""
    amount = rng.uniform(0.0, params.max_amount)
    return np.asarray(cv2.addWeighted(crop, 1.0 + amount, _gaussian(crop, params.sigma_px), -amount, 0.0))


def equalise(crop: Pixels, params: ClaheParams, rng: np.random.Generator) -> Pixels:
    """CLAHE of a random clip limit; of the lightness alone where there is colour."""
    tiles = (params.num_tiles, params.num_tiles)
    clahe = cv2.createCLAHE(clipLimit=rng.uniform(1.0, params.max_clip_limit), tileGridSize=tiles)
    if crop.ndim == 2:
        return np.asarray(clahe.apply(crop))
    lab = cv2.cvtColor(crop, cv2.COLOR_RGB2LAB)
    lab[:, :, 0] = clahe.apply(np.ascontiguousarray(lab[:, :, 0]))
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB))


def _gaussian(crop: Pixels, sigma_px: float) -> Pixels:
    return np.asarray(cv2.GaussianBlur(crop, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT_101))
