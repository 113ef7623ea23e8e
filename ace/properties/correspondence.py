"""Correspondence: a landmark of one patient is found in another by its token alone (method.md §5)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float
from pydantic import Field

from ace.drawing.words import with_interval
from ace.embed.embedder import Embedder
from ace.properties.base import Answers, Evidence, Figure, Measurement, NotMeasured, Property, Reading, Setting
from ace.protocol.cohort import Subject
from ace.protocol.dense import LocationAxis, Points, interpolate, nearest, points_of, with_landmarks
from ace.protocol.features import CanvasView, Features, views_of
from ace.protocol.intervals import Measure, estimate, pair_median, per_pair
from shards.core.config import Section

REFERENCE_CANVAS_PX = 1024
"""Errors are given on a canvas scaled to this side, whatever the grid."""
ERROR = "correspondence_px_at_1024"
MEDIAN = "correspondence_median_px_at_1024"
WITHIN_CELL = "correspondence_within_cell"
MUTUAL_SHARE, MUTUAL_ERROR = "mutual_matches_share", "mutual_matches_px_at_1024"
NAMED = {"same_pixel": "same pixel", "affine_oracle": "best affine map (oracle)"}
"""Baselines that need no encoder, and what the page calls them."""
MAX_LANDMARKS_DRAWN = 28
ManyPoints = list[Float[np.ndarray, "_ 2"]]
"""Points of each pair; pairs have different numbers of them."""
ManyErrors = list[Float[np.ndarray, " _"]]
"""Errors of each pair's points."""
SIDES = ("left", "right")


class CorrespondenceParams(Section):
    """Landmarks of one patient found in another by the nearest token."""

    num_patients: int = Field(ge=2)
    """Patients with landmarks that are compared."""
    keys_per_query: int = Field(ge=1)
    """Other patients in which each patient's landmarks are looked for."""
    max_landmarks: int = Field(ge=1)
    """Landmarks used per query, drawn by seed where an image has more."""
    success_px: float = Field(gt=0)
    """Largest error that counts as found, in pixels of a canvas scaled to 1024 px."""


@dataclass(frozen=True)
class Pair:
    """A query and a key patient, by their positions among those compared, and the landmarks that both have."""

    query: int
    key: int
    names: tuple[str, ...]


def draw_pairs(
    subjects: Sequence[Subject], keys_per_query: int, max_landmarks: int, rng: np.random.Generator
) -> list[Pair]:
    """Draw for every subject, as a query, other subjects as keys and at most `max_landmarks` landmarks both have."""
    pairs = []
    for query in range(len(subjects)):
        for key in rng.permutation(np.delete(np.arange(len(subjects)), query))[:keys_per_query]:
            names = sorted(subjects[query].landmarks.keys() & subjects[key].landmarks.keys())
            chosen = np.sort(rng.permutation(len(names))[:max_landmarks])
            pairs.append(Pair(query, int(key), tuple(names[index] for index in chosen)))
    return pairs


def find_landmarks(
    subjects: Sequence[Subject], features: Features, axis: LocationAxis, pairs: Sequence[Pair]
) -> ManyPoints:
    """Find, for each pair, the location of the key with the largest cosine to each landmark of the query."""
    views = views_of(subject.key for subject in subjects)
    found = []
    for pair in pairs:
        wanted = interpolate(features.of(views[pair.query]), axis, points_of(subjects[pair.query], pair.names))
        found.append(nearest(wanted, features.of(views[pair.key]), axis))
    return found


def return_landmarks(
    subjects: Sequence[Subject], features: Features, axis: LocationAxis, pairs: Sequence[Pair], found: ManyPoints
) -> ManyPoints:
    """For each pair, the location of the query with the largest cosine to each location that was found in the key."""
    views = views_of(subject.key for subject in subjects)
    returned = []
    for pair, points in zip(pairs, found, strict=True):
        wanted = interpolate(features.of(views[pair.key]), axis, points)
        returned.append(nearest(wanted, features.of(views[pair.query]), axis))
    return returned


def errors_at_reference(predicted: Points, true: Points, canvas_px: int) -> Float[np.ndarray, " points"]:
    """Radial errors in pixels of a canvas scaled to `REFERENCE_CANVAS_PX`."""
    errors: Float[np.ndarray, " points"] = np.linalg.norm(predicted - true, axis=1) * REFERENCE_CANVAS_PX / canvas_px
    return errors


def pair_mean(pairs: Sequence[Pair], values: Sequence[Float[np.ndarray, " _"]], num_patients: int) -> Measure:
    """Return the mean over all landmarks of all pairs (some have more than others); intervals resample the patients."""
    sums, counts = np.zeros((2, num_patients, num_patients))
    for pair, points in zip(pairs, values, strict=True):
        sums[pair.query, pair.key] += points.sum()
        counts[pair.query, pair.key] += len(points)
    return per_pair(sums, counts)


def random_guess_errors(
    subject: Subject, true: Points, axis: LocationAxis, cell_px: int
) -> Float[np.ndarray, "locations points"]:
    """Errors of every location in the subject's foreground; their mean is what a random guess there expects."""
    guesses = axis.points()[axis.inside(subject, cell_px)]
    errors: Float[np.ndarray, "locations points"] = np.linalg.norm(guesses[:, None] - true, axis=2)
    return errors * REFERENCE_CANVAS_PX / len(subject.canvas)


def structure_of(landmark: str) -> str:
    """Name the structure that a landmark is of: the first word of its name that is neither a side nor a number."""
    words = [word for word in landmark.split("_") if word not in SIDES and not word.isdigit()]
    return words[0] if words else landmark


def median_guess(guesses: Sequence[Float[np.ndarray, "_ _"]], measure: Callable[[ManyErrors], float]) -> float:
    """Find the radius within which half of the random guesses lie, to a hundredth of a pixel.

    Args:
        guesses: Of each pair, the errors of every location for every landmark.
        measure: The mean over the landmarks of all pairs.
    """
    low, high = 0.0, max(float(guess.max(initial=0)) for guess in guesses)
    while high - low > 0.01:
        middle = (low + high) / 2
        is_half_inside = measure([(guess <= middle).mean(axis=0) for guess in guesses]) >= 0.5
        low, high = (low, middle) if is_half_inside else (middle, high)
    return high


def affine_oracle(source: Points, target: Points) -> Points:
    """Take the source points by the best affine map, which is fitted to the answer itself."""
    homogeneous = np.column_stack([source, np.ones(len(source))])
    solution, *_ = np.linalg.lstsq(homogeneous, target, rcond=None)
    mapped: Points = homogeneous @ solution
    return mapped


@dataclass(frozen=True, kw_only=True)
class Guesses:
    """Holds what a random guess in the foreground gives for each landmark of each pair.

    Attributes:
        error: Mean error.
        within_success: Share of locations within the radius that counts as found.
        within_cell: Share of locations within one cell.
        back_within_cell: Share of the query's locations within one cell of where the landmark lies there.
        median: The radius within which half of all guesses lie.
    """

    error: ManyErrors
    within_success: ManyErrors
    within_cell: ManyErrors
    back_within_cell: ManyErrors
    median: float


@dataclass(frozen=True, kw_only=True)
class CorrespondenceMeasurement(Measurement):
    """Pairs of patients and the landmarks that are looked for."""

    setting: Setting
    params: CorrespondenceParams
    subjects: tuple[Subject, ...]
    pairs: tuple[Pair, ...]

    def dense_views(self) -> Sequence[CanvasView]:
        """Return every patient's canvas."""
        return views_of(subject.key for subject in self.subjects)

    def ask(self, embedder: Embedder, features: Features) -> Answers:
        """Return where the landmarks of all pairs were found, one pair after another, and where that leads back to."""
        axis = self.setting.axis
        found = find_landmarks(self.subjects, features, axis, self.pairs)
        returned = return_landmarks(self.subjects, features, axis, self.pairs, found)
        return {"found": np.concatenate(found), "returned": np.concatenate(returned)}

    def read(self, answers: Answers) -> Mapping[str, Reading]:
        """Compare the places found with the landmarks."""
        errors, num = self._errors(self._by_pair(answers["found"])), len(self.subjects)
        success_px, counts = self.params.success_px, self._counts
        guesses, is_mutual = self._guesses, self._mutual(answers)
        facts = {"num_pairs": len(self.pairs), "num_landmarks": sum(counts)}
        mutual_facts = facts | {"num_matches": sum(int(own.sum()) for own in is_mutual)}

        def share(found: ManyErrors, guessed: ManyErrors) -> Reading:
            return Reading(
                measure=self._mean(found), num_patients=num, chance=estimate(self._mean(guessed), num), facts=facts
            )

        mean_guess = estimate(self._mean(guesses.error), num)
        median = pair_median(
            np.concatenate(errors),
            np.repeat([pair.query for pair in self.pairs], counts),
            np.repeat([pair.key for pair in self.pairs], counts),
        )
        mutual_errors = [error[own] for error, own in zip(errors, is_mutual, strict=True)]
        return {
            ERROR: Reading(measure=self._mean(errors), num_patients=num, chance=mean_guess, is_error=True, facts=facts),
            f"correspondence_within_{success_px:g}px": share(_within(errors, success_px), guesses.within_success),
            MEDIAN: Reading(measure=median, num_patients=num, chance=guesses.median, is_error=True, facts=facts),
            WITHIN_CELL: share(_within(errors, self._cell_px_at_reference), guesses.within_cell),
            MUTUAL_SHARE: share([own.astype(float) for own in is_mutual], guesses.back_within_cell),
            MUTUAL_ERROR: Reading(
                measure=self._mean(mutual_errors),
                num_patients=num,
                chance=mean_guess,
                is_error=True,
                facts=mutual_facts,
            ),
        }

    def details(self, answers: Answers) -> Mapping[str, Reading]:
        """Average the errors of each structure's landmarks."""
        errors, num = self._errors(self._by_pair(answers["found"])), len(self.subjects)
        structures = [np.array([structure_of(name) for name in pair.names]) for pair in self.pairs]
        readings = {}
        for structure in sorted({name for own in structures for name in own.tolist()}):
            is_own = [own == structure for own in structures]

            def mean(values: ManyErrors, is_own: list[np.ndarray] = is_own) -> Measure:
                return self._mean([value[own] for value, own in zip(values, is_own, strict=True)])

            facts = {"num_landmarks": sum(int(own.sum()) for own in is_own)}
            chance = estimate(mean(self._guesses.error), num)
            readings[structure] = Reading(
                measure=mean(errors), num_patients=num, chance=chance, is_error=True, facts=facts
            )
        return readings

    def baselines(self) -> Mapping[str, Mapping[str, Reading]]:
        """Measure guesses that need no encoder."""
        num = len(self.subjects)
        guesses = self._without_encoder()
        return {
            ERROR: {
                name: Reading(measure=self._mean(found), num_patients=num, chance=None, is_error=True)
                for name, found in guesses.items()
            }
        }

    def pictures(self, answers: Mapping[str, Answers], features: Mapping[str, Features]) -> Answers:
        """Keep where the landmarks of the first pairs were found.

        Per encoder `_errors` of all landmarks of all pairs; per example pair i `pair<i>_...` with images, names,
        points, and the cosine map of its middle landmark.
        """
        arrays: dict[str, Any] = {"positions_px": self.setting.axis.positions_px}
        by_pair = {name: self._by_pair(answer["found"]) for name, answer in answers.items()}
        for name, found in by_pair.items():
            arrays[f"{name}_errors"] = np.concatenate(self._errors(found))
        for name, errors in self._without_encoder().items():
            arrays[f"{name}_errors"] = np.concatenate(errors)
        views, ends = self.dense_views(), self._ends()
        numbered = reversed(list(enumerate(self.pairs)))
        first_of_query = {pair.query: position for position, pair in numbered if pair.names}
        shown = sorted(first_of_query.values())[: self.setting.num_examples]
        for number, position in enumerate(shown):
            pair, (source, target) = self.pairs[position], ends[position]
            middle = len(pair.names) // 2
            arrays |= {
                f"pair{number}_query": self.subjects[pair.query].canvas,
                f"pair{number}_key": self.subjects[pair.key].canvas,
                f"pair{number}_names": np.array(pair.names),
                f"pair{number}_source": source,
                f"pair{number}_target": target,
                f"pair{number}_probe": np.array(middle),
            }
            for name, own in features.items():
                query = own.of(views[pair.query])
                wanted = interpolate(query, self.setting.axis, source[middle : middle + 1])[0]
                arrays[f"pair{number}_{name}_found"] = by_pair[name][position]
                arrays[f"pair{number}_{name}_map"] = own.of(views[pair.key]) @ wanted
        return arrays

    def _ends(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the landmarks of each pair, in the query and in the key."""
        query_and_key = [(self.subjects[pair.query], self.subjects[pair.key], pair.names) for pair in self.pairs]
        return [(points_of(query, names), points_of(key, names)) for query, key, names in query_and_key]

    @property
    def _counts(self) -> list[int]:
        """Landmarks of each pair."""
        return [len(pair.names) for pair in self.pairs]

    @property
    def _cell_px_at_reference(self) -> float:
        return REFERENCE_CANVAS_PX / self.setting.cohort.spec.n

    def _by_pair(self, found: Points) -> ManyPoints:
        return np.split(found, np.cumsum(self._counts[:-1]))

    def _errors(self, found: ManyPoints) -> ManyErrors:
        canvas_px = self.setting.cohort.spec.canvas_px
        return [errors_at_reference(own, true, canvas_px) for own, (_, true) in zip(found, self._ends(), strict=True)]

    def _mutual(self, answers: Answers) -> list[Bool[np.ndarray, " _"]]:
        """Tell which landmarks' matches lead back to within one cell of them."""
        cell_px, returned = self.setting.cohort.spec.cell_px, self._by_pair(answers["returned"])
        return [
            np.linalg.norm(own - source, axis=1) <= cell_px
            for own, (source, _) in zip(returned, self._ends(), strict=True)
        ]

    def _without_encoder(self) -> dict[str, ManyErrors]:
        """Return the errors of taking the query's pixel, and of the best affine map."""
        ends = self._ends()
        return {
            "same_pixel": self._errors([source for source, _ in ends]),
            "affine_oracle": self._errors([affine_oracle(source, true) for source, true in ends]),
        }

    @cached_property
    def _guesses(self) -> Guesses:
        """Guess at random, which is the same for every encoder."""
        axis, cell_px, cell = self.setting.axis, self.setting.cohort.spec.cell_px, self._cell_px_at_reference
        ends = list(zip(self.pairs, self._ends(), strict=True))
        guesses = [random_guess_errors(self.subjects[pair.key], true, axis, cell_px) for pair, (_, true) in ends]
        back = [random_guess_errors(self.subjects[pair.query], source, axis, cell_px) for pair, (source, _) in ends]
        return Guesses(
            error=[guess.mean(axis=0) for guess in guesses],
            within_success=[(guess <= self.params.success_px).mean(axis=0) for guess in guesses],
            within_cell=[(guess <= cell).mean(axis=0) for guess in guesses],
            back_within_cell=[(guess <= cell).mean(axis=0) for guess in back],
            median=median_guess(guesses, lambda values: estimate(self._mean(values), len(self.subjects))),
        )

    def _mean(self, values: Sequence[Float[np.ndarray, " _"]]) -> Measure:
        return pair_mean(self.pairs, values, len(self.subjects))


def _within(errors: ManyErrors, radius_px: float) -> ManyErrors:
    return [(error <= radius_px).astype(float) for error in errors]


class Correspondence(Property):
    """Looks for landmarks of one patient in another."""

    name = "correspondence"
    params = CorrespondenceParams
    title = "Correspondence"
    question = "Is the same anatomy found in another {one}?"
    headline = ERROR
    unit = "mean error in px of a 1024-px canvas; less is better"
    is_error = True
    has_card = True
    figures: ClassVar[Mapping[str, Figure]] = {
        ERROR: Figure(
            title="Correspondence: mean error, px at 1024; less is better",
            number="{:.1f}",
            group="correspondence",
            summary="error in px of 1024, less is better",
        ),
        MEDIAN: Figure(
            title="Correspondence: median error, px at 1024; less is better",
            number="{:.1f}",
            summary="median, less is better",
        ),
        WITHIN_CELL: Figure(title="Correspondence: within one cell", number="{:.1%}", summary="within one cell"),
        MUTUAL_SHARE: Figure(
            title="Mutual matches: share of landmarks whose match leads back to within one cell", number="{:.1%}"
        ),
        MUTUAL_ERROR: Figure(
            title="Mutual matches: mean error of these alone, px at 1024; less is better", number="{:.1f}"
        ),
    }
    template = "correspondence.html"

    def plan(self, setting: Setting, params: CorrespondenceParams) -> CorrespondenceMeasurement | NotMeasured:
        """Draw pairs of patients that have landmarks."""
        subjects = with_landmarks(setting.cohort.subjects, params.num_patients)
        if not subjects:
            return NotMeasured(f"fewer than two {setting.cohort.split} patients of this batch have landmarks")
        rng = setting.generator("correspondence")
        pairs = draw_pairs(subjects, params.keys_per_query, params.max_landmarks, rng)
        return CorrespondenceMeasurement(setting=setting, params=params, subjects=subjects, pairs=tuple(pairs))

    def shown(self, evidence: Evidence) -> dict[str, Any]:
        """Show the errors of all landmarks as curves, and the first pairs."""
        from ace.drawing.plots import error_curves

        errors = {name: evidence.arrays[f"{name}_errors"] for name in evidence.encoders}
        baselines = {label: evidence.arrays[f"{name}_errors"] for name, label in NAMED.items()}
        return {
            "curves": error_curves(errors, baselines, evidence.params["success_px"]),
            "structures": structure_rows(evidence),
            "examples": correspondence_examples(evidence.arrays, evidence.encoders),
        }


def structure_rows(evidence: Evidence) -> list[dict[str, Any]]:
    """Each structure with the error of every encoder and of a random guess."""
    return [
        {
            "name": name.replace("_", " "),
            "cells": [with_interval(figures[encoder], "{:.1f}") for encoder in evidence.encoders],
            "chance": f"{figures[evidence.encoders[0]]['chance']:.0f}",
            "num_landmarks": figures[evidence.encoders[0]]["num_landmarks"],
        }
        for name, figures in evidence.figures[Correspondence.name].items()
    ]


def correspondence_examples(arrays: Answers, encoders: Sequence[str]) -> list[dict[str, Any]]:
    """Draw each pair: landmarks in the query, where each encoder found them in the key, and one cosine map."""
    from ace.drawing.pictures import data_uri, heat, place_colour, square

    positions = arrays["positions_px"]
    pitch = float(positions[1] - positions[0])
    start = float(positions[0]) - pitch / 2
    extent = square(start, start, len(positions) * pitch)
    examples = []
    number = 0
    while f"pair{number}_query" in arrays:
        prefix = f"pair{number}_"
        one = {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
        size_px, probe = len(one["query"]), int(one["probe"])
        shown = np.unique(np.linspace(0, len(one["names"]) - 1, MAX_LANDMARKS_DRAWN).round().astype(int))
        examples.append(
            {
                "size_px": size_px,
                "query": data_uri(one["query"], kind="jpeg"),
                "key": data_uri(one["key"], kind="jpeg"),
                "marks": [
                    {
                        "name": str(one["names"][i]).replace("_", " "),
                        "colour": place_colour(one["source"][i] / size_px),
                        "source": one["source"][i].tolist(),
                        "target": one["target"][i].tolist(),
                        "found": {name: one[f"{name}_found"][i].tolist() for name in encoders},
                    }
                    for i in shown
                ],
                "extent": extent,
                "maps": {name: data_uri(heat(one[f"{name}_map"])) for name in encoders},
                "probe": {
                    "name": str(one["names"][probe]).replace("_", " "),
                    "source": one["source"][probe].tolist(),
                    "target": one["target"][probe].tolist(),
                    "found": {name: one[f"{name}_found"][probe].tolist() for name in encoders},
                },
                "error_px": {
                    name: float(np.linalg.norm(one[f"{name}_found"] - one["target"], axis=1).mean() * 1024 / size_px)
                    for name in encoders
                },
            }
        )
        number += 1
    return examples
