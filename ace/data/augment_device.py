"""Photometric augmentation of a whole batch on the device it lies on, as `ace.data.augment` does it crop by crop.

Every step works on all crops it was drawn for at once and ends in 8 bits. Sums are of integers that single precision
holds exactly, and everything else is one addition or multiplication an operation: what becomes of a crop depends on no
other crop, on no order of summation, and on no reduced-precision mode of the device.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Float64, Int, UInt8
from torch import Tensor

from ace.data import clahe
from ace.data.augmentation import AMOUNT, CLIP, CONTRAST, SHIFT, SIGMA, Augmentations
from ace.data.lab import lab_of, rgb_of
from ace.data.params import AugmentParams

Crops = UInt8[Tensor, "crops channels size size"]
Drawn = Float64[Tensor, " crops"]
Step = Callable[[Crops, Sequence[Drawn]], Crops]


def augment_batch(crops: Crops, augmentations: Augmentations, params: AugmentParams) -> Crops:
    """Brightness and contrast, blur, sharpening and CLAHE as drawn, in this order; the crops given are not written to.

    Args:
        crops: Sample by sample.
        augmentations: Of as many crops, on the crops' device.
        params: What is not drawn: widths and tiles.
    """
    values = augmentations.on_device.flatten(0, 1)
    for column, step in _steps(params):
        rows = augmentations.rows(column)
        if rows is not None:
            changed = step(crops.index_select(0, rows), values.index_select(0, rows).unbind(1))
            crops = _with_rows(crops, rows, changed)
    return crops


def _steps(params: AugmentParams) -> list[tuple[int, Step]]:
    """List the steps in order, each with the column that tells whether it is taken."""
    return [
        (CONTRAST, lambda crops, drawn: change_brightness_contrast(crops, drawn[CONTRAST], drawn[SHIFT])),
        (SIGMA, lambda crops, drawn: blur(crops, drawn[SIGMA], max_sigma_px=params.blur.max_sigma_px)),
        (AMOUNT, lambda crops, drawn: sharpen(crops, drawn[AMOUNT], sigma_px=params.sharpen.sigma_px)),
        (CLIP, lambda crops, drawn: equalise(crops, drawn[CLIP], num_tiles=params.clahe.num_tiles)),
    ]


def change_brightness_contrast(crops: Crops, contrast: Drawn, shift: Drawn) -> Crops:
    """Scale about each crop's mean and shift, the same for all channels."""
    mean = (crops.flatten(1).sum(1, dtype=torch.int64).double() / crops[0].numel())[:, None]
    levels = torch.arange(clahe.LEVELS, dtype=torch.float64, device=crops.device)
    new = (levels - mean) * contrast[:, None] + mean + shift[:, None]
    curves = clahe.eight_bits(new)
    first = torch.arange(len(crops), dtype=torch.int32, device=crops.device)[:, None, None, None] * clahe.LEVELS
    return curves.flatten().index_select(0, (crops.int() + first).flatten()).view(crops.shape)


def blur(crops: Crops, sigma_px: Drawn, *, max_sigma_px: float) -> Crops:
    """Gaussian blur of each crop's own width, none above `max_sigma_px`; borders are mirrored."""
    weights = gaussian_weights(sigma_px, radius=_radius(max_sigma_px))
    sums = _weighted(_weighted(crops.float(), weights, dim=3), weights, dim=2)
    return (sums.int().add_(2**15) >> 16).to(torch.uint8)


def sharpen(crops: Crops, amount: Drawn, *, sigma_px: float) -> Crops:
    """Unsharp mask: the difference from a blurred crop is added, `amount` times."""
    blurred = blur(crops, torch.full_like(amount, sigma_px), max_sigma_px=sigma_px)
    kept, taken = ((1 + amount).float()[:, None, None, None], amount.float()[:, None, None, None])
    return clahe.eight_bits(crops * kept - blurred * taken)


def equalise(crops: Crops, clip_limit: Drawn, *, num_tiles: int) -> Crops:
    """CLAHE; of the lightness alone where there is colour."""
    if crops.shape[1] == 1:
        return clahe.equalise(crops[:, 0], clip_limit, num_tiles)[:, None]
    lightness, *opponents = lab_of(crops).unbind(1)
    return rgb_of(torch.stack([clahe.equalise(lightness, clip_limit, num_tiles), *opponents], 1))


def gaussian_weights(sigma_px: Drawn, *, radius: int) -> Float[Tensor, "crops taps"]:
    """Gaussian weights in 256ths, whole numbers that sum to 256.

    Of the tails, the running sums are rounded, not each weight, so that no small weights are lost together; the middle
    takes what is left. Each Gaussian ends where OpenCV ends it for 8 bits, three deviations out.

    Args:
        sigma_px: Standard deviations.
        radius: Weights on either side of the middle; at least that of the widest.
    """
    distance = torch.arange(-radius, 1, dtype=torch.float64, device=sigma_px.device)
    reach = (6 * sigma_px + 1).round().int().div(2, rounding_mode="floor")
    tail = torch.exp(-0.5 * (distance / sigma_px[:, None]) ** 2) * (distance >= -reach[:, None])
    share = tail[:, :-1] / (2 * tail[:, :-1].sum(1, keepdim=True) + tail[:, -1:])
    sums = (256 * share).cumsum(1).round()
    whole = sums.diff(dim=1, prepend=torch.zeros_like(sums[:, :1]))
    return torch.cat([whole, 256 - 2 * sums[:, -1:], whole.flip(1)], 1).float()


def _with_rows(
    crops: Crops, rows: Int[Tensor, " changed"], changed: UInt8[Tensor, "changed channels size size"]
) -> Crops:
    """Return the crops with some of them replaced."""
    # Whole rows are gathered five times faster on the CPU than they are scattered.
    source = torch.arange(len(crops), device=crops.device)
    source.index_copy_(0, rows, torch.arange(len(crops), len(crops) + len(changed), device=crops.device))
    return torch.cat([crops, changed]).index_select(0, source)


def _radius(sigma_px: float) -> int:
    return round(6 * sigma_px + 1) // 2


def _weighted(
    crops: Float[Tensor, "crops channels height width"], weights: Float[Tensor, "crops taps"], *, dim: int
) -> Float[Tensor, "crops channels height width"]:
    """Sum neighbours along one axis with weights, by taps rather than as a convolution.

    A library may round a convolution to fewer bits (TF32) or transform it, and then a crop's pixels would depend on its
    batch.
    """
    size, radius = crops.shape[dim], weights.shape[1] // 2
    padded = clahe.mirrored(crops, radius, radius, dim=dim)
    total = torch.zeros_like(crops)
    for tap, weight in enumerate(weights.unbind(1)):
        total.addcmul_(padded.narrow(dim, tap, size), weight[:, None, None, None])
    return total
