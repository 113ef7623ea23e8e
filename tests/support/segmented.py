"""JSRT's and DRIVE's layouts with drawn images: shapes in the places of the real structures, at the real sizes."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

JSRT_MASKS = {
    "heart": ((1250, 1150), (330, 300)),
    "left clavicle": ((380, 1400), (60, 300)),
    "right clavicle": ((380, 650), (60, 300)),
    "left lung": ((950, 1450), (600, 300)),
    "right lung": ((950, 600), (600, 300)),
}
"""Folder of SCR → centre and half axes (row, col) of an ellipse; the right lung is on the left of the image."""


def write_jsrt(root: Path, num_cases: int) -> None:
    """Write cases without a nodule, as `.IMG` files of 2048 pixels and masks of 1024, odd ones in fold1."""
    for number in range(1, num_cases + 1):
        rng, name = np.random.default_rng(number), f"JPCNN{number:03}"
        shift = rng.integers(-100, 100, 2)
        image = np.full((2048, 2048), 1500, np.uint16) + rng.integers(0, 300, (2048, 2048), dtype=np.uint16)
        for folder, (centre, axes) in JSRT_MASKS.items():
            mask = _ellipse(2048, 2048, centre + shift, axes)
            image[mask] += 900 if "lung" not in folder else 0
            image[mask] -= 700 if "lung" in folder else 0
            path = root / "scratch" / ("fold1" if number % 2 else "fold2") / "masks" / folder / f"{name}.gif"
            _save(path, mask[::2, ::2])
        path = root / "All247images" / f"{name}.IMG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((4095 - image).astype(">u2").tobytes())  # 0 is white


def write_drive(root: Path, num_images: int) -> None:
    """Write images of both parts, with vessels in both, as the older archive has them."""
    for part, first in (("training", 21), ("test", 1)):
        for number in range(first, first + num_images):
            rng = np.random.default_rng(number)
            field = _ellipse(584, 565, np.array([292, 282]), (270, 270))
            vessels = np.zeros((584, 565), np.uint8)
            for _ in range(8):
                ends = rng.integers(80, 480, (2, 2)).tolist()
                cv2.line(vessels, ends[0], ends[1], 1, int(rng.integers(3, 9)))
            vessels = (vessels > 0) & field
            image = np.zeros((584, 565, 3), np.uint8)
            image[field] = (170, 90, 50)
            image[vessels] = (110, 40, 25)
            image[field] += rng.integers(0, 25, (int(field.sum()), 3), dtype=np.uint8)
            _save(root / part / "images" / f"{number:02}_{part}.tif", image)
            _save(root / part / "1st_manual" / f"{number:02}_manual1.gif", vessels)
            _save(root / part / "mask" / f"{number:02}_{part}_mask.gif", field)


def _ellipse(height: int, width: int, centre: np.ndarray, axes: tuple[int, int]) -> np.ndarray:
    rows, cols = np.mgrid[:height, :width]
    return ((rows - centre[0]) / axes[0]) ** 2 + ((cols - centre[1]) / axes[1]) ** 2 <= 1


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8) * 255 if pixels.dtype == bool else pixels).save(path)
