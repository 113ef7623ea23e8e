"""Fill the place of a region that is removed from an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

import numpy as np
from jaxtyping import Int

from ace.data.crops import resample
from ace.embed.embedder import Image
from ace.protocol.regions import Region, draw_region

LEVELS = 256
Fill = Literal["black", "mean", "white", "noise", "tissue"]
"""Names of the fills that take the place of a region removed from an image."""


@dataclass(frozen=True, kw_only=True)
class FillPlan:
    """The plan says what fills each patient's regions, for every fill; it is the same for every encoder.

    Attributes:
        fills: The fills measured, the first of them black.
        noise_seeds: Seed of the noise in each region.
        donors: Whose tissue fills each region, as a place in the cohort; never the patient itself.
        sources: Where in the donor's canvas that tissue lies: a place and size of its own.
    """

    fills: tuple[Fill, ...]
    noise_seeds: tuple[tuple[tuple[int, ...], ...], ...]
    donors: Int[np.ndarray, "patients regions"]
    sources: tuple[tuple[Region, ...], ...]

    def filled(
        self, image: Image, region: Region, fill: Fill, *, canvases: Sequence[Image], patient: int, number: int
    ) -> Image:
        """Return the image with a region filled; the image given is not written to.

        Args:
            image: The patient's, at crop size.
            region: What is removed.
            fill: What takes its place.
            canvases: Of all patients, for the fill `tissue`.
            patient: Whose image it is, as a place in the cohort.
            number: Which of the patient's regions it is.
        """
        row, col, side = region.pixels(len(image))
        match fill:
            case "black":
                levels = np.array(0)
            case "white":
                levels = np.array(LEVELS - 1)
            case "mean":
                levels = mean_level(image)
            case "noise":
                rng = np.random.default_rng(self.noise_seeds[patient][number])
                levels = rng.integers(LEVELS, size=(side, side, *image.shape[2:]))
            case "tissue":
                canvas, source = canvases[self.donors[patient, number]], self.sources[patient][number]
                levels = resample(canvas, source.window(len(canvas)), side)
        filled = image.copy()
        filled[row : row + side, col : col + side] = levels
        return filled


def plan_fills(
    keys: Sequence[str],
    fills: tuple[Fill, ...],
    *,
    num_regions: int,
    sides: tuple[float, float],
    seed: int,
    rng: np.random.Generator,
) -> FillPlan:
    """Draw for every patient's regions whose tissue fills them, and seed their noise.

    Args:
        keys: Of the patients' images; the noise depends on them and the seed alone.
        fills: The fills, the first of them black.
        num_regions: Of each patient.
        sides: Smallest and largest side of what is taken from a donor, as fractions of the canvas side.
        seed: The evaluation's.
        rng: Decides donors and places.
    """
    shape = (len(keys), num_regions)
    steps = rng.integers(1, len(keys), size=shape)
    sources = [[draw_region(rng, *sides) for _ in range(shape[1])] for _ in keys]
    return FillPlan(
        fills=fills,
        noise_seeds=tuple(tuple((seed, crc32(key.encode()), number) for number in range(shape[1])) for key in keys),
        donors=(np.arange(len(keys))[:, None] + steps) % len(keys),
        sources=tuple(map(tuple, sources)),
    )


def mean_level(image: Image) -> Int[np.ndarray, "*channels"]:
    """Compute the image's mean level in each channel, rounded, halves up, as training's fill `mean` does."""
    count = image.shape[0] * image.shape[1]
    level: Int[np.ndarray, "*channels"] = (2 * image.sum(axis=(0, 1), dtype=np.int64) + count) // (2 * count)
    return level
