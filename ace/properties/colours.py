"""Tokens as colours: which tokens of several images an encoder takes for alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ace.embed.embedder import Embedder
from ace.properties.base import Answers, Evidence, Measurement, Property, Reading, Setting
from ace.protocol.cohort import Subject
from ace.protocol.dense import DirectionMap, with_landmarks
from ace.protocol.features import CanvasView, Features, views_of
from shards.core.config import Section


class ColoursParams(Section):
    """Pictures alone, of the first `evaluate.num_examples` patients: nothing to set."""


def principal_colours(
    features: Sequence[DirectionMap],
) -> Float[np.ndarray, "canvases locations locations 3"]:
    """Return the three strongest principal components over all canvases in [0, 1]: equal colour, alike token."""
    stacked = np.stack(features)
    vectors = stacked.reshape(-1, stacked.shape[-1]).astype(np.float64)
    vectors -= vectors.mean(axis=0)
    _, axes = np.linalg.eigh(vectors.T @ vectors)
    projected = vectors @ axes[:, :-4:-1]
    low, high = np.percentile(projected, [2, 98], axis=0)
    spread = np.where(high > low, high - low, 1)
    colours: Float[np.ndarray, "vectors 3"] = np.clip((projected - low) / spread, 0, 1)
    return colours.astype(np.float32).reshape(*stacked.shape[:-1], -1)


@dataclass(frozen=True)
class ColoursMeasurement(Measurement):
    """The patients that are shown."""

    subjects: tuple[Subject, ...]

    def dense_views(self) -> Sequence[CanvasView]:
        """Return every shown patient's canvas."""
        return views_of(subject.key for subject in self.subjects)

    def ask(self, embedder: Embedder, features: Features) -> Answers:
        """Ask nothing: the pictures are made of dense tokens."""
        return {}

    def read(self, answers: Answers) -> Mapping[str, Reading]:
        """Return no figures."""
        return {}

    def pictures(self, answers: Mapping[str, Answers], features: Mapping[str, Features]) -> Answers:
        """Keep the canvases, and per encoder `_colours` [canvases, locations, locations, RGB]."""
        arrays: dict[str, Any] = {"canvases": np.stack([subject.canvas for subject in self.subjects])}
        for name, own in features.items():
            arrays[f"{name}_colours"] = principal_colours([own.of(view) for view in self.dense_views()])
        return arrays


class Colours(Property):
    """Shows the strongest principal components of dense tokens as colours."""

    name = "colours"
    params = ColoursParams
    title = "Colours"
    question = "Which tokens are alike?"
    template = "colours.html"

    def plan(self, setting: Setting, params: ColoursParams) -> ColoursMeasurement:
        """Choose the first patients, of those with landmarks where there are some."""
        subjects = with_landmarks(setting.cohort.subjects, len(setting.cohort.subjects)) or setting.cohort.subjects
        return ColoursMeasurement(subjects[: setting.num_examples])

    def shown(self, evidence: Evidence) -> dict[str, Any]:
        """Show canvases beside the principal components of their dense tokens."""
        from ace.drawing.pictures import data_uri

        examples = [
            {
                "canvas": data_uri(canvas, kind="jpeg"),
                "maps": [
                    data_uri((evidence.arrays[f"{name}_colours"][position] * 255).astype(np.uint8))
                    for name in evidence.encoders
                ],
            }
            for position, canvas in enumerate(evidence.arrays["canvases"])
        ]
        return {"examples": examples}
