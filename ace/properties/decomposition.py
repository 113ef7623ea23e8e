"""Decompositionality: a region taken out of an image is what its embedding loses (method.md §5)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from ace.data.crops import resample, resample_whole
from ace.drawing.words import with_interval
from ace.embed.embedder import Embedder, Image, pool, unit
from ace.properties.base import Answers, Evidence, Figure, Measurement, NotMeasured, Property, Reading, Setting
from ace.protocol.features import Features
from ace.protocol.fills import Fill, FillPlan, plan_fills
from ace.protocol.intervals import Measure, estimate, per_patient
from ace.protocol.regions import Region, check_sides, draw_region
from ace.protocol.removal import Removal, RemovalTally, change_outside, erased_length, shown_region
from shards.core.config import Section
from shards.core.errors import ConfigError
from shards.core.records import Split

ERASED_LENGTH = "removal_erased_length"
CHANGE_OUTSIDE = "removal_change_outside"
NUM_CANDIDATES_SHOWN = 4
FILLS = {
    "black": "black",
    "mean": "the image's mean level",
    "white": "white",
    "noise": "noise",
    "tissue": "another {one}'s tissue",
}
"""Words of the page for what takes the place of a removed square."""


class DecompositionParams(Section):
    """Image minus image-without-region against the region."""

    num_draws: int = Field(ge=20)
    """Draws of `num_candidates` patients; the accuracy is their mean."""
    num_candidates: int = Field(ge=2)
    """Queries and candidates in a draw, each of another patient; chance is 1/num_candidates."""
    regions_per_patient: int = Field(ge=1)
    """Regions embedded per patient and case, from which the draws take one; also the number of shared positions."""
    min_side: float = Field(gt=0, le=1)
    """Smallest side of a region, as a fraction of the canvas side."""
    max_side: float = Field(gt=0, le=1)
    """Largest side of a region, as a fraction of the canvas side."""
    fills: tuple[Fill, ...]
    """Fills that take the place of a removed region; the first is `black`, the paper's, whose figure is the headline.
    Each other one gives the same measure over the same regions and draws, `decompositionality_FILL`: `mean` is the
    image's own mean level in each channel; `white` is 255, which no training here fills with; `noise` is a random level
    in each pixel and channel; `tissue` is what another patient's image shows at a place and size of its own, resampled
    into the region. An encoder that only knows black loses the figure with the others."""

    further_candidates: tuple[Annotated[int, Field(ge=2)], ...]
    """Other numbers of candidates, each with draws of its own among the same regions set to black,
    `decompositionality_among_N`; a number of which there are not enough patients is left out, and said to be."""

    @model_validator(mode="after")
    def _ordered(self) -> "DecompositionParams":
        check_sides(self.min_side, self.max_side)
        return self

    @model_validator(mode="after")
    def _black_first(self) -> "DecompositionParams":
        if self.fills[:1] != ("black",):
            raise ValueError(
                f"fills are {list(self.fills)}; the first has to be black, since `decompositionality` is black's figure"
            )
        if len(set(self.fills)) < len(self.fills):
            raise ValueError(f"fills are {list(self.fills)}; name each once")
        return self

    @model_validator(mode="after")
    def _other_numbers(self) -> "DecompositionParams":
        numbers = [self.num_candidates, *self.further_candidates]
        if len(set(numbers)) < len(numbers):
            raise ValueError(
                f"num_candidates is {self.num_candidates} and further_candidates are {list(self.further_candidates)}; "
                "name each number once"
            )
        return self


@dataclass(frozen=True)
class DecompositionPlan:
    """A plan names the regions that are embedded and the patients who meet in a draw, the same for every encoder.

    Attributes:
        regions: Of each patient; those of one column share a place in the hard case.
        patients: Who takes part in each draw.
        choices: Which of a patient's regions is its query and candidate in each draw.
    """

    regions: tuple[tuple[Region, ...], ...]
    patients: Int[np.ndarray, "draws candidates"]
    choices: Int[np.ndarray, "draws candidates"]


@dataclass(frozen=True)
class DecompositionEmbeddings:
    """Directions of what a region's removal changes, and of the region itself."""

    queries: Float[np.ndarray, "patients regions dim"]
    candidates: Float[np.ndarray, "patients regions dim"]

    def similarities(
        self, patients: Int[np.ndarray, " candidates"], choices: Int[np.ndarray, " candidates"]
    ) -> np.ndarray:
        """Cosines of one draw, [query, candidate]; the right candidates stand on the diagonal."""
        cosines: Float[np.ndarray, "queries candidates"]
        cosines = self.queries[patients, choices] @ self.candidates[patients, choices].T
        return cosines


@dataclass(frozen=True)
class Removals:
    """Removals hold what one encoder makes of the regions' removal.

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
    if num_patients < params.num_candidates:
        raise ConfigError(
            f"{num_patients} {split} patients, but a draw needs {params.num_candidates} different ones "
            f"(evaluate.properties.decomposition.num_candidates); make more patients, give the {split} split a larger "
            "share, or lower it"
        )

    def draw_regions() -> tuple[Region, ...]:
        return tuple(draw_region(rng, params.min_side, params.max_side) for _ in range(params.regions_per_patient))

    shared = draw_regions()
    regions = tuple(shared if same_position else draw_regions() for _ in range(num_patients))
    return _with_draws(regions, params.num_draws, params.num_candidates, rng, same_position=same_position)


def _with_draws(
    regions: tuple[tuple[Region, ...], ...],
    num_draws: int,
    num_candidates: int,
    rng: np.random.Generator,
    *,
    same_position: bool,
) -> DecompositionPlan:
    patients = np.stack([rng.permutation(len(regions))[:num_candidates] for _ in range(num_draws)])
    shape = (num_draws, 1 if same_position else num_candidates)
    choices = np.broadcast_to(rng.integers(len(regions[0]), size=shape), patients.shape)
    return DecompositionPlan(regions, patients, choices)


def remove_and_cut(image: Image, region: Region) -> tuple[Image, Image]:
    """Return the image with the region set to black, and the region resampled to the image's size."""
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
            image = resample_whole(canvas, spec.crop_px)
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
            image = resample_whole(canvas, size_px)
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


def figure_of(fill: str) -> str:
    """Name the figure of a fill; black's is the headline."""
    return "decompositionality" if fill == "black" else f"decompositionality_{fill}"


def figure_among(num_candidates: int) -> str:
    """Name the figure of another number of candidates."""
    return f"decompositionality_among_{num_candidates}"


@dataclass(frozen=True, kw_only=True)
class DecompositionMeasurement(Measurement):
    """Regions and draws of one cohort, and what fills the regions.

    Attributes:
        setting: The patients.
        params: The property's section.
        anywhere: Regions at any place.
        same_position: Regions of which those of one draw share a place.
        further: Other numbers of candidates → other draws of the regions at any place.
        fills: What fills these.
    """

    setting: Setting
    params: DecompositionParams
    anywhere: DecompositionPlan
    same_position: DecompositionPlan
    further: Mapping[int, DecompositionPlan]
    fills: FillPlan

    def ask(self, embedder: Embedder, features: Features) -> Answers:
        """Return the directions of queries and candidates, and the lengths of tokens."""
        canvases = self.setting.cohort.canvases
        removals = remove_regions(embedder, canvases, self.anywhere, self.fills)
        same = decomposition_embeddings(embedder, canvases, self.same_position)
        tokens = removals.tokens
        return {
            **{f"queries_{fill}": found.queries for fill, found in removals.by_fill.items()},
            "candidates": removals.by_fill["black"].candidates,
            "queries_same_position": same.queries,
            "candidates_same_position": same.candidates,
            "whole": tokens.whole,
            "without": tokens.without,
            "change": tokens.change,
            "erased": tokens.erased,
        }

    def read(self, answers: Answers) -> Mapping[str, Reading]:
        """Count how often the right region is found, and what its removal does to single tokens."""
        num_patients = len(self.setting.cohort.subjects)

        def found_by(plan: DecompositionPlan, queries: str, candidates: str) -> Reading:
            embeddings = DecompositionEmbeddings(answers[queries], answers[candidates])
            num_draws, num_candidates = plan.patients.shape
            draws = {"num_candidates": num_candidates, "num_draws": num_draws}
            return Reading(
                measure=decompositionality(plan, embeddings),
                num_patients=num_patients,
                chance=1 / num_candidates,
                facts=draws,
            )

        by_fill = {
            figure_of(fill): found_by(self.anywhere, f"queries_{fill}", "candidates") for fill in self.params.fills
        }
        removal = _removal(answers)
        crops = {"num_regions": removal.change.shape[0] * removal.change.shape[1]}
        return {
            "decompositionality": by_fill.pop("decompositionality"),
            "decompositionality_same_position": found_by(
                self.same_position, "queries_same_position", "candidates_same_position"
            ),
            **by_fill,
            **{
                figure_among(number): found_by(plan, "queries_black", "candidates")
                for number, plan in self.further.items()
            },
            ERASED_LENGTH: Reading(
                measure=erased_length(removal), num_patients=num_patients, chance=None, is_error=True, facts=crops
            ),
            CHANGE_OUTSIDE: Reading(
                measure=change_outside(removal), num_patients=num_patients, chance=None, is_error=True, facts=crops
            ),
        }

    def left_out(self) -> Mapping[str, NotMeasured]:
        """Tell which numbers of candidates there are not enough patients for."""
        cohort = self.setting.cohort
        return {
            figure_among(number): NotMeasured(
                f"{len(cohort.subjects)} {cohort.split} patients, and a draw of {number} needs as many different ones"
            )
            for number in self.params.further_candidates
            if number not in self.further
        }

    def pictures(self, answers: Mapping[str, Answers], features: Mapping[str, Features]) -> Answers:
        """Keep the first queries of the first draw, and what the first patients' tokens change."""
        return {**self._queries(answers), **self._changes(answers)}

    def _queries(self, answers: Mapping[str, Answers]) -> dict[str, Any]:
        """Keep the image with its region set to black, and the best candidates by cosine.

        Per encoder: `_best` are the candidates' crops, `_cosine` their cosines, `_is_right` which one is the removed
        region, and `_rank` the place of the right one among all candidates, 1 for the first.
        """
        plan, size_px = self.anywhere, self.setting.cohort.spec.crop_px
        patients, choices = plan.patients[0], plan.choices[0]
        without, regions = [], []
        for patient, choice in zip(patients.tolist(), choices.tolist(), strict=True):
            removed, region = remove_and_cut(self._image(patient), plan.regions[patient][choice])
            without.append(removed)
            regions.append(region)
        shown = np.arange(min(self.setting.num_examples, len(patients)))
        arrays: dict[str, Any] = {
            "without": np.stack(without)[shown],
            "removed": np.stack(regions)[shown],
            "place": np.array([plan.regions[patients[i]][choices[i]].pixels(size_px) for i in shown]),
        }
        for name, answer in answers.items():
            embeddings = DecompositionEmbeddings(answer["queries_black"], answer["candidates"])
            similarities = embeddings.similarities(patients, choices)[shown]
            order = np.argsort(-similarities, axis=1, kind="stable")
            best = order[:, :NUM_CANDIDATES_SHOWN]
            arrays[f"{name}_best"] = np.stack(regions)[best]
            arrays[f"{name}_cosine"] = np.take_along_axis(similarities, best, axis=1)
            arrays[f"{name}_is_right"] = best == shown[:, None]
            arrays[f"{name}_rank"] = 1 + (order == shown[:, None]).argmax(axis=1)
        return arrays

    def _changes(self, answers: Mapping[str, Answers]) -> dict[str, Any]:
        """Keep what the first patients' tokens make of a region of moderate size that is set to black.

        `removal_image` and `removal_without` are crops, `removal_place` is (row, col, side) of the square in pixels.
        Per encoder: `_change` is the length of each token's change over the mean token length of the whole image
        [examples, t, t]; `_erased_length` and `_change_outside` are the figures of the same names over all patients and
        regions (nan where nothing has a length).
        """
        num_patients = len(self.setting.cohort.subjects)
        patients = np.arange(min(self.setting.num_examples, num_patients))
        numbers = np.array([shown_region(self.anywhere.regions[patient]) for patient in patients])
        regions = [self.anywhere.regions[patient][number] for patient, number in zip(patients, numbers, strict=True)]
        images = [self._image(patient) for patient in patients.tolist()]
        size_px = self.setting.cohort.spec.crop_px
        arrays: dict[str, Any] = {
            "removal_image": np.stack(images),
            "removal_without": np.stack([remove_and_cut(*pair)[0] for pair in zip(images, regions, strict=True)]),
            "removal_place": np.array([region.pixels(size_px) for region in regions]),
        }
        for name, answer in answers.items():
            removal = _removal(answer)
            arrays[f"{name}_change"] = removal.relative_change[patients, numbers]
            arrays[f"{name}_erased_length"] = np.array(estimate(erased_length(removal), num_patients))
            arrays[f"{name}_change_outside"] = np.array(estimate(change_outside(removal), num_patients))
        return arrays

    def _image(self, patient: int) -> Image:
        """Return a patient's whole canvas at crop size."""
        canvas = self.setting.cohort.canvases[patient]
        return resample_whole(canvas, self.setting.cohort.spec.crop_px)


class Decomposition(Property):
    """Compares what an image's embedding loses with the embedding of the part that is taken out."""

    name = "decomposition"
    params = DecompositionParams
    title = "Decompositionality"
    question = "Does removing a part remove its embedding?"
    headline = "decompositionality"
    unit = "top-1 accuracy among {num_candidates} {many}' regions"
    has_card = True
    figures: ClassVar[Mapping[str, Figure]] = {
        "decompositionality": Figure(
            title="Decompositionality: top-1",
            number="{:.1%}",
            group="decompositionality",
            summary="top-1 of {num_candidates}, region set to black",
        ),
        "decompositionality_same_position": Figure(
            title="Decompositionality: top-1, all regions at the same position",
            number="{:.1%}",
            summary="  black, same position",
        ),
        "decompositionality_mean": Figure(
            title="Decompositionality: top-1, filled with the image's mean level",
            number="{:.1%}",
            summary="  set to the image's mean level",
        ),
        "decompositionality_white": Figure(
            title="Decompositionality: top-1, filled with white", number="{:.1%}", summary="  set to white"
        ),
        "decompositionality_noise": Figure(
            title="Decompositionality: top-1, filled with noise", number="{:.1%}", summary="  set to noise"
        ),
        "decompositionality_tissue": Figure(
            title="Decompositionality: top-1, filled with another {one}'s tissue",
            number="{:.1%}",
            summary="  set to another {one}'s tissue",
        ),
        ERASED_LENGTH: Figure(
            title="Removal: length of erased tokens over that of the others; less is better",
            number="{:.3f}",
            group="removal",
            summary="length of erased tokens over others, less is better",
        ),
        CHANGE_OUTSIDE: Figure(
            title="Removal: share of the change that falls outside; less is better",
            number="{:.1%}",
            summary="share of the change outside, less is better",
        ),
    }
    template = "decomposition.html"

    def min_patients(self, params: DecompositionParams) -> int:
        """Return the patients of a draw."""
        return params.num_candidates

    def plan(self, setting: Setting, params: DecompositionParams) -> DecompositionMeasurement:
        """Draw regions, who meets whom, and what fills the regions."""
        cohort = setting.cohort
        anywhere, same_position = (
            plan_decomposition(
                len(cohort.subjects),
                params,
                setting.generator(stream),
                same_position=stream == "same_position",
                split=cohort.split,
            )
            for stream in ("decomposition", "same_position")
        )
        fills = plan_fills(
            [subject.key for subject in cohort.subjects],
            params.fills,
            num_regions=params.regions_per_patient,
            sides=(params.min_side, params.max_side),
            seed=setting.seed,
            rng=setting.generator("fills"),
        )
        further = {
            number: _with_draws(
                anywhere.regions,
                params.num_draws,
                number,
                setting.generator(figure_among(number)),
                same_position=False,
            )
            for number in params.further_candidates
            if number <= len(cohort.subjects)
        }
        return DecompositionMeasurement(
            setting=setting, params=params, anywhere=anywhere, same_position=same_position, further=further, fills=fills
        )

    def shown(self, evidence: Evidence) -> dict[str, Any]:
        """Show the first queries, every fill's accuracy, and what tokens change."""
        return {
            "queries": decomposition_examples(evidence.arrays, evidence.encoders),
            "chance": evidence.figures[evidence.encoders[0]]["decompositionality"]["chance"],
            "fills": fill_rows(evidence) if len(evidence.params["fills"]) > 1 else [],
            "sizes": size_rows(evidence) if evidence.params["further_candidates"] else [],
            "removal": removal_pictures(evidence),
        }


def fill_rows(evidence: Evidence) -> list[dict[str, Any]]:
    """Top-1 of every encoder for each fill of the removed square, with the length of its bar in percent."""
    return [
        {"name": evidence.words.fill(FILLS[fill]), "cells": _cells(evidence, figure_of(fill))}
        for fill in evidence.params["fills"]
    ]


def size_rows(evidence: Evidence) -> list[dict[str, Any]]:
    """Top-1 of every encoder for each number of candidates beside its chance, or why it was not measured."""
    keys = {evidence.params["num_candidates"]: "decompositionality"}
    keys |= {number: figure_among(number) for number in evidence.params["further_candidates"]}
    first = evidence.figures[evidence.encoders[0]]
    return [
        {"number": number, "chance": 1 / number, "cells": _cells(evidence, key), "reason": first[key].get("reason", "")}
        for number, key in sorted(keys.items())
    ]


def _cells(evidence: Evidence, key: str) -> list[dict[str, Any]]:
    figures = {name: evidence.figures[name][key] for name in evidence.encoders}
    return [
        {"encoder": name, "text": with_interval(figure, "{:.1%}"), "bar": round(100 * (figure["value"] or 0), 1)}
        for name, figure in figures.items()
    ]


def decomposition_examples(arrays: Answers, encoders: Sequence[str]) -> list[dict[str, Any]]:
    """Return each query with the region taken out of it, and the best candidates of each encoder."""
    from ace.drawing.pictures import data_uri, square

    size_px = arrays["without"].shape[1]
    return [
        {
            "without": data_uri(arrays["without"][place]),
            "removed": data_uri(arrays["removed"][place]),
            "box": square(*arrays["place"][place].tolist()),
            "size_px": size_px,
            "answers": {
                name: {
                    "rank": int(arrays[f"{name}_rank"][place]),
                    "candidates": [
                        {"image": data_uri(crop), "cosine": float(cosine), "is_right": bool(is_right)}
                        for crop, cosine, is_right in zip(
                            arrays[f"{name}_best"][place],
                            arrays[f"{name}_cosine"][place],
                            arrays[f"{name}_is_right"][place],
                            strict=True,
                        )
                    ],
                }
                for name in encoders
            },
        }
        for place in range(len(arrays["without"]))
    ]


def removal_pictures(evidence: Evidence) -> dict[str, Any]:
    """Return each image with a square set to black, and how much each encoder's tokens change, on one scale for all."""
    from ace.drawing.pictures import NUM_SHADES, SCALE_PERCENTILE, data_uri, heat, square

    arrays, encoders = evidence.arrays, evidence.encoders
    top = float(np.percentile(np.stack([arrays[f"{name}_change"] for name in encoders]), SCALE_PERCENTILE)) or 1.0
    numbers = {key: Decomposition.figures[key].number for key in (ERASED_LENGTH, CHANGE_OUTSIDE)}
    return {
        "top": top,
        "scale": data_uri(heat(np.linspace(0, top, NUM_SHADES)[None], low=0, high=top)),
        "size_px": arrays["removal_without"].shape[1],
        "figures": {
            name: [with_interval(evidence.figures[name][key], number) for key, number in numbers.items()]
            for name in encoders
        },
        "examples": [
            {
                "without": data_uri(without, kind="jpeg"),
                "box": square(*place.tolist()),
                "maps": {name: data_uri(heat(arrays[f"{name}_change"][at], low=0, high=top)) for name in encoders},
            }
            for at, (without, place) in enumerate(zip(arrays["removal_without"], arrays["removal_place"], strict=True))
        ],
    }


def _removal(answers: Answers) -> Removal:
    return Removal(
        whole=answers["whole"], without=answers["without"], change=answers["change"], erased=answers["erased"]
    )
