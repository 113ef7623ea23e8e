"""Measure what a removal does to single tokens: erased ones should become empty, and the others stay (docs/method.md).

The figures are of regions set to black, those of the decomposition.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ace.protocol.intervals import Measure, per_patient, quotient
from ace.protocol.regions import Region

MODERATE_SIDES = (0.4, 0.6)
"""Sides of a region that a picture shows well, as fractions of the image's side."""
Lengths = Float[np.ndarray, "patients regions t t"]


@dataclass(frozen=True, kw_only=True)
class Removal:
    """A removal holds the lengths of tokens before and after each region is removed.

    Attributes:
        whole: ‖z(x)‖ of the whole image's tokens.
        without: ‖z(x∖s)‖ of the tokens of the image without the region.
        change: ‖z(x) − z(x∖s)‖.
        erased: Share of each token's pixels that is removed, 0 to 1.
    """

    whole: Float[np.ndarray, "patients t t"]
    without: Lengths
    change: Lengths
    erased: Lengths

    @property
    def relative_change(self) -> Lengths:
        """Return the change in units of the whole image's mean token length; it is 0 where all its tokens are."""
        unit = self.whole.mean(axis=(1, 2))[:, None, None, None]
        relative = np.zeros_like(self.change)
        np.divide(self.change, unit, out=relative, where=unit > 0)
        return relative


class RemovalTally:
    """Collects the lengths from the tokens of crops that come in one stream: (image, (without, region) …) by patient.

    Args:
        regions: Of each patient.
        size_px: Side of a crop in pixels.
        t: Tokens per crop side.
    """

    def __init__(self, regions: Sequence[Sequence[Region]], *, size_px: int, t: int) -> None:
        self._erased = np.array([[erased_share(region, size_px, t) for region in own] for own in regions])
        self._without, self._change = np.zeros((2, *self._erased.shape), np.float32)
        self._whole = np.zeros((len(regions), t, t), np.float32)
        self._image: Tensor | None = None
        self._position = 0

    def add(self, tokens: Float[Tensor, "batch t t dim"]) -> None:
        """Take the tokens of the stream's next crops."""
        for crop in tokens:
            patient, place = divmod(self._position, 1 + 2 * self._erased.shape[1])
            if place == 0:
                self._image = crop
                self._whole[patient] = _lengths(crop)
            elif place % 2 == 1 and self._image is not None:
                self._without[patient, place // 2] = _lengths(crop)
                self._change[patient, place // 2] = _lengths(self._image - crop)
            self._position += 1

    def result(self) -> Removal:
        """Return the lengths of all crops taken."""
        return Removal(whole=self._whole, without=self._without, change=self._change, erased=self._erased)


def erased_share(region: Region, size_px: int, t: int) -> Float[np.ndarray, "t t"]:
    """Compute the share of each token's pixels that lies in the region, 0 to 1; a region is whole pixels."""
    row, col, side = region.pixels(size_px)
    edges = np.arange(t + 1) * (size_px // t)
    rows, cols = (np.diff(np.clip(edges, start, start + side)) for start in (row, col))
    share: Float[np.ndarray, "t t"] = np.outer(rows, cols) / (size_px // t) ** 2
    return share


def erased_length(removal: Removal) -> Measure:
    """Divide the mean length of tokens that are removed as a whole by that of tokens of which nothing is; 0 is best.

    Both are tokens of the image without the region.
    """
    return quotient(
        _mean_where(removal.without, removal.erased == 1), _mean_where(removal.without, removal.erased == 0)
    )


def change_outside(removal: Removal) -> Measure:
    """Compute the share of the squared change that falls on tokens of which nothing is removed, 0 to 1; 0 is best."""
    squares = removal.change.astype(np.float64) ** 2
    return per_patient((squares * (removal.erased == 0)).sum(axis=(1, 2, 3)), squares.sum(axis=(1, 2, 3)))


def shown_region(regions: Sequence[Region]) -> int:
    """Choose which of a patient's regions a picture shows: the first of a moderate size, or the one nearest to it."""
    low, high = MODERATE_SIDES
    distances = [max(low - region.side, region.side - high, 0.0) for region in regions]
    return int(np.argmin(distances))


def _mean_where(lengths: Lengths, is_counted: np.ndarray) -> Measure:
    sums = (lengths.astype(np.float64) * is_counted).sum(axis=(1, 2, 3))
    return per_patient(sums, is_counted.sum(axis=(1, 2, 3)))


def _lengths(tokens: Float[Tensor, "t t dim"]) -> Float[np.ndarray, "t t"]:
    lengths: Float[np.ndarray, "t t"] = torch.linalg.vector_norm(tokens, dim=-1).cpu().numpy()
    return lengths
