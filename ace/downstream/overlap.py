"""Overlap of predicted masks with the truth, and distance of their outlines.

Structures are labels of their own: they may overlap, and an image may know some of them only.

Where truth and prediction are both empty, Dice and IoU are 1; where one of them is, 0. So a structure that most images
do not have (a pneumothorax) gives a prediction of nothing most of the mean over cases: the mean over the cases that
have it stands beside it. The distance is known only where neither is empty, and the number of its cases stands beside
it.
"""

import warnings
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ace.downstream.cases import share_of_sums
from ace.protocol.intervals import Measure

Masks = Bool[Tensor, "batch structures side side"]
PERCENTILE = 95


def overlap_counts(predicted: Masks, truth: Masks) -> Int[np.ndarray, "batch structures 3"]:
    """Count the pixels that are inside of both, of the prediction and of the truth."""
    return torch.stack([mask.sum((2, 3)) for mask in (predicted & truth, predicted, truth)], dim=-1).cpu().numpy()


def dice_of(counts: Int[np.ndarray, "*cases 3"]) -> Float[np.ndarray, "*cases"]:
    """Divide twice the overlap by the sum of both areas; 1 where both are empty."""
    both, predicted, truth = np.moveaxis(counts, -1, 0)
    return _share(2 * both, predicted + truth)


def iou_of(counts: Int[np.ndarray, "*cases 3"]) -> Float[np.ndarray, "*cases"]:
    """Divide the overlap by the union; 1 where both are empty."""
    both, predicted, truth = np.moveaxis(counts, -1, 0)
    return _share(both, predicted + truth - both)


def outline_distances(
    predicted: Masks, truth: Masks, spacing: Float[np.ndarray, "batch 2"] | None = None
) -> Float[np.ndarray, "batch structures"]:
    """Compute the 95th percentile of the distances from one outline to the other, the larger of both directions (HD95).

    Args:
        predicted: Predictions.
        truth: Truths.
        spacing: (row, col) sides of a pixel of each image, in the unit of the distances; nan where they are not known.
            None measures in pixels.

    Returns:
        Distances; nan where prediction or truth is empty, or the spacing is not known.
    """
    # Here, not above: it takes seconds to import, and comes with an extra.
    from monai.metrics import compute_hausdorff_distance

    sides = np.ones((len(truth), 2)) if spacing is None else spacing
    is_drawn = (predicted.flatten(2).any(2) & truth.flatten(2).any(2)).cpu().numpy()
    is_known = ~np.isnan(sides.sum(1, keepdims=True))
    distances = np.full(is_drawn.shape, np.nan)
    for case, structure in np.argwhere(is_drawn & is_known):
        pair = (masks[case, structure][None, None].cpu() for masks in (predicted, truth))
        with warnings.catch_warnings():
            # MONAI 1.6 warns of an argument that it gives itself.
            warnings.filterwarnings("ignore", r".*always_return_as_numpy", FutureWarning)
            found = compute_hausdorff_distance(
                *pair, include_background=True, percentile=PERCENTILE, spacing=sides[case].tolist()
            )
        distances[case, structure] = found.item()
    return distances


def dice_over_set(counts: Int[np.ndarray, "cases 3"], patients: Int[np.ndarray, " cases"]) -> Measure:
    """Compute the Dice of all pixels of all cases together, as of one large image; nan where it has nothing inside."""
    both, predicted, truth = counts.T
    return share_of_sums(2 * both, predicted + truth, patients)


def iou_over_set(counts: Int[np.ndarray, "cases 3"], patients: Int[np.ndarray, " cases"]) -> Measure:
    """Compute the IoU of all pixels of all cases together; nan where there is nothing inside."""
    both, predicted, truth = counts.T
    return share_of_sums(both, predicted + truth - both, patients)


def mean_shapes(truths: Iterable[Masks], known: Bool[Tensor, "cases structures"]) -> Masks:
    """Mark the pixels that are inside in at least half of the cases that know a structure: what needs no image.

    Its Dice is what a figure stands against as chance.

    Args:
        truths: Masks of each case, as a batch of one.
        known: Which structures it knows.

    Returns:
        Masks, as a batch of one.
    """
    inside = sum((truth[0] & own[:, None, None]).int() for truth, own in zip(truths, known, strict=True))
    assert isinstance(inside, Tensor)
    return (2 * inside >= known.sum(0).clamp_min(1)[:, None, None])[None]


def _share(part: Int[np.ndarray, "*cases"], whole: Int[np.ndarray, "*cases"]) -> Float[np.ndarray, "*cases"]:
    share: Float[np.ndarray, "*cases"] = np.divide(part, whole, out=np.ones(whole.shape), where=whole > 0)
    return share
