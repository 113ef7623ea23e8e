"""Pixels become the encoder's input, as the configuration of its model says; training's batches do the same."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ace.embed.encoder import Encoder
from shards.core.canvas import Canvas, Pixels, Placement, with_channels
from shards.core.errors import ConfigError
from shards.core.normalisation import Levels, Normalisation, text_of

CUSTOM = "custom"
Given = Levels | np.ndarray | Tensor
Choice = str | tuple[Given, Given] | None
"""A batch's name; (mean, std), each one number or one for each channel; or None for what the batches have in common."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preprocessing is all that an image passes before the encoder sees it.

    It is placed on a square of crop size, its aspect kept and the rest black, as shards place it on their canvas; then
    `(pixels / 255 − mean) / std`.

    Attributes:
        crop_px: Side of the input.
        channels: 1 (grey; colour images lose their hue) or 3 (grey images are repeated).
        trim_level: Dark edges up to this grey level are cut off first, as in training; None leaves images whole.
        mean: Of the pixels in [0, 1]: one number for all channels, or one for each.
        std: The standard deviation of the pixels in [0, 1]: one number for all channels, or one for each.
        normalisation: The training batch that mean and std belong to, several joined by `+`, or `custom`.
    """

    crop_px: int
    channels: int
    trim_level: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalisation: str

    def place(self, image: Pixels) -> Canvas:
        """Return the image at crop size and with the encoder's channels, still in 8 bits."""
        return Placement.of(image, self.crop_px, self.trim_level).place_image(with_channels(image, self.channels))

    def normalize(
        self, canvases: Sequence[Canvas], device: torch.device
    ) -> Float[Tensor, "batch {self.channels} {self.crop_px} {self.crop_px}"]:
        """Placed images as the encoder's input."""
        return normalized(np.stack(canvases), Normalisation(self.mean, self.std), device)


def normalized(
    images: UInt8[np.ndarray, "batch height width *channels"], normalisation: Normalisation, device: torch.device
) -> Float[Tensor, "batch planes height width"]:
    """Bring 8-bit images, grey or with channels last, to a device as `(pixels / 255 − mean) / std` of each channel."""
    pixels = torch.from_numpy(images).to(device).float() / 255
    planes = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.movedim(-1, 1)
    mean, std = (_level(levels, device) for levels in normalisation)
    return (planes - mean) / std


def _level(levels: tuple[float, ...], device: torch.device) -> float | Tensor:
    # One number stays a number: an accelerator divides by a tensor with other roundings, and what embeddings of a model
    # were once, they stay.
    return levels[0] if len(levels) == 1 else torch.tensor(levels, device=device).view(-1, 1, 1)


def placement_text(trim_level: int | None) -> str:
    """Say for a model card how an image is brought to the square that the encoder takes."""
    trim = "" if trim_level is None else f", dark edges up to grey level {trim_level} cut off"
    return f"the image{trim}, its aspect kept, padded to a square with black"


def preprocessing_of(encoder: Encoder, normalisation: Choice) -> Preprocessing:
    """Return the preprocessing that an encoder was trained with.

    Every batch is normalised by its own mean and standard deviation in training, so no average of them is what the
    encoder has seen: where they differ, the caller has to choose.

    Args:
        encoder: The model.
        normalisation: A batch's name; (mean, std), each one number or one for each channel; or None for what all
            batches of the training mix have in common.

    Raises:
        ConfigError: the batch is unknown, the numbers are no mean and deviation, or the mix's batches differ.
    """
    found, name = _normalisation(encoder, normalisation)
    found.per_channel(encoder.in_channels, "normalisation")
    if not all(0 <= mean <= 1 for mean in found.mean) or not all(0 < std < math.inf for std in found.std):
        raise ConfigError(
            f"normalisation: mean {text_of(found.mean)}, std {text_of(found.std)}; expected a mean in [0, 1] and a std "
            "above 0"
        )
    return Preprocessing(
        crop_px=encoder.input_px,
        channels=encoder.in_channels,
        trim_level=encoder.spec.trim_level,
        mean=found.mean,
        std=found.std,
        normalisation=name,
    )


def _normalisation(encoder: Encoder, choice: Choice) -> tuple[Normalisation, str]:
    if isinstance(choice, str):
        # An imported encoder answers for any batch; here the name is written down as what was used.
        if choice not in encoder.mixes:
            known = ", ".join(encoder.mixes)
            raise ConfigError(f"normalisation '{choice}': the model knows {known}; or give mean and std")
        return encoder.normalisation(choice), choice
    if choice is not None:
        return _given(choice), CUSTOM
    values = {name: encoder.normalisation(name) for name, mix in encoder.mixes.items() if mix.weight > 0}
    if len({value.per_channel(encoder.in_channels, name) for name, value in values.items()}) != 1:
        found = ", ".join(f"{name}: {value}" for name, value in values.items())
        raise ConfigError(
            f"the model was trained with batches of different mean and std ({found or 'none with a weight'}); name "
            "the one that is most like your images, or give mean and std of your pixels in [0, 1]: --normalisation "
            "NAME or --normalisation MEAN,STD; in Python normalisation='NAME' or normalisation=(mean, std)"
        )
    return next(iter(values.values())), "+".join(values)


def _given(choice: object) -> Normalisation:
    """Read a caller's (mean, std): numbers, sequences, arrays or tensors."""
    try:
        mean, std = (np.asarray(levels, dtype=float).reshape(-1).tolist() for levels in choice)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ConfigError(
            f"normalisation: found {choice!r}; expected the name of a training batch, or (mean, std), each one number "
            "or one for each channel"
        ) from None
    return Normalisation.of(mean, std)
