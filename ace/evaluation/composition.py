"""Compositionality: the embedding of a region is close to the mean of its parts' embeddings (method.md §5)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ace.data.crops import resample
from ace.evaluation.embedding import Embedder, Image, unit
from ace.evaluation.intervals import Measure, difference, per_pair, per_patient
from ace.evaluation.params import CompositionParams
from ace.evaluation.regions import Region, draw_region, iou_matrix
from shards.errors import ConfigError


@dataclass(frozen=True)
class CompositionPlan:
    """Which regions are compared; the same for every encoder.

    Attributes:
        regions: Of all patients, one after another.
        patient: Whose canvas each region lies in.
        mismatches: (whole, parts): a region, and the region of another patient whose parts it is compared with.
    """

    regions: tuple[Region, ...]
    patient: Int[np.ndarray, " regions"]
    mismatches: Int[np.ndarray, "mismatches 2"]


@dataclass(frozen=True)
class CompositionCosines:
    """Cosine of E(whole) with the mean of E(parts), for true and for mismatched parts."""

    true: Float[np.ndarray, " regions"]
    mismatched: Float[np.ndarray, " mismatches"]


def plan_composition(num_patients: int, params: CompositionParams, rng: np.random.Generator) -> CompositionPlan:
    """Draw the regions, and for each one the regions of other patients it barely overlaps.

    Raises:
        ConfigError: no region has a mismatch; the sides are too large for the overlap allowed.
    """
    patient = np.repeat(np.arange(num_patients), params.regions_per_patient)
    regions = tuple(draw_region(rng, params.min_side, params.max_side) for _ in patient)
    allowed = (iou_matrix(regions, regions) <= params.max_mismatch_iou) & (patient[:, None] != patient)
    mismatches = []
    for whole, candidates in enumerate(allowed):
        others = np.flatnonzero(candidates)
        chosen = rng.permutation(others)[: params.mismatches_per_region]
        mismatches += [(whole, parts) for parts in chosen]
    if not mismatches:
        raise ConfigError(
            f"no two of {len(regions)} regions with sides {params.min_side} to {params.max_side} have an IoU of at "
            f"most max_mismatch_iou {params.max_mismatch_iou}; lower the sides or raise it"
        )
    return CompositionPlan(regions, patient, np.array(mismatches))


def composition_cosines(embedder: Embedder, canvases: Sequence[Image], plan: CompositionPlan) -> CompositionCosines:
    """Embed every region and its quadrants, each resampled to crop size, and compare them."""
    size_px = embedder.encoder.spec.crop_px

    def crops() -> Iterator[Image]:
        for patient, region in zip(plan.patient, plan.regions, strict=True):
            canvas = canvases[patient]
            for part in (region, *region.quadrants()):
                yield resample(canvas, part.window(len(canvas)), size_px)

    pooled = embedder.pooled(crops(), total=5 * len(plan.regions), task="composition")
    embeddings = unit(pooled).reshape(len(plan.regions), 5, -1)
    wholes, parts = embeddings[:, 0], unit(embeddings[:, 1:].mean(axis=1))
    first, second = plan.mismatches.T
    return CompositionCosines((wholes * parts).sum(-1), (wholes[first] * parts[second]).sum(-1))


def compositionality(plan: CompositionPlan, cosines: CompositionCosines, num_patients: int) -> Measure:
    """Mean true minus mean mismatched cosine; 0 for an encoder that cannot tell them apart."""
    true = per_patient(
        np.bincount(plan.patient, cosines.true, num_patients), np.bincount(plan.patient, minlength=num_patients)
    )
    sums, counts = np.zeros((2, num_patients, num_patients))
    whole, parts = plan.patient[plan.mismatches].T
    np.add.at(sums, (whole, parts), cosines.mismatched)
    np.add.at(counts, (whole, parts), 1)
    return difference(true, per_pair(sums, counts))


def composition_auc(plan: CompositionPlan, cosines: CompositionCosines, num_patients: int) -> Measure:
    """Probability that a true cosine exceeds a mismatched one, ties counting half; 0.5 by chance."""
    wins = (cosines.true[:, None] > cosines.mismatched) + 0.5 * (cosines.true[:, None] == cosines.mismatched)
    true_of = np.eye(num_patients)[plan.patient]
    mismatched_of = np.eye(num_patients)[plan.patient[plan.mismatches[:, 0]]]
    return per_pair(true_of.T @ wins @ mismatched_of, np.outer(true_of.sum(0), mismatched_of.sum(0)))
