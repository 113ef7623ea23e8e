"""Figures of cases (images with a truth): means over those of resampled patients, and what a pixel measures in mm."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Real

from ace.downstream.base import Score
from ace.downstream.parts import Part
from ace.protocol.intervals import Measure, Weights, mean, per_patient
from shards.core.errors import ConfigError
from shards.reading.reader import Sample

REFERENCE_PX = 1024
"""Side of the canvas in whose pixels errors are told, whatever size a network sees (method.md §5)."""


def mean_of_cases(values: Float[np.ndarray, " cases"], patients: Int[np.ndarray, " cases"]) -> Measure:
    """Compute the mean over cases; those that are nan are left out.

    Args:
        values: One figure a case.
        patients: Number of each case's patient.
    """
    has_value = ~np.isnan(values)
    return share_of_sums(np.where(has_value, values, 0.0), has_value.astype(int), patients)


def share_of_sums(
    parts: Real[np.ndarray, " cases"], wholes: Real[np.ndarray, " cases"], patients: Int[np.ndarray, " cases"]
) -> Measure:
    """Divide the sum of the parts by the sum of the wholes; nan where the latter is 0.

    Args:
        parts: One number a case.
        wholes: One number a case.
        patients: Number of each case's patient.
    """

    def measure(weights: Weights) -> Float[np.ndarray, " resamples"]:
        sums = (np.bincount(patients, values, weights.shape[1]) for values in (parts, wholes))
        return per_patient(*sums)(weights)

    return measure


def mean_over(by_structure: Mapping[str, Mapping[str, Score]]) -> dict[str, Score]:
    """Return each figure's mean over structures, then, as FIGURE/STRUCTURE, those of each one."""
    names = list(dict.fromkeys(name for own in by_structure.values() for name in own))
    by_figure = {name: {structure: own[name] for structure, own in by_structure.items()} for name in names}
    means = {name: _mean_score(list(own.values())) for name, own in by_figure.items()}
    return means | {f"{name}/{structure}": own[structure] for name, own in by_figure.items() for structure in own}


def _mean_score(scores: Sequence[Score]) -> Score:
    chances = [score.chance for score in scores if score.chance is not None]
    chance = float(np.mean(chances)) if chances else None
    return Score(mean([score.measure for score in scores]), chance, {"num_structures": len(scores)})


def pixel_mm(meta: Mapping[str, Any], shown_px: float, side: float) -> tuple[float, float]:
    """Return the (row, col) sides in mm of a unit of what is shown of a canvas; nan where the image's are not known.

    Of a projection they are those at the detector (docs/format.md).

    Args:
        meta: The sample's KEY.json.
        shown_px: Side of what is shown, in pixels of the canvas.
        side: Side of what is shown, in the unit.
    """
    spacing = meta["original"]["spacing_mm"] or (np.nan, np.nan)
    (down, _, _), (_, right, _) = meta["grid"]["affine"]
    row, col = (own / scale * shown_px / side for own, scale in zip(spacing, (down, right), strict=True))
    return float(row), float(col)


def canvas_side(sample: Sample) -> int:
    """Return the side of a sample's canvas in pixels, without decoding it."""
    grid = sample.meta["grid"]
    return int(grid["n"] * grid["cell_px"])


def no_such_names(field: str, names: Sequence[str], part: Part, found: Collection[str]) -> ConfigError:
    """Return the error that says what a part has in the place of what is asked for."""
    return ConfigError(
        f"{field}: of {', '.join(names)} the images of {part.index.name} that are to be used have none; they have "
        f"{', '.join(sorted(found)) or 'nothing of the kind'}. Write the names as the dataset does"
    )
