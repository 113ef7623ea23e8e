"""Drawn mammograms: a breast that hangs from one edge into a black background, and in MLO views the muscle above it."""

from typing import Literal

import cv2
import numpy as np

HEIGHT, WIDTH = 240, 190


def mammogram(seed: int, side: Literal["L", "R"], view: Literal["CC", "MLO"], size: float = 1.0) -> np.ndarray:
    """One image.

    Args:
        seed: Of the patient: breasts differ in place, size and tissue.
        side: Whose breast it is; the chest wall is at the left edge of a left one, as mammograms are hung.
        view: From above, or obliquely.
        size: Of the breast; at 1 it covers about a quarter of the image.
    """
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    middle = HEIGHT * (0.5 if view == "CC" else 0.6) + rng.normal(0, 6)
    height, depth = size * HEIGHT * rng.uniform(0.26, 0.34), size * WIDTH * rng.uniform(0.42, 0.56)
    distance = np.sqrt(((rows - middle) / height) ** 2 + (cols / depth) ** 2)
    thickness = np.sqrt(np.clip(1 - distance, 0, None))
    tissue = cv2.GaussianBlur(rng.normal(0, 1, (HEIGHT, WIDTH)).astype(np.float32), (0, 0), 6 * size)
    level = np.where(distance < 1, 40 + 110 * thickness + 250 * thickness * tissue, 0)
    if view == "MLO":
        edge = size * WIDTH * rng.uniform(0.3, 0.4) * (1 - rows / (HEIGHT * rng.uniform(0.5, 0.6) * size))
        level = np.where(cols < edge, 190 + 60 * tissue, level)
    image = np.clip(np.round(level), 0, 255).astype(np.uint8)
    return image if side == "L" else np.ascontiguousarray(image[:, ::-1])
