"""Weak localisation: where a classifier looks (Grad-CAM), against boxes and masks that it was not trained on.

Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", ICCV 2017; the
pointing game is that of Zhang et al., "Top-down neural attention by excitation backprop", ECCV 2016, without a margin.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

Regions = Bool[Tensor, "batch side side"]
Heat = Float[Tensor, "batch side side"]


def grad_cam(
    network: nn.Module,
    backbone: nn.Module,
    images: Float[Tensor, "batch planes side side"],
    labels: Int[Tensor, " batch"],
) -> Heat:
    """Show how much the tokens of each place speak for a label, 0 where they speak against it.

    Args:
        network: A classifier, images to logits [batch, labels], in evaluation mode.
        backbone: The module inside it whose output is tokens [batch, t, t, dim].
        images: Normalised images.
        labels: The label that is asked for in each image.

    Returns:
        Maps at the size of the images, bilinear between tokens.
    """
    tokens: list[Tensor] = []

    def begin(module: nn.Module, inputs: Any) -> None:
        torch.set_grad_enabled(False)

    def end(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        # From here on gradients are wanted: of a frozen backbone too, and without what made the tokens.
        torch.set_grad_enabled(True)
        tokens.append(output.detach().requires_grad_())
        return tokens[0]

    hooks = (backbone.register_forward_pre_hook(begin), backbone.register_forward_hook(end))
    try:
        with torch.inference_mode(False), torch.enable_grad():
            logits = network(images).take_along_dim(labels[:, None], 1)
            (gradients,) = torch.autograd.grad(logits.sum(), tokens)
    finally:
        for hook in hooks:
            hook.remove()
    weights = gradients.mean((1, 2), keepdim=True)
    heat = (weights * tokens[0].detach()).sum(-1).relu().float()
    return F.interpolate(heat[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def region_of_boxes(
    boxes: Iterable[Mapping[str, Any]], label: str, canvas_px: int, size_px: int
) -> Bool[Tensor, "side side"]:
    """Fill the pixels whose centres lie in a box of a finding.

    Args:
        boxes: Boxes of a sample's KEY.json, in canvas pixels.
        label: The finding.
        canvas_px: Side of the canvas.
        size_px: Side of the region.
    """
    region = torch.zeros(size_px, size_px, dtype=torch.bool)
    for box in boxes:
        if box["label"] == label:
            row0, col0, row1, col1 = (
                max(0, math.ceil(box[edge] * size_px / canvas_px - 0.5)) for edge in ("row0", "col0", "row1", "col1")
            )
            region[row0:row1, col0:col1] = True
    return region


def pointing_hits(heat: Heat, regions: Regions) -> Float[Tensor, " batch"]:
    """Tell whether the hottest pixel lies in the region; of equally hot ones, which share of them does.

    A map that is the same everywhere thus scores the region's share of the image, which is chance.
    """
    is_hottest = heat == heat.amax((1, 2), keepdim=True)
    return (is_hottest & regions).sum((1, 2)) / is_hottest.sum((1, 2))


def ious(heat: Heat, regions: Regions, thresholds: Sequence[float]) -> Float[Tensor, "batch thresholds"]:
    """Compare the pixels that are at least so hot with the region: intersection over union.

    Args:
        heat: Maps.
        regions: The truth, of which none is empty.
        thresholds: Fractions of each map's maximum, above 0.

    Returns:
        IoU; 0 for a map without heat.
    """
    least = heat.amax((1, 2), keepdim=True)
    found = []
    for threshold in thresholds:
        is_hot = (heat >= threshold * least) & (least > 0)
        found.append((is_hot & regions).sum((1, 2)) / (is_hot | regions).sum((1, 2)))
    return torch.stack(found, dim=1)


def choose_threshold(validation: Float[np.ndarray, "images thresholds"], thresholds: Sequence[float]) -> float:
    """Choose the threshold with the largest mean IoU on validation images; of equals the lowest."""
    return thresholds[int(validation.mean(0).argmax())]


def area_shares(regions: Regions) -> Float[Tensor, " batch"]:
    """Return each region's share of the image: chance of the pointing game, and the IoU of the whole image."""
    return regions.float().mean((1, 2))
