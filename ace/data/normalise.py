"""Whole images are brought to what the encoder takes, outside training; its batches do the same (ace.data.batches)."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from shards.normalisation import Normalisation


def normalised(
    images: UInt8[np.ndarray, "batch size size *channels"], normalisation: Normalisation, device: torch.device
) -> Float[Tensor, "batch planes size size"]:
    """Bring 8-bit images, grey or with channels last, to a device as `(pixels / 255 − mean) / std` of each channel."""
    pixels = torch.from_numpy(images).to(device).float() / 255
    planes = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.movedim(-1, 1)
    mean, std = (_level(levels, device) for levels in normalisation)
    return (planes - mean) / std


def _level(levels: tuple[float, ...], device: torch.device) -> float | Tensor:
    # One number stays a number: an accelerator divides by a tensor with other roundings, and what embeddings of a model
    # were once, they stay.
    return levels[0] if len(levels) == 1 else torch.tensor(levels, device=device).view(-1, 1, 1)
