"""Encoders and subjects with known answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from ace.embed.embedder import Embedder
from ace.models.params import Precision
from ace.protocol.cohort import Cohort, Subject
from ace.protocol.dense import LocationAxis
from ace.protocol.features import CanvasView, Features, write_features
from shards.core.grid import GridSpec, Scale
from shards.core.normalisation import Normalisation

SPEC = GridSpec(n=6, cell_px=8, t=4, scales=(Scale(1, 1, 1.0),), min_overlap=0.25, min_jitter_area=1.0)


class FromCellMeans(nn.Module):
    """A backbone that sees nothing but the mean colour of each cell, and turns it into a token."""

    def __init__(self, spec: GridSpec, code: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.spec, self.code = spec, code

    def forward(self, images: Tensor) -> Tensor:
        return self.code(avg_pool2d(images, self.spec.cell_px).movedim(1, -1))


@dataclass(frozen=True)
class ConstructedEncoder:
    """An encoder that takes pixels in [0, 1] as they are."""

    backbone: nn.Module
    spec: GridSpec = SPEC
    in_channels: int = 3
    device: torch.device = torch.device("cpu")  # noqa: RUF009
    precision: Precision = "fp32"

    @property
    def input_px(self) -> int:
        return self.spec.crop_px

    def normalisation(self, batch: str) -> Normalisation:
        assert batch == "constructed"
        return Normalisation.of(0.0, 1.0)


def embedder(code: Callable[[Tensor], Tensor], spec: GridSpec = SPEC, images_per_forward: int = 7) -> Embedder:
    encoder = ConstructedEncoder(FromCellMeans(spec, code), spec)
    return Embedder(encoder=encoder, batch="constructed", images_per_forward=images_per_forward, name="constructed")


def colour(means: Tensor) -> Tensor:
    """The token is the cell's mean colour: the embedding of a whole is exactly the mean of its parts'."""
    return means


def collapsed(means: Tensor) -> Tensor:
    """Every token of every image is the same."""
    return torch.ones(*means.shape[:-1], 5)


def place(means: Tensor) -> Tensor:
    """Red and green read as row and column, on circles, so that the cosine falls with the distance."""
    angles = means[..., :2] * torch.pi / 2
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def random_colours(num_patients: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, size=(num_patients, 3)).astype(np.uint8)


def plain_canvases(colours: np.ndarray, size_px: int = SPEC.canvas_px) -> list[np.ndarray]:
    """One canvas of one colour for each patient."""
    return [np.broadcast_to(value, (size_px, size_px, 3)).copy() for value in colours]


def map_subject(row_shift_px: float, col_shift_px: float, num_landmarks: int, seed: int) -> Subject:
    """A canvas painted with an atlas: red is the atlas row, green its column; the patient lies shifted in it."""
    size_px, span_px = SPEC.canvas_px, 2 * SPEC.canvas_px
    rows, cols = np.mgrid[:size_px, :size_px] + 0.5
    painted = [rows + row_shift_px, cols + col_shift_px, np.zeros_like(rows)]
    canvas = np.rint(np.stack(painted, axis=-1) * 255 / span_px).astype(np.uint8)
    atlas = np.random.default_rng(seed).uniform(0.5 * size_px, 0.85 * size_px, size=(num_landmarks, 2))
    shift = np.array([row_shift_px, col_shift_px])
    landmarks = {f"mark{number}": tuple(point - shift) for number, point in enumerate(atlas)}
    return Subject(
        key=f"subject-{row_shift_px}",
        canvas=canvas,
        landmarks=landmarks,
        foreground=np.ones((SPEC.n, SPEC.n), dtype=bool),
    )


def dense(own: Embedder, subjects: Sequence[Subject], axis: LocationAxis, folder: Path) -> Features:
    """The store of the subjects' dense tokens."""
    return write_features(folder, own, axis, {CanvasView(item.key): item.canvas for item in subjects}, {})


def map_cohort(num_patients: int, seed: int = 0) -> Cohort:
    shifts = np.random.default_rng(seed).uniform(0, 16, size=(num_patients, 2))
    subjects = [map_subject(float(row), float(col), num_landmarks=9, seed=3) for row, col in shifts]
    return Cohort(batch="constructed", split="test", spec=SPEC, subjects=tuple(subjects))
