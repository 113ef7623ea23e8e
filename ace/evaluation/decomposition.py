"""Decompositionality: a region taken out of an image is what its embedding loses (method.md §5)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from ace.data.crops import resample
from ace.evaluation.embedding import Embedder, Image, pool, unit
from ace.evaluation.fills import FillPlan
from ace.evaluation.intervals import Measure, per_patient
from ace.evaluation.params import DecompositionParams, Fill
from ace.evaluation.regions import Region, draw_region
from ace.evaluation.removal import Removal, RemovalTally
from shards.errors import ConfigError
from shards.records import Split


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


@dataclass(frozen=True)
class Removals:
    """What one encoder makes of the regions' removal.

    Attributes:
        by_fill: Directions for each fill; the candidates are the same ones.
        tokens: What happens to single tokens where the fill is black.
    """

    by_fill: Mapping[Fill, DecompositionEmbeddings]
    tokens: Removal


def plan_decomposition(
    num_patients: int,
    params: DecompositionParams,
    rng: np.random.Generator,
    *,
    same_position: bool,
    split: Split = "test",
) -> DecompositionPlan:
    """Draw the regions and who meets whom.

    Args:
        num_patients: Patients there are.
        params: Sides, number of draws, and their size.
        rng: Decides regions and draws.
        same_position: The hard case: in a draw all regions have the same place, so that place tells nothing.
        split: The split that the patients are of, for the message.

    Raises:
        ConfigError: there are fewer patients than a draw needs.
    """
    if num_patients < params.batch:
        raise ConfigError(
            f"{num_patients} {split} patients, but a draw needs {params.batch} different ones (evaluate.decomposition."
            f"batch); make more patients, give the {split} split a larger share, or lower the batch"
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
    """E0(image) − E0(image with the region set to black), and E0(region), as directions."""
    images, without, regions = _pooled_with_black(embedder, canvases, plan, watch=None)
    return DecompositionEmbeddings(unit(images - without), unit(regions))


def remove_regions(embedder: Embedder, canvases: Sequence[Image], plan: DecompositionPlan, fills: FillPlan) -> Removals:
    """Embed whole images and regions once, and the images without a region once for each fill."""
    spec = embedder.encoder.spec
    tally = RemovalTally(plan.regions, size_px=spec.crop_px, t=spec.t)
    images, without, regions = _pooled_with_black(embedder, canvases, plan, tally.add)
    candidates, others = unit(regions), fills.fills[1:]

    def crops() -> Iterator[Image]:
        for patient, (canvas, own) in enumerate(zip(canvases, plan.regions, strict=True)):
            image = resample(canvas, (0, 0, len(canvas), len(canvas)), spec.crop_px)
            for number, region in enumerate(own):
                for fill in others:
                    yield fills.filled(image, region, fill, canvases=canvases, patient=patient, number=number)

    by_fill: dict[Fill, DecompositionEmbeddings] = {
        "black": DecompositionEmbeddings(unit(images - without), candidates)
    }
    if others:
        total = candidates.shape[0] * candidates.shape[1] * len(others)
        pooled = embedder.pooled(crops(), total=total, task="decomposition, other fills")
        filled = pooled.reshape(*candidates.shape[:2], len(others), -1)
        for number, fill in enumerate(others):
            by_fill[fill] = DecompositionEmbeddings(unit(images - filled[:, :, number]), candidates)
    return Removals(by_fill, tally.result())


def _pooled_with_black(
    embedder: Embedder,
    canvases: Sequence[Image],
    plan: DecompositionPlan,
    watch: Callable[[Tensor], None] | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embed images [patients, 1, dim], images without each region, and regions [patients, regions, dim].

    `watch` is given the tokens of every forward pass; crops come as (image, (without, region) …), patient by patient.
    """
    size_px, num_patients, num_regions = embedder.encoder.spec.crop_px, len(canvases), len(plan.regions[0])

    def crops() -> Iterator[Image]:
        for canvas, regions in zip(canvases, plan.regions, strict=True):
            image = resample(canvas, (0, 0, len(canvas), len(canvas)), size_px)
            yield image
            for region in regions:
                yield from remove_and_cut(image, region)

    means = []
    for tokens in embedder.shown_tokens(crops(), total=num_patients * (1 + 2 * num_regions), task="decomposition"):
        means.append(pool(tokens))
        if watch is not None:
            watch(tokens)
    pooled = np.concatenate(means).reshape(num_patients, 1 + 2 * num_regions, -1)
    return pooled[:, :1], pooled[:, 1::2], pooled[:, 2::2]


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
