"""Collapse monitors: a healthy encoder keeps its features spread over many directions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ace.pretrain.monitor_params import CollapseParams


def feature_std(features: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Mean standard deviation of the normalised features' dimensions times sqrt(dim): 1 isotropic, 0 collapsed."""
    normalized = torch.nn.functional.normalize(features, dim=-1)
    spread: Tensor = normalized.std(dim=0).mean() * features.shape[-1] ** 0.5
    return spread


def effective_rank(features: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Exponential of the entropy of the centred features' singular values (Roy 2007), at most min(batch - 1, dim).

    NaN for features that are not finite, of which LAPACK makes an error: they are what a broken step is logged with.
    """
    if not torch.isfinite(features).all():
        return features.new_full((), math.nan)
    singular_values = torch.linalg.svdvals((features - features.mean(dim=0)).float())
    p = singular_values / singular_values.sum().clamp_min(1e-12)
    rank: Tensor = torch.special.entr(p).sum().exp()
    return rank


def rank_fraction(rank: Float[Tensor, ""], features: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Return the features' `effective_rank` as a fraction of the most there can be, min(batch - 1, dim)."""
    return rank / max(min(features.shape[0] - 1, features.shape[1]), 1)


def mean_entropy(logits: Float[Tensor, "batch out"]) -> Float[Tensor, ""]:
    """Mean entropy in nats of the distributions softmax(logits): log(out) when uniform, 0 when one-hot."""
    log_p = logits.log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1).mean()


def center_norm(center: Float[Tensor, " out"]) -> Float[Tensor, ""]:
    """Length of the centre, the running mean of the teacher's logits; logits of a unit last layer lie in [-1, 1]."""
    length: Tensor = torch.linalg.vector_norm(center)
    return length


@dataclass(frozen=True, kw_only=True)
class CollapseBound:
    """One monitor's bound.

    Attributes:
        monitor: Name of the value in the logged rows.
        threshold: Where the bound lies.
        is_minimum: Whether values below it are out of bounds, or values above.
        setting: The parameter that decides it, as it stands in params.yaml.
        meaning: What a value out of bounds says.
        remedy: What to try.
    """

    monitor: str
    threshold: float
    is_minimum: bool
    setting: str
    meaning: str
    remedy: str

    def is_broken_by(self, value: float) -> bool:
        """Tell whether the value is out of bounds; NaN is not (a loss that is not finite is dealt with elsewhere)."""
        return value < self.threshold if self.is_minimum else value > self.threshold

    def warning(self, value: float, step: int, num_rows: int) -> str:
        """Return a warning: what was found, the bound, what it means, and what to try."""
        side = "below" if self.is_minimum else "above"
        return (
            f"step {step}: {self.monitor} is {value:.4g}, {side} {self.threshold:.4g} ({self.setting}) in the last "
            f"{num_rows} logged rows. {self.meaning} {self.remedy} The loss does not show it: judge by the probe."
        )


class CollapseWatch:
    """Warns once whenever a monitor has left its bounds for some rows, and again only after it was back inside.

    Its state follows from the rows it was shown, so a resumed run shows it the earlier ones again.
    """

    def __init__(self, params: CollapseParams, *, out_dim: int | None) -> None:
        """Set the bounds.

        Args:
            params: Thresholds.
            out_dim: Outputs of the global head; None without it.
        """
        self._patience = params.patience_rows
        self._bounds = collapse_bounds(params, out_dim=out_dim)
        self._rows_outside = [0] * len(self._bounds)

    def check(self, row: Mapping[str, float]) -> list[str]:
        """Take one logged row, which has `step`; returns the warnings that are due.

        A monitor that is not in the row stays as it was.
        """
        warnings = []
        for number, bound in enumerate(self._bounds):
            if bound.monitor not in row:
                continue
            value = row[bound.monitor]
            self._rows_outside[number] = self._rows_outside[number] + 1 if bound.is_broken_by(value) else 0
            if self._rows_outside[number] == self._patience:
                warnings.append(bound.warning(value, int(row["step"]), self._patience))
        return warnings


def collapse_bounds(params: CollapseParams, *, out_dim: int | None) -> list[CollapseBound]:
    """Return the bounds in the monitors' own units; arguments as for `CollapseWatch`."""
    bounds = [
        CollapseBound(
            monitor="feature_std",
            threshold=params.min_feature_std,
            is_minimum=True,
            setting=f"min_feature_std {params.min_feature_std:g}",
            meaning="The teacher gives nearly the same features for every image (complete collapse), or the images "
            "themselves are nearly equal.",
            remedy="Look at the crops first (black, inverted or cut-off images); then lower base_lr or lengthen "
            "warmup_epochs, raise momentum, and raise the weights of the local terms against the global one.",
        ),
        CollapseBound(
            monitor="rank_fraction",
            threshold=params.min_rank_fraction,
            is_minimum=True,
            setting=f"min_rank_fraction {params.min_rank_fraction:g}",
            meaning="The features of different images lie along few directions (dimensional collapse).",
            remedy="Lower base_lr or weight_decay_end, raise momentum, enlarge batch_size, or give more weight to the "
            "terms that compare places; with very few or very similar images it may be all there is to learn.",
        ),
    ]
    if out_dim is None:
        return bounds
    uniform = math.log(out_dim)
    return [
        *bounds,
        CollapseBound(
            monitor="teacher_entropy",
            threshold=params.min_entropy_fraction * uniform,
            is_minimum=True,
            setting=f"min_entropy_fraction {params.min_entropy_fraction:g} of log({out_dim})",
            meaning="The teacher puts every image on one output with certainty: sharpening outruns centring.",
            remedy="Raise global_loss.teacher_temperature, lower global_loss.center_momentum so that the centre "
            "follows faster, lengthen frozen_last_layer_epochs, or lower base_lr.",
        ),
        CollapseBound(
            monitor="teacher_entropy",
            threshold=params.max_entropy_fraction * uniform,
            is_minimum=False,
            setting=f"max_entropy_fraction {params.max_entropy_fraction:g} of log({out_dim})",
            meaning="The teacher's targets are nearly uniform, and the global term then teaches nothing: centring "
            "outruns sharpening.",
            remedy="Lower global_loss.teacher_temperature (or start lower), raise global_loss.center_momentum, lower "
            "base_lr, or choose a smaller global_head.out_dim.",
        ),
    ]
