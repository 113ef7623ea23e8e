"""From pixels to the encoder's input, as the checkpoint's configuration says."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ace.models.encoder import Encoder
from shards.canvas import Canvas, Pixels, Placement, with_channels
from shards.errors import ConfigError

CUSTOM = "custom"


@dataclass(frozen=True)
class Preprocessing:
    """What an image passes before the encoder sees it.

    It is placed on a square of crop size, its aspect kept and the rest black, as shards place it on their canvas; then
    `(pixels / 255 − mean) / std`.

    Attributes:
        crop_px: Side of the input.
        channels: 1 (grey; colour images lose their hue) or 3 (grey images are repeated).
        trim_level: Dark edges up to this grey level are cut off first, as in training; None leaves images whole.
        mean: Of the pixels in [0, 1], over channels too.
        std: The same, standard deviation.
        normalisation: The training batch that mean and std belong to, several joined by `+`, or `custom`.
    """

    crop_px: int
    channels: int
    trim_level: int | None
    mean: float
    std: float
    normalisation: str

    def place(self, image: Pixels) -> Canvas:
        """The image at crop size and with the encoder's channels, still in 8 bits."""
        return Placement.of(image, self.crop_px, self.trim_level).place_image(with_channels(image, self.channels))

    def normalise(
        self, canvases: Sequence[Canvas], device: torch.device
    ) -> Float[Tensor, "batch {self.channels} {self.crop_px} {self.crop_px}"]:
        """Placed images as the encoder's input."""
        pixels = torch.from_numpy(np.stack(canvases)).to(device).float() / 255
        planes = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.movedim(-1, 1)
        return (planes - self.mean) / self.std


def preprocessing_of(encoder: Encoder, normalisation: str | tuple[float, float] | None) -> Preprocessing:
    """The preprocessing that an encoder was trained with.

    Every batch is normalised by its own mean and standard deviation in training, so no average of them is what the
    encoder has seen: where they differ, the caller has to choose.

    Args:
        encoder: The model.
        normalisation: A batch's name, (mean, std), or None for what all batches of the training mix have in common.

    Raises:
        ConfigError: the batch is unknown, the numbers are no mean and deviation, or the mix's batches differ.
    """
    mean, std, name = _normalisation(encoder, normalisation)
    if not (0 <= mean <= 1 and 0 < std < math.inf):
        raise ConfigError(f"normalisation: mean {mean:g}, std {std:g}; expected a mean in [0, 1] and a std above 0")
    return Preprocessing(encoder.spec.crop_px, encoder.in_channels, encoder.spec.trim_level, mean, std, name)


def _normalisation(encoder: Encoder, choice: str | tuple[float, float] | None) -> tuple[float, float, str]:
    mixes = {name: batch["mix"] for name, batch in encoder.config["params"]["batches"].items()}
    if isinstance(choice, str):
        # An imported encoder answers for any batch; here the name is written down as what was used.
        if choice not in mixes:
            raise ConfigError(f"normalisation '{choice}': the model knows {', '.join(mixes)}; or give (mean, std)")
        return *encoder.normalisation(choice), choice
    if choice is not None:
        mean, std = choice
        return float(mean), float(std), CUSTOM
    values = {name: encoder.normalisation(name) for name, mix in mixes.items() if mix["weight"] > 0}
    if len(set(values.values())) != 1:
        found = ", ".join(f"{name}: {mean:g} ± {std:g}" for name, (mean, std) in values.items())
        raise ConfigError(
            f"the model was trained with batches of different mean and std ({found or 'none with a weight'}); choose "
            "the one that is most like your images, as normalisation='NAME', or give (mean, std) of your pixels "
            "in [0, 1]"
        )
    return *next(iter(values.values())), "+".join(values)
