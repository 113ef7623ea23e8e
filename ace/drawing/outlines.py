"""Predicted outlines and points over an image, beside the truth."""

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

TRUTH, PREDICTION = (86, 180, 233), (230, 159, 0)
"""Sky blue and orange, which every kind of colour blindness tells apart (Okabe & Ito, 2008)."""

Picture = UInt8[np.ndarray, "height width 3"]
Masks = Bool[np.ndarray, "structures side side"]
Points = Float[np.ndarray, "points 2"]


def outlined(image: UInt8[np.ndarray, "side side *channels"], truth: Masks, prediction: Masks, zoom: int) -> Picture:
    """Draw the outlines of the truth, and over them those of the prediction.

    Args:
        image: Grey, or colour with channels last.
        truth: A mask for each structure, blue.
        prediction: Likewise, orange.
        zoom: Pixels of the picture, along a side, to one of the image.
    """
    picture = _enlarged(image, zoom)
    for masks, colour in ((truth, TRUTH), (prediction, PREDICTION)):
        for mask in masks:
            enlarged = cv2.resize(mask.astype(np.uint8), None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
            contours, _ = cv2.findContours(enlarged, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, contours, -1, colour, thickness=1)
    return picture


def pointed(image: UInt8[np.ndarray, "side side *channels"], truth: Points, prediction: Points, zoom: int) -> Picture:
    """Draw a circle for each landmark, a cross for its prediction, and the line between them.

    Args:
        image: Grey, or colour with channels last.
        truth: (row, col) in continuous pixels of the image; nan where a landmark is not known, which is left out.
        prediction: Likewise.
        zoom: Pixels of the picture, along a side, to one of the image.
    """
    picture = _enlarged(image, zoom)
    for true, found in zip(truth, prediction, strict=True):
        if not np.isnan(true).any():
            # The continuous point p lies in the pixel floor(p).
            (row, col), (found_row, found_col) = (
                np.floor(point * zoom).astype(int).tolist() for point in (true, found)
            )
            cv2.line(picture, (col, row), (found_col, found_row), PREDICTION, 1)
            cv2.drawMarker(picture, (found_col, found_row), PREDICTION, cv2.MARKER_TILTED_CROSS, 7, 1)
            cv2.circle(picture, (col, row), 3, TRUTH, 1)
    return picture


def _enlarged(image: UInt8[np.ndarray, "side side *channels"], zoom: int) -> Picture:
    colour = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    return np.ascontiguousarray(cv2.resize(colour, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR))
