"""A whole part as an encoder is shown it, to be asked about."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ace.data.crops import Crop
from ace.downstream.parts import Part
from ace.downstream.views import View, show
from ace.embed.encoder import Encoder
from ace.embed.preprocessing import normalized
from shards.reading.reader import ShardReader

IMAGES_PER_FORWARD = 64
"""Images in one forward pass without gradients; speed and memory only."""


@dataclass(frozen=True)
class ShownPart:
    """Shows a part to an encoder, image by image.

    Attributes:
        part: The images.
        encoder: Whose input they become.
        num_threads: Threads that read.
    """

    part: Part
    encoder: Encoder
    num_threads: int

    def images(self, views: Sequence[View]) -> Iterator[Float[Tensor, "batch views planes side side"]]:
        """Yield the images in their order, some at a time, each in all views, normalized and on the device."""
        encoder, reader = self.encoder, ShardReader(self.part.index)
        normalisation = encoder.normalisation(self.part.index.name)

        def read(row: int) -> list[Crop]:
            canvas_px = self.part.index.spec.canvas_px
            return show(reader.read(row), views, encoder.input_px, encoder.in_channels, canvas_px)

        at_once = max(1, IMAGES_PER_FORWARD // len(views))
        with ThreadPoolExecutor(max(1, self.num_threads)) as pool:
            for rows in np.split(self.part.rows, range(at_once, len(self.part), at_once)):
                crops = np.stack([crop for image in pool.map(read, rows.tolist()) for crop in image])
                images = normalized(crops, normalisation, encoder.device)
                yield images.view(len(rows), len(views), *images.shape[1:])
