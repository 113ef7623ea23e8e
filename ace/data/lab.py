"""8-bit colour as lightness and two opponents (CIELAB of sRGB, white D65), and back, on any device.

All of it is sums of whole numbers and tables of what is not linear, so that a pixel's result depends on nothing else.
Steps and truncations are those of OpenCV's 8-bit conversion, which is the oracle of the tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float64, Int32, UInt8
from torch import Tensor

RGB_TO_XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
"""Matrix from linear light (ITU-R BT.709 primaries) to XYZ."""
WHITE = np.array([0.950456, 1.0, 1.088754])
"""XYZ of D65."""
# Steps of 1 in fixed point: of the matrices, of light and of CIELAB's root on the way there, of both on the way back,
# and of light in the last table.
MATRIX, LIGHT, ROOT, BACK, LAST = 2**12, 255 * 2**3, 2**15, 2**14, 2**12
LOWEST_ROOT, HIGHEST_ROOT = -BACK // 2, 2 * BACK
"""Range of the root on the way back, with a margin: lightness gives 0.13 to 1, the opponents ± 0.64."""

Colours = UInt8[Tensor, "images 3 height width"]
Plane = Int32[Tensor, "images height width"]
Table = Int32[Tensor, " _"]


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Tables hold the parts of the colour conversion that are not linear, on one device.

    Attributes:
        light: Of a level of sRGB.
        root: Of light on the way to CIELAB.
        luminance: Of a lightness.
        middle: The root of that luminance.
        red: How far a green-red opponent moves it.
        yellow: The same of blue-yellow.
        cube: Light of a root, from `LOWEST_ROOT` on.
        level: Of light on the way back.
    """

    light: Table
    root: Table
    luminance: Table
    middle: Table
    red: Table
    yellow: Table
    cube: Table
    level: Table


def lab_of(colours: Colours) -> Colours:
    """Lightness (255 is white), then the opponents green-red and blue-yellow (128 is neutral)."""
    tables = _tables(colours.device)
    light = [_look_up(tables.light, levels) for levels in colours.unbind(1)]
    x, y, z = (_look_up(tables.root, _divided(sums, MATRIX)) for sums in _product(RGB_TO_XYZ / WHITE[:, None], light))
    scale, offset = (116 * 255 + 50) // 100, 16 * 255 * ROOT // 100
    planes = (
        _divided(scale * y - offset, ROOT),
        _divided(500 * (x - y), ROOT) + 128,
        _divided(200 * (y - z), ROOT) + 128,
    )
    return torch.stack(planes, 1).clamp_(0, 255).to(torch.uint8)


def rgb_of(lab: Colours) -> Colours:
    """Invert `lab_of`, but for rounding; what lies outside of sRGB is cut to it."""
    tables = _tables(lab.device)
    lightness, green_red, blue_yellow = lab.unbind(1)
    middle = _look_up(tables.middle, lightness)
    roots = middle + _look_up(tables.red, green_red), middle - _look_up(tables.yellow, blue_yellow)
    x, z = (_look_up(tables.cube, root - LOWEST_ROOT) for root in roots)
    xyz = (x, _look_up(tables.luminance, lightness), z)
    light = (_divided(sums, MATRIX * BACK // LAST) for sums in _product(np.linalg.inv(RGB_TO_XYZ) * WHITE, xyz))
    return torch.stack([_look_up(tables.level, plane.clamp_(0, LAST - 1)) for plane in light], 1).to(torch.uint8)


def _look_up(table: Table, places: UInt8[Tensor, "*shape"] | Int32[Tensor, "*shape"]) -> Int32[Tensor, "*shape"]:
    return table.index_select(0, places.int().flatten()).view(places.shape)


def _product(matrix: np.ndarray, planes: Sequence[Plane]) -> list[Plane]:
    rows = np.rint(MATRIX * matrix).astype(int).tolist()
    return [row[0] * planes[0] + row[1] * planes[1] + row[2] * planes[2] for row in rows]


def _divided(values: Plane, steps: int) -> Plane:
    """Divide by a power of two and round to the nearest integer, halves up."""
    return (values + steps // 2) >> (steps.bit_length() - 1)


@cache
def _tables(device: torch.device) -> Tables:
    levels = np.arange(256)
    # In single precision, as the oracle's: two entries lie next to a half.
    light = np.arange(LIGHT + 1, dtype=np.float32) / np.float32(LIGHT)
    root = np.where(light < 0.008856, light * np.float32(7.787) + np.float32(16 / 116), np.cbrt(light))
    lightness = levels * (100 / 255)
    luminance = np.where(lightness <= 8, lightness / 903.3, ((lightness + 16) / 116) ** 3)
    middle = np.where(lightness <= 8, luminance * 7.787 + 16 / 116, (lightness + 16) / 116)
    roots = np.arange(LOWEST_ROOT, HIGHEST_ROOT)
    dark = np.trunc(roots * 108 / 841) - BACK * 16 // 116 * 108 // 841
    last = np.arange(LAST) / LAST

    def table(values: np.ndarray) -> Table:
        return torch.from_numpy(np.rint(values).astype(np.int32)).to(device)

    return Tables(
        light=table(LIGHT * _linear(levels / 255)),
        root=table(ROOT * root),
        luminance=table(BACK * luminance),
        middle=table(BACK * middle),
        # Quotients by 500 and 200 in 13 and 9 fractional bits, cut; a neutral blue-yellow is two steps off.
        red=table((levels * round(2**13 * BACK / 500) + 2**7 >> 13) - 128 * BACK // 500),
        yellow=table((levels * round(2**9 * BACK / 200) + 2**4 >> 9) - 128 * BACK // 200 + 1),
        cube=table(np.where(roots <= BACK * 6 // 29, dark, roots * roots // BACK * roots // BACK)),
        level=table(255 * np.where(last <= 0.0031308, last * 12.92, 1.055 * last ** (1 / 2.4) - 0.055)),
    )


def _linear(levels: Float64[np.ndarray, " levels"]) -> Float64[np.ndarray, " levels"]:
    """Light of sRGB levels, both from 0 to 1."""
    bright = ((levels + 0.055) / 1.055) ** 2.4
    light: Float64[np.ndarray, " levels"] = np.where(levels <= 0.04045, levels / 12.92, bright)
    return light
