"""Weak localisation: where a classifier looks (Grad-CAM), against boxes and masks that it was not trained on.

Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", ICCV 2017. The
pointing game is that of Zhang et al., "Top-down neural attention by excitation backprop", ECCV 2016, without a margin.
IoBB is that of Wang et al., "ChestX-ray8", CVPR 2017, of the hot pixels themselves instead of a box around them.

A *case* is an image and a label of which a box or a mask shows where it is. The network is shown the whole image, so
that no truth is cut off, and the map is compared in pixels of the canvas, which are the same for every encoder.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from ace.data.crops import resample
from ace.downstream.base import Arrays, Score
from ace.downstream.cases import canvas_side, mean_of_cases
from ace.downstream.examples import PICTURE_PX, Example, choose_examples
from ace.downstream.joint import shown_masks
from ace.downstream.parts import Part
from ace.downstream.shown import ShownPart
from ace.downstream.views import center_view
from ace.drawing.outlines import outlined
from ace.protocol.intervals import mean
from shards.core.records import structure_of
from shards.reading.reader import Sample, ShardReader

Regions = Bool[Tensor, "batch side side"]
Heat = Float[Tensor, "batch side side"]
WHOLE = center_view(1.0)
ROUNDING = 1e-5
"""Share of a value by which enlarging a map that is the same everywhere may change it."""


def locate(
    network: nn.Module, backbone: nn.Module, shown: ShownPart, labels: Sequence[str], thresholds: Sequence[float]
) -> Arrays:
    """Compare where a classifier looks with the boxes and masks of its labels.

    Args:
        network: A classifier, images to logits [batch, labels], in evaluation mode.
        backbone: The module inside it whose output is tokens.
        shown: The images.
        labels: Names of the outputs.
        thresholds: Shares of a map's largest value.

    Returns:
        Arrays with a row for each case: `cases` (image, label), `area` (share of the image that is truth), `pointing`,
        `iou` and `iobb` (a column for each threshold), and `heat` (a value for each token). None without any case.
    """
    part = shown.part
    reader = ShardReader(part.index)
    has_truth = np.array([bool(regions_of(reader.read(int(row)), labels)) for row in part.rows])
    if not has_truth.any():
        return {}
    located = replace(shown, part=part.where(has_truth))
    images = (image for batch in located.images((WHOLE,)) for image in batch)
    found: dict[str, list[Tensor]] = {}
    for place, image in zip(np.flatnonzero(has_truth).tolist(), images, strict=True):
        regions = regions_of(reader.read(int(part.rows[place])), labels)
        truth = torch.from_numpy(np.stack(list(regions.values())))
        asked = torch.tensor(list(regions), device=image.device)
        heat = grad_cam(network, backbone, image.expand(len(asked), -1, -1, -1), asked).cpu()
        large = enlarged(heat, truth.shape[-1])
        iou, iobb = overlaps(large, truth, thresholds)
        own = {
            "cases": torch.tensor([(place, label) for label in regions]),
            "area": area_shares(truth),
            "pointing": pointing_hits(large, truth),
            "iou": iou,
            "iobb": iobb,
            "heat": heat,
        }
        for name, values in own.items():
            found.setdefault(name, []).append(values)
    return {name: torch.cat(values).numpy() for name, values in found.items()}


def located_scores(found: Arrays, labels: Sequence[str], thresholds: Sequence[float], part: Part) -> dict[str, Score]:
    """Score what `locate` found: the mean over labels, then each label.

    Chance is the share of the image that is truth: of a map that is the same everywhere, and of a random pixel.
    """
    images, columns = found["cases"].T
    patients = part.patients[images]

    def score(values: Float[np.ndarray, " cases"], is_own: Bool[np.ndarray, " cases"]) -> Score:
        facts = {"n": len(np.unique(patients[is_own])), "num_images": int(is_own.sum())}
        return Score(mean_of_cases(values[is_own], patients[is_own]), float(found["area"][is_own].mean()), facts)

    figures = {"pointing_game": found["pointing"]}
    for name in ("iou", "iobb"):
        names = (f"{name}_at_{100 * threshold:g}pct".replace(".", "_") for threshold in thresholds)
        figures |= dict(zip(names, found[name].T, strict=True))
    scores = {}
    for name, values in figures.items():
        own = {labels[column]: score(values, columns == column) for column in np.unique(columns).tolist()}
        chance = float(np.mean([of_label.chance for of_label in own.values()]))
        facts = {"n": len(np.unique(patients)), "num_labels": len(own)}
        scores[name] = Score(mean([of_label.measure for of_label in own.values()]), chance, facts)
        scores |= {f"{name}/{label}": of_label for label, of_label in own.items()}
    return scores


def located_examples(
    found: Arrays, labels: Sequence[str], thresholds: Sequence[float], part: Part, num_examples: int
) -> list[Example]:
    """Draw the cases in which the network looks at the truth best, middling and worst, by the mean IoU.

    A picture has the outline of the truth, and of the map those of its thresholds.
    """
    reader, examples = ShardReader(part.index), []
    for title, case in choose_examples(1 - found["iou"].mean(1), num_examples):
        image, column = found["cases"][case].tolist()
        sample = reader.read(int(part.rows[image]))
        canvas, region = sample.image, regions_of(sample, labels)[column]
        heat = enlarged(torch.from_numpy(found["heat"][case : case + 1]), PICTURE_PX)
        hot = np.concatenate([hottest(heat, threshold).numpy() for threshold in thresholds])
        pixels = resample(canvas, WHOLE.window(len(canvas)), PICTURE_PX)
        overlay = outlined(pixels, shown_masks(region[None], WHOLE, PICTURE_PX), hot, zoom=1)
        examples.append(
            Example(
                title=f"{title} Grad-CAM of {labels[column]}", key=sample.key, image=canvas, answer={"overlay": overlay}
            )
        )
    return examples


def regions_of(sample: Sample, labels: Sequence[str]) -> dict[int, Bool[np.ndarray, "side side"]]:
    """Return the pixels of the canvas in which boxes and a mask show a label, by its position, for those shown."""
    masks, boxes, side = sample.masks(), sample.meta["boxes"], canvas_side(sample)
    regions = {}
    for column, label in enumerate(labels):
        region = region_of_boxes(boxes, label, side)
        if structure_of(label) in masks:
            region |= masks[structure_of(label)]
        if region.any():
            regions[column] = region
    return regions


def region_of_boxes(boxes: Iterable[Mapping[str, Any]], label: str, side: int) -> Bool[np.ndarray, "{side} {side}"]:
    """Fill the pixels whose centres lie in a box of a finding.

    Args:
        boxes: Boxes of a sample's KEY.json, in canvas pixels.
        label: The finding.
        side: Side of the canvas.
    """
    region = np.zeros((side, side), bool)
    for box in boxes:
        if box["label"] == label:
            row0, col0, row1, col1 = (max(0, math.ceil(box[edge] - 0.5)) for edge in ("row0", "col0", "row1", "col1"))
            region[row0:row1, col0:col1] = True
    return region


def grad_cam(
    network: nn.Module,
    backbone: nn.Module,
    images: Float[Tensor, "batch planes side side"],
    labels: Int[Tensor, " batch"],
) -> Float[Tensor, "batch t t"]:
    """Show how much each token speaks for a label, 0 where it speaks against it.

    Args:
        network: A classifier, images to logits [batch, labels], in evaluation mode.
        backbone: The module inside it whose output is tokens [batch, t, t, dim].
        images: Normalised images.
        labels: The label that is asked for in each image.
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
    return (weights * tokens[0].detach()).sum(-1).relu().float()


def enlarged(heat: Float[Tensor, "batch t t"], side: int) -> Heat:
    """Enlarge maps to so many pixels a side, bilinear between tokens."""
    return F.interpolate(heat[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]


def hottest(heat: Heat, threshold: float) -> Regions:
    """Mark the pixels that have at least this share of their map's largest value; none of a map without heat."""
    largest = heat.amax((1, 2), keepdim=True)
    return (heat >= threshold * largest) & (largest > 0)


def pointing_hits(heat: Heat, regions: Regions) -> Float[Tensor, " batch"]:
    """Tell whether the hottest pixel lies in the region; of equally hot ones, which share of them does.

    A map that is the same everywhere thus scores the region's share of the image, which is chance.
    """
    is_hottest = heat >= (1 - ROUNDING) * heat.amax((1, 2), keepdim=True)
    return (is_hottest & regions).sum((1, 2)) / is_hottest.sum((1, 2))


def overlaps(
    heat: Heat, regions: Regions, thresholds: Sequence[float]
) -> tuple[Float[Tensor, "batch thresholds"], Float[Tensor, "batch thresholds"]]:
    """Divide what is hot and in the region by the union of both (IoU), and by what is hot (IoBB).

    Args:
        heat: Maps.
        regions: The truth, of which none is empty.
        thresholds: Shares of each map's largest value, above 0.

    Returns:
        Both; 0 for a map without heat.
    """
    hot = torch.stack([hottest(heat, threshold) for threshold in thresholds], dim=1)
    truth = regions[:, None]
    both = (hot & truth).sum((2, 3))
    return both / (hot | truth).sum((2, 3)), both / hot.sum((2, 3)).clamp_min(1)


def area_shares(regions: Regions) -> Float[Tensor, " batch"]:
    """Return each region's share of the image: chance of the pointing game, and the IoU of the whole image."""
    return regions.float().mean((1, 2))
