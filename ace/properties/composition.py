"""Compositionality: the embedding of a region is close to the mean of its parts' embeddings (method.md §5)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator

from ace.data.crops import resample
from ace.drawing.words import with_interval
from ace.embed.embedder import Embedder, Image, unit
from ace.properties.base import Answers, Evidence, Figure, Measurement, Property, Reading, Setting
from ace.protocol.features import Features
from ace.protocol.intervals import Measure, difference, estimate, per_pair, per_patient
from ace.protocol.regions import Region, Tiling, areas, check_sides, draw_region, draw_tiling, even_tiling, iou_matrix
from shards.core.config import Section
from shards.core.errors import ConfigError

UNMATCHED = "unmatched_cosine"
RANDOM_PARTS = (2, 4)
"""Fewest and most parts of a region that is cut at random, as Adam and Adam-v2 cut them."""
RANDOM_MIN_SHARE = 1 / 3
"""Smallest share of a part that a random cut takes off."""
Cut = Literal["2x2", "3x3", "random"]
"""Names a way to cut a region into parts."""
CUTS: dict[Cut, str] = {"2x2": "2 × 2 parts", "3x3": "3 × 3 parts", "random": "2 to 4 parts, cut at random"}
"""Words of the page for each cut."""
Directions = Float[np.ndarray, "regions dim"]


class CompositionParams(Section):
    """Whole against the mean of its parts."""

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
    cuts: tuple[Cut, ...]
    """Cuts of regions into parts; the first is `2x2`, whose figure is the headline. Each other one gives the same
    measure, `compositionality_CUT`: `3x3` are nine squares; `random` are two to four rectangles, by straight cuts
    through the whole of a part, and the mean of their embeddings is weighted by their areas."""
    further_regions_per_patient: int = Field(ge=1)
    """Regions of each patient that are also cut in the other ways: the first ones of `regions_per_patient`."""

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

    @model_validator(mode="after")
    def _even_first(self) -> "CompositionParams":
        if self.cuts[:1] != ("2x2",):
            raise ValueError(
                f"cuts are {list(self.cuts)}; the first has to be 2x2, since `compositionality` is its figure"
            )
        if len(set(self.cuts)) < len(self.cuts):
            raise ValueError(f"cuts are {list(self.cuts)}; name each once")
        if self.further_regions_per_patient > self.regions_per_patient:
            raise ValueError(
                f"further_regions_per_patient is {self.further_regions_per_patient}, and regions_per_patient is "
                f"{self.regions_per_patient}: further cuts are of the same regions; lower it"
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

    def among(self, is_kept: Bool[np.ndarray, " regions"]) -> "CompositionPlan":
        """Keep some regions, and the mismatches among these."""
        numbers = np.cumsum(is_kept) - 1
        regions = tuple(region for region, own in zip(self.regions, is_kept, strict=True) if own)
        mismatches = self.mismatches[is_kept[self.mismatches].all(axis=1)]
        return CompositionPlan(regions, self.patient[is_kept], numbers[mismatches])


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


def embed_quadrants(
    embedder: Embedder, canvases: Sequence[Image], plan: CompositionPlan
) -> tuple[Directions, Directions]:
    """Embed every region and its quadrants, each at crop size: E(whole), and the direction of the mean of E(parts)."""
    size_px = embedder.encoder.spec.crop_px

    def crops() -> Iterator[Image]:
        for patient, region in zip(plan.patient, plan.regions, strict=True):
            canvas = canvases[patient]
            for part in (region, *region.quadrants()):
                yield resample(canvas, part.window(len(canvas)), size_px)

    pooled = embedder.pooled(crops(), total=5 * len(plan.regions), task="composition")
    embeddings = unit(pooled).reshape(len(plan.regions), 5, -1)
    return embeddings[:, 0], unit(embeddings[:, 1:].mean(axis=1))


def embed_parts(
    embedder: Embedder, canvases: Sequence[Image], plan: CompositionPlan, tilings: Sequence[Tiling], cut: str
) -> Directions:
    """Embed the parts of every region, each resampled to crop size: the direction of their mean, weighted by area.

    Args:
        embedder: The encoder.
        canvases: Of the patients.
        plan: The regions.
        tilings: How each of them is cut.
        cut: What the progress bar calls that.
    """
    size_px = embedder.encoder.spec.crop_px

    def crops() -> Iterator[Image]:
        for patient, region, tiling in zip(plan.patient, plan.regions, tilings, strict=True):
            canvas = canvases[patient]
            for part in tiling:
                yield resample(canvas, region.part(part, len(canvas)), size_px)

    counts = [len(tiling) for tiling in tilings]
    pooled = embedder.pooled(crops(), total=sum(counts), task=f"composition, {cut}")
    weighted = unit(pooled) * np.concatenate([areas(tiling) for tiling in tilings])[:, None]
    return unit(np.add.reduceat(weighted, np.cumsum([0, *counts[:-1]])))


def compare(plan: CompositionPlan, wholes: Directions, parts: Directions) -> CompositionCosines:
    """Compare every region with its own parts, and with those of the regions it is mismatched with."""
    first, second = plan.mismatches.T
    return CompositionCosines((wholes * parts).sum(-1), (wholes[first] * parts[second]).sum(-1))


def true_cosine(plan: CompositionPlan, cosines: CompositionCosines, num_patients: int) -> Measure:
    """Mean cosine with the own parts; 1 for an encoder that embeds everything alike."""
    return per_patient(
        np.bincount(plan.patient, cosines.true, num_patients), np.bincount(plan.patient, minlength=num_patients)
    )


def mismatched_cosine(plan: CompositionPlan, cosines: CompositionCosines, num_patients: int) -> Measure:
    """Mean cosine with the parts of a region of another patient."""
    sums, counts = np.zeros((2, num_patients, num_patients))
    whole, parts = plan.patient[plan.mismatches].T
    np.add.at(sums, (whole, parts), cosines.mismatched)
    np.add.at(counts, (whole, parts), 1)
    return per_pair(sums, counts)


def compositionality(plan: CompositionPlan, cosines: CompositionCosines, num_patients: int) -> Measure:
    """Mean true minus mean mismatched cosine; 0 for an encoder that cannot tell them apart."""
    return difference(true_cosine(plan, cosines, num_patients), mismatched_cosine(plan, cosines, num_patients))


def composition_auc(plan: CompositionPlan, cosines: CompositionCosines, num_patients: int) -> Measure:
    """Probability that a true cosine exceeds a mismatched one, ties counting half; 0.5 by chance."""
    wins = (cosines.true[:, None] > cosines.mismatched) + 0.5 * (cosines.true[:, None] == cosines.mismatched)
    true_of = np.eye(num_patients)[plan.patient]
    mismatched_of = np.eye(num_patients)[plan.patient[plan.mismatches[:, 0]]]
    return per_pair(true_of.T @ wins @ mismatched_of, np.outer(true_of.sum(0), mismatched_of.sum(0)))


@dataclass(frozen=True, kw_only=True)
class CompositionMeasurement(Measurement):
    """Regions and mismatches of one cohort.

    Attributes:
        setting: The patients.
        plan: All regions, which are cut into quadrants.
        is_further: Which of these are also cut in other ways.
        tilings: Each other way to cut → the parts of each such region.
    """

    setting: Setting
    plan: CompositionPlan
    is_further: Bool[np.ndarray, " regions"]
    tilings: Mapping[Cut, Sequence[Tiling]]

    def ask(self, embedder: Embedder, features: Features) -> Answers:
        """Return the cosines."""
        canvases, further = self.setting.cohort.canvases, self.plan.among(self.is_further)
        wholes, parts = embed_quadrants(embedder, canvases, self.plan)
        cosines = compare(self.plan, wholes, parts)
        answers = {"true": cosines.true, "mismatched": cosines.mismatched}
        for cut, tilings in self.tilings.items():
            parts = embed_parts(embedder, canvases, further, tilings, cut)
            cosines = compare(further, wholes[self.is_further], parts)
            answers |= {f"true_{cut}": cosines.true, f"mismatched_{cut}": cosines.mismatched}
        return answers

    def read(self, answers: Answers) -> Mapping[str, Reading]:
        """Compare true with mismatched cosines; the mean of the latter is the chance of the former alone."""
        num_patients, further = len(self.setting.cohort.subjects), self.plan.among(self.is_further)
        cosines = CompositionCosines(answers["true"], answers["mismatched"])
        facts = _counts(self.plan)
        mean = compositionality(self.plan, cosines, num_patients)
        auc = composition_auc(self.plan, cosines, num_patients)
        readings = {
            "compositionality": Reading(measure=mean, num_patients=num_patients, chance=0.0, facts=facts),
            "compositionality_auc": Reading(measure=auc, num_patients=num_patients, chance=0.5, facts=facts),
        }
        for cut in self.tilings:
            own = CompositionCosines(answers[f"true_{cut}"], answers[f"mismatched_{cut}"])
            measure = compositionality(further, own, num_patients)
            readings[figure_of(cut)] = Reading(
                measure=measure, num_patients=num_patients, chance=0.0, facts=_counts(further)
            )
        unmatched = true_cosine(self.plan, cosines, num_patients)
        others = estimate(mismatched_cosine(self.plan, cosines, num_patients), num_patients)
        return readings | {UNMATCHED: Reading(measure=unmatched, num_patients=num_patients, chance=others, facts=facts)}

    def pictures(self, answers: Mapping[str, Answers], features: Mapping[str, Features]) -> Answers:
        """Keep all cosines, and the first mismatched region with its own and the other parts.

        Of the further cuts: `cut_whole`, the first region, `CUT_parts`, its parts, and each encoder's cosine of both,
        `_CUT_example`.
        """
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
        if self.tilings:
            arrays["cut_whole"] = crops(int(np.flatnonzero(self.is_further)[0]))[0]
        for cut, tilings in self.tilings.items():
            arrays[f"{cut}_parts"] = np.array(tilings[0])
            arrays |= {f"{name}_{cut}_example": answer[f"true_{cut}"][0] for name, answer in answers.items()}
        return arrays


def figure_of(cut: Cut) -> str:
    """Name the figure of a way to cut; that of 2 × 2 parts is the headline."""
    return "compositionality" if cut == "2x2" else f"compositionality_{cut}"


def _counts(plan: CompositionPlan) -> dict[str, int]:
    return {"num_regions": len(plan.regions), "num_mismatches": len(plan.mismatches)}


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
            title="Compositionality: cosine, true minus mismatched",
            number="{:.3f}",
            group="compositionality",
            summary="cosine, true − mismatched",
        ),
        "compositionality_auc": Figure(
            title="Compositionality: AUC, true against mismatched", number="{:.3f}", summary="AUC"
        ),
        "compositionality_3x3": Figure(title="Compositionality: true minus mismatched, 3 × 3 parts", number="{:.3f}"),
        "compositionality_random": Figure(
            title="Compositionality: true minus mismatched, parts cut at random", number="{:.3f}"
        ),
        UNMATCHED: Figure(
            title="Unmatched cosine of the whole with its parts, as others publish it; 1 for a collapsed encoder, and "
            "chance is the cosine with another's parts",
            number="{:.3f}",
            summary="cosine with its own parts alone",
        ),
    }
    template = "composition.html"

    def min_patients(self, params: CompositionParams) -> int:
        """Return 2: parts of one patient are compared with those of another."""
        return 2

    def plan(self, setting: Setting, params: CompositionParams) -> CompositionMeasurement:
        """Draw regions of every patient."""
        plan = plan_composition(len(setting.cohort.subjects), params, setting.generator("composition"))
        is_further = np.arange(len(plan.regions)) % params.regions_per_patient < params.further_regions_per_patient
        rng, num = setting.generator("composition_random"), int(is_further.sum())
        tilings = {cut: tuple(_tiling(cut, rng) for _ in range(num)) for cut in params.cuts[1:]}
        return CompositionMeasurement(setting=setting, plan=plan, is_further=is_further, tilings=tilings)

    def shown(self, evidence: Evidence) -> dict[str, Any]:
        """Show a region, its parts, another region's parts, and the densities of all cosines."""
        from ace.drawing.pictures import data_uri
        from ace.drawing.plots import density_plot

        arrays = evidence.arrays
        cosines = {name: (arrays[f"{name}_true"], arrays[f"{name}_mismatched"]) for name in evidence.encoders}
        return {
            "whole": data_uri(arrays["example_whole"]),
            "parts": [data_uri(part) for part in arrays["example_parts"]],
            "other_parts": [data_uri(part) for part in arrays["example_other_parts"]],
            "cosines": {name: [float(value) for value in arrays[f"{name}_example"]] for name in evidence.encoders},
            "density": density_plot(cosines),
            "cuts": cut_examples(evidence),
        }


def cut_examples(evidence: Evidence) -> list[dict[str, Any]]:
    """Each further way to cut: the first region with its parts, and every encoder's figure."""
    from ace.drawing.pictures import DrawnBox, data_uri

    size_px = evidence.arrays["cut_whole"].shape[0] if len(evidence.params["cuts"]) > 1 else 0
    return [
        {
            "name": CUTS[cut],
            "whole": data_uri(evidence.arrays["cut_whole"]),
            "size_px": size_px,
            "boxes": [
                DrawnBox(row=top, col=left, height=bottom - top, width=right - left)
                for top, left, bottom, right in (evidence.arrays[f"{cut}_parts"] * size_px).tolist()
            ],
            "cosine": {name: float(evidence.arrays[f"{name}_{cut}_example"]) for name in evidence.encoders},
            "figure": {
                name: with_interval(evidence.figures[name][figure_of(cut)], "{:.3f}") for name in evidence.encoders
            },
        }
        for cut in evidence.params["cuts"][1:]
    ]


def _tiling(cut: Cut, rng: np.random.Generator) -> Tiling:
    """Cut the unit square; `rng` decides how, if it is cut at random."""
    if cut == "random":
        low, high = RANDOM_PARTS
        return draw_tiling(rng, int(rng.integers(low, high + 1)), RANDOM_MIN_SHARE)
    return even_tiling(int(cut[0]))
