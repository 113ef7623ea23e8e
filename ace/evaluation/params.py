"""The `evaluate` section of params.yaml."""

from typing import Literal, Self

from pydantic import Field, model_validator

from ace.models.params import ReferenceParams
from shards.config import Section

Fill = Literal["black", "mean", "white", "noise", "tissue"]
"""What takes the place of a region that is removed from an image."""
MeasuredSplit = Literal["test", "val"]


class CompositionParams(Section):
    """Whole against the mean of its 2×2 parts."""

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

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_sides(self.min_side, self.max_side)
        shared = max(0.0, 2 * self.min_side - 1) ** 2
        least_iou = shared / (2 * self.min_side**2 - shared)
        if least_iou > self.max_mismatch_iou:
            raise ValueError(
                f"regions of min_side {self.min_side} overlap by an IoU of at least {least_iou:.2f}, and "
                f"max_mismatch_iou is {self.max_mismatch_iou}: no two would be mismatched; lower min_side or raise it"
            )
        return self


class DecompositionParams(Section):
    """Image minus image-without-region against the region."""

    num_draws: int = Field(ge=20)
    """Draws of `batch` patients; the accuracy is their mean."""
    batch: int = Field(ge=2)
    """Queries and candidates in a draw, each of another patient; chance is 1/batch."""
    regions_per_patient: int = Field(ge=1)
    """Regions embedded per patient and case, from which the draws take one; also the number of shared positions."""
    min_side: float = Field(gt=0, le=1)
    """Smallest side of a region, as a fraction of the canvas side."""
    max_side: float = Field(gt=0, le=1)
    """Largest side of a region, as a fraction of the canvas side."""
    fills: tuple[Fill, ...]
    """What takes the place of a removed region; the first is `black`, the paper's, whose figure is the headline. Each
    other one gives the same measure over the same regions and draws, `decompositionality_FILL`: `mean` is the image's
    own mean grey level in each channel; `white` is 255, which no training here fills with; `noise` is a random level in
    each pixel and channel; `tissue` is what another patient's image shows at a place and size of its own, resampled
    into the region. An encoder that only knows black loses the figure with the others."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        _check_sides(self.min_side, self.max_side)
        return self

    @model_validator(mode="after")
    def _black_first(self) -> Self:
        if self.fills[:1] != ("black",):
            raise ValueError(
                f"fills are {list(self.fills)}; the first has to be black, since `decompositionality` is black's figure"
            )
        if len(set(self.fills)) < len(self.fills):
            raise ValueError(f"fills are {list(self.fills)}; name each once")
        return self


class CorrespondenceParams(Section):
    """Landmarks of one patient found in another by the nearest token."""

    num_patients: int = Field(ge=2)
    """Test patients whose canvases get dense features."""
    keys_per_query: int = Field(ge=1)
    """Other patients in which each patient's landmarks are looked for."""
    locations_per_cell: int = Field(ge=2)
    """Locations along one side of a cell; 2 is a stride of half a cell."""
    window_step_cells: int = Field(ge=1)
    """Distance of neighbouring windows, in cells; 1 sees every location at its window's centre, more is faster."""
    max_landmarks: int = Field(ge=1)
    """Landmarks used per query, drawn by seed where an image has more."""
    success_px: float = Field(gt=0)
    """Largest error that counts as found, in pixels of a canvas scaled to 1024 px."""


class BootstrapParams(Section):
    """Confidence intervals from resampled patients."""

    num_resamples: int = Field(ge=100)
    """Resamples of the patients."""
    level: float = Field(gt=0.5, lt=1)
    """Share of the resampled figures between `low` and `high`."""


class Bound(Section):
    """What a metric has to keep to; an absent side is unbounded."""

    min: float | None = None
    """Smallest accepted value."""
    max: float | None = None
    """Largest accepted value."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("a bound needs a min, a max, or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self

    def accepts(self, value: float) -> bool:
        """Whether the value lies within the bound, its ends included."""
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


class EvaluateParams(Section):
    """The evidence: on which patients, how it is measured, and what is expected of it."""

    batch: str = Field(min_length=1)
    """Key in `batches` of the shard set whose patients are used."""
    split: MeasuredSplit
    """Whose patients are measured: `test` for results; `val` to choose settings by, so that no choice is made on the
    patients that results are of."""
    accept_shared_images: bool
    """Whether the batch may hold images, or patients, that the encoder was trained on (docs/data.md)."""
    seed: int = Field(ge=0)
    """Seed of the patients chosen, the regions, the draws, the resamples, and the untrained encoder."""
    max_patients: int = Field(ge=2)
    """Largest number of patients used, one image each."""
    images_per_forward: int = Field(ge=1)
    """Images in one forward pass; speed and memory only."""
    composition: CompositionParams
    decomposition: DecompositionParams
    correspondence: CorrespondenceParams
    reference: ReferenceParams | None
    """An encoder that others trained on ImageNet, measured beside the trained one as the row `imagenet`; null leaves
    the row out."""
    bootstrap: BootstrapParams
    num_examples: int = Field(ge=1)
    """Examples of each property kept for the report's pictures."""
    checks: dict[str, Bound]
    """Dotted path in metrics/properties.json, as `trained.compositionality.low`, and the bound it is held to."""

    @model_validator(mode="after")
    def _enough_patients(self) -> Self:
        if self.max_patients < self.decomposition.batch:
            raise ValueError(
                f"max_patients {self.max_patients} is below decomposition.batch {self.decomposition.batch}"
            )
        return self


def _check_sides(min_side: float, max_side: float) -> None:
    if min_side > max_side:
        raise ValueError(f"min_side {min_side} is above max_side {max_side}")
