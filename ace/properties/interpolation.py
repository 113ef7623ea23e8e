"""Interpolation and extrapolation: what lies between two regions, and what lies beyond them (method.md §5)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from ace.data.crops import resample
from ace.embed.embedder import Embedder, Image, unit
from ace.properties.base import Answers, Evidence, Figure, Measurement, Property, Reading, Setting
from ace.properties.retrieval import top_credit
from ace.protocol.features import Features
from ace.protocol.intervals import per_pair
from ace.protocol.regions import Region
from shards.core.config import Section

FIGURES = ("interpolation", "extrapolation")
NUM_SHOWN = 4
DECIMALS = 6
"""Decimals that a cosine is rounded to; what fp32 cannot tell apart is a tie, so that an encoder which embeds
everything alike scores chance."""


class InterpolationParams(Section):
    """A lattice of regions, the same for every patient."""

    num_patients: int = Field(ge=2)
    """Patients that are compared."""
    keys_per_query: int = Field(ge=1)
    """Other patients among whose regions each patient's questions are answered."""
    side: float = Field(gt=0, le=0.5)
    """Side of a region, as a fraction of the canvas side; neighbours in the lattice lie half of it apart."""


@dataclass(frozen=True)
class Questions:
    """Two regions of the lattice that are given, and the one that is looked for, one row a question.

    Attributes:
        given: The two, by their places in the lattice.
        shares: How much of each one's embedding makes the one that is looked for.
        wanted: Its place.
    """

    given: Int[np.ndarray, "questions 2"]
    shares: tuple[float, float]
    wanted: Int[np.ndarray, " questions"]


def lattice(side: float) -> tuple[tuple[Region, ...], int]:
    """Lay regions over the canvas, half a side apart and as many as fit, in row-major order; and how many in a row."""
    num = int((1 - side) / (side / 2) + 1e-9) + 1
    margin = (1 - side - (num - 1) * side / 2) / 2
    edges = [margin + number * side / 2 for number in range(num)]
    return tuple(Region(row, col, side) for row in edges for col in edges), num


def draw_questions(num_per_row: int) -> dict[str, Questions]:
    """Ask about every three neighbours of a lattice that stand in one row or column, in both directions.

    Interpolation gives the first and the third and looks for the second, at their mean. Extrapolation gives the first
    and the second and looks for the third: as far beyond the second as that is from the first.
    """
    places = np.arange(num_per_row**2).reshape(num_per_row, num_per_row)
    lines = [*places, *places.T, *places[:, ::-1], *places.T[:, ::-1]]
    triples = np.concatenate([np.lib.stride_tricks.sliding_window_view(line, 3) for line in lines])
    first, second, third = triples.T
    return {
        "interpolation": Questions(np.stack([first, third], axis=1), (0.5, 0.5), second),
        "extrapolation": Questions(np.stack([first, second], axis=1), (-1.0, 2.0), third),
    }


@dataclass(frozen=True, kw_only=True)
class InterpolationMeasurement(Measurement):
    """A lattice over several patients, and in whom each patient's questions are answered.

    Attributes:
        setting: The patients.
        regions: The lattice.
        questions: Of each figure.
        num_patients: Patients that are compared, the first ones.
        pairs: (query, key): a patient whose regions are given, and one whose regions are the candidates.
    """

    setting: Setting
    regions: tuple[Region, ...]
    questions: Mapping[str, Questions]
    num_patients: int
    pairs: tuple[tuple[int, int], ...]

    def ask(self, embedder: Embedder, features: Features) -> Answers:
        """Return E0 of every region [patients, regions, dim]."""
        total = self.num_patients * len(self.regions)
        pooled = embedder.pooled(self._crops(range(self.num_patients)), total=total, task="interpolation")
        return {"embeddings": pooled.reshape(self.num_patients, len(self.regions), -1)}

    def read(self, answers: Answers) -> Mapping[str, Reading]:
        """Count the questions whose nearest candidate is the region that is looked for."""
        num, readings = self.num_patients, {}
        for figure, questions in self.questions.items():
            is_candidate, is_right = self._candidates(questions)
            sums, counts = np.zeros((2, num, num))
            for query, key in self.pairs:
                similarities = suggested_cosines(answers["embeddings"][query], answers["embeddings"][key], questions)
                sums[query, key] = top_credit(similarities, is_candidate, is_right, 1).sum()
                counts[query, key] = len(questions.wanted)
            facts = {"num_questions": int(counts.sum()), "num_candidates": len(self.regions) - 2}
            readings[figure] = Reading(
                measure=per_pair(sums, counts), num_patients=num, chance=1 / (len(self.regions) - 2), facts=facts
            )
        return readings

    def pictures(self, answers: Mapping[str, Answers], features: Mapping[str, Features]) -> Answers:
        """Keep a question of each figure for the first patients, and every encoder's nearest candidates.

        `FIGURE_given` are the two crops that are given and `FIGURE_wanted` the one that is looked for, as the query's
        patient shows it; per encoder `_FIGURE_best` are crops of the key's patient, and `_FIGURE_is_right`.
        """
        first = dict(reversed(self.pairs))
        shown = sorted(first.items())[: self.setting.num_examples]
        crops = {patient: np.stack(list(self._crops([patient]))) for pair in shown for patient in pair}
        arrays: dict[str, Any] = {}
        for figure, questions in self.questions.items():
            # Spread over the canvas, so that not all examples lie in one corner.
            chosen = np.linspace(0, len(questions.wanted) - 1, len(shown) + 2).round().astype(int)[1:-1]
            asked = list(zip(chosen.tolist(), shown, strict=True))
            arrays[f"{figure}_given"] = np.stack([crops[query][questions.given[at]] for at, (query, _) in asked])
            arrays[f"{figure}_wanted"] = np.stack([crops[query][questions.wanted[at]] for at, (query, _) in asked])
            is_candidate, is_right = self._candidates(questions)
            for name, answer in answers.items():
                found = []
                for at, (query, key) in asked:
                    cosines = suggested_cosines(answer["embeddings"][query], answer["embeddings"][key], questions)[at]
                    order = np.argsort(-np.where(is_candidate[at], cosines, -np.inf), kind="stable")
                    found.append((crops[key][order[:NUM_SHOWN]], is_right[at][order[:NUM_SHOWN]]))
                best, is_best_right = zip(*found, strict=True)
                arrays |= {
                    f"{name}_{figure}_best": np.stack(best),
                    f"{name}_{figure}_is_right": np.stack(is_best_right),
                }
        return arrays

    def _candidates(
        self, questions: Questions
    ) -> tuple[Bool[np.ndarray, "questions regions"], Bool[np.ndarray, "questions regions"]]:
        """Tell which regions are candidates, all but those at the places given, and which one is right."""
        places = np.arange(len(self.regions))
        is_given = (questions.given[:, :, None] == places).any(axis=1)
        return ~is_given, questions.wanted[:, None] == places

    def _crops(self, patients: Sequence[int]) -> Iterator[Image]:
        for patient in patients:
            canvas = self.setting.cohort.canvases[patient]
            for region in self.regions:
                yield resample(canvas, region.window(len(canvas)), self.setting.cohort.spec.crop_px)


def suggested_cosines(
    query: Float[np.ndarray, "regions dim"], key: Float[np.ndarray, "regions dim"], questions: Questions
) -> Float[np.ndarray, "questions regions"]:
    """Cosines of what one patient's regions suggest for each question with every region of another patient.

    Args:
        query: E0 of the one patient's regions.
        key: E0 of the other one's.
        questions: Which two regions are given, and how much of each makes the one that is looked for.
    """
    first, second = query[questions.given.T]
    suggested = questions.shares[0] * first + questions.shares[1] * second
    cosines: Float[np.ndarray, "questions regions"] = unit(suggested) @ unit(key).T
    return cosines.round(DECIMALS)


class Interpolation(Property):
    """Looks for the region between two others, and for the one beyond them, in another patient.

    Regions of one size stand in a lattice, half a side apart, at the same places of every canvas. Three neighbours in a
    row or column make a question of each kind. Interpolation: ½·E0(first) + ½·E0(third) of one patient against
    E0(region) of every region of another patient by cosine, but for the regions at the two places given; right is the
    second place. Extrapolation: E0(second) + (E0(second) − E0(first)) likewise; right is the third place. Chance is one
    of the candidates. An encoder that embeds everything alike scores chance; one whose E0 changes evenly with the place
    in the body, and with nothing else, scores 100 %.

    No landmark is needed: images are taken by a standard protocol, so one place shows about the same anatomy in all
    patients. That Adam-v2's embeddings interpolate and extrapolate the layout of anatomy is reported in Medical Image
    Analysis 112:104117 (2026); this protocol is this project's own.
    """

    name = "interpolation"
    params = InterpolationParams
    title = "Interpolation and extrapolation"
    question = "Do two regions tell what lies between and beyond them in another {one}?"
    headline = "interpolation"
    unit = "top-1 accuracy for the region between two others"
    figures: ClassVar[Mapping[str, Figure]] = {
        "interpolation": Figure(
            title="Interpolation: the region between two others found in another {one}",
            number="{:.1%}",
            group="interpolation",
            summary="region between two others, in another {one}",
        ),
        "extrapolation": Figure(
            title="Extrapolation: the region beyond two others found in another {one}",
            number="{:.1%}",
            summary="region beyond two others",
        ),
    }
    text = (
        "Squares stand in a lattice, half a side apart, at the same places of every image. For three neighbours in a "
        "row, the mean of the first and third one's embeddings should point to the second, and the second's plus its "
        "difference from the first's should point to the third. The square is looked for in another {one}, among all "
        "places of the lattice but the two given; chance is one of these at random."
    )

    def min_patients(self, params: InterpolationParams) -> int:
        """Return 2: one patient's questions are answered in another."""
        return 2

    def plan(self, setting: Setting, params: InterpolationParams) -> InterpolationMeasurement:
        """Lay the lattice, and draw in whom each patient's questions are answered."""
        num, rng = min(params.num_patients, len(setting.cohort.subjects)), setting.generator(self.name)
        pairs = tuple(
            (query, int(key))
            for query in range(num)
            for key in rng.permutation(np.delete(np.arange(num), query))[: params.keys_per_query]
        )
        regions, num_per_row = lattice(params.side)
        return InterpolationMeasurement(
            setting=setting, regions=regions, questions=draw_questions(num_per_row), num_patients=num, pairs=pairs
        )

    def shown(self, evidence: Evidence) -> dict[str, Any]:
        """Show a question of each kind for the first patients with each encoder's nearest candidates."""
        from ace.drawing.pictures import answer_row, data_uri

        pictures, arrays = [], evidence.arrays
        for figure in FIGURES:
            for number, given in enumerate(arrays[f"{figure}_given"]):
                rows = [
                    answer_row(
                        name,
                        at,
                        arrays[f"{name}_{figure}_best"][number],
                        arrays[f"{name}_{figure}_is_right"][number],
                    )
                    for at, name in enumerate(evidence.encoders)
                ]
                one, other = (f'<img class="tile" src="{data_uri(crop)}" alt="Given square">' for crop in given)
                wanted = f'<img class="tile" src="{data_uri(arrays[f"{figure}_wanted"][number])}" alt="Wanted square">'
                order = (one, wanted, other) if figure == "interpolation" else (one, other, wanted)
                tiles = f'<div class="triple {figure}">{"".join(order)}</div>'
                label = f'<p class="label">{figure}</p>'
                pictures.append(f'<div class="query asked"><div>{label}{tiles}</div><div>{"".join(rows)}</div></div>')
        note = (
            "Left: three squares of one {one}; the framed one is looked for, the others are given. Right: the nearest "
            "squares of another {one}, best first; green is the right place. None picked by hand."
        )
        return {"pictures": pictures, "note": evidence.words.fill(note)}
