"""Heat maps of landmarks: the loss that shapes them, and the points that are read from them.

A heat map is a distribution over the cells of a map, the soft-max of the network's logits. It is trained towards a
Gaussian around the landmark, so the logits become a paraboloid with its top at the landmark, wherever between two cells
that is: the top of the parabola through the largest logit and its neighbours is the landmark.

Points are (row, col) from the upper left corner of the image, in any unit; nan where a landmark is not known.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

HeatMaps = Float[Tensor, "batch landmarks rows cols"]
Points = Float[Tensor, "batch landmarks 2"]


def landmark_loss(logits: HeatMaps, points: Points, *, side: float, sigma: float) -> Float[Tensor, ""]:
    """Compute the mean cross-entropy of heat maps with Gaussians around the known landmarks that lie inside.

    Its floor is the entropy of the Gaussians.

    Args:
        logits: Output of the network.
        points: The landmarks.
        side: Side of the image, in the unit of the points.
        sigma: Standard deviation of the Gaussian, in that unit; at least half a cell of the map.
    """
    rows, cols = logits.shape[-2:]
    target, is_inside = gaussian_targets(points, (rows, cols), side=side, sigma=sigma)
    entropy = -(target * F.log_softmax(logits.float().flatten(2), dim=2)).sum(2)
    return (entropy * is_inside).sum() / is_inside.sum().clamp_min(1)


def gaussian_targets(
    points: Points, shape: tuple[int, int], *, side: float, sigma: float
) -> tuple[Float[Tensor, "batch landmarks cells"], Bool[Tensor, "batch landmarks"]]:
    """Lay a Gaussian of sum 1 around each landmark.

    Args:
        points: The landmarks.
        shape: Rows and columns of the map.
        side: Side of the image, in the unit of the points.
        sigma: Standard deviation in that unit.

    Returns:
        The maps, row by row, and whether a landmark is known and lies inside; without that a map means nothing.
    """
    is_inside = ((points >= 0) & (points <= side)).all(-1)  # false for nan
    placed = torch.where(is_inside[..., None], points, 0.0)
    axes = [
        -(((torch.arange(num, device=points.device) + 0.5) * side / num - placed[..., axis, None]) ** 2)
        / (2 * sigma**2)
        for axis, num in enumerate(shape)
    ]
    exponents = axes[0][..., :, None] + axes[1][..., None, :]
    return exponents.flatten(2).softmax(2), is_inside


def decode(logits: HeatMaps, side: float) -> Points:
    """Read the landmark from each heat map: the top of the parabola through the largest logit and its neighbours.

    Along an axis on which the largest logit lies at the edge, it is the centre of its cell.

    Args:
        logits: Output of the network.
        side: Side of the image, in the unit that the points get.
    """
    rows, cols = logits.shape[-2:]
    row, col = (part for part in _divmod(logits.flatten(2).argmax(2), cols))
    along_rows = logits.float().take_along_dim(col[..., None, None], 3)[..., 0]
    along_cols = logits.float().take_along_dim(row[..., None, None], 2)[..., 0, :]
    return torch.stack(
        [(_top(along_rows, row) + 0.5) * side / rows, (_top(along_cols, col) + 0.5) * side / cols], dim=-1
    )


def _divmod(cells: Int[Tensor, "batch landmarks"], cols: int) -> tuple[Tensor, Tensor]:
    row = cells.div(cols, rounding_mode="floor")
    return row, cells - row * cols


def _top(
    line: Float[Tensor, "batch landmarks cells"], best: Int[Tensor, "batch landmarks"]
) -> Float[Tensor, "batch landmarks"]:
    """Find the top of the parabola through the largest value of a line and its two neighbours, in cells."""
    is_inner = (best > 0) & (best < line.shape[-1] - 1)
    neighbours = torch.stack([best - 1, best, best + 1], dim=-1).clamp(0, line.shape[-1] - 1)
    before, peak, after = line.take_along_dim(neighbours, 2).unbind(-1)
    bend = before - 2 * peak + after
    shift = torch.where(is_inner & (bend < 0), (before - after) / (2 * bend), 0.0)
    return best + shift
