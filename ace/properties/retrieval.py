"""Retrieval: a region's embedding finds the same anatomy among regions of other patients (method.md §5)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator

from ace.data.crops import resample
from ace.embed.embedder import Embedder, Image, unit
from ace.properties.base import Answers, Evidence, Figure, Measurement, NotMeasured, Property, Reading, Setting
from ace.protocol.cohort import Subject
from ace.protocol.dense import common_landmarks, points_of, with_landmarks
from ace.protocol.features import Features
from ace.protocol.intervals import per_patient
from ace.protocol.regions import Region
from shards.core.config import Section
from shards.core.grid import GridSpec

RANKS = (1, 5)
NUM_SHOWN = 4
HEADLINE = ""
"""Suffix of the answers and figures of the first size."""


class RetrievalParams(Section):
    """Regions centred on landmarks that all patients have."""

    num_patients: int = Field(ge=2)
    """Patients with landmarks that are compared."""
    num_landmarks: int = Field(ge=2)
    """Landmarks, drawn by seed, that every patient has a region around; one that would leave the canvas is left out."""
    side: float = Field(gt=0, lt=1)
    """Side of a region, as a fraction of the canvas side."""
    further_sides: tuple[Annotated[float, Field(gt=0, lt=1)], ...]
    """Smaller sides of regions around the same landmarks, each with figures that end in `_side_N_percent`. The smaller
    a region, the less of its surroundings tells where it is."""

    @model_validator(mode="after")
    def _each_smaller(self) -> "RetrievalParams":
        percents = [_percent(side) for side in (self.side, *self.further_sides)]
        if any(second >= first for first, second in pairwise(percents)):
            raise ValueError(
                f"side is {self.side} and further_sides are {list(self.further_sides)}; each has to be smaller than "
                "the one before it, by .01 at least"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class RegionSet:
    """Regions of one size, and which of them show the same anatomy.

    Attributes:
        regions: Of all patients, one after another.
        patient: Whose canvas each region lies in.
        is_candidate: [query, candidate]: whether the candidate is of another patient.
        is_right: Whether moreover its centre lies within one cell of the query's landmark in the candidate's patient.
    """

    regions: tuple[Region, ...]
    patient: Int[np.ndarray, " regions"]
    is_candidate: Bool[np.ndarray, "regions regions"]
    is_right: Bool[np.ndarray, "regions regions"]


@dataclass(frozen=True)
class RetrievalMeasurement(Measurement):
    """Regions of several patients, in one or more sizes.

    Attributes:
        setting: The patients.
        subjects: Those with regions.
        sets: Suffix of the answers and figures → the regions of one size; the headline's, the first one, has none.
    """

    setting: Setting
    subjects: tuple[Subject, ...]
    sets: Mapping[str, RegionSet]

    def ask(self, embedder: Embedder, features: Features) -> Answers:
        """Return E(region) of every region."""
        return {
            f"embeddings{suffix}": unit(embedder.pooled(self._crops(own), total=len(own.regions), task="retrieval"))
            for suffix, own in self.sets.items()
        }

    def read(self, answers: Answers) -> Mapping[str, Reading]:
        """Count the queries with the right anatomy among the nearest 1 and 5 candidates."""
        num, readings = len(self.subjects), {}
        for suffix, own in self.sets.items():
            embeddings = answers[f"embeddings{suffix}"]
            similarities = embeddings @ embeddings.T
            counts = np.bincount(own.patient, minlength=num)
            facts = {"num_regions": len(own.regions)}
            for rank in RANKS:
                credit = top_credit(similarities, own.is_candidate, own.is_right, rank)
                guess = top_credit(None, own.is_candidate, own.is_right, rank)
                measure = per_patient(np.bincount(own.patient, credit, num), counts)
                readings[f"retrieval_top{rank}{suffix}"] = Reading(
                    measure=measure, num_patients=num, chance=float(guess.mean()), facts=facts
                )
        return readings

    def pictures(self, answers: Mapping[str, Answers], features: Mapping[str, Features]) -> Answers:
        """Keep the first region of the first patients and each encoder's nearest candidates."""
        own = self.sets[HEADLINE]
        crops = np.stack(list(self._crops(own)))
        _, first = np.unique(own.patient, return_index=True)
        shown = first[: self.setting.num_examples]
        arrays: dict[str, Any] = {"query": crops[shown]}
        for name, answer in answers.items():
            similarities = answer["embeddings"][shown] @ answer["embeddings"].T
            order = np.argsort(-np.where(own.is_candidate[shown], similarities, -np.inf), axis=1, kind="stable")
            best = order[:, :NUM_SHOWN]
            arrays[f"{name}_best"] = crops[best]
            arrays[f"{name}_is_right"] = np.take_along_axis(own.is_right[shown], best, axis=1)
        return arrays

    def _crops(self, own: RegionSet) -> Iterator[Image]:
        for patient, region in zip(own.patient, own.regions, strict=True):
            canvas = self.subjects[patient].canvas
            yield resample(canvas, region.window(len(canvas)), self.setting.cohort.spec.crop_px)


class Retrieval(Property):
    """Looks for a region's anatomy among the regions of other patients.

    Every region is centred on a landmark, so that the anatomy at its centre is known in every patient: in the patient
    of a candidate it lies at the landmark of the query's name.
    """

    name = "retrieval"
    params = RetrievalParams
    title = "Retrieval"
    question = "Does a region find the same anatomy among regions of other {many}?"
    headline = "retrieval_top1"
    unit = "top-1 accuracy among the regions of all other {many}"
    figures: ClassVar[Mapping[str, Figure]] = {
        "retrieval_top1": Figure(
            title="Retrieval: top-1", number="{:.1%}", group="retrieval", summary="top-1, centre within one cell"
        ),
        "retrieval_top5": Figure(title="Retrieval: top-5", number="{:.1%}", summary="top-5"),
    }
    text = (
        "Squares are centred on landmarks that all {many} have. The embedding of one square is compared with those of "
        "all squares of the other {many}. A square found is right if its centre lies within one cell of the landmark "
        "that the first one is centred on; chance is a square taken at random."
    )

    def plan(self, setting: Setting, params: RetrievalParams) -> RetrievalMeasurement | NotMeasured:
        """Choose landmarks that all patients have, and lay a region around each."""
        subjects = with_landmarks(setting.cohort.subjects, params.num_patients)
        names = common_landmarks(subjects, params.num_landmarks, setting.generator(self.name))
        if not names:
            return NotMeasured(f"no two {setting.cohort.split} patients of this batch have a landmark in common")
        points = np.array([points_of(subject, names) for subject in subjects])
        sides = {HEADLINE: params.side, **{f"_side_{_percent(side)}_percent": side for side in params.further_sides}}
        sets = {suffix: region_set(points, side, setting.cohort.spec) for suffix, side in sides.items()}
        if not sets[HEADLINE].is_candidate.any():
            return NotMeasured(
                f"regions of side {params.side} around landmarks leave the canvas of all patients but one"
            )
        return RetrievalMeasurement(setting, subjects, sets)

    def shown(self, evidence: Evidence) -> dict[str, Any]:
        """Show the first queries with each encoder's nearest candidates."""
        from ace.drawing.pictures import answer_row, data_uri

        pictures = []
        for number, query in enumerate(evidence.arrays["query"]):
            rows = [
                answer_row(
                    name, at, evidence.arrays[f"{name}_best"][number], evidence.arrays[f"{name}_is_right"][number]
                )
                for at, name in enumerate(evidence.encoders)
            ]
            tile = f'<img class="tile" src="{data_uri(query)}" alt="Query {number + 1}">'
            pictures.append(f'<div class="query"><div>{tile}</div><div></div><div>{"".join(rows)}</div></div>')
        return {"pictures": pictures, "note": "Green: the same anatomy. The first queries, none picked by hand."}


def region_set(points: Float[np.ndarray, "patients landmarks 2"], side: float, spec: GridSpec) -> RegionSet:
    """Lay a square around every landmark of every patient, but for those that would leave the canvas.

    Args:
        points: The landmarks in canvas pixels.
        side: Of the squares, as a fraction of the canvas side.
        spec: The grid.
    """
    corners = points / spec.canvas_px - side / 2
    patient, landmark = np.nonzero(((corners >= 0) & (corners + side <= 1)).all(axis=2))
    regions = tuple(Region(row, col, side) for row, col in corners[patient, landmark].tolist())
    is_candidate = patient[:, None] != patient
    # In the candidate's patient: from the candidate's centre to where the query's landmark lies.
    distances = np.linalg.norm(points[patient, landmark] - points[patient][:, landmark].swapaxes(0, 1), axis=2)
    return RegionSet(
        regions=regions, patient=patient, is_candidate=is_candidate, is_right=is_candidate & (distances <= spec.cell_px)
    )


def _percent(side: float) -> int:
    return round(100 * side)


def top_credit(
    similarities: Float[np.ndarray, "queries candidates"] | None,
    is_candidate: Bool[np.ndarray, "queries candidates"],
    is_right: Bool[np.ndarray, "queries candidates"],
    rank: int,
) -> Float[np.ndarray, " queries"]:
    """Give each query the probability that a right candidate is among its nearest ones, ties broken at random.

    Args:
        similarities: The larger, the nearer; None for a guess, to which all candidates are equally near.
        is_candidate: Who takes part.
        is_right: Which of these are right.
        rank: How many nearest ones count.
    """
    values = np.where(is_candidate, 0.0 if similarities is None else similarities, -np.inf)
    last = -np.sort(-values, axis=1)[:, min(rank, values.shape[1]) - 1, None]
    is_before, is_tied = values > last, (values == last) & is_candidate
    num_tied, num_right = is_tied.sum(axis=1), (is_tied & is_right).sum(axis=1)
    num_places = np.minimum(rank - is_before.sum(axis=1), num_tied)
    missed = np.ones(len(values))
    for place in range(rank):
        left = np.maximum(num_tied - num_right - place, 0) / np.maximum(num_tied - place, 1)
        missed = np.where(place < num_places, missed * left, missed)
    return np.where((is_before & is_right).any(axis=1), 1.0, 1 - missed)
