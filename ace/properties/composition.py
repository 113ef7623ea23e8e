"""Compositionality: the embedding of a region is close to the mean of its parts' embeddings (method.md §5)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, model_validator

from ace.data.crops import resample
from ace.embed.embedder import Embedder, Image, unit
from ace.properties.base import Answers, Figure, Measurement, Property, Reading, Setting, View
from ace.protocol.features import Features
from ace.protocol.intervals import Measure, difference, per_pair, per_patient
from ace.protocol.regions import Region, check_sides, draw_region, iou_matrix
from shards.config import Section
from shards.errors import ConfigError


class CompositionParams(Section):
    """Whole against the mean of its 2×2 parts."""

    regions_per_patient: int = Field(ge=1)
    """Regions drawn in each patient's canvas."""
    mismatches_per_region: int = Field(ge=1)
    """Regions of other patients that each region is compared with."""
    min_side: float = Field(gt=0, le=1)
    """Smallest side of a region, as a fraction of the canvas side."""
    max_side: float = Field(gt=0, le=1)
    """Largest side of a region, as a fraction of the canvas side."""
    max_mismatch_iou: float = Field(ge=0, lt=1)
    """Largest overlap (intersection over union) of a region with the other patient's region it is mismatched with."""

    @model_validator(mode="after")
    def _ordered(self) -> "CompositionParams":
        check_sides(self.min_side, self.max_side)
        shared = max(0.0, 2 * self.min_side - 1) ** 2
        least_iou = shared / (2 * self.min_side**2 - shared)
        if least_iou > self.max_mismatch_iou:
            raise ValueError(
                f"regions of min_side {self.min_side} overlap by an IoU of at least {least_iou:.2f}, and "
                f"max_mismatch_iou is {self.max_mismatch_iou}: no two would be mismatched; lower min_side or raise it"
            )
        return self


@dataclass(frozen=True)
class CompositionPlan:
    """A plan names the regions that are compared, the same for every encoder.

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


@dataclass(frozen=True)
class CompositionMeasurement(Measurement):
    """Regions and mismatches of one cohort."""

    setting: Setting
    plan: CompositionPlan

    def ask(self, embedder: Embedder, features: Features) -> Answers:
        """Return the cosines."""
        cosines = composition_cosines(embedder, self.setting.cohort.canvases, self.plan)
        return {"true": cosines.true, "mismatched": cosines.mismatched}

    def read(self, answers: Answers) -> Mapping[str, Reading]:
        """Compare true with mismatched cosines."""
        num_patients = len(self.setting.cohort.subjects)
        cosines = CompositionCosines(answers["true"], answers["mismatched"])
        facts = {"num_regions": len(self.plan.regions), "num_mismatches": len(self.plan.mismatches)}
        mean = compositionality(self.plan, cosines, num_patients)
        auc = composition_auc(self.plan, cosines, num_patients)
        return {
            "compositionality": Reading(mean, num_patients, 0.0, facts=facts),
            "compositionality_auc": Reading(auc, num_patients, 0.5, facts=facts),
        }

    def pictures(self, answers: Mapping[str, Answers], features: Mapping[str, Features]) -> Answers:
        """Keep all cosines, and the first mismatched region with its own and the other parts."""
        size_px = self.setting.cohort.spec.crop_px

        def crops(position: int) -> tuple[np.ndarray, np.ndarray]:
            canvas, region = self.setting.cohort.canvases[self.plan.patient[position]], self.plan.regions[position]
            whole = resample(canvas, region.window(len(canvas)), size_px)
            return whole, np.stack([resample(canvas, part.window(len(canvas)), size_px) for part in region.quadrants()])

        first, second = self.plan.mismatches[0].tolist()
        (whole, parts), (_, other_parts) = crops(first), crops(second)
        arrays = {"example_whole": whole, "example_parts": parts, "example_other_parts": other_parts}
        for name, answer in answers.items():
            arrays |= {f"{name}_true": answer["true"], f"{name}_mismatched": answer["mismatched"]}
            arrays[f"{name}_example"] = np.array([answer["true"][first], answer["mismatched"][0]])
        return arrays


class Composition(Property):
    """Compares the whole with the mean of its parts."""

    name = "composition"
    params = CompositionParams
    title = "Compositionality"
    question = "Is the whole the mean of its parts?"
    headline = "compositionality"
    unit = "cosine to its own parts minus cosine to another region's"
    has_card = True
    figures: ClassVar[Mapping[str, Figure]] = {
        "compositionality": Figure(
            "Compositionality: cosine, true minus mismatched", "{:.3f}", "compositionality", "cosine, true − mismatched"
        ),
        "compositionality_auc": Figure("Compositionality: AUC, true against mismatched", "{:.3f}", summary="AUC"),
    }
    template = "composition.html"

    def min_patients(self, params: CompositionParams) -> int:
        """Return 2: parts of one patient are compared with those of another."""
        return 2

    def plan(self, setting: Setting, params: CompositionParams) -> CompositionMeasurement:
        """Draw regions of every patient."""
        rng = setting.generator("composition")
        return CompositionMeasurement(setting, plan_composition(len(setting.cohort.subjects), params, rng))

    def shown(self, view: View) -> dict[str, Any]:
        """Show a region, its parts, another region's parts, and the densities of all cosines."""
        from ace.drawing.pictures import data_uri
        from ace.drawing.plots import density_plot

        arrays = view.arrays
        cosines = {name: (arrays[f"{name}_true"], arrays[f"{name}_mismatched"]) for name in view.encoders}
        return {
            "whole": data_uri(arrays["example_whole"]),
            "parts": [data_uri(part) for part in arrays["example_parts"]],
            "other_parts": [data_uri(part) for part in arrays["example_other_parts"]],
            "cosines": {name: [float(value) for value in arrays[f"{name}_example"]] for name in view.encoders},
            "density": density_plot(cosines),
        }
