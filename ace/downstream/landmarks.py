"""Landmarks: where each of them lies, by the heat maps of UPerNet.

Points are (row, col) as shares of the side of what is shown, whatever size an encoder takes; nan where a landmark is
not known.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from ace.data.crops import resample
from ace.downstream.base import Arrays, Score, Target, Task
from ace.downstream.cases import REFERENCE_PX, canvas_side, mean_of_cases, mean_over, no_such_names, pixel_mm
from ace.downstream.heat_maps import decode, landmark_loss
from ace.downstream.joint import shown_points
from ace.downstream.params import TaskParams
from ace.downstream.parts import Part
from ace.downstream.shown import ShownPart
from ace.downstream.upernet import CHANNELS_PER_GROUP, UPerNet
from ace.downstream.views import View, center_view
from ace.drawing.outlines import pointed
from ace.embed.encoder import Encoder
from ace.protocol.intervals import Measure
from shards.core.canvas import Canvas
from shards.core.errors import ConfigError
from shards.reading.reader import Sample, ShardReader

PICTURE_PX = 512


class LandmarksParams(TaskParams):
    """Describes a task of landmarks."""

    kind: Literal["landmarks"]
    """Names this kind of task."""
    landmarks: tuple[str, ...] = Field(min_length=1)
    """Landmarks, as the shards name them, in the order of the outputs."""
    sigma: float = Field(gt=0, lt=0.5)
    """Standard deviation of the Gaussian that is learned around each, as a share of the side of what is shown."""
    success_px: float = Field(gt=0)
    """A landmark is found if the error is at most this, in pixels of a canvas of 1024."""
    decoder_channels: int = Field(ge=CHANNELS_PER_GROUP, multiple_of=CHANNELS_PER_GROUP)
    """Width of the decoder."""


class Landmarks(Task[LandmarksParams]):
    """Says where landmarks are."""

    kind = "landmarks"
    params_type: ClassVar[type[TaskParams]] = LandmarksParams
    code = (
        "ace/downstream/cases.py",
        "ace/downstream/heat_maps.py",
        "ace/downstream/joint.py",
        "ace/downstream/landmarks.py",
        "ace/downstream/upernet.py",
    )
    libraries = ("segmentation-models-pytorch",)

    @property
    def headline(self) -> str:
        """Return the share that is found; validation looks at the mean error, which falls before any is found."""
        return "found"

    @cached_property
    def view(self) -> View:
        """Return what is shown of an image where nothing is drawn: the middle."""
        return center_view(self.params.shown.crop_side)

    def truth(self, part: Part, *, is_training: bool) -> Arrays:
        """Read the landmarks of the middle of each image, and its sides in mm.

        Raises:
            ConfigError: no image knows any of the landmarks.
        """
        reader, canvas_px = ShardReader(part.index), part.index.spec.canvas_px
        points, sides = [], []
        found: set[str] = set()
        for row in part.rows:
            sample = reader.read(int(row))
            found |= sample.landmarks.keys()
            points.append(self._seen(sample, self.view, canvas_px))
            sides.append(pixel_mm(sample.meta, canvas_px * self.view.side, 1.0))
        if not found & set(self.params.landmarks):
            raise no_such_names("landmarks", self.params.landmarks, part, found)
        return {"points": np.stack(points), "side_mm": np.array(sides)}

    def classes(self, truth: Arrays) -> Bool[np.ndarray, "images classes"]:
        """Tell which images know a landmark: one class, so that few shots are so many images."""
        return np.asarray(is_known(truth["points"]).any(1, keepdims=True))

    def target(self, sample: Sample, view: View, rng: np.random.Generator) -> Target:
        """Move the landmarks as the view moves the image."""
        points = self._seen(sample, view, canvas_side(sample)).astype(np.float32)
        return Target(points, is_known(points))

    def network(self, encoder: Encoder) -> nn.Module:
        """Put UPerNet on the encoder."""
        params = self.params
        return UPerNet(encoder.backbone, len(params.landmarks), params.decoder_channels).to(encoder.device)

    def loss(self, outputs: Tensor, targets: Tensor, known: Tensor) -> Tensor:
        """Compute the cross-entropy of the heat maps with Gaussians."""
        return landmark_loss(outputs, targets, side=1.0, sigma=self.params.sigma)

    def answer(self, network: nn.Module, shown: ShownPart, *, is_final: bool) -> Arrays:
        """Return the tops of the heat maps."""
        found = [decode(network(images[:, 0]), 1.0).cpu().numpy() for images in shown.images((self.view,))]
        return {"points": np.concatenate(found).astype(np.float64)}

    def validation_score(self, truth: Arrays, answers: Arrays) -> float:
        """Return the mean error in pixels of a canvas of 1024, negative."""
        return -float(np.nanmean(self._errors(truth, answers)))

    def check(self, truths: Mapping[str, Arrays]) -> None:
        """Check that training knows every landmark.

        Raises:
            ConfigError: naming those that it does not.
        """
        is_there = np.asarray(is_known(truths["train"]["points"]).any(0))
        if absent := [name for name, own in zip(self.params.landmarks, is_there, strict=True) if not own]:
            raise ConfigError(
                f"landmarks: no training image has {', '.join(absent)}; leave them out, or write the names as the "
                "dataset does"
            )

    def scores(self, truth: Arrays, answers: Arrays, part: Part) -> Mapping[str, Score]:
        """Score every landmark and their mean: the share that is found, and errors."""
        guess = {"points": np.broadcast_to(mean_positions(truth["points"]), truth["points"].shape)}
        in_px, guessed = (self._errors(truth, own) for own in (answers, guess))
        in_mm = radial_errors(answers["points"], truth["points"], truth["side_mm"])
        radius, by_landmark = self.params.success_px, {}
        for column, name in enumerate(self.params.landmarks):
            own, chance, mm = in_px[:, column], guessed[:, column], in_mm[:, column]
            is_known = ~np.isnan(own)
            if not is_known.any():
                continue
            facts = {"num_images": int(is_known.sum())}
            by_landmark[name] = {
                "found": Score(
                    share_within(own, radius, part.patients), float((chance[is_known] <= radius).mean()), facts
                ),
                "error_px_at_1024": Score(mean_of_cases(own, part.patients), float(chance[is_known].mean()), facts),
                "error_mm": Score(mean_of_cases(mm, part.patients), None, {"num_images": int((~np.isnan(mm)).sum())}),
            }
        return mean_over(by_landmark)

    def losses(self, truth: Arrays, answers: Arrays) -> Float[np.ndarray, " images"]:
        """Return the mean error of each image."""
        losses: Float[np.ndarray, " images"] = np.nanmean(self._errors(truth, answers), axis=1)
        return losses

    def shown_answer(self, truth: Arrays, answers: Arrays, image: int, canvas: Canvas) -> dict[str, Any]:
        """Return truth and answer over the image."""
        pixels = resample(canvas, self.view.window(len(canvas)), PICTURE_PX)
        true, found = (PICTURE_PX * arrays["points"][image] for arrays in (truth, answers))
        return {"overlay": pointed(pixels, true, found, zoom=1)}

    def _seen(self, sample: Sample, view: View, canvas_px: int) -> Float[np.ndarray, "landmarks 2"]:
        landmarks, unknown = sample.landmarks, (np.nan, np.nan)
        points = np.array([landmarks.get(name, unknown) for name in self.params.landmarks], dtype=np.float64)
        return shown_points(points, view, canvas_px, 1.0)

    def _errors(self, truth: Arrays, answers: Arrays) -> Float[np.ndarray, "images landmarks"]:
        """Compute errors in pixels of a canvas of 1024."""
        side = self.view.side * REFERENCE_PX
        return radial_errors(answers["points"], truth["points"], np.full((len(truth["points"]), 2), side))


def is_known(points: Float[np.ndarray, "*cases landmarks 2"]) -> Bool[np.ndarray, "*cases landmarks"]:
    """Tell which landmarks are known."""
    return np.asarray(~np.isnan(points).any(-1))


def radial_errors(
    predicted: Float[np.ndarray, "cases landmarks 2"],
    truth: Float[np.ndarray, "cases landmarks 2"],
    sides: Float[np.ndarray, "cases 2"],
) -> Float[np.ndarray, "cases landmarks"]:
    """Compute distances of predictions from the truth; nan where a landmark or the side of its image is not known.

    Args:
        predicted: Predictions.
        truth: Truths.
        sides: What a share of 1 measures down the rows and along the columns of each image, in the errors' unit.
    """
    errors: Float[np.ndarray, "cases landmarks"] = np.linalg.norm((predicted - truth) * sides[:, None], axis=-1)
    return errors


def share_within(errors: Float[np.ndarray, " cases"], radius: float, patients: Int[np.ndarray, " cases"]) -> Measure:
    """Compute the share of the known errors that are at most the radius."""
    return mean_of_cases(np.where(np.isnan(errors), np.nan, errors <= radius), patients)


def mean_positions(truth: Float[np.ndarray, "cases landmarks 2"]) -> Float[np.ndarray, "landmarks 2"]:
    """Average where each landmark lies: the answer of a model that sees no image, whose error is the chance level.

    Returns:
        Positions; nan for a landmark that no case knows.
    """
    known = ~np.isnan(truth)
    positions: Float[np.ndarray, "landmarks 2"] = np.full(truth.shape[1:], np.nan)
    np.divide(np.where(known, truth, 0).sum(0), known.sum(0), out=positions, where=known.any(0))
    return positions
