"""Decompositionality: a region taken out of an image is what its embedding loses (method.md §5)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ace.data.crops import resample
from ace.evaluation.embedding import Embedder, Image, unit
from ace.evaluation.intervals import Measure, per_patient
from ace.evaluation.params import DecompositionParams
from ace.evaluation.regions import Region, draw_region
from shards.errors import ConfigError


@dataclass(frozen=True)
class DecompositionPlan:
    """Which regions are embedded and which patients meet in a draw; the same for every encoder.

    Attributes:
        regions: Of each patient; those of one column share a place in the hard case.
        patients: Who takes part in each draw.
        choices: Which of a patient's regions is its query and candidate in each draw.
    """

    regions: tuple[tuple[Region, ...], ...]
    patients: Int[np.ndarray, "draws batch"]
    choices: Int[np.ndarray, "draws batch"]


@dataclass(frozen=True)
class DecompositionEmbeddings:
    """Directions of what a region's removal changes, and of the region itself."""

    queries: Float[np.ndarray, "patients regions dim"]
    candidates: Float[np.ndarray, "patients regions dim"]

    def similarities(self, patients: Int[np.ndarray, " batch"], choices: Int[np.ndarray, " batch"]) -> np.ndarray:
        """Cosines of one draw, [query, candidate]; the right candidates stand on the diagonal."""
        cosines: Float[np.ndarray, "batch batch"]
        cosines = self.queries[patients, choices] @ self.candidates[patients, choices].T
        return cosines


def plan_decomposition(
    num_patients: int, params: DecompositionParams, rng: np.random.Generator, *, same_position: bool
) -> DecompositionPlan:
    """Draw the regions and who meets whom.

    Args:
        num_patients: Test patients there are.
        params: Sides, number of draws, and their size.
        rng: Decides regions and draws.
        same_position: The hard case: in a draw all regions have the same place, so that place tells nothing.

    Raises:
        ConfigError: there are fewer patients than a draw needs.
    """
    if num_patients < params.batch:
        raise ConfigError(
            f"{num_patients} test patients, but a draw needs {params.batch} different ones (evaluate.decomposition."
            "batch); make more patients or give the test split a larger share"
        )

    def draw_regions() -> tuple[Region, ...]:
        return tuple(draw_region(rng, params.min_side, params.max_side) for _ in range(params.regions_per_patient))

    shared = draw_regions()
    regions = tuple(shared if same_position else draw_regions() for _ in range(num_patients))
    patients = np.stack([rng.permutation(num_patients)[: params.batch] for _ in range(params.num_draws)])
    shape = (params.num_draws, 1 if same_position else params.batch)
    choices = np.broadcast_to(rng.integers(params.regions_per_patient, size=shape), patients.shape)
    return DecompositionPlan(regions, patients, choices)


def remove_and_cut(image: Image, region: Region) -> tuple[Image, Image]:
    """The image with the region set to black, and the region resampled to the image's size."""
    row, col, side = region.pixels(len(image))
    without = image.copy()
    without[row : row + side, col : col + side] = 0
    return without, resample(image, (row, col, row + side, col + side), len(image))


def decomposition_embeddings(
    embedder: Embedder, canvases: Sequence[Image], plan: DecompositionPlan
) -> DecompositionEmbeddings:
    """E0(image) − E0(image without region), and E0(region), as directions."""
    size_px, num_patients, num_regions = embedder.encoder.spec.crop_px, len(canvases), len(plan.regions[0])

    def crops() -> Iterator[Image]:
        for canvas, regions in zip(canvases, plan.regions, strict=True):
            image = resample(canvas, (0, 0, len(canvas), len(canvas)), size_px)
            yield image
            for region in regions:
                yield from remove_and_cut(image, region)

    total = num_patients * (1 + 2 * num_regions)
    pooled = embedder.pooled(crops(), total=total, task="decomposition").reshape(num_patients, 1 + 2 * num_regions, -1)
    images, without, regions = pooled[:, :1], pooled[:, 1::2], pooled[:, 2::2]
    return DecompositionEmbeddings(unit(images - without), unit(regions))


def top1_credit(similarities: Float[np.ndarray, "queries candidates"]) -> Float[np.ndarray, " queries"]:
    """1 where the diagonal is its row's largest, else 0; a tie of m earns 1/m, so that a constant scores chance."""
    is_best = similarities == similarities.max(axis=1, keepdims=True)
    credit: Float[np.ndarray, " queries"] = np.diagonal(is_best) / is_best.sum(axis=1)
    return credit


def decompositionality(plan: DecompositionPlan, embeddings: DecompositionEmbeddings) -> Measure:
    """Top-1 accuracy over all draws; its interval resamples the queries' patients, given the draws' candidates."""
    num_patients = len(plan.regions)
    sums, counts = np.zeros((2, num_patients))
    for patients, choices in zip(plan.patients, plan.choices, strict=True):
        sums[patients] += top1_credit(embeddings.similarities(patients, choices))
        counts[patients] += 1
    return per_patient(sums, counts)
