"""Images that are answered best, middling and worst, with what is drawn beside them on a task's page."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ace.drawing.pictures import data_uri
from shards.core.canvas import Canvas

PICTURE_PX = 256


@dataclass(frozen=True, kw_only=True)
class Example:
    """Shows an image beside what is true of it and what was answered.

    Attributes:
        title: `best`, `median` or `worst`, and of what.
        key: The image's key in the shard set.
        image: Its canvas, grey or RGB levels.
        answer: `rows` of (name, truth, answer), or `overlay`, an RGB picture.
    """

    title: str
    key: str
    image: Canvas
    answer: Mapping[str, Any]

    @property
    def pictures(self) -> list[str]:
        """Return the image, and what is laid over it, as data URIs."""
        shown = [self.image, *([self.answer["overlay"]] if "overlay" in self.answer else [])]
        return [data_uri(pixels, kind="jpeg", max_px=PICTURE_PX) for pixels in shown]


def choose_examples(losses: Float[np.ndarray, " images"], num_examples: int) -> list[tuple[str, int]]:
    """Choose some images with the least, the middle and the greatest losses, each image once."""
    order = np.argsort(losses, kind="stable").tolist()
    num = min(num_examples, max(1, len(order) // 3))
    start = (len(order) - num) // 2
    groups = {"best": order[:num], "median": order[start : start + num], "worst": order[::-1][:num]}
    chosen = {image: title for title, images in reversed(groups.items()) for image in images}
    return [(title, image) for title, images in groups.items() for image in images if chosen[image] == title]
