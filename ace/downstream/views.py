"""Show a network a square crop of a canvas, turned and mirrored, at the encoder's input size."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ace.data.augment import change_brightness_contrast
from ace.data.augmentation import BrightnessContrast
from ace.data.crops import Crop, resample_all
from ace.downstream.params import ShownParams
from shards.core.canvas import with_channels
from shards.core.grid import Window
from shards.reading.reader import Sample


@dataclass(frozen=True, kw_only=True)
class View:
    """Describes a square crop of a canvas and the changes made to it afterwards, in this order.

    Attributes:
        row: First row of the crop, as a share of the canvas's side.
        col: First column likewise.
        side: Its side likewise.
        angle_deg: It is turned about its middle by this angle, counter-clockwise; what comes from outside is black.
        is_mirrored: It is mirrored left to right.
        levels: Change of its grey levels; None for none.
    """

    row: float
    col: float
    side: float
    angle_deg: float = 0.0
    is_mirrored: bool = False
    levels: BrightnessContrast | None = None

    def window(self, canvas_px: int) -> Window:
        """Return the crop in canvas pixels."""
        row, col, side = (value * canvas_px for value in (self.row, self.col, self.side))
        return row, col, row + side, col + side


def center_view(side: float) -> View:
    """Return the crop in the middle."""
    return View(row=(1 - side) / 2, col=(1 - side) / 2, side=side)


def ten_views(side: float) -> tuple[View, ...]:
    """Return the crops in the four corners and the middle, and the same ones mirrored."""
    far = 1 - side
    five = [
        View(row=0, col=0, side=side),
        View(row=0, col=far, side=side),
        View(row=far, col=0, side=side),
        View(row=far, col=far, side=side),
        center_view(side),
    ]
    return (*five, *(replace(view, is_mirrored=True) for view in five))


def draw_view(params: ShownParams, rng: np.random.Generator) -> View:
    """Draw the view of one training image."""
    far, angle = 1 - params.crop_side, params.max_rotation_deg
    change = params.brightness_contrast
    row, col, turned, is_mirrored, is_changed, contrast, shift = rng.random(7).tolist()
    return View(
        row=row * far,
        col=col * far,
        side=params.crop_side,
        angle_deg=(2 * turned - 1) * angle,
        is_mirrored=is_mirrored < params.mirror_probability,
        levels=BrightnessContrast(
            1 + (2 * contrast - 1) * change.max_contrast, 255 * (2 * shift - 1) * change.max_brightness
        )
        if is_changed < change.probability
        else None,
    )


def show(sample: Sample, views: Sequence[View], size_px: int, channels: int, canvas_px: int) -> list[Crop]:
    """Show one image in several views.

    Args:
        sample: The image.
        views: What is shown of it.
        size_px: Side of each result, in pixels.
        channels: Of each result, 1 or 3.
        canvas_px: Side of the canvas, in pixels.
    """
    crops = resample_all(sample, [view.window(canvas_px) for view in views], size_px)
    return [_changed(with_channels(crop, channels), view) for crop, view in zip(crops, views, strict=True)]


def _changed(crop: Crop, view: View) -> Crop:
    if view.angle_deg:
        middle = (len(crop) - 1) / 2
        turn = cv2.getRotationMatrix2D((middle, middle), view.angle_deg, 1.0)
        crop = np.asarray(cv2.warpAffine(crop, turn, (len(crop), len(crop)), flags=cv2.INTER_LINEAR))
    if view.is_mirrored:
        crop = np.ascontiguousarray(crop[:, ::-1])
    return crop if view.levels is None else change_brightness_contrast(crop, view.levels)
