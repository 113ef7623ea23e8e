"""Turn attenuation into an 8-bit radiograph: scatter, noise, and what a digital system makes of the exposure."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from shards.phantom.patients import Exposure

SCATTER_MM = 28.0
FOCUS_MM = 0.25
NOISE_PIXEL_MM = 0.25
"""Larger pixels collect more photons."""
BASE_MM, MIDDLE_MM = 40.0, 5.0
BASE_GAIN, MIDDLE_GAIN, FINE_GAIN = 0.42, 0.95, 1.7
LOW_PERCENTILE, HIGH_PERCENTILE = 1.0, 99.8
CONTRAST = 4.4
"""Slope of the film's sigmoid."""
AIR_ATTENUATION = (0.08, 0.35)
"""Attenuation at which the exposed background turns from black to image."""


@dataclass(frozen=True)
class ToneWindow:
    """Range of the compressed signal that the film shows."""

    low: float
    high: float


def develop(attenuation: Float[Tensor, "row col"], exposure: Exposure) -> Float[Tensor, "row col"]:
    """Develop one exposure: its compressed log signal, at the final size."""
    size = len(attenuation)
    pixel_mm = exposure.field_of_view_mm / size
    intensity = torch.exp(-attenuation)
    intensity = intensity + exposure.scatter * blur(intensity, SCATTER_MM / pixel_mm)
    intensity = blur(intensity, FOCUS_MM / pixel_mm)
    noise = torch.from_numpy(np.random.default_rng(exposure.noise_seed).standard_normal((size, size), dtype=np.float32))
    intensity = intensity + exposure.noise * NOISE_PIXEL_MM / pixel_mm * intensity.sqrt() * noise
    signal = -torch.log(intensity.clamp(min=1e-4))
    base, smooth = blur(signal, BASE_MM / pixel_mm), blur(signal, MIDDLE_MM / pixel_mm)
    return BASE_GAIN * base + MIDDLE_GAIN * (smooth - base) + FINE_GAIN * (signal - smooth)


def tone_window(signal: Tensor, attenuation: Tensor) -> ToneWindow:
    """Choose the window of a developed signal: percentiles over the body."""
    body = signal[attenuation > AIR_ATTENUATION[1]].numpy()
    low, high = np.percentile(body, [LOW_PERCENTILE, HIGH_PERCENTILE])
    return ToneWindow(float(low), float(high))


def expose(signal: Tensor, attenuation: Tensor, window: ToneWindow, exposure: Exposure) -> npt.NDArray[np.uint8]:
    """Render the 8-bit image: window, sigmoid, gamma; exposed air is black."""
    share = (signal - window.low) / (window.high - window.low)
    edge = 1 / (1 + math.exp(CONTRAST / 2))
    curve = (torch.sigmoid(CONTRAST * (share - 0.5)) - edge) / (1 - 2 * edge)
    low, high = AIR_ATTENUATION
    body = ((attenuation - low) / (high - low)).clamp(0, 1)
    grey = curve.clamp(0, 1) ** exposure.gamma * body
    return (255 * grey).round().to(torch.uint8).numpy()


def blur(image: Float[Tensor, "row col"], sigma_px: float) -> Float[Tensor, "row col"]:
    """Blur a square image with a Gaussian; beyond its edge nothing counts."""
    position = torch.arange(len(image), dtype=torch.float32)
    kernel = torch.exp(-0.5 * ((position[:, None] - position) / max(sigma_px, 1e-3)) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    return kernel @ image @ kernel.T
