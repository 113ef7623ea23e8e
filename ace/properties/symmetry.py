"""Symmetry: what lies left, shown mirrored, is found at its counterpart on the right (method.md §5)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from pydantic import Field

from ace.drawing.words import encoder_name
from ace.embed.embedder import Embedder
from ace.properties.base import Answers, Evidence, Figure, Measurement, NotMeasured, Property, Reading, Setting
from ace.protocol.cohort import Subject
from ace.protocol.dense import Points, interpolate, nearest, points_of
from ace.protocol.features import CanvasView, Features, views_of
from ace.protocol.intervals import per_patient
from shards.core.config import Section

OTHER_SIDE = {"left": "right", "right": "left"}
_SIDE = re.compile(r"(?<![a-z])(left|right)(?![a-z])")


class SymmetryParams(Section):
    """Landmarks that have a counterpart on the other side."""

    num_patients: int = Field(ge=1)
    """Patients with such landmarks that are looked at; each costs dense tokens of its canvas, plain and mirrored."""
    max_landmarks: int = Field(ge=1)
    """Landmarks used of each patient, drawn by seed where there are more."""


@dataclass(frozen=True)
class SymmetryMeasurement(Measurement):
    """Landmarks of several patients, each with its counterpart."""

    setting: Setting
    subjects: tuple[Subject, ...]
    names: tuple[tuple[str, ...], ...]

    def dense_views(self) -> Sequence[CanvasView]:
        """Return every patient's canvas, plain and mirrored."""
        keys = [subject.key for subject in self.subjects]
        return [*views_of(keys), *views_of(keys, is_mirrored=True)]

    def ask(self, embedder: Embedder, features: Features) -> Answers:
        """Return where the mirrored tokens of all landmarks were found, one patient after another."""
        axis, found = self.setting.axis, []
        for subject, names in zip(self.subjects, self.names, strict=True):
            mirrored = features.of(CanvasView(subject.key, is_mirrored=True))
            wanted = interpolate(mirrored, axis, self._mirrored(points_of(subject, names)))
            found.append(nearest(wanted, features.of(CanvasView(subject.key)), axis))
        return {"found": np.concatenate(found)}

    def read(self, answers: Answers) -> Mapping[str, Reading]:
        """Count the landmarks that were found within one cell of their counterpart."""
        cell_px, axis = self.setting.cohort.spec.cell_px, self.setting.axis
        chances = []
        for subject, target in zip(self.subjects, self._targets(), strict=True):
            guesses = axis.points()[axis.inside(subject, cell_px)]
            distances = np.linalg.norm(guesses[:, None] - target, axis=2)
            chances.append((distances <= cell_px).mean(axis=0))
        return {"symmetry": self._reading(answers["found"], float(np.concatenate(chances).mean()))}

    def baselines(self) -> Mapping[str, Mapping[str, Reading]]:
        """Measure the guess that the counterpart lies where the landmark is in the mirrored image."""
        source = [points_of(subject, names) for subject, names in zip(self.subjects, self.names, strict=True)]
        return {"symmetry": {"mirrored_pixel": self._reading(self._mirrored(np.concatenate(source)), None)}}

    def pictures(self, answers: Mapping[str, Answers], features: Mapping[str, Features]) -> Answers:
        """Keep the first canvases as `canvas_I`, the counterparts as `targets_I`, and where each encoder found them."""
        ends = np.cumsum([len(names) for names in self.names])[:-1]
        found = {name: np.split(answer["found"], ends) for name, answer in answers.items()}
        arrays: dict[str, Any] = {}
        for number, target in enumerate(self._targets()[: self.setting.num_examples]):
            arrays |= {f"canvas_{number}": self.subjects[number].canvas, f"targets_{number}": target}
            arrays |= {f"{name}_found_{number}": own[number] for name, own in found.items()}
        return arrays

    def _mirrored(self, points: Points) -> Points:
        return np.stack([points[:, 0], self.setting.cohort.spec.canvas_px - points[:, 1]], axis=1)

    def _targets(self) -> list[Float[np.ndarray, "_ 2"]]:
        """Return where the landmarks' counterparts lie, by patient."""
        return [
            points_of(subject, [counterpart(name) for name in names])
            for subject, names in zip(self.subjects, self.names, strict=True)
        ]

    def _reading(self, found: Points, chance: float | None) -> Reading:
        patient = np.repeat(np.arange(len(self.subjects)), [len(names) for names in self.names])
        distances: Float[np.ndarray, " points"] = np.linalg.norm(found - np.concatenate(self._targets()), axis=1)
        is_found = distances <= self.setting.cohort.spec.cell_px
        measure = per_patient(np.bincount(patient, is_found, len(self.subjects)), np.bincount(patient))
        return Reading(
            measure=measure, num_patients=len(self.subjects), chance=chance, facts={"num_landmarks": len(patient)}
        )


class Symmetry(Property):
    """Looks for a landmark's counterpart on the other side.

    The token at a landmark of the mirrored image is compared with every location of the image as it is. It is found if
    the nearest one lies within one cell of the counterpart. An encoder to which mirroring changes nothing finds the
    landmark itself instead, and one that tells nothing but places finds the mirrored pixel, the baseline.
    """

    name = "symmetry"
    params = SymmetryParams
    title = "Symmetry"
    question = "Is a mirrored landmark found at its counterpart?"
    headline = "symmetry"
    unit = "share within one cell of the counterpart"
    figures: ClassVar[Mapping[str, Figure]] = {
        "symmetry": Figure(
            title="Symmetry: mirrored landmark found at its counterpart",
            number="{:.1%}",
            group="symmetry",
            summary="counterpart within one cell",
        )
    }
    text = (
        "The image is mirrored left to right. The token at a landmark of the mirrored image is compared with every "
        "location of the image as it is. The nearest one should be the landmark's counterpart on the other side, "
        "within one cell. “Mirrored pixel” guesses that the counterpart lies where the mirrored image has the landmark."
    )

    def plan(self, setting: Setting, params: SymmetryParams) -> SymmetryMeasurement | NotMeasured:
        """Draw landmarks that have a counterpart."""
        rng = setting.generator(self.name)
        chosen = [(subject, paired_names(subject)) for subject in setting.cohort.subjects]
        chosen = [(subject, names) for subject, names in chosen if names][: params.num_patients]
        if not chosen:
            return NotMeasured(
                f"no {setting.cohort.split} patient of this batch has a landmark with a counterpart: two names that "
                "differ in left and right alone"
            )
        drawn = [
            tuple(names[number] for number in np.sort(rng.permutation(len(names))[: params.max_landmarks]))
            for _, names in chosen
        ]
        return SymmetryMeasurement(setting, tuple(subject for subject, _ in chosen), tuple(drawn))

    def shown(self, evidence: Evidence) -> dict[str, Any]:
        """Show the first patients with each encoder's counterparts."""
        from ace.drawing.pictures import encoder_label, found_tile, tile_row

        arrays = evidence.arrays
        pictures: list[str] = []
        while f"canvas_{len(pictures)}" in arrays:
            number = len(pictures)
            tiles = [
                (
                    encoder_label(name, position),
                    found_tile(
                        arrays[f"canvas_{number}"],
                        arrays[f"targets_{number}"],
                        arrays[f"{name}_found_{number}"],
                        f"Counterparts found by the {encoder_name(name)} encoder",
                    ),
                )
                for position, name in enumerate(evidence.encoders)
            ]
            pictures.append(tile_row(tiles))
        note = "Rings: the counterpart. Dots: where it was found, joined to its ring. None picked by hand."
        return {"pictures": pictures, "note": note}


def counterpart(name: str) -> str:
    """Name the landmark on the other side; a name without a side is returned as it is."""
    return _SIDE.sub(lambda found: OTHER_SIDE[found[1]], name)


def paired_names(subject: Subject) -> list[str]:
    """Name the landmarks whose counterpart the subject has too, in order."""
    return sorted(
        name for name in subject.landmarks if counterpart(name) != name and counterpart(name) in subject.landmarks
    )
