"""Landmark separation: tokens of one landmark lie together across patients, and apart from other landmarks'."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from pydantic import Field

from ace.embed.embedder import Embedder, unit
from ace.properties.base import Answers, Evidence, Figure, Measurement, NotMeasured, Property, Reading, Setting
from ace.protocol.cohort import Subject
from ace.protocol.dense import common_landmarks, interpolate, points_of, with_landmarks
from ace.protocol.features import CanvasView, Features, views_of
from ace.protocol.intervals import per_patient
from shards.core.config import Section

Tokens = Float[np.ndarray, "patients landmarks dim"]
MAX_PERPLEXITY = 30.0
DECIMALS = 9
"""Decimals that a distance is rounded to."""


class SeparationParams(Section):
    """Landmarks that all patients have."""

    num_patients: int = Field(ge=2)
    """Patients with landmarks whose tokens are compared."""
    num_landmarks: int = Field(ge=2)
    """Landmarks, drawn by seed, whose token every patient gives."""


def silhouettes(tokens: Tokens) -> Float[np.ndarray, "patients landmarks"]:
    """Compute how much nearer a token is to its landmark's in other patients than to another landmark's, −1 to 1.

    Rousseeuw's silhouette with the distance 1 − cosine: (b − a) / max(a, b), where a is the mean distance to the
    tokens of the same landmark, and b the least of the mean distances to those of each other landmark. It is 0 where
    all tokens are alike.
    """
    from sklearn.metrics import silhouette_samples

    num_patients, num_landmarks, dim = tokens.shape
    vectors = unit(tokens.reshape(-1, dim).astype(np.float64))
    # Rounded, so that vectors which are alike lie at no distance, rather than at one of rounding errors.
    distances = np.maximum(1 - vectors @ vectors.T, 0).round(DECIMALS)
    np.fill_diagonal(distances, 0)
    landmark = np.tile(np.arange(num_landmarks), num_patients)
    found = silhouette_samples(distances, landmark, metric="precomputed")
    values: Float[np.ndarray, "patients landmarks"] = found.reshape(num_patients, num_landmarks)
    return values


def plane(tokens: Tokens, seed: int) -> Float[np.ndarray, "points 2"]:
    """Lay tokens out on a plane by t-SNE, so that those that are alike lie together; for pictures alone."""
    from sklearn.manifold import TSNE

    vectors = tokens.reshape(-1, tokens.shape[-1])
    perplexity = min(MAX_PERPLEXITY, (len(vectors) - 1) / 3)
    found: Float[np.ndarray, "points 2"] = TSNE(
        metric="cosine", init="random", perplexity=perplexity, random_state=seed
    ).fit_transform(vectors)
    return found


@dataclass(frozen=True)
class SeparationMeasurement(Measurement):
    """Landmarks of several patients.

    Attributes:
        setting: The patients.
        subjects: Those whose tokens are compared.
        names: The landmarks; all of these patients have them.
    """

    setting: Setting
    subjects: tuple[Subject, ...]
    names: tuple[str, ...]

    def dense_views(self) -> Sequence[CanvasView]:
        """Every patient's canvas."""
        return views_of(subject.key for subject in self.subjects)

    def ask(self, embedder: Embedder, features: Features) -> Answers:
        """Return the tokens at the landmarks [patients, landmarks, dim]."""
        tokens = [
            interpolate(features.of(view), self.setting.axis, points_of(subject, self.names))
            for subject, view in zip(self.subjects, self.dense_views(), strict=True)
        ]
        return {"tokens": np.stack(tokens)}

    def read(self, answers: Answers) -> Mapping[str, Reading]:
        """Average the silhouettes; resampled patients weigh their own tokens, whose silhouettes stay as they are."""
        found = silhouettes(answers["tokens"])
        num, facts = len(self.subjects), {"num_landmarks": len(self.names)}
        measure = per_patient(found.sum(axis=1), np.full(num, len(self.names)))
        return {"separation": Reading(measure=measure, num_patients=num, chance=0.0, facts=facts)}

    def pictures(self, answers: Mapping[str, Answers], features: Mapping[str, Features]) -> Answers:
        """Keep each encoder's tokens on a plane, patient by patient, and where the landmarks lie on average, 0 to 1."""
        points = np.stack([points_of(subject, self.names) for subject in self.subjects])
        return {
            "places": points.mean(axis=0) / self.setting.cohort.spec.canvas_px,
            **{f"{name}_plane": plane(answer["tokens"], self.setting.seed) for name, answer in answers.items()},
        }


class Separation(Property):
    """Tells whether tokens of landmarks cluster by landmark rather than by patient."""

    name = "separation"
    params = SeparationParams
    title = "Landmark separation"
    question = "Do tokens of one landmark lie together across {many}?"
    headline = "separation"
    unit = "mean silhouette of landmark tokens"
    figures: ClassVar[Mapping[str, Figure]] = {
        "separation": Figure(
            title="Separation: silhouette of landmark tokens", number="{:.3f}", group="separation", summary="silhouette"
        ),
    }
    text = (
        "The token at each of some landmarks is taken from every {one}. Its silhouette compares its mean distance to "
        "the tokens of the same landmark in other {many} with that to the nearest other landmark: 1 where the tokens "
        "of each landmark are one, 0 where all tokens are alike, below 0 where another landmark is nearer."
    )

    def plan(self, setting: Setting, params: SeparationParams) -> SeparationMeasurement | NotMeasured:
        """Choose landmarks that all patients have."""
        subjects = with_landmarks(setting.cohort.subjects, params.num_patients)
        names = common_landmarks(subjects, params.num_landmarks, setting.generator(self.name))
        if len(names) < 2:
            return NotMeasured(
                f"fewer than two landmarks are common to {setting.cohort.split} patients of this batch, or fewer than "
                "two patients have landmarks"
            )
        return SeparationMeasurement(setting, subjects, names)

    def shown(self, evidence: Evidence) -> dict[str, Any]:
        """Show every encoder's tokens on a plane."""
        from ace.drawing.pictures import place_colour
        from ace.drawing.plots import scatter_panels

        planes = {name: evidence.arrays[f"{name}_plane"] for name in evidence.encoders}
        colours = [place_colour(place) for place in evidence.arrays["places"]]
        num_patients = len(planes[evidence.encoders[0]]) // len(colours)
        note = (
            "The same tokens laid out by t-SNE, which keeps neighbours together and distorts distances. Each dot is a "
            "landmark of one {one}; its colour tells where on the image the landmark lies on average."
        )
        width = f"max-width: {16 * len(planes)}rem"
        plot = f'<figure class="panel" style="{width}">{scatter_panels(planes, colours * num_patients)}</figure>'
        return {"pictures": [plot], "note": evidence.words.fill(note)}
