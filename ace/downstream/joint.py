"""Move masks and landmarks as a view moves the image that they are drawn on.

`ace.downstream.views.show` moves the pixels; one affine map of the view moves all that is drawn on them. What the view
does not show (outside its crop, which turns black where it is turned) is outside every structure, and no landmark.
"""

import math

import numpy as np
from jaxtyping import Bool, Float

from ace.downstream.views import View

Map = Float[np.ndarray, "2 3"]
"""[[a, b, row], [c, d, col]]: pixels of the canvas to those of what is shown, both continuous."""


def map_of(view: View, canvas_px: int, side: float) -> Map:
    """Return the map of a view.

    Args:
        view: What is shown of the canvas.
        canvas_px: Side of the canvas.
        side: Side of what is shown, in the unit that positions are to have.
    """
    row0, col0, row1, _ = view.window(canvas_px)
    angle, middle = math.radians(view.angle_deg), np.full(2, side / 2)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = turn * side / (row1 - row0)
    shift = middle - turn @ middle - linear @ np.array([row0, col0])
    placed: Map = np.column_stack([linear, shift])
    if view.is_mirrored:
        placed[1] *= -1
        placed[1, 2] += side
    return placed


def shown_masks(
    masks: Bool[np.ndarray, "structures side side"], view: View, shown_px: int
) -> Bool[np.ndarray, "structures {shown_px} {shown_px}"]:
    """Take every pixel of what is shown from the canvas's pixel that its centre lies in.

    Args:
        masks: Masks of the canvas.
        view: What is shown of it.
        shown_px: Side of what is shown, in pixels.
    """
    canvas_px = masks.shape[-1]
    placed = map_of(view, canvas_px, shown_px)
    centres = np.moveaxis(np.mgrid[:shown_px, :shown_px], 0, -1) + 0.5
    positions = (centres - placed[:, 2]) @ np.linalg.inv(placed[:, :2]).T
    rows, cols = np.moveaxis(np.floor(positions).astype(int).clip(0, canvas_px - 1), -1, 0)
    shown: Bool[np.ndarray, "structures {shown_px} {shown_px}"] = masks[:, rows, cols] & _is_inside(
        positions, view, canvas_px
    )
    return shown


def shown_points(
    points: Float[np.ndarray, "points 2"], view: View, canvas_px: int, side: float
) -> Float[np.ndarray, "points 2"]:
    """Move landmarks; nan for those that are not shown, or not known.

    Args:
        points: (row, col) in continuous pixels of the canvas; nan where a landmark is not known.
        view: What is shown of the canvas.
        canvas_px: Side of the canvas.
        side: Side of what is shown, in the unit that points are to have.
    """
    placed = map_of(view, canvas_px, side)
    moved = points @ placed[:, :2].T + placed[:, 2]
    is_shown = _is_inside(points, view, canvas_px) & ((moved >= 0) & (moved <= side)).all(-1)
    return np.where(is_shown[:, None], moved, np.nan)


def _is_inside(
    positions: Float[np.ndarray, "*positions 2"], view: View, canvas_px: int
) -> Bool[np.ndarray, "*positions"]:
    """Tell which positions on the canvas lie in the crop."""
    window = np.array(view.window(canvas_px))
    return np.asarray(((positions >= window[:2]) & (positions <= window[2:])).all(-1))
