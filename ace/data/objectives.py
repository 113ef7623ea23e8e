"""Say what each epoch of an objective shows: crop pairs on the grid, or views of the canvas (method.md §4)."""

from dataclasses import replace
from typing import Literal

from shards.core.errors import ConfigError
from shards.core.grid import GridSpec, Scale

Objective = Literal["ace", "dino", "ace_v2"]
CYCLE = 3
"""Epochs of one round of `ace_v2`: uniqueness, consistency, composition and decomposition."""
ONE_TO_ONE = Scale(1, 1, 1.0)


def spec_of_epoch(objective: Objective, spec: GridSpec, epoch: int) -> GridSpec | None:
    """Return the grid with the scales that the epoch's crop pairs are drawn from; None where it shows views instead.

    Raises:
        ConfigError: `ace_v2` on a grid of nothing but (k, l) = (1, 1).
    """
    if objective == "ace":
        return spec
    uneven = tuple(scale for scale in spec.scales if (scale.k, scale.l) != (1, 1))
    if objective == "ace_v2" and not any(scale.weight > 0 for scale in uneven):
        found = ", ".join(f"{scale.k}x{scale.l} (weight {scale.weight:g})" for scale in spec.scales)
        raise ConfigError(
            f"objective ace_v2 needs a scale other than 1x1, at which it composes and decomposes; grid.scales has only "
            f"{found}: add one, as {{k: 2, l: 2, weight: 1.0}}"
        )
    if objective == "dino" or epoch % CYCLE == 0:
        return None
    return replace(spec, scales=(ONE_TO_ONE,) if epoch % CYCLE == 1 else uneven)
